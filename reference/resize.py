"""Pillow's bicubic and bilinear for 8-bit images, bit for bit, in 22-bit fixed point.

The weights are Keys' cubic convolution (1981, a = -1/2), four pixels wide, or a triangle, two pixels wide. Each axis is
one pass, out[j] = clip8((2^21 + sum_t w[j, t] in[first[j] + t]) >> 22), and the image between the two passes is rounded
to uint8, so the order of the passes shows in the result. Where an image shrinks, the weights are stretched over the
pixels that an output pixel covers. Read in Pillow's src/libImaging/Resample.c.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from vilt_fast.contracts.pillow import (
    ADAPTIVE,
    PRECISION_BITS,
    check_images,
    check_packed,
    resample_table,
    vertical_first,
)

ROWS_AT_A_TIME = 32  # int32 copies of so many rows stay in the cache of one core


def _resample(image: Tensor, out_size: int, dim: int, resample: str) -> Tensor:
    """One pass: dimension `dim` of an (H, W, C) uint8 image becomes `out_size`. The same size is left alone."""
    if image.shape[dim] == out_size:
        return image
    table = resample_table(image.shape[dim], out_size, resample).to(image.device)
    first, weights = table[0], table[1:]  # (out_size,) and (taps, out_size)
    source = image.movedim(dim, 0)
    rest = source.shape[1:]
    source = source.flatten(1)  # (in_size, the other axis and the channels)
    out = torch.empty(out_size, source.shape[1], dtype=torch.uint8, device=image.device)
    for row in range(0, out_size, ROWS_AT_A_TIME):
        rows = slice(row, row + ROWS_AT_A_TIME)
        begin, last = int(first[rows][0]), int(first[rows][-1])
        pixels = source[begin : last + len(weights)].int()
        total = torch.full_like(out[rows], 1 << (PRECISION_BITS - 1), dtype=torch.int32)
        for tap, weight in enumerate(weights[:, rows]):
            total.addcmul_(pixels.index_select(0, first[rows] - begin + tap), weight[:, None])
        out[rows] = (total >> PRECISION_BITS).clamp_(0, 255)
    return out.unflatten(1, rest).movedim(0, dim)


def _resize_one(image: Tensor, size: tuple[int, int], rule: str, resample: str) -> Tensor:
    height, width, _ = image.shape
    order = (0, 1) if vertical_first(height, width, *size, rule) else (1, 0)
    out = image
    for dim in order:
        out = _resample(out, size[dim], dim, resample)
    return image.clone(memory_format=torch.contiguous_format) if out is image else out.contiguous()


def resize(
    images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], *, rule: str = ADAPTIVE, resample: str = "bicubic"
) -> list[Tensor]:
    """Images at new sizes, bit for bit as `PIL.Image.resize(..., BICUBIC)` or `BILINEAR` makes them.

    Every channel is resized alone: multiply by alpha beforehand where an image has it (Pillow's RGBA and LA do).

    Args:
        images: images (H, W, C) uint8, of any strides.
        sizes: (height, width) of each result.
        rule: order of the passes, one of `vilt_fast.contracts.pillow.RULES`, where `pillow_rule` names
            the rule of a release.
        resample: the filter, "bicubic" or "bilinear".

    Returns:
        contiguous (height, width, C) uint8, on the device of its image; a copy where the size does not change.

    Raises:
        ValueError: an image is not uint8 (H, W, C) or empty, a size is not positive, the lengths differ, or there is
            no such rule or filter.

    Example:
        >>> image = torch.full((4, 6, 3), 7, dtype=torch.uint8)
        >>> resized = resize([image], [(2, 3)])[0]
        >>> tuple(resized.shape), resized.unique().tolist()
        ((2, 3, 3), [7])
    """
    check_images(images, sizes, rule, resample)
    return [_resize_one(image, size, rule, resample) for image, size in zip(images, sizes, strict=True)]


def resize_packed(
    source: Tensor,
    shapes: Sequence[tuple[int, int, int]],
    sizes: Sequence[tuple[int, int]],
    *,
    offsets: Sequence[int] | None = None,
    rule: str = ADAPTIVE,
    resample: str = "bicubic",
) -> tuple[Tensor, list[int]]:
    """`resize` for images that lie in one flat buffer, into one flat buffer without padding.

    Args:
        source: (bytes,) uint8, contiguous.
        shapes: (H, W, C) of each image, whose bytes lie in that order.
        sizes, rule, resample: as in `resize`.
        offsets: where in `source` each image starts; one after the other from 0 where None.

    Returns:
        the results one after the other, (total,) uint8, and where each starts, followed by the total.

    Raises:
        ValueError: as in `resize`, or `source` is not flat uint8, or an image does not lie in it.
    """
    offsets = check_packed(source, shapes, sizes, offsets, rule, resample)
    images = [source[at : at + math.prod(s)].view(*s) for at, s in zip(offsets, shapes, strict=True)]
    results = [_resize_one(image, size, rule, resample).flatten() for image, size in zip(images, sizes, strict=True)]
    starts = list(accumulate((len(result) for result in results), initial=0))
    return torch.cat([source.new_empty(0), *results]), starts
