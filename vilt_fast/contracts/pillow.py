"""Pillow's bicubic and bilinear: their pass order by release, their tables of weights, and what may be resized at all.

Keys' cubic convolution (1981, a = -1/2) or a triangle, in 22-bit fixed point. Read in Pillow's
src/libImaging/Resample.c, and held to Pillow itself, byte for byte, by tests/ops/test_resize.py.
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


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


# The kernel, and how far from its centre it reaches, in output pixels where an image shrinks.
_KERNELS = {"bicubic": (_cubic, 2.0), "bilinear": (_triangle, 1.0)}
RESAMPLES = tuple(_KERNELS)


@lru_cache(maxsize=2048)  # some 15 KB each; photographs come in many sizes
def resample_table(in_size: int, out_size: int, resample: str) -> Tensor:
    """Where the taps of every output pixel start and what they weigh, along one axis.

    Args:
        in_size, out_size: pixels.
        resample: one of RESAMPLES.

    Returns:
        (1 + taps, out_size) int32 on the CPU, cached: do not write to it. Row 0 is the first tap of each output pixel,
        the other rows are the weights, which sum to about 2^22 per output pixel. Every tap lies inside the image: where
        Pillow has fewer taps the kernel is zero at the others. An axis that keeps its size has one tap of weight 1.
    """
    if in_size == out_size:
        first = torch.arange(out_size, dtype=torch.int32, device="cpu")
        return torch.stack([first, torch.full_like(first, 1 << PRECISION_BITS)])
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    kernel, reach = _KERNELS[resample]
    support = reach * filter_scale
    centre = (torch.arange(out_size, dtype=torch.float64, device="cpu") + 0.5) * scale
    begin = (centre - support + 0.5).long().clamp(min=0)
    end = (centre + support + 0.5).long().clamp(max=in_size)
    taps = int((end - begin).max())
    first = begin.clamp(max=in_size - taps)

    position = first + torch.arange(taps, device="cpu")[:, None]  # (taps, out_size)
    weights = kernel((position - centre + 0.5) * (1.0 / filter_scale))
    total = torch.zeros_like(centre)
    for tap in weights:  # one after the other, as Pillow adds them: sum() pairs them and can differ in the last bit
        total += tap
    weights = weights / total * (1 << PRECISION_BITS)
    fixed = torch.where(weights < 0, weights - 0.5, weights + 0.5)
    return torch.cat([first[None], fixed.trunc()]).int()


def check_images(
    images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], rule: str, resample: str
) -> list[tuple[int, ...]]:
    """Shapes of the arguments of `resize`.

    Raises:
        ValueError: an image is not uint8 (H, W, C) or is empty, a size is not positive, the lengths differ, or there
            is no such rule or filter.
    """
    for index, image in enumerate(images):
        if image.dtype != torch.uint8:
            raise ValueError(f"images[{index}]: got {image.dtype}, wanted uint8")
    shapes = [tuple(image.shape) for image in images]
    _check_sizes(shapes, sizes, rule, resample)
    return shapes


def check_packed(
    source: Tensor,
    shapes: Sequence[tuple[int, int, int]],
    sizes: Sequence[tuple[int, int]],
    offsets: Sequence[int] | None,
    rule: str,
    resample: str,
) -> Sequence[int]:
    """Where each image of `resize_packed` starts: `offsets`, or one image after the other where that is None.

    Raises:
        ValueError: as in `check_images`, or `source` is not flat uint8, or an image does not lie inside it.
    """
    if source.dtype != torch.uint8 or source.dim() != 1 or not source.is_contiguous():
        raise ValueError(f"source: got {source.dtype} {tuple(source.shape)}, wanted flat contiguous uint8")
    _check_sizes(shapes, sizes, rule, resample)
    lengths = [math.prod(shape) for shape in shapes]
    offsets = list(accumulate(lengths, initial=0))[:-1] if offsets is None else offsets
    if len(offsets) != len(lengths):
        raise ValueError(f"offsets: got {len(offsets)} for {len(lengths)} images, wanted one each")
    for index, (start, length) in enumerate(zip(offsets, lengths, strict=True)):
        if start < 0 or start + length > len(source):
            raise ValueError(f"offsets[{index}]: got {start}, wanted {length} bytes inside the {len(source)} of source")
    return offsets


def _check_sizes(shapes: Sequence[Sequence[int]], sizes: Sequence[tuple[int, int]], rule: str, resample: str) -> None:
    for name, value, known in (("rule", rule, RULES), ("resample", resample, RESAMPLES)):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(known)}")
    if len(shapes) != len(sizes):
        raise ValueError(f"sizes: got {len(sizes)} for {len(shapes)} images, wanted one (height, width) each")
    for index, (shape, size) in enumerate(zip(shapes, sizes, strict=True)):
        if len(shape) != 3 or min(shape) < 1 or max(shape) >= MAX_SIDE:
            raise ValueError(f"images[{index}]: got shape {tuple(shape)}, wanted (H, W, C), each from 1 to 2^24 - 1")
        if len(size) != 2 or min(size) < 1 or max(size) >= MAX_SIDE:
            raise ValueError(f"sizes[{index}]: got {size!r}, wanted (height, width), each from 1 to 2^24 - 1")
