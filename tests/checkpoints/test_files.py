"""Files appear whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from vilt_fast.checkpoints import files


def test_bytes_text_and_a_function(tmp_path):
    path = tmp_path / "file"
    for content, wanted in ((b"\x00\xff", b"\x00\xff"), ("é\n", "é\n".encode()), (_write, b"written")):
        files.write_atomically(path, content)
        assert path.read_bytes() == wanted
        assert os.listdir(tmp_path) == ["file"]


def _write(path: Path) -> None:
    path.write_bytes(b"written")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_the_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "other").write_bytes(b"")

    def private(path: Path) -> None:
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    for content in (b"", private):
        files.write_atomically(tmp_path / "file", content)
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "other")]
        assert modes[0] == modes[1]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError) as caught:
        files.write_atomically(path, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def writer(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(tmp_path / "file", writer)
    assert os.listdir(tmp_path) == []


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        files.write_atomically(tmp_path / "absent" / "file", b"")


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege elsewhere")
def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    """A hub cache links into a store that other revisions share."""
    (tmp_path / "shared").write_text("shared")
    (tmp_path / "file").symlink_to(tmp_path / "shared")
    files.write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "shared").read_text() == "shared"
    assert (tmp_path / "file").read_text() == "new" and not (tmp_path / "file").is_symlink()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("call", range(1, 6))
def test_several_files_come_all_or_none(tmp_path, monkeypatch, call, links):
    """The rename number `call` fails: a and b exist, c is new, and the index is withdrawn first."""
    old = {name: f"old {name}" for name in ("a", "b", "index")}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    new = {tmp_path / name: f"new {name}" for name in ("a", "b", "c", "index")}
    rename, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == call:
            raise PermissionError(errno.EACCES, "in use")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    if not links:
        monkeypatch.setattr(os, "link", replace_error)
    with pytest.raises(PermissionError):
        files.write_together(new, [tmp_path / "index"])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == old


def replace_error(*arguments: object) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_several_files(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "index").write_text("old")
    new = {tmp_path / name: f"new {name}" for name in ("a", "b", "index")}
    files.write_together(new, [tmp_path / "index"])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {n: f"new {n}" for n in ("a", "b", "index")}
