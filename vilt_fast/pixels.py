"""Images between the processor and the model: resized, 8-bit, one behind the other, neither padded nor normalised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

CHANNELS = 3
# What a byte is measured from: the bytes of an image become small numbers of both signs, exact in every float dtype.
MIDDLE = 128


@dataclass(frozen=True, eq=False)
class PackedPixels:
    """A batch of images for the model, in place of `pixel_values` and `pixel_mask`.

    Args:
        data: (bytes,) uint8, images (height, width, 3) in row-major order one behind the other; more may follow.
        sizes: (height, width) in pixels of each image.
        mean, std: one number, or one per channel; a byte u stands for (u * rescale_factor - mean) / std.
        rescale_factor: 1/255 for images in [0, 1].
        picture: the image that each pair looks at, (B,) or nested (batch, num_images); None: pair b at image b.

    Raises:
        ValueError: sizes and data do not go together, or a number is out of range.
    """

    data: Tensor
    sizes: tuple[tuple[int, int], ...]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    picture: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the class is frozen: this is its constructor
        set_field(self, "sizes", tuple((int(height), int(width)) for height, width in self.sizes))
        set_field(self, "mean", _per_channel("mean", self.mean))
        set_field(self, "std", _per_channel("std", self.std))
        if self.picture is not None:
            set_field(self, "picture", tuple(_flat_integers(self.picture)))
        self._check()

    def _check(self) -> None:
        if not isinstance(self.data, Tensor) or self.data.dtype != torch.uint8 or self.data.ndim != 1:
            got = f"{self.data.dtype} {tuple(self.data.shape)}" if isinstance(self.data, Tensor) else type(self.data)
            raise ValueError(f"data: got {got}, wanted a flat uint8 tensor")
        if not self.data.is_contiguous():
            raise ValueError("data: got a strided tensor, wanted a contiguous one")
        if not self.sizes or self.pairs == 0:
            raise ValueError("sizes, picture: got none, wanted at least one image and one pair")
        for index, size in enumerate(self.sizes):
            if min(size) < 1:
                raise ValueError(f"sizes[{index}]: got {size}, wanted (height, width), both at least 1")
        if self.offsets[-1] > len(self.data):
            raise ValueError(f"data: got {len(self.data)} bytes, wanted the {self.offsets[-1]} of the images")
        if 0 in self.std or not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ValueError(f"mean, std: got {self.mean}, {self.std}, wanted finite numbers and no std of 0")
        if self.rescale_factor == 0 or not math.isfinite(self.rescale_factor):
            raise ValueError(f"rescale_factor: got {self.rescale_factor}, wanted a finite number other than 0")
        for pair, index in enumerate(self.picture or ()):
            if not 0 <= index < len(self):
                raise ValueError(f"picture[{pair}]: got {index}, wanted 0..{len(self) - 1}, one of the images")

    def __len__(self) -> int:
        """The number of images."""
        return len(self.sizes)

    def numel(self) -> int:
        """The number of bytes; transformers' Trainer counts by it what it has computed."""
        return self.data.numel()

    @property
    def pairs(self) -> int:
        """The number of pairs, B."""
        return len(self) if self.picture is None else len(self.picture)

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.data.device

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where in `data` each image starts, followed by where the last one ends."""
        return tuple(accumulate((CHANNELS * height * width for height, width in self.sizes), initial=0))

    @cached_property
    def image_of_pair(self) -> tuple[int, ...]:
        """The image of each pair, on the host: `picture`, also where that is None."""
        return tuple(range(len(self))) if self.picture is None else self.picture

    def grids(self, patch: int) -> list[tuple[int, int]]:
        """Patches (height, width) of each pair's image, on the host."""
        return [(self.sizes[index][0] // patch, self.sizes[index][1] // patch) for index in self.image_of_pair]

    def grid_size(self, patch: int) -> tuple[int, int]:
        """(GH, GW): the patches that the images would have if they were padded to one size."""
        return max(height for height, _ in self.sizes) // patch, max(width for _, width in self.sizes) // patch

    def pair_grid(self, patch: int) -> Tensor:
        """(B, 2) int32 on the device: `grids`."""
        return (self._pair_table[1:3] // patch).T.to(torch.int32)

    def cut(self, patch: int) -> PackedPixels:
        """The same images without the pixels at the bottom and right that make no whole patch.

        Raises:
            ValueError: an image is smaller than one patch.
        """
        for index, size in enumerate(self.sizes):
            if min(size) < patch:
                raise ValueError(
                    f"pixel_values: image {index} is {size[0]} x {size[1]} pixels, wanted at least one patch of "
                    f"{patch} x {patch}"
                )
        sizes = tuple((height // patch * patch, width // patch * patch) for height, width in self.sizes)
        if sizes == self.sizes:
            return self
        parts = []
        for (start, end), whole, (height, width) in zip(pairwise(self.offsets), self.sizes, sizes, strict=True):
            parts.append(self.data[start:end].view(*whole, CHANNELS)[:height, :width].flatten())
        return replace(self, data=torch.cat(parts), sizes=sizes)

    def padded(self, dtype: torch.dtype) -> Tensor:
        """(B, 3, H, W), the image of each pair normalised, zero at the bottom and right where it does not reach."""
        height, width = (max(sides) for sides in zip(*self.sizes, strict=True))
        batch = torch.zeros(self.pairs, CHANNELS, height, width, dtype=dtype, device=self.device)
        for image, index in zip(batch, self.image_of_pair, strict=True):
            (height, width), start = self.sizes[index], self.offsets[index]
            data = self.data[start : self.offsets[index + 1]].view(1, height, width, CHANNELS)
            image[:, :height, :width] = self.normalise(data, dtype)[0]
        return batch

    @property
    def pair_offset(self) -> Tensor:
        """(B,) int64 on the device: the first byte of each pair's image."""
        return self._pair_table[0]

    @property
    def image_index(self) -> Tensor:
        """(B,) int64 on the device: `image_of_pair`, which makes pairs with one image draw the same patches."""
        return self._pair_table[3]

    @cached_property
    def _pair_table(self) -> Tensor:
        """(4, B) int64 on the device, copied there once and without waiting: offset, height, width, image."""
        rows = [(self.offsets[index], *self.sizes[index], index) for index in self.image_of_pair]
        table = torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, 4).T.contiguous()
        return (table.pin_memory() if self.data.is_cuda else table).to(self.device, non_blocking=True)

    def leaders(self, slots: int = 1) -> list[int]:
        """For each pair the first pair that looks at the same image in the same slot, where pair b has b % slots."""
        first: dict[tuple[int, int], int] = {}
        return [first.setdefault((index, pair % slots), pair) for pair, index in enumerate(self.image_of_pair)]

    def normalise(self, patches: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, p, p, 3) bytes to (N, 3, p, p), normalised in fp32 or fp64 and rounded once to `dtype`."""
        wide = torch.promote_types(dtype, torch.float32)
        mean, std = (torch.tensor(values, dtype=wide, device=patches.device) for values in (self.mean, self.std))
        return ((patches.to(wide) * self.rescale_factor - mean) / std).permute(0, 3, 1, 2).to(dtype)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> PackedPixels:
        """The same images on `device`; with `non_blocking`, the copy from pinned memory is not waited for."""
        data = self.data.to(device, non_blocking=non_blocking)
        return self if data is self.data else replace(self, data=data)

    def pin_memory(self) -> PackedPixels:
        """The same images in page-locked memory, from where copies to a GPU need not be waited for."""
        return replace(self, data=self.data.pin_memory())


def fold_normalisation(
    weight: Tensor, bias: Tensor | None, mean: Sequence[float], std: Sequence[float], rescale_factor: float
) -> tuple[Tensor, Tensor, float]:
    """A patch projection for bytes instead of normalised pixels.

    scale * (weight' . (u - 128)) + bias' equals weight . ((u * rescale_factor - mean) / std) + bias. What the channels
    share goes into `scale`, so with one std for all channels (ViLT) the weight stays as it is, bit for bit, and neither
    weight nor pixels are rounded. bias' is made from weight' as it was rounded, so that an error of the weight is
    multiplied by how far a pixel is from the mean, as without folding.

    Takes weight (d, C, p, p), bias (d,) or None, C means and stds. Returns weight' in the dtype of `weight`,
    in channels-last memory as the images are; bias' (d,) in fp32, or fp64 for an fp64 weight; scale.
    """
    scale = rescale_factor / std[0]
    if any(value != std[0] for value in std):
        wide = torch.promote_types(weight.dtype, torch.float32)
        weight = torch.stack([weight[:, c].to(wide) * (std[0] / s) for c, s in enumerate(std)], 1).to(weight.dtype)
    sums = weight.sum((2, 3), dtype=torch.float64)  # (d, C)
    # Python numbers: a tensor of them would have to be copied to the device, and be waited for.
    total: Any = sum(sums[:, c] * (scale * (MIDDLE - m / rescale_factor)) for c, m in enumerate(mean))
    total = total if bias is None else total + bias
    bias = total.to(torch.promote_types(weight.dtype, torch.float32))
    return weight.contiguous(memory_format=torch.channels_last), bias, scale


def _per_channel(name: str, value: Any) -> tuple[float, ...]:
    values = tuple(map(float, value)) if isinstance(value, Iterable) else (float(value),) * CHANNELS
    if len(values) != CHANNELS:
        raise ValueError(f"{name}: got {len(values)} numbers, wanted one or {CHANNELS}")
    return values


def _flat_integers(values: Any) -> Iterable[int]:
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"picture: got {values!r}, wanted integers")
    for value in values:
        if isinstance(value, Iterable) and not isinstance(value, str):
            yield from _flat_integers(value)
        elif isinstance(value, Integral) and not isinstance(value, bool):
            yield int(value)
        else:
            raise ValueError(f"picture: got {value!r}, wanted integers")
