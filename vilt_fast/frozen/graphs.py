"""The encoder in the shape of buckets: always in the same memory, and recorded once as a CUDA graph each.

A recorded graph has one shape: a batch is padded up to the smallest bucket that holds it. Its rows are written by the
embeddings before the graph runs, so that the graph knows nothing of images. Rows past the last pair hold whatever was
there before: no pair reads them, and what becomes of them nobody does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LOG = logging.getLogger(__name__)
_SMALLEST = 256  # tokens; one pair at ViLT's own resolution
# Buckets per octave, where they are not closer than the rows of the smallest tile: a batch that just misses one
# computes up to a sixteenth more than it needs to in the next, and 2.4 % more on average over batches of 200 to 49,152
# tokens (with four per octave 9.4 %). The price is time in `warmup`: 101 recordings in place of 31.
_STEPS, _FEWEST = 16, 64
_TOKENS_PER_PAIR = 64  # pairs shorter than that on average close a batch by their number, unless all are shorter


class Limits(NamedTuple):
    """What no recorded batch exceeds."""

    tokens: int  # of a batch
    max_seqlen: int  # of a pair
    words: int  # of a text

    @property
    def packet_words(self) -> int:
        """Words of 8 bytes that hold all integers of a batch, see `vilt_fast.frozen.planning.send`."""
        pairs = max_pairs(self.tokens, self.max_seqlen)
        # Patches: index and row; words: id, type, row of each and of those that are kept; a dozen more for each pair.
        return self.tokens + 4 * pairs * self.words + 12 * pairs + 64


def max_pairs(tokens: int, max_seqlen: int) -> int:
    """How many pairs a batch of so many tokens may have, where the longest one has `max_seqlen`."""
    return max(1, tokens // min(_TOKENS_PER_PAIR, max_seqlen))


def bucket_sizes(max_tokens: int) -> list[int]:
    """The tokens of all buckets, ascending: several per octave, and `max_tokens` itself."""
    sizes: list[int] = []
    size = _SMALLEST
    while size < max_tokens:
        sizes += range(size, 2 * size, max(size // _STEPS, _FEWEST))
        size *= 2
    return [size for size in sizes if size < max_tokens] + [max_tokens]


def choose_bucket(sizes: Sequence[int], tokens: int, pairs: int, max_seqlen: int) -> int | None:
    """The tokens of the smallest bucket that holds such a batch; None if none does."""
    return next((size for size in sizes if tokens <= size and pairs <= max_pairs(size, max_seqlen)), None)


class Spans(NamedTuple):
    """Where the pairs of a batch begin: all that the encoder needs to know of a layout."""

    cu_seqlens: Tensor  # (B + 1,) int32
    read: Tensor  # (B,) int32, the row of each pair that the head reads; any row for a place without one
    max_seqlen: int


class Recording(NamedTuple):
    """A bucket that is ready to be replayed."""

    replay: Callable[[], None]
    result: Tensor  # what a replay writes
    bytes: int  # of device memory that recording it took


class CudaGraphs:
    """Records functions as CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None

    def record(self, function: Callable[[], Tensor]) -> Recording:
        """Compile, then record."""
        before = torch.cuda.memory_reserved(self.device)
        for _ in range(2):  # compile and load what is launched for the first time
            function()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads go on copying images.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = function()
        self.pool = graph.pool()
        return Recording(graph.replay, result, torch.cuda.memory_reserved(self.device) - before)


class Buckets:
    """Runs batches in the shape of buckets.

    Args:
        run: the encoder, and the head where it reads first rows: rows and spans to a result.
        limits: of the batches. hidden_size, dtype, device: of the rows.
        recorder: with a method `record`, see `CudaGraphs`.
    """

    def __init__(
        self,
        run: Callable[[Tensor, Spans], Tensor],
        limits: Limits,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
        recorder: Any,
    ) -> None:
        self.run, self.limits, self.recorder = run, limits, recorder
        self.sizes = bucket_sizes(limits.tokens)
        self.recordings: dict[int, Recording] = {}
        self._lock = threading.Lock()
        self._done = torch.cuda.Event() if device.type == "cuda" else None
        with torch.inference_mode(False):  # whoever freezes a model in that mode may call it outside
            self._tokens = torch.zeros(limits.tokens, hidden_size, dtype=dtype, device=device)
            self.packet = torch.zeros(limits.packet_words, dtype=torch.int64, device=device)
        self._places = self.packet.view(torch.int32)

    def choose(self, tokens: int, pairs: int, max_seqlen: int) -> int | None:
        """The bucket of such a batch; None if it is larger than all."""
        longest = self.limits.max_seqlen
        return choose_bucket(self.sizes, tokens, pairs, longest) if max_seqlen <= longest else None

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """The memory that all buckets share is the caller's, on its stream, inside this `with` block."""
        with self._lock:
            if self._done is not None:
                self._done.wait()
            try:
                yield
            finally:
                if self._done is not None:
                    self._done.record()

    def rows(self, size: int) -> Tensor:
        """(size, d): where the embeddings of a batch go."""
        return self._tokens[:size]

    def places(self, size: int, cu_seqlens: np.ndarray, read: np.ndarray) -> np.ndarray:
        """What stands at the start of `packet` when a bucket is replayed: its spans, and which rows are read.

        Args:
            size: of the bucket. cu_seqlens: (B + 1,) integers. read: (B,) integers, the row of each pair.
        """
        pairs, batch = max_pairs(size, self.limits.max_seqlen), len(read)
        places = np.zeros(2 * pairs + 1, np.int32)
        places[: batch + 1] = cu_seqlens
        places[batch + 1 : pairs + 1] = cu_seqlens[-1]
        places[pairs + 1 : pairs + 1 + batch] = read
        return places

    def write(self, places: np.ndarray) -> None:
        """Put places at the start of `packet`."""
        host = torch.from_numpy(places)
        host = host.pin_memory() if self.packet.is_cuda else host
        self._places[: len(host)].copy_(host, non_blocking=True)

    def replay(self, size: int) -> Tensor:
        """The result for `rows(size)` and the places in `packet`; overwritten by the next replay."""
        recording = self.record(size)
        recording.replay()
        return recording.result

    def record(self, size: int) -> Recording:
        """The recording of a bucket, made when it is first wanted."""
        if size not in self.recordings:
            pairs = max_pairs(size, self.limits.max_seqlen)
            first = self._places[pairs + 1 : 2 * pairs + 1]
            spans = Spans(self._places[: pairs + 1], first, self.limits.max_seqlen)
            rows = self.rows(size)
            self.recordings[size] = self.recorder.record(lambda: self.run(rows, spans))
            LOG.info("bucket of %d tokens: %.1f MB", size, self.recordings[size].bytes / 1e6)
        return self.recordings[size]

    def record_all(self) -> None:
        """Record every bucket: the largest first, whose memory the smaller ones then share."""
        self.packet.zero_()  # no pair: recording computes nothing that could overflow
        for size in reversed(self.sizes):
            self.record(size)
