"""What the families that read images share of the pipeline's stages: pixels in."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, uint8

from vilt_fast.engine.base import ModelStages
from vilt_fast.engine.stages import Item
from vilt_fast.frozen import FrozenModel
from vilt_fast.pixels import CHANNELS, PackedPixels
from vilt_fast.processing.decoding import decode, open_bytes
from vilt_fast.processing.settings import output_size


class Loaded(NamedTuple):
    """An image in memory."""

    pixels: np.ndarray  # (H, W, 3) uint8
    tokens: int  # patches the model reads


class ImageStages(ModelStages):
    """See the base class.

    Raises:
        ValueError: the model does not read RGB, or packed images do not support the processor's settings.
    """

    def __init__(self, model: FrozenModel, processor: Any, *, top: int, most: int) -> None:
        super().__init__(model, processor, top=top, most=most)
        self.image_processor = self.settings_of(processor)
        self.patch = self.config.patch_shape[0]
        if self.config.num_channels != CHANNELS:
            got = self.config.num_channels
            raise ValueError(f"model: got config.num_channels={got}, wanted {CHANNELS}: the engine's images are RGB")
        self.blank = np.zeros((2 * self.patch, 2 * self.patch, 3), np.uint8)
        # Settings that packed images do not support are reported now, not with the first batch.
        self._pack([self.blank], None, self.device)

    def is_one(self, given: Any) -> bool:
        """Whether this is one image, and no list or iterator of them."""
        if isinstance(given, np.ndarray | Tensor):
            return given.ndim < 4
        # Bytes are those of a file; an open file would be taken for a list of its lines.
        return isinstance(given, str | os.PathLike | Image.Image | bytes | bytearray | memoryview | io.IOBase)

    def is_loaded(self, source: Any) -> bool:
        """Whether an image is already an array of bytes."""
        return isinstance(source, np.ndarray | Tensor) and source.dtype in (np.uint8, uint8)

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

    def _gather(self, items: Sequence[Item]) -> PackedPixels:
        """Copy and resize each image once."""
        numbers: dict[int, int] = {}
        picture = [numbers.setdefault(id(item.picture), len(numbers)) for item in items]
        pictures = {id(item.picture): item.picture.value.pixels for item in items}
        is_sharing = len(pictures) < len(items)
        return self._pack(list(pictures.values()), picture if is_sharing else None, self.device)

    def _pack(self, pictures: list[np.ndarray], picture: list[int] | None, device: Any) -> PackedPixels:
        return self.image_processor.pack(pictures, device=device, picture=picture, input_data_format="channels_last")
