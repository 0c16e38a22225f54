"""Who may wait for answers: not the engine's own threads, and no fork of its process; there they would never come."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from typing import Any


class Process:
    """The process this code runs in; a fork changes `pid`. To ask the system for each pair would cost more."""

    pid = os.getpid()

    @classmethod
    def note(cls) -> None:
        """Read it anew."""
        cls.pid = os.getpid()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=Process.note)


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
