"""Where answers come: not in the engine's own threads, nor in a fork of its process, nor when Python has shut down."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any, Protocol

_PATIENCE_S = 1.0  # with threads that may never end


class Ending(Protocol):
    """What has threads."""

    def end(self) -> list[threading.Thread]:
        """End them, as Python is shutting down; those that still run what a caller gave are returned."""


class Process:
    """The process this code runs in; a fork changes `pid`. To ask the system for each pair would cost more."""

    pid = os.getpid()
    is_ending = False  # Python is shutting down: a thread that is started now need not ever run
    _ended_with: weakref.WeakValueDictionary[int, Ending] = weakref.WeakValueDictionary()

    @classmethod
    def fork(cls) -> None:
        """In the child: nothing has threads there."""
        cls.pid = os.getpid()
        cls._ended_with = weakref.WeakValueDictionary()

    @classmethod
    def end_with(cls, ending: Ending) -> None:
        """Have it ended before Python shuts down.

        Raises:
            RuntimeError: it is too late for that.
        """
        cls._ended_with[id(ending)] = ending
        if cls.is_ending:
            raise RuntimeError("Python is shutting down: the engine takes no more pairs")

    @classmethod
    def end(cls) -> None:
        """End what has threads: one that Python cuts off inside PyTorch would abort the process."""
        cls.is_ending = True
        endings = [reference() for reference in cls._ended_with.valuerefs()]
        left = [thread for ending in endings if ending is not None for thread in ending.end()]
        deadline = time.monotonic() + _PATIENCE_S
        for thread in left:
            thread.join(max(0.0, deadline - time.monotonic()))


atexit.register(Process.end)
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=Process.fork)


class Home:
    """Where a pipeline's threads are: what a future has to know of it."""

    def __init__(self) -> None:
        self.pid = Process.pid
        self.threads: list[threading.Thread] = []

    def check_process(self) -> None:
        """Raise RuntimeError in a fork."""
        if Process.pid != self.pid:
            raise RuntimeError(
                f"this engine was made before a fork, in process {self.pid}, and its threads are there alone: make an "
                'Engine in this process, or start it by "spawn"'
            )

    def check_wait(self, name: str) -> None:
        """Raise RuntimeError where waiting for an answer would never end: in a fork, and in a future's callback."""
        self.check_process()
        if threading.current_thread() in self.threads:
            raise RuntimeError(f"{name} was called in a future's callback, where it would wait for itself")


class WaitingFuture(Future):
    """A future that refuses to be waited for where that would never end."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self._home = home

    @property
    def _waiters(self) -> list[Any]:
        """Where `concurrent.futures.wait` and `as_completed` enter themselves."""
        if not self.done():
            self._home.check_wait("concurrent.futures.wait()")
        return self._entered

    @_waiters.setter
    def _waiters(self, waiters: list[Any]) -> None:
        self._entered = waiters

    def result(self, timeout: float | None = None) -> Any:
        """As of any future; RuntimeError in a fork, and in a callback of the same engine's."""
        if not self.done():
            self._home.check_wait("result()")
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `result`."""
        if not self.done():
            self._home.check_wait("exception()")
        return super().exception(timeout)
