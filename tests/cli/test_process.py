"""The command as a process: closed and full streams, Ctrl-C however often, and where it is started."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

# The command with `run` in the place of what a subcommand does, which takes seconds to import.
STUB = """
import sys, time
from vilt_fast import cli

def run(arguments):
{body}
    return 0

cli._run, sys.argv = run, ["vilt-fast", "env"]
sys.exit(cli.main())
"""
NOTES = STUB.format(
    body="    print('a note', file=sys.stderr)\n    open('file', 'w').write('kept')\n    print('answer', flush=True)"
)
WORK = """
    try:
        print("ready", flush=True)
        time.sleep(20)
    finally:
        time.sleep(0.3)
        print("undone", flush=True)
"""
IMPORT = """
    open("slow.py", "w").write("import time; print('ready', flush=True); time.sleep(20)")
    sys.path.insert(0, ".")
    import slow
"""
FINALISER = """
    class Last:
        def __del__(self):
            print("ready", flush=True)
            time.sleep(20)
    Last()
"""


@pytest.fixture
def full(tmp_path) -> Path:
    """A device that is full."""
    if Path("/dev/full").is_char_device():
        return Path("/dev/full")
    path = tmp_path / "full"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        os.close(os.open(path, os.O_WRONLY))
    except (OSError, AttributeError):
        pytest.skip("this system has no /dev/full, and none can be made")
    return path


def shell(directory: Path, redirected: str, *argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirected}', "sh", sys.executable, *argv],
        cwd=directory,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("redirected", ["2>&-", "0<&- 2>&-", "2>{full}"])
def test_a_note_that_cannot_be_written_goes_nowhere_and_ends_nothing(tmp_path, full, redirected):
    done = shell(tmp_path, redirected.format(full=full), "-c", NOTES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "answer\n", "")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("argv", [("-m", "vilt_fast", "--help"), ("-m", "vilt_fast", "--version"), ("-c", NOTES)])
def test_an_answer_that_cannot_be_written_is_an_error_in_one_line(tmp_path, full, argv):
    done = shell(tmp_path, f">{full}", *argv)
    lines = done.stderr.removeprefix("a note\n").splitlines()
    assert done.returncode == 2 and len(lines) == 1
    assert lines[0].startswith("vilt-fast") and "standard output: No space left" in lines[0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
@pytest.mark.parametrize("body", [WORK, IMPORT, FINALISER], ids=["work", "import", "finaliser"])
def test_ctrl_c_however_often(tmp_path, body):
    """One line and 130; what is half done is undone meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUB.format(body=body)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert out == ("undone\n" if body == WORK else "")


def test_ctrl_c_is_not_for_workers():
    """It goes to all processes of a terminal; the one that made them ends them."""
    from vilt_fast.demo.loop import _pools

    with _pools(1, 1) as (_, executor):
        assert executor.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def test_python_dash_m(tmp_path):
    done = shell(tmp_path, "", "-m", "vilt_fast", "bench", "--no-such")
    assert done.returncode == 2 and done.stderr.startswith("vilt-fast: ") and done.stderr.count("\n") == 1


def test_a_current_folder_that_was_deleted(fail, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the current folder was deleted" in fail("env")
