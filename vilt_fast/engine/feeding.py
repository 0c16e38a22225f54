"""Between a caller's lists and iterators and an engine that takes one pair at a time: pairs in, results in order."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vilt_fast.engine.futures import Process
from vilt_fast.engine.stages import Ticket

_BAR_FROM = 100  # results; a shorter list gets no progress bar unless asked for
_KINDS_OF_ERROR = (FileNotFoundError, OSError, ValueError, torch.OutOfMemoryError, MemoryError)
_MISSING = object()


def pair_up(
    images: Any, texts: Any, is_one_image: Callable[[Any], bool]
) -> tuple[Iterable[tuple[Any, Any]], int | None, bool]:
    """Each image with its text; a single one goes with all of the other side.

    Args:
        is_one_image: says whether `images` is a single one.

    Returns:
        The pairs, their number (None if unknown), and whether there is one image and one text.

    Raises:
        ValueError: lists of different lengths, or neither one nor many; on iteration, one side ends before the other.
    """
    one_image, one_text = is_one_image(images), isinstance(texts, str)
    if one_image and one_text:
        return [(images, texts)], 1, True
    sides = []
    for name, side, is_one in (("images", images, one_image), ("texts", texts, one_text)):
        if not is_one and not isinstance(side, Iterable):
            raise ValueError(f"{name}: got {type(side).__name__}, wanted one, a list of them or an iterator")
        sides.append(itertools.repeat(side) if is_one else side)
    if one_image or one_text:
        return zip(*sides, strict=False), _length(texts if one_image else images), False
    lengths = [_length(side) for side in sides]
    if None not in lengths and lengths[0] != lengths[1]:
        raise ValueError(f"images, texts: got {lengths[0]} and {lengths[1]}, wanted as many of both, or one of either")
    return _zip_all(*sides), None if None in lengths else lengths[0], False


def in_order(
    submit: Callable[..., Future | Ticket], pairs: Iterable[tuple[Any, ...]], ahead: int, on_error: str
) -> Generator[Any, None, None]:
    """The results of all pairs in order. A thread reads the pairs, at most `ahead` results before the consumer.

    Args:
        submit: enqueues one pair, given as its arguments; a ValueError is the pair's own.
        on_error: "raise" or "return" what a pair raised; what `pairs` raises is raised after the results before it.
    """
    relay = _Relay(ahead)
    relay.start(lambda: _feed(submit, pairs, relay))
    chunk: deque[Any] = deque()
    try:
        for number in itertools.count():
            chunk = chunk or relay.take()
            future = chunk.popleft()
            if future is None:
                return
            if isinstance(future, BaseException):
                raise future
            error = future.exception()
            if error is not None and on_error == "raise":
                raise _numbered(error, number) from error
            yield future.result() if error is None else error
    finally:
        for left in (*chunk, *relay.close()):
            if isinstance(left, Future | Ticket):
                left.cancel()


class _Bar(tqdm):
    """A progress bar without the thread that refreshes bars nobody updates: it would outlive the engine."""

    monitor_interval = 0


class _Relay:
    """Hands over what one thread makes to another, in chunks and in order; at most `ahead` are under way."""

    def __init__(self, ahead: int) -> None:
        self._ahead, self._chunk = ahead, max(1, ahead // 4)
        self._changed = threading.Condition()
        self._entries: deque[Any] = deque()
        self._taken = 0  # by the consumer, and not yet used up
        self._is_closed = False
        self._pid = Process.pid
        self._threads: list[threading.Thread] = []  # the one that puts

    def start(self, feed: Callable[[], None]) -> None:
        """Run what puts the entries in a thread."""
        Process.end_with(self)
        self._threads.append(threading.Thread(target=feed, name="vilt-feed", daemon=True))
        self._threads[0].start()

    def put(self, entry: Any) -> bool:
        """Add an entry, once there is room; False if nobody wants it any more."""
        with self._changed:
            while len(self._entries) + self._taken >= self._ahead and not self._is_closed:
                self._changed.wait()
            self._entries.append(entry)
            if len(self._entries) == 1:
                self._changed.notify()
            return not self._is_closed

    def take(self) -> deque[Any]:
        """The next entries, at least one; those taken before count as used up.

        Raises:
            RuntimeError: none will come, after a fork or when Python has shut down.
        """
        if Process.pid != self._pid:
            raise RuntimeError(f"these results were begun before a fork, in process {self._pid}: only it can go on")
        with self._changed:
            was_full = len(self._entries) + self._taken >= self._ahead
            self._taken = 0
            if was_full:
                self._changed.notify()
            while not self._entries:
                if self._is_closed:
                    raise RuntimeError("Python is shutting down: no more results come")
                self._changed.wait()
            self._taken = min(len(self._entries), self._chunk)
            return deque(self._entries.popleft() for _ in range(self._taken))

    def close(self) -> list[Any]:
        """Take no more; returns what was not taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            return list(self._entries)

    def end(self) -> list[threading.Thread]:
        """`close`, when Python shuts down; the caller's iterator may still be at work."""
        self.close()
        return self._threads


def with_bar(
    results: Generator[Any, None, None], length: int | None, progress: bool | None, unit: str = "pairs"
) -> Iterator[Any]:
    """The same results, with a progress bar if wanted; None: for a long list on a terminal."""
    if progress is None:
        progress = length is not None and length >= _BAR_FROM and sys.stderr.isatty()
    with closing(results), _Bar(total=length, unit=f" {unit}", smoothing=0.1, disable=not progress) as bar:
        for result in results:
            bar.update()
            yield result


def _feed(submit: Callable, pairs: Iterable, relay: _Relay) -> None:
    try:
        for pair in pairs:
            future: Future | Ticket
            try:
                future = submit(*pair)
            except ValueError as error:
                future = Future()
                future.set_exception(error)
            if not relay.put(future):
                future.cancel()
                return
    except BaseException as error:
        relay.put(error)
    else:
        relay.put(None)


def _numbered(error: BaseException, number: int) -> BaseException:
    """An error of a type that callers expect, with the number of its pair."""
    kind = next((kind for kind in _KINDS_OF_ERROR if isinstance(error, kind)), RuntimeError)
    return kind(f"item {number}: {error}")


def _length(side: Any) -> int | None:
    return len(side) if isinstance(side, Sequence | np.ndarray | torch.Tensor) else None


def _zip_all(images: Iterable, texts: Iterable) -> Iterator[tuple[Any, Any]]:
    for image, text in itertools.zip_longest(images, texts, fillvalue=_MISSING):
        if image is _MISSING or text is _MISSING:
            ended = "images" if image is _MISSING else "texts"
            raise ValueError(f"{ended}: ended before the other side did, wanted as many of both")
        yield image, text
