"""The process of `vilt-fast`: standard streams that are closed or full, and Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130  # 128 + SIGINT
_GRACE_S = 2.0  # for undoing what is half done; later, Ctrl-C ends the process at once


def take_over() -> None:
    """Make this process the command's own: its streams can be written, and Ctrl-C ends it in one line."""
    _own_streams()
    # What the hub's client says of its retries would bury the one line.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Where it is ignored (nohup, a background job of a script), it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _Interrupts().handle)
        sys.unraisablehook = _on_unraisable


def end_interrupted() -> NoReturn:
    """End without the interpreter's own steps, in which another Ctrl-C would show a traceback; workers end too."""
    if "multiprocessing" in sys.modules:
        for worker in sys.modules["multiprocessing"].active_children():
            worker.kill()
    os._exit(INTERRUPTED)


class _Interrupts:
    """The handler of SIGINT."""

    def __init__(self) -> None:
        self._owner, self._first = os.getpid(), 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt the first time, do nothing while that is at work, then end the process."""
        if os.getpid() != self._owner:  # a worker, which its owner ends
            return
        now = time.monotonic()
        if not self._first:
            self._first = now
            if _is_importing(frame):  # an extension that is half initialised aborts
                _say_and_end()
            raise KeyboardInterrupt
        if now - self._first > _GRACE_S:
            end_interrupted()


def _say_and_end() -> NoReturn:
    with suppress(OSError):  # past sys.stderr, which the interrupt may have caught at work
        os.write(2, b"interrupted\n")
    end_interrupted()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _on_unraisable(unraisable: Any) -> None:
    """A KeyboardInterrupt that came into a finaliser, where Python would show and drop it, ends the process too."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _say_and_end()
    sys.__unraisablehook__(unraisable)


class _Notes(io.FileIO):
    """Standard error, where what cannot be written is dropped: the answer is worth more."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def _own_streams() -> None:
    for descriptor in (0, 2):  # or the next file that is opened gets what is meant for them
        if not _is_open(descriptor):
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    is_closed = sys.stderr is None
    encoding = "utf-8" if is_closed else sys.stderr.encoding
    notes = _Notes(os.devnull, "w") if is_closed else _Notes(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(notes), encoding, "backslashreplace", line_buffering=True)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
