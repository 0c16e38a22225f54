"""What travels through the pipeline of `vilt_fast.engine.pipeline`, and what each arrow does to it."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# What `Stages.finish` returns for a pair that has to go through the model once more.
AGAIN = object()


class Picture:
    """An image that is loaded once for all pending pairs that use it."""

    __slots__ = ("key", "source", "users", "value", "error", "waiting")

    def __init__(self, key: Hashable, source: Any) -> None:
        self.key, self.source = key, source  # holding the source keeps its id unique
        self.users = 0  # pending pairs
        self.value: Any = None
        self.error: Exception | None = None
        self.waiting: list[Item] | None = []  # pairs that wait for it; None once it is loaded or has failed


class Ticket:
    """What a `Future` is to a caller of its own, for one who takes many results in order: no lock of its own.

    Whoever settles a chunk of tickets notifies `settled` once; its lock is held where a ticket is cancelled or taken.
    """

    __slots__ = ("_error", "_is_cancelled", "_is_done", "_is_running", "_result", "_settled")

    def __init__(self, settled: threading.Condition) -> None:
        self._settled = settled
        self._is_done = self._is_running = self._is_cancelled = False
        self._result: Any = None
        self._error: BaseException | None = None

    def cancel(self) -> bool:
        """Give it up; False where it is too late."""
        with self._settled:
            self._is_cancelled = not (self._is_running or self._is_done)
            return self._is_cancelled

    def set_running_or_notify_cancel(self) -> bool:
        """Whether it is still wanted; it can no longer be cancelled then."""
        self._is_running = not self._is_cancelled
        return self._is_running

    def set_result(self, result: Any) -> None:
        """Settle it; the caller notifies."""
        self._result, self._is_done = result, True

    def set_exception(self, error: BaseException) -> None:
        """Settle it; the caller notifies."""
        self._error, self._is_done = error, True

    def exception(self) -> BaseException | None:
        """The error, once it is settled."""
        if not self._is_done:
            with self._settled:
                self._settled.wait_for(lambda: self._is_done)
        return self._error

    def result(self) -> Any:
        """The result of a ticket that was settled without an error."""
        return self._result


@dataclass(eq=False, slots=True)
class Group:
    """Pairs that share a batch with each other and with no other pair."""

    items: list[Item]
    missing: int  # whose image is not loaded yet


@dataclass(eq=False, slots=True)
class Item:
    """One pending pair: an image, and what is asked about it."""

    kind: str  # of request; a batch holds one kind
    asked: Any  # about the image: private to the stages
    picture: Picture
    future: Future | Ticket
    submitted: float
    tokens: int = 0
    error: Exception | None = None  # why it cannot be answered
    is_taken: bool = False  # its future is running and can no longer be cancelled
    state: Any = None  # private to the stages
    group: Group | None = None


class Stages(Protocol):
    """What is done at each arrow.

    Whatever `load`, `measure`, `prepare`, `launch` and `finish` raise becomes the answer of the pairs concerned (after
    `prepare` and `launch`, only of those that also fail alone). `is_loaded` and `recover` must not raise.
    """

    def is_loaded(self, source: Any) -> bool:
        """Whether `load` is so quick that the submitting thread can call it."""

    def load(self, source: Any) -> Any:
        """The image in memory."""

    def measure(self, items: Sequence[Item]) -> None:
        """Set `tokens` of each pair, or `error`."""

    def prepare(self, items: Sequence[Item]) -> Any:
        """A batch's inputs; called by several threads at once, and again for the halves of a batch that failed."""

    def launch(self, prepared: Any) -> Any:
        """Start the model; always in the same thread."""

    def finish(self, items: Sequence[Item], launched: Any) -> list[Any]:
        """A result, an exception, or AGAIN for each pair."""

    def recover(self) -> None:
        """Free what can be freed; called when memory ran out."""


@dataclass
class Counts:
    """What has happened since the start, or since they were last set to zero."""

    pairs: int = 0
    failed: int = 0
    batches: int = 0
    launched: int = 0  # pairs in batches; a pair that goes round again counts once per batch
    tokens: int = 0
    capacity: int = 0  # tokens the batches could have held
    queue_s: float = 0.0  # sum over pairs, from submission to launch
    stall_s: float = 0.0  # the launching thread's time waiting for a batch
    first: float | None = None  # when the first pair was submitted
    last: float | None = None  # when the latest answer was given


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed where this was raised."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    messages = ("not enough memory", "can't allocate memory")  # PyTorch's on the CPU
    return isinstance(error, RuntimeError) and any(message in str(error) for message in messages)
