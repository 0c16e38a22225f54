"""The stages of the pipeline that all families share: batches on the device, and outputs on their way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vilt_fast.engine.stages import Item
from vilt_fast.frozen import FrozenModel
from vilt_fast.frozen.model import MAX_TOKENS
from vilt_fast.frozen.planning import HostBatch

MAX_TOKENS_ELSEWHERE = 4096  # what a CPU's caches hold


def default_tokens(device: torch.device) -> int:
    """Of a batch, where nobody says."""
    return MAX_TOKENS if device.type == "cuda" else MAX_TOKENS_ELSEWHERE


class Prepared(NamedTuple):
    """A batch that is planned on the host, with what its items show on the device."""

    items: Sequence[Item]
    batch: HostBatch
    copied: Any  # CUDA event: all is on the device; None without CUDA


class Launched(NamedTuple):
    """Outputs in flight to the host."""

    outputs: tuple[Tensor, ...]
    done: Any  # CUDA event, or None if they have arrived
    prepared: Prepared  # keeps the inputs alive until then


class ModelStages:
    """See `vilt_fast.engine.stages.Stages`; a family adds the methods that raise NotImplementedError.

    Args:
        model: frozen. processor: one that fits the family.
        top: answers or labels to report.
        most: tokens of an item, where nothing else bounds them: all of its scores are a square of that.
    """

    kinds: ClassVar[dict[str, tuple[type, ...]]]  # of request, and the models that answer it
    reads_texts: ClassVar[bool]  # whether an item is a pair, or an image alone
    blank: Any  # an image with which to warm up

    def __init__(self, model: FrozenModel, processor: Any, *, top: int, most: int) -> None:
        self.model, self.processor, self.top, self.most = model, processor, top, most
        self.config, self.device = model.config, model.device
        is_cuda = self.device.type == "cuda"
        self._copying = torch.cuda.Stream(self.device) if is_cuda else None
        self._computing = torch.cuda.Stream(self.device) if is_cuda else None
        if is_cuda:  # the weights may still be in flight
            torch.cuda.synchronize(self.device)

    @classmethod
    def settings_of(cls, processor: Any) -> Any:
        """What `longest` reads of a processor that fits the family; ValueError for another."""
        raise NotImplementedError

    @classmethod
    def longest(cls, config: Any, settings: Any) -> int:
        """Tokens of the longest item of a recorded batch, by the settings of model and processor."""
        raise NotImplementedError

    def is_one(self, given: Any) -> bool:
        """Whether this is one image, and no list or iterator of them."""
        raise NotImplementedError

    def asked(self, kind: str, text: Any, option: Any = None) -> Any:
        """What an item carries, checked; the text of a pair, or the option of the call."""
        raise NotImplementedError

    def is_loaded(self, source: Any) -> bool:
        """See `Stages`."""
        raise NotImplementedError

    def load(self, source: Any) -> Any:
        """See `Stages`; what comes has `tokens`."""
        raise NotImplementedError

    def measure(self, items: Sequence[Item]) -> None:
        """Set `tokens` of each item, or `error`."""
        raise NotImplementedError

    def prepare(self, items: Sequence[Item]) -> Prepared:
        """Bring each image to the device once, and plan the batch; on a GPU, while the one before it is computed."""
        copied = None
        with self._stream(self._copying):
            seen = self._gather(items)
            if self._copying is not None:
                copied = self._copying.record_event()
        return Prepared(items, self._plan(items, seen), copied)

    def _gather(self, items: Sequence[Item]) -> Any:
        """The images of a batch, on the device."""
        raise NotImplementedError

    def _plan(self, items: Sequence[Item], seen: Any) -> HostBatch:
        raise NotImplementedError

    @torch.inference_mode()
    def launch(self, prepared: Prepared) -> Launched:
        """Start the model and the copies of its outputs to the host."""
        with self._stream(self._computing):
            if self._computing is not None:
                self._computing.wait_event(prepared.copied)
            parts = self._reduce(prepared.items, self.model.run(prepared.batch))
            # On a GPU, `to` with non_blocking writes into pinned memory.
            outputs = tuple(part.to("cpu", non_blocking=True) for part in parts)
            done = None if self._computing is None else self._computing.record_event()
        return Launched(outputs, done, prepared)

    def _reduce(self, items: Sequence[Item], output: Any) -> tuple[Tensor, ...]:
        """What the host needs from the model's output."""
        raise NotImplementedError

    def finish(self, items: Sequence[Item], launched: Launched) -> list[Any]:
        """Wait for the outputs and read them."""
        if launched.done is not None:
            launched.done.synchronize()
        return self._read(items, launched.outputs)

    def _read(self, items: Sequence[Item], outputs: tuple[Tensor, ...]) -> list[Any]:
        """A result for each item from what `_reduce` returned."""
        raise NotImplementedError

    def recover(self) -> None:
        """Return unused memory to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def warm_up(self) -> None:
        """Compile and record; call it in the launching thread."""
        with self._stream(self._computing):
            self.model.warmup()

    def _stream(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def _unless_nan(self, number: float, result: Any) -> Any:
        """The result, or the error that is the answer where the numbers of the model overflowed."""
        if not math.isnan(number):
            return result
        is_narrow = self.model.dtype == torch.float16  # bfloat16 has the range of float32
        advice = "a wider one, as is torch.float32" if is_narrow else "finite weights and smaller inputs"
        return ValueError(
            f"dtype: the model's numbers overflow in {self.model.dtype}, its result is NaN; wanted {advice}"
        )
