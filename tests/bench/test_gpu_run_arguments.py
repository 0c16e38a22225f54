"""The GPU run's command: what it refuses at once, where files go, how it ends."""

import os
import signal
import tempfile

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.bench.gpu_run import __main__ as command  # noqa: E402
from vilt_fast.bench.gpu_run import candidates  # noqa: E402
from vilt_fast.bench.gpu_run.__main__ import main  # noqa: E402
from vilt_fast.bench.timing import Times  # noqa: E402

REHEARSAL = ("--part", "4", "--rehearse", "--steps")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", ""), "--steps: got '', wanted any of env"),
        (("--minutes", "0"), "got '0', wanted a positive number"),
        (("--minutes", "nan"), "got 'nan', wanted a positive number"),
        (("--out", "/dev/null/x"), "--out: cannot write to /dev/null/x"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--part", "1", "--rehearse", "--out", str(tmp_path), "--work", str(tmp_path), *arguments])
    assert message in str(raised.value) + capsys.readouterr().err


@pytest.mark.parametrize("content", ["[1]", '{"entries": [{"op": "switches"}]}', None])
def test_a_bad_table_is_refused_at_once(content, tmp_path, monkeypatch):
    table = tmp_path / "configs" / "bad.json"
    table.parent.mkdir()
    table.mkdir() if content is None else table.write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VILT_FAST_CONFIGS", "configs")
    with pytest.raises(SystemExit, match="bad.json: got no"):
        main([*REHEARSAL, "tune", "--out", str(tmp_path / "out")])
    monkeypatch.setenv("VILT_FAST_CONFIGS", "nowhere")
    with pytest.raises(SystemExit, match=f"{tmp_path}/nowhere, wanted a folder"):
        main([*REHEARSAL, "tune", "--out", str(tmp_path / "out")])


def test_an_archive_of_before_stays(tmp_path, monkeypatch, capsys):
    """Relative paths begin where the caller is; a step that lacks a GPU is no failure of a rehearsal."""
    monkeypatch.setenv("VILT_FAST_CALLED_IN", str(tmp_path))
    for name in ("part4.tar.gz", "part4-2.tar.gz"):
        assert main([*REHEARSAL, " tune ", "--out", "out"]) == 0
        assert "not run: needs a GPU" in capsys.readouterr().out and (tmp_path / "out" / name).is_file()
    assert main([*REHEARSAL, "tune,ops_tuned", "--out", "out", "--minutes", "0.001"]) == 1, "a step was not run"


def test_caches_are_where_one_can_write(tmp_path, monkeypatch):
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert command._environment(tmp_path, "", True)["TRITON_CACHE_DIR"].startswith(str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    assert "TRITON_CACHE_DIR" not in command._environment(tmp_path, "", True)


def test_a_verdict_needs_a_margin():
    def times(median: float) -> Times:
        return Times(median, median - 0.001, median + 0.001, 9)

    verdicts = [candidates.verdict_of(times(10), times(on)) for on in (9.95, 9.8, 10.05, 10.2)]
    assert verdicts == ["same", "faster", "same", "slower"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_signals_end_the_run_in_order(number):
    """Without a traceback, through what keeps the archive."""
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as raised, command._ending_signals():
        os.kill(os.getpid(), number)
    assert raised.value.code == 128 + number and signal.getsignal(number) == before
