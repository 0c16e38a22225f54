"""Files appear whole or not at all."""

import errno
import os
import stat
import warnings
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


# --- a failure at every call ----------------------------------------------------------------------------------------

CALLS = ("replace", "link", "unlink", "fsync", "fstat", "chmod", "lstat", "stat")
OLD = {name: f"old {name}" for name in ("a", "b", "index", "shard")}
NEW = {name: f"new {name}" for name in ("a", "b", "c", "index")}


class _Faults:
    """Raises instead of the numbered calls, or after them, and notes which they were."""

    def __init__(self, error, *, fails, after=False, names=CALLS):
        self.error, self.fails, self.after, self.names = error, fails, after, names
        self.count, self.failed = 0, []

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name in self.names:
            self.patch.setattr(os, name, self.around(name, getattr(os, name)))
        return self

    def __exit__(self, *_):
        self.patch.undo()

    def around(self, name, function):
        def call(*arguments, **options):
            self.count += 1
            if not self.fails(self.count):
                return function(*arguments, **options)
            self.failed.append((name, arguments[0]))
            if self.after:
                function(*arguments, **options)
            raise self.error

        return call


def _exchange(directory, faults, links=True, old=OLD):
    """Write NEW over OLD; the error, if any, what lies there by name, and the hidden files."""
    directory.mkdir()
    for name, text in old.items():
        (directory / name).write_text(text)
    contents = {directory / name: text for name, text in NEW.items()}
    contents[directory / "b"] = lambda path: path.write_text(NEW["b"])
    error = None
    with faults, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not links:
            faults.patch.setattr(os, "link", replace_error)
        try:
            files.write_together(contents, [directory / "index"], [directory / "shard"])
        except (OSError, KeyboardInterrupt) as caught:
            error = caught
    there = {path.name: path.read_text() for path in directory.iterdir()}
    return error, there, {name: there.pop(name) for name in sorted(there) if name.startswith(".")}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failure_around_any_call_leaves_all_old_files_or_all_new_ones(tmp_path, error, after, links):
    seen = set()
    for step in range(1, 200):
        faults = _Faults(error, fails=lambda count, step=step: count == step, after=after)
        raised, there, hidden = _exchange(tmp_path / str(step), faults, links)
        assert there in (OLD, NEW), (step, faults.failed, there)
        assert raised is not None or there == NEW, (step, faults.failed)
        seen.add("new" if there == NEW else "old")
        stuck = {Path(path).name for name, path in faults.failed if name == "unlink" and not after}
        assert set(hidden) <= stuck, (step, faults.failed, hidden)
        if not faults.failed:
            break
    assert step > 20 and seen == {"old", "new"}


@pytest.mark.parametrize("names", [CALLS, ("replace",), ("replace", "unlink")], ids=["all", "renames", "both"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("links", [True, False])
def test_where_undoing_fails_too_nothing_is_lost(tmp_path, error, names, links):
    """Every call from one on fails: what is not at its name is beside it, and the error says where."""
    named = 0
    for step in range(1, 200):
        faults = _Faults(error, fails=lambda count, step=step: count >= step, names=names)
        raised, there, hidden = _exchange(tmp_path / str(step), faults, links)
        if there != NEW:
            for name, text in OLD.items():
                if there.get(name) != text:
                    backups = [other for other, content in hidden.items() if content == text]
                    assert backups, (step, name, there, hidden)
                    if isinstance(error, OSError):
                        assert f"{name} could not be put back (broken): its old content is in" in str(raised)
                        assert raised.errno == errno.EIO and any(backup in str(raised) for backup in backups)
                        named += 1
        if not faults.failed:
            break
    assert step < 199 and (named > 0 or not isinstance(error, OSError))


def test_one_file_that_takes_another_ones_place_is_old_or_new(tmp_path):
    for step in range(1, 40):
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / "index").write_text("old")
        with _Faults(KeyboardInterrupt(), fails=lambda count, step=step: count == step, after=True) as faults:
            try:
                files.write_together({folder / "a": "new"}, [folder / "index"])
            except KeyboardInterrupt:
                pass
        assert {path.name: path.read_text() for path in folder.iterdir()} in ({"index": "old"}, {"a": "new"})
    assert not faults.failed


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege elsewhere")
def test_links_come_back_as_links(tmp_path):
    """To a file and to nothing."""
    (tmp_path / "shared").write_text("shared")
    for name, target in (("a", "shared"), ("b", "absent")):
        (tmp_path / name).symlink_to(target)
    with _Faults(OSError(errno.EIO, "broken"), fails=lambda count: count == 5, names=("replace",)) as faults:
        with pytest.raises(OSError, match="broken"):
            files.write_together({tmp_path / name: "new" for name in "abc"})
    assert faults.failed and sorted(os.listdir(tmp_path)) == ["a", "b", "shared"]
    assert [os.readlink(tmp_path / name) for name in "ab"] == ["shared", "absent"]


@pytest.mark.parametrize("place", ["contents", "withdrawn", "superseded"])
def test_a_directory_is_refused_before_anything_is_written(tmp_path, monkeypatch, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "a").write_text("old")
    paths = {"contents": [], "withdrawn": [], "superseded": [], place: [tmp_path / "folder"]}
    contents = {tmp_path / "a": "new", **dict.fromkeys(paths.pop("contents"), "new")}
    monkeypatch.setattr(os, "replace", replace_error)
    with pytest.raises(IsADirectoryError, match="folder is a directory, wanted a file; nothing was changed"):
        files.write_together(contents, **paths)
    assert sorted(os.listdir(tmp_path)) == ["a", "folder"] and os.listdir(tmp_path / "folder") == ["mine"]
    assert (tmp_path / "a").read_text() == "old"


def replace_error(*arguments: object) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_several_files(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "index").write_text("old")
    new = {tmp_path / name: f"new {name}" for name in ("a", "b", "index")}
    files.write_together(new, [tmp_path / "index"])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {n: f"new {n}" for n in ("a", "b", "index")}
