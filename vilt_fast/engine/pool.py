"""A pool of threads that lasts as long as Python does."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


class Pool:
    """Runs functions in threads, in the order in which they come.

    concurrent.futures ends its pools with the main thread, while other threads and exit handlers may still ask. A
    thread starts when all that are there have something to do.

    Args:
        size: threads at most. name: of the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._tasks: queue.SimpleQueue[tuple[Future, Callable[..., Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0  # tasks
        self._is_closed = False

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Call the function in a thread of the pool.

        Raises:
            RuntimeError: the pool is closed, or no thread can be started.
        """
        future: Future = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the engine is closed")
            if len(self._threads) <= self._unfinished and len(self._threads) < self._size:
                self._start()
            self._unfinished += 1
            self._tasks.put((future, function, args))
        return future

    def close(self) -> None:
        """End the threads; what none of them has begun is dropped."""
        with self._lock:
            self._is_closed = True
            with suppress(queue.Empty):
                while True:
                    self._tasks.get_nowait()
            for _ in self._threads:
                self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more, or Python is shutting down
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            _run(*task)
            task = None  # or its arguments would stay alive until the next one
            with self._lock:
                self._unfinished -= 1


def _run(future: Future, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        result = function(*args)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
