"""Pillow's bicubic for 8-bit pictures, bit for bit: Keys' cubic convolution (1981, a = -1/2) in 22-bit fixed point.

Each axis is one pass, out[j] = clip8((2^21 + sum_t w[j, t] in[first[j] + t]) >> 22), and the picture between the two
passes is rounded to uint8, so the order of the passes shows in the result. Where a picture shrinks, the cubic is
stretched over the pixels that an output pixel covers. Read in Pillow's src/libImaging/Resample.c.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

HORIZONTAL_FIRST = "horizontal_first"
TALL_VERTICAL_FIRST = "tall_vertical_first"
ADAPTIVE = "adaptive"
RULES = (HORIZONTAL_FIRST, TALL_VERTICAL_FIRST, ADAPTIVE)
PRECISION_BITS = 22  # of the weights: 32 bits less 8 for a pixel and 2 for lobes that overshoot
MAX_SIDE = 1 << 24  # Pillow keeps the box it reads in float32, which is exact up to here
ROWS_AT_A_TIME = 32  # int32 copies of so many rows stay in the cache of one core


def pillow_rule(version: str) -> str:
    """The pass order of a Pillow release, as the `rule` of `resize`: `vertical_first` says what each means.

    "horizontal_first" up to 12.1, "tall_vertical_first" in 12.2 and 12.3 (Image.resize in Python decides), "adaptive"
    from 13.0 (Resample.c decides). Run: 10.1, 11.3, 12.0, 12.1, 12.2, 12.3 and 13.0.

    Args:
        version: `PIL.__version__`.

    Raises:
        ValueError: the version does not start with two numbers.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers:
        raise ValueError(f"version: got {version!r}, wanted a Pillow version such as '13.0.0'")
    release = tuple(map(int, numbers.groups()))
    return HORIZONTAL_FIRST if release < (12, 2) else TALL_VERTICAL_FIRST if release < (13, 0) else ADAPTIVE


def vertical_first(in_height: int, in_width: int, out_height: int, out_width: int, rule: str) -> bool:
    """Whether the rows are combined before the columns.

    "horizontal_first": never. "tall_vertical_first": where the height shrinks and is more than 100 times the width.
    "adaptive": where the height shrinks by more than twice of what the width shrinks by (less than 0 if it grows).
    """
    rows_lost = in_height - out_height
    if rule == TALL_VERTICAL_FIRST:
        return rows_lost > 0 and in_height > 100 * in_width
    return rule == ADAPTIVE and rows_lost > max(0, 2 * (in_width - out_width))


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2. The order of operations is Pillow's: another one rounds differently."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


@lru_cache(maxsize=2048)  # some 15 KB each; photographs come in many sizes
def bicubic_table(in_size: int, out_size: int) -> tuple[Tensor, Tensor]:
    """Where the taps of every output pixel start and what they weigh, along one axis.

    Args:
        in_size, out_size: pixels.

    Returns:
        first (out_size,) int64 and weights (out_size, taps) int32 on the CPU, cached: do not write to them. A row of
        the weights sums to about 2^22. 0 <= first and first + taps <= in_size: every tap lies in the picture, and where
        Pillow has fewer taps the cubic is zero at the others.
    """
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    support = 2.0 * filter_scale
    centre = (torch.arange(out_size, dtype=torch.float64, device="cpu") + 0.5) * scale
    begin = (centre - support + 0.5).long().clamp(min=0)
    end = (centre + support + 0.5).long().clamp(max=in_size)
    taps = int((end - begin).max())
    first = begin.clamp(max=in_size - taps)

    position = first + torch.arange(taps, device="cpu")[:, None]  # (taps, out_size)
    weights = _cubic((position - centre + 0.5) * (1.0 / filter_scale))
    total = torch.zeros_like(centre)
    for tap in weights:  # one after the other, as Pillow adds them: sum() pairs them and can differ in the last bit
        total += tap
    weights = weights / total * (1 << PRECISION_BITS)
    fixed = torch.where(weights < 0, weights - 0.5, weights + 0.5).to(torch.int32)  # truncates towards zero
    return first, fixed.T.contiguous()


def _resample(image: Tensor, out_size: int, dim: int) -> Tensor:
    """One pass: dimension `dim` of an (H, W, C) uint8 picture becomes `out_size`. The same size is left alone."""
    if image.shape[dim] == out_size:
        return image
    first, weights = (table.to(image.device) for table in bicubic_table(image.shape[dim], out_size))
    source = image.movedim(dim, 0)
    rest = source.shape[1:]
    source = source.flatten(1)  # (in_size, the other axis and the channels)
    out = torch.empty(out_size, source.shape[1], dtype=torch.uint8, device=image.device)
    for row in range(0, out_size, ROWS_AT_A_TIME):
        rows = slice(row, row + ROWS_AT_A_TIME)
        begin, last = int(first[rows][0]), int(first[rows][-1])
        pixels = source[begin : last + weights.shape[1]].int()
        total = torch.full_like(out[rows], 1 << (PRECISION_BITS - 1), dtype=torch.int32)
        for tap, weight in enumerate(weights[rows].T):
            total.addcmul_(pixels.index_select(0, first[rows] - begin + tap), weight[:, None])
        out[rows] = (total >> PRECISION_BITS).clamp_(0, 255)
    return out.unflatten(1, rest).movedim(0, dim)


def _check(shapes: Sequence[Sequence[int]], sizes: Sequence[tuple[int, int]], rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}, wanted one of {', '.join(RULES)}")
    if len(shapes) != len(sizes):
        raise ValueError(f"sizes: got {len(sizes)} for {len(shapes)} pictures, wanted one (height, width) each")
    for index, (shape, size) in enumerate(zip(shapes, sizes, strict=True)):
        if len(shape) != 3 or min(shape) < 1 or max(shape) >= MAX_SIDE:
            raise ValueError(f"images[{index}]: got shape {tuple(shape)}, wanted (H, W, C), each from 1 to 2^24 - 1")
        if len(size) != 2 or min(size) < 1 or max(size) >= MAX_SIDE:
            raise ValueError(f"sizes[{index}]: got {size!r}, wanted (height, width), each from 1 to 2^24 - 1")


def _resize_one(image: Tensor, size: tuple[int, int], rule: str) -> Tensor:
    order = (0, 1) if vertical_first(*image.shape[:2], *size, rule) else (1, 0)
    out = image
    for dim in order:
        out = _resample(out, size[dim], dim)
    return image.clone(memory_format=torch.contiguous_format) if out is image else out.contiguous()


def resize(images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], *, rule: str = ADAPTIVE) -> list[Tensor]:
    """Pictures at new sizes, bit for bit as `PIL.Image.resize(..., BICUBIC)` makes them.

    Every channel is resized alone: multiply by alpha beforehand where a picture has it (Pillow's RGBA and LA do).

    Args:
        images: pictures (H, W, C) uint8, of any strides.
        sizes: (height, width) of each result.
        rule: order of the passes, one of RULES: `pillow_rule` names the rule of a release.

    Returns:
        contiguous (height, width, C) uint8, on the device of its picture; a copy where the size does not change.

    Raises:
        ValueError: a picture is not uint8 (H, W, C) or empty, a size is not positive, or the lengths differ.
    """
    for index, image in enumerate(images):
        if image.dtype != torch.uint8:
            raise ValueError(f"images[{index}]: got {image.dtype}, wanted uint8")
    _check([image.shape for image in images], sizes, rule)
    return [_resize_one(image, size, rule) for image, size in zip(images, sizes, strict=True)]


def resize_packed(
    source: Tensor,
    shapes: Sequence[tuple[int, int, int]],
    sizes: Sequence[tuple[int, int]],
    *,
    offsets: Sequence[int] | None = None,
    rule: str = ADAPTIVE,
) -> tuple[Tensor, list[int]]:
    """`resize` for pictures that lie in one flat buffer, into one flat buffer without padding.

    Args:
        source: (bytes,) uint8, contiguous.
        shapes: (H, W, C) of each picture, whose bytes lie in that order.
        sizes, rule: as in `resize`.
        offsets: where in `source` each picture starts; one after the other from 0 where None.

    Returns:
        the results one after the other, (total,) uint8, and where each starts, followed by the total.

    Raises:
        ValueError: as in `resize`, or `source` is not flat uint8, or a picture does not lie in it.
    """
    offsets = _check_packed(source, shapes, sizes, offsets, rule)
    pictures = [source[at : at + math.prod(s)].view(*s) for at, s in zip(offsets, shapes, strict=True)]
    results = [_resize_one(picture, size, rule).flatten() for picture, size in zip(pictures, sizes, strict=True)]
    starts = list(accumulate((len(result) for result in results), initial=0))
    return torch.cat([source.new_empty(0), *results]), starts


def _check_packed(
    source: Tensor,
    shapes: Sequence[tuple[int, int, int]],
    sizes: Sequence[tuple[int, int]],
    offsets: Sequence[int] | None,
    rule: str,
) -> list[int]:
    """The offsets, given or made; ValueError where a picture does not lie in the buffer."""
    if source.dtype != torch.uint8 or source.dim() != 1 or not source.is_contiguous():
        raise ValueError(f"source: got {source.dtype} {tuple(source.shape)}, wanted flat contiguous uint8")
    _check(shapes, sizes, rule)
    lengths = [math.prod(shape) for shape in shapes]
    starts = list(accumulate(lengths, initial=0))[:-1] if offsets is None else list(offsets)
    if len(starts) != len(lengths):
        raise ValueError(f"offsets: got {len(starts)} for {len(lengths)} pictures, wanted one each")
    for index, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if start < 0 or start + length > len(source):
            raise ValueError(f"offsets[{index}]: got {start}, wanted {length} bytes inside the {len(source)} of source")
    return starts
