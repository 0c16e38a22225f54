"""What travels through the pipeline of `vilt_fast.engine.pipeline`, and what is done to it on the way."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# What `Stages.finish` says of a pair that has to go through the model once more.
AGAIN = object()


class Picture:
    """A picture that is loaded once for all pairs on their way that look at it."""

    __slots__ = ("key", "source", "users", "value", "error", "waiting")

    def __init__(self, key: Hashable, source: Any) -> None:
        self.key, self.source = key, source  # while the source is held, no other object has its id
        self.users = 0  # pairs on their way
        self.value: Any = None
        self.error: Exception | None = None
        self.waiting: list[Item] | None = []  # pairs that cannot go on before it is loaded; None: it is


@dataclass(eq=False, slots=True)
class Item:
    """One pair on its way."""

    kind: str  # what is asked; a batch holds one kind
    text: str
    picture: Picture
    future: Future
    submitted: float
    tokens: int = 0
    error: Exception | None = None  # why it cannot be answered
    is_taken: bool = False  # whether its future is running, and can no longer be cancelled
    state: Any = None  # of the stages


class Stages(Protocol):
    """What is done at each arrow. All methods but `finish` may raise; the pairs concerned get the error."""

    def is_loaded(self, source: Any) -> bool:
        """Whether `load` is too quick for a thread of the pool."""

    def load(self, source: Any) -> Any:
        """A picture in memory."""

    def measure(self, items: Sequence[Item]) -> None:
        """Set `tokens` of each pair, or `error`."""

    def prepare(self, items: Sequence[Item]) -> Any:
        """A batch's inputs; in several threads at once."""

    def launch(self, prepared: Any) -> Any:
        """Start the model; always in one thread."""

    def finish(self, items: Sequence[Item], launched: Any) -> list[Any]:
        """For each pair a result, an exception, or AGAIN."""

    def recover(self) -> None:
        """Called when memory ran out."""


@dataclass
class Counts:
    """What has happened since the start, or since they were last set to zero."""

    pairs: int = 0
    failed: int = 0
    batches: int = 0
    launched: int = 0  # pairs in batches; one whose masks are filled counts in each of its batches
    tokens: int = 0
    capacity: int = 0  # tokens that the batches could have held
    queue_s: float = 0.0  # sum over pairs, from submission to launch
    stall_s: float = 0.0  # of the thread that launches, waiting for a batch
    first: float | None = None  # when the first pair came
    last: float | None = None  # when the last one was answered


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed where this was raised."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # How PyTorch says it on the CPU.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "can't allocate memory")
    )
