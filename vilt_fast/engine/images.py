"""The stages of the pipeline that all families share: images in, batches on the device, outputs on their way back."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilt_fast.engine.stages import Item
from vilt_fast.frozen import FrozenModel
from vilt_fast.frozen.planning import HostBatch
from vilt_fast.pixels import CHANNELS, PackedPixels
from vilt_fast.processing.decoding import decode, open_bytes
from vilt_fast.processing.settings import output_size


class Loaded(NamedTuple):
    """An image in memory."""

    pixels: np.ndarray  # (H, W, 3) uint8
    tokens: int  # patches the model reads


class Prepared(NamedTuple):
    """A batch that is planned on the host, with its images on the device."""

    items: Sequence[Item]
    batch: HostBatch
    copied: Any  # CUDA event: the images are on the device; None without CUDA


class Launched(NamedTuple):
    """Outputs in flight to the host."""

    outputs: tuple[Tensor, ...]
    done: Any  # CUDA event, or None if they have arrived
    prepared: Prepared  # keeps the inputs alive until then


class ImageStages:
    """See `vilt_fast.engine.stages.Stages`; a family adds the methods that raise NotImplementedError.

    Args:
        model: frozen. image_processor: a `vilt_fast.processing.image.ImageProcessor`.
        top: answers or labels to report.
        most: tokens of an item, where nothing else bounds them: all of its scores are a square of that.

    Raises:
        ValueError: the model does not read RGB, or packed images do not support the processor's settings.
    """

    kinds: ClassVar[dict[str, tuple[type, ...]]]  # of request, and the models that answer it
    reads_texts: ClassVar[bool]  # whether an item is a pair, or an image alone

    def __init__(self, model: FrozenModel, image_processor: Any, *, top: int, most: int) -> None:
        self.model, self.image_processor, self.top, self.most = model, image_processor, top, most
        self.config, self.device = model.config, model.device
        self.patch = self.config.patch_shape[0]
        if self.config.num_channels != CHANNELS:
            got = self.config.num_channels
            raise ValueError(f"model: got config.num_channels={got}, wanted {CHANNELS}: the engine's images are RGB")
        self.blank = np.zeros((2 * self.patch, 2 * self.patch, 3), np.uint8)
        # Settings that packed images do not support are reported now, not with the first batch.
        self._pack([self.blank], None, self.device)
        is_cuda = self.device.type == "cuda"
        self._copying = torch.cuda.Stream(self.device) if is_cuda else None
        self._computing = torch.cuda.Stream(self.device) if is_cuda else None
        if is_cuda:  # the weights may still be in flight
            torch.cuda.synchronize(self.device)

    @classmethod
    def settings_of(cls, processor: Any) -> Any:
        """The image processor of a processor that fits the family; ValueError for another."""
        raise NotImplementedError

    @classmethod
    def longest(cls, config: Any, image_processor: Any) -> int:
        """Tokens of the longest item of a recorded batch, by the settings of model and processor."""
        raise NotImplementedError

    def asked(self, kind: str, text: Any, option: Any = None) -> Any:
        """What an item carries, checked; the text of a pair, or the option of the call."""
        raise NotImplementedError

    def is_loaded(self, source: Any) -> bool:
        """Whether an image is already an array of bytes."""
        return isinstance(source, np.ndarray | Tensor) and source.dtype in (np.uint8, torch.uint8)

    def load(self, source: Any) -> Loaded:
        """Decode an image and compute how many patches it will have."""
        settings = self.image_processor
        if isinstance(source, bytes | bytearray | memoryview | io.BytesIO):
            source = open_bytes(source.getvalue() if isinstance(source, io.BytesIO) else bytes(source), "image")
        decoded = decode(source, name="image")
        if decoded.is_unit:
            # The processor rescales them once more, as Hugging Face's does; nobody who passes them here means that.
            raise ValueError(
                "image: got floats in [0, 1], which the processor would divide by 255 again; wanted 0..255: "
                "(255 * image).round().astype('uint8')"
                if settings.do_rescale
                else "image: got floats in [0, 1], which the engine does not take beside bytes; wanted 0..255: "
                "(255 * image).round().astype('uint8'), and a processor with do_rescale=True"
            )
        return Loaded(decoded.array, self._count_patches(*output_size(settings, "image", *decoded.size)))

    def _count_patches(self, height: int, width: int) -> int:
        """What the model reads of an image of this size; ValueError where it cannot."""
        raise NotImplementedError

    def measure(self, items: Sequence[Item]) -> None:
        """Set `tokens` of each item, or `error`."""
        raise NotImplementedError

    def prepare(self, items: Sequence[Item]) -> Prepared:
        """Copy and resize each image once, and plan the batch; on a GPU, while the batch before it is computed."""
        numbers: dict[int, int] = {}
        picture = [numbers.setdefault(id(item.picture), len(numbers)) for item in items]
        pictures = {id(item.picture): item.picture.value.pixels for item in items}
        copied = None
        with self._stream(self._copying):
            is_sharing = len(pictures) < len(items)
            pixels = self._pack(list(pictures.values()), picture if is_sharing else None, self.device)
            if self._copying is not None:
                copied = self._copying.record_event()
        return Prepared(items, self._plan(items, pixels), copied)

    def _plan(self, items: Sequence[Item], pixels: PackedPixels) -> HostBatch:
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

    def _pack(self, pictures: list[np.ndarray], picture: list[int] | None, device: Any) -> PackedPixels:
        return self.image_processor.pack(pictures, device=device, picture=picture, input_data_format="channels_last")

    def _stream(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def _unless_nan(self, number: float, result: Any) -> Any:
        """The result, or the error that is the answer where the numbers of the model overflowed."""
        if not math.isnan(number):
            return result
        return ValueError(
            f"dtype: the model's numbers overflow in {self.model.dtype}, its result is NaN; wanted a wider one, as is "
            "torch.float32"
        )
