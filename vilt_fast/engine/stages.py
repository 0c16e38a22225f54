"""What travels through the pipeline of `vilt_fast.engine.pipeline`, and what each arrow does to it."""

from __future__ import annotations

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


@dataclass(eq=False, slots=True)
class Item:
    """One pending pair."""

    kind: str  # of request; a batch holds one kind
    text: str
    picture: Picture
    future: Future
    submitted: float
    tokens: int = 0
    error: Exception | None = None  # why it cannot be answered
    is_taken: bool = False  # its future is running and can no longer be cancelled
    state: Any = None  # private to the stages


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
