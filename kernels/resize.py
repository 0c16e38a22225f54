"""Pillow's bicubic for 8-bit pictures of any sizes, bit for bit, in two launches a batch.

    out[j] = clip8((2^21 + sum_t w[j, t] in[first[j] + t]) >> 22)        along one axis, then along the other

Keys' cubic convolution (1981, a = -1/2) in fixed point, as in Pillow's src/libImaging/Resample.c: the host makes the
tables in float64, the device adds integers. A picture is `rows` of `row_bytes`, and a program makes a tile of it:

     horizontal: taps are `channels` bytes apart        vertical: taps are a row apart
     +-------------------+                              +-------------------+
     | BLOCK_M x BLOCK_N |  a weight a column           | BLOCK_M x BLOCK_N |  a weight a row
     +-------------------+                              +-------------------+

The tiles of all pictures stand in one line; a program finds its picture by counting the pictures that begin before it.
The first launch writes a scratch buffer whose rows start at multiples of 16 bytes, so that the second loads them in
words. An axis that does not change is copied, as a pass of one tap that weighs 1.

Not supported: alpha (multiply beforehand, as Pillow does), boxes, gradients, other filters, a picture of 2 GiB.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .shipped import describe

RULES = ("horizontal_first", "tall_vertical_first", "adaptive")
PRECISION_BITS = tl.constexpr(22)  # of the weights: 32 bits less 8 for a pixel and 2 for lobes that overshoot
HALF = tl.constexpr(1 << 21)  # rounds to nearest
MAX_SIDE = 1 << 24  # Pillow keeps the box it reads in float32, which is exact up to here
MAX_BYTES = (1 << 31) - (1 << 16)  # of one picture: offsets inside it are int32, and a tile may reach past its end
ALIGN = tl.constexpr(16)  # bytes, the widest load
# 32 bytes a thread: many loads in flight, and a weight serves many of them.
TILE = {"BLOCK_M": 16, "BLOCK_N": 256, "BLOCK_JOBS": 256}
NUM_WARPS = 4

# What a job, one pass over one picture, tells its programs; int64.
FIRST_TILE = tl.constexpr(0)
IN_OFFSET = tl.constexpr(1)  # bytes
OUT_OFFSET = tl.constexpr(2)  # bytes
IN_STRIDE = tl.constexpr(3)  # bytes between rows
OUT_STRIDE = tl.constexpr(4)  # bytes between rows
ROWS = tl.constexpr(5)  # of the result
ROW_BYTES = tl.constexpr(6)  # of the result
CHANNELS = tl.constexpr(7)
VERTICAL = tl.constexpr(8)
TABLE = tl.constexpr(9)  # where the table starts: first (size,), then weights (taps, size)
TABLE_SIZE = tl.constexpr(10)
TAPS = tl.constexpr(11)
FIELDS = tl.constexpr(12)


@triton.jit
def _find_job(jobs_ptr, num_jobs, tile, BLOCK_JOBS: tl.constexpr):
    """The job that `tile` belongs to: the last one that starts at or before it."""
    count = 0
    for start in range(0, num_jobs, BLOCK_JOBS):
        job_offs = start + tl.arange(0, BLOCK_JOBS)
        first = tl.load(jobs_ptr + job_offs * FIELDS + FIRST_TILE, mask=job_offs < num_jobs, other=1 << 62)
        count += tl.sum((first <= tile).to(tl.int32), axis=0)
    return count - 1


@triton.jit
def _weigh(in_ptr, in_offs, step, weights_ptr, weight_offs, table_size, taps):
    """The sum over taps of pixel times weight; from tap to tap the pixels move by `step` bytes."""
    acc = tl.zeros_like(in_offs) + HALF  # (BLOCK_M, BLOCK_N) int32
    for _ in range(taps):
        acc += tl.load(in_ptr + in_offs).to(tl.int32) * tl.load(weights_ptr + weight_offs)
        in_ptr += step
        weights_ptr += table_size
    return acc


@triton.jit(do_not_specialize=["num_jobs"])
def resize_kernel(
    out_ptr,  # uint8, pictures whose rows are OUT_STRIDE apart, at OUT_OFFSET
    in_ptr,  # uint8, pictures whose rows are IN_STRIDE apart, at IN_OFFSET
    jobs_ptr,  # (num_jobs, FIELDS) int64
    tables_ptr,  # int32
    num_jobs,
    ALIGNED_ROWS: tl.constexpr,  # all jobs are vertical, ALIGN divides offsets and strides, BLOCK_N bytes follow `in`
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_JOBS: tl.constexpr,
):
    tile = tl.program_id(0)
    job_ptr = jobs_ptr + _find_job(jobs_ptr, num_jobs, tile, BLOCK_JOBS) * FIELDS
    rows = tl.load(job_ptr + ROWS).to(tl.int32)
    row_bytes = tl.load(job_ptr + ROW_BYTES).to(tl.int32)
    in_stride = tl.load(job_ptr + IN_STRIDE).to(tl.int32)
    out_stride = tl.load(job_ptr + OUT_STRIDE).to(tl.int32)
    table_size = tl.load(job_ptr + TABLE_SIZE).to(tl.int32)
    taps = tl.load(job_ptr + TAPS).to(tl.int32)
    in_ptr += tl.load(job_ptr + IN_OFFSET)
    out_ptr += tl.load(job_ptr + OUT_OFFSET)
    first_ptr = tables_ptr + tl.load(job_ptr + TABLE)
    weights_ptr = first_ptr + table_size

    tile -= tl.load(job_ptr + FIRST_TILE).to(tl.int32)
    tiles_n = tl.cdiv(row_bytes, BLOCK_N)
    m_offs = (tile // tiles_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    n_offs = (tile % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Past the edge the last row and byte are read again: masked loads would double the instructions of a tap.
    m_in = tl.minimum(m_offs, rows - 1)
    n_in = tl.minimum(n_offs, row_bytes - 1)

    if ALIGNED_ROWS:
        in_ptr = tl.multiple_of(in_ptr, ALIGN)
        in_stride = tl.multiple_of(in_stride, ALIGN)
        m_first = tl.multiple_of(tl.load(first_ptr + m_in) * in_stride, ALIGN)
        in_offs = m_first[:, None] + n_offs[None, :]  # not n_in: bytes side by side load as words
        acc = _weigh(in_ptr, in_offs, in_stride, weights_ptr, m_in[:, None], table_size, taps)
    elif tl.load(job_ptr + VERTICAL) != 0:
        in_offs = (tl.load(first_ptr + m_in) * in_stride)[:, None] + n_in[None, :]
        acc = _weigh(in_ptr, in_offs, in_stride, weights_ptr, m_in[:, None], table_size, taps)
    else:
        channels = tl.load(job_ptr + CHANNELS).to(tl.int32)
        pixel = n_in // channels
        n_first = tl.load(first_ptr + pixel) * channels + n_in % channels
        in_offs = (m_in * in_stride)[:, None] + n_first[None, :]
        acc = _weigh(in_ptr, in_offs, channels, weights_ptr, pixel[None, :], table_size, taps)

    # An arithmetic shift: a negative sum goes down, and is clipped to 0 as in Pillow.
    value = tl.minimum(tl.maximum(acc >> PRECISION_BITS, 0), 255).to(tl.uint8)
    out_ptrs = out_ptr + m_offs[:, None] * out_stride + n_offs[None, :]
    tl.store(out_ptrs, value, mask=(m_offs < rows)[:, None] & (n_offs < row_bytes)[None, :])


# --- tables -----------------------------------------------------------------------------------------------------------


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2. The order of operations is Pillow's: another one rounds differently."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


@lru_cache(maxsize=2048)  # some 15 KB each; photographs come in many sizes
def _table(in_size: int, out_size: int) -> Tensor:
    """(1 + taps, out_size) int32 on the CPU: the first tap of every output pixel, then the weights of all taps.

    Every tap lies in the picture: where Pillow has fewer, the cubic is zero. Cached: not to be written to.
    """
    if in_size == out_size:
        first = torch.arange(out_size, dtype=torch.int32, device="cpu")
        return torch.stack([first, torch.full_like(first, 1 << PRECISION_BITS.value)])
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
    weights = weights / total * (1 << PRECISION_BITS.value)
    fixed = torch.where(weights < 0, weights - 0.5, weights + 0.5)
    return torch.cat([first[None], fixed.trunc()]).int()


class _Tables:
    """The tables that a batch needs, each once, one after the other."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.length = 0
        self._known: dict[tuple[int, int], tuple[int, int, int]] = {}

    def __call__(self, in_size: int, out_size: int) -> tuple[int, int, int]:
        """TABLE, TABLE_SIZE and TAPS of a job."""
        found = self._known.get((in_size, out_size))
        if found is None:
            table = _table(in_size, out_size)
            found = self._known[in_size, out_size] = (self.length, out_size, len(table) - 1)
            self.parts.append(table.flatten())
            self.length += table.numel()
        return found


# --- launcher ---------------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """What the two launches need besides the pixels."""

    words: Tensor  # int32 on the host: the jobs of both launches, as pairs of words, then the tables
    tiles: tuple[int, int]
    scratch_bytes: int
    starts: list[int]  # of the results, and the total
    vertical_last: bool  # in every picture


def _vertical_first(height: int, width: int, out_height: int, out_width: int, rule: str) -> bool:
    """Pillow's rules, see the reference. Where one axis stays the order is free, and horizontal first is faster."""
    rows_lost = height - out_height
    if rule == "tall_vertical_first":
        return width != out_width and rows_lost > 0 and height > 100 * width
    return rule == "adaptive" and width != out_width and rows_lost > max(0, 2 * (width - out_width))


def _tiles(rows: int, row_bytes: int) -> int:
    return launch.cdiv(rows, TILE["BLOCK_M"]) * launch.cdiv(row_bytes, TILE["BLOCK_N"])


def _plan(shapes: Sequence, sizes: Sequence, offsets: Sequence[int], rule: str) -> _Plan:
    tables, jobs, starts = _Tables(), ([], []), [0]
    tiles, scratch_bytes, vertical_last = [0, 0], 0, True
    for index, ((height, width, channels), (h, w), offset) in enumerate(zip(shapes, sizes, offsets, strict=True)):
        vertical = _vertical_first(height, width, h, w, rule)
        horizontal_table, vertical_table = tables(width, w), tables(height, h)
        rows, row_bytes = (h, width * channels) if vertical else (height, w * channels)
        stride = launch.cdiv(row_bytes, ALIGN.value) * ALIGN.value
        out_bytes = w * channels
        if max(height * width * channels, rows * stride, h * out_bytes) > MAX_BYTES:
            raise ValueError(f"images[{index}]: got {height} x {width} to {h} x {w}, wanted less than 2 GiB a picture")
        place = (tiles[0], offset, scratch_bytes, width * channels, stride, rows, row_bytes, channels)
        jobs[0].append((*place, vertical, *(vertical_table if vertical else horizontal_table)))
        place = (tiles[1], scratch_bytes, starts[-1], stride, out_bytes, h, out_bytes, channels)
        jobs[1].append((*place, not vertical, *(horizontal_table if vertical else vertical_table)))
        tiles = [tiles[0] + _tiles(rows, row_bytes), tiles[1] + _tiles(h, out_bytes)]
        scratch_bytes += rows * stride
        starts.append(starts[-1] + h * out_bytes)
        vertical_last &= not vertical
    words = torch.cat([torch.tensor(jobs, device="cpu").view(torch.int32).flatten(), *tables.parts])
    return _Plan(words, tuple(tiles), scratch_bytes + TILE["BLOCK_N"], starts, vertical_last)


@torch.library.custom_op("vilt_fast::resize", mutates_args=())
def _resize(
    source: Tensor,
    plan: Tensor,
    pictures: int,
    first_tiles: int,
    second_tiles: int,
    scratch_bytes: int,
    out_bytes: int,
    vertical_last: bool,
) -> Tensor:
    scratch, out = source.new_empty(scratch_bytes), source.new_empty(out_bytes)
    job_words = 2 * pictures * FIELDS.value  # a field is two words
    tables = plan[2 * job_words :]
    first, second = (plan[at : at + job_words].view(torch.int64) for at in (0, job_words))
    with launch.on_device(source):
        grids = (first_tiles,), (second_tiles,)
        resize_kernel[grids[0]](
            scratch, source, first, tables, pictures, ALIGNED_ROWS=False, num_warps=NUM_WARPS, **TILE
        )
        resize_kernel[grids[1]](
            out, scratch, second, tables, pictures, ALIGNED_ROWS=vertical_last, num_warps=NUM_WARPS, **TILE
        )
    return out


@_resize.register_fake
def _(source, plan, pictures, first_tiles, second_tiles, scratch_bytes, out_bytes, vertical_last):
    return source.new_empty(out_bytes)


def shipped_configurations(target: str) -> list[tuple]:
    """(name, function, signature, constexprs, attributes, options) of what a launch on `target` compiles."""
    cases = (("first", "*u8", False), ("second", "*u8:16", False), ("second, aligned rows", "*u8:16", True))
    shipped = []
    for name, in_type, aligned in cases:
        types = {"out_ptr": "*u8:16", "in_ptr": in_type, "jobs_ptr": "*i64:16", "tables_ptr": "*i32:16"}
        described = describe(resize_kernel, {**types, "num_jobs": "i32"}, {"ALIGNED_ROWS": aligned, **TILE})
        shipped.append((name, resize_kernel, *described, {"num_warps": NUM_WARPS}))
    return shipped


# --- public functions -------------------------------------------------------------------------------------------------


def resize(images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], *, rule: str = "adaptive") -> list[Tensor]:
    """Pictures at new sizes, bit for bit as `PIL.Image.resize(..., BICUBIC)` makes them.

    Every channel is resized alone: multiply by alpha beforehand where a picture has it (Pillow's RGBA and LA do).

    Args:
        images: pictures (H, W, C) uint8, of any strides, on one device.
        sizes: (height, width) of each result.
        rule: order of the passes, one of RULES: "horizontal_first" (Pillow up to 12.1), "tall_vertical_first" (12.2
            and 12.3) or "adaptive" (from 13.0).

    Returns:
        contiguous (height, width, C) uint8: views of one buffer; a copy where the size does not change.

    Raises:
        ValueError: a picture is not uint8 (H, W, C), empty, or 2 GiB, a size is not positive, or the lengths differ.
    """
    for index, image in enumerate(images):
        launch.check_tensor("resize", f"images[{index}]", image, ("H", "W", "C"), torch.uint8)
    shapes = [tuple(image.shape) for image in images]
    _check(shapes, sizes, rule)
    if not images:
        return []
    launch.check_device("resize", *images)
    flat = [image.reshape(-1) for image in images]
    out, starts = resize_packed(flat[0] if len(flat) == 1 else torch.cat(flat), shapes, sizes, rule=rule)
    return [
        out[start:end].view(height, width, channels)
        for start, end, (height, width), (_, _, channels) in zip(starts[:-1], starts[1:], sizes, shapes, strict=True)
    ]


def resize_packed(
    source: Tensor,
    shapes: Sequence[tuple[int, int, int]],
    sizes: Sequence[tuple[int, int]],
    *,
    offsets: Sequence[int] | None = None,
    rule: str = "adaptive",
) -> tuple[Tensor, list[int]]:
    """`resize` for pictures that lie in one flat buffer, into one flat buffer without padding.

    Args:
        source: (bytes,) uint8, contiguous; it may hold more than 2^31 bytes.
        shapes: (H, W, C) of each picture, whose bytes lie in that order.
        sizes, rule: as in `resize`.
        offsets: where in `source` each picture starts; one after the other from 0 where None.

    Returns:
        the results one after the other, (total,) uint8, and where each starts, followed by the total.

    Raises:
        ValueError: as in `resize`, or `source` is not flat uint8, or a picture does not lie in it.
    """
    offsets = _check_packed(source, shapes, sizes, offsets, rule)
    if not offsets:
        return source.new_empty(0), [0]
    plan = _plan(shapes, sizes, offsets, rule)
    words = plan.words.pin_memory() if source.is_cuda else plan.words
    words = words.to(source.device, non_blocking=True)
    out = _resize(source, words, len(offsets), *plan.tiles, plan.scratch_bytes, plan.starts[-1], plan.vertical_last)
    return out, plan.starts


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


def _check_packed(
    source: Tensor, shapes: Sequence, sizes: Sequence, offsets: Sequence[int] | None, rule: str
) -> Sequence[int]:
    """The offsets, given or made; ValueError where a picture does not lie in the buffer."""
    launch.check_device("resize_packed", source)
    launch.check_tensor("resize_packed", "source", source, ("bytes",), torch.uint8, row_major=True)
    _check(shapes, sizes, rule)
    lengths = [math.prod(shape) for shape in shapes]
    offsets = list(accumulate(lengths, initial=0))[:-1] if offsets is None else offsets
    if len(offsets) != len(lengths):
        raise ValueError(f"offsets: got {len(offsets)} for {len(lengths)} pictures, wanted one each")
    for index, (start, length) in enumerate(zip(offsets, lengths, strict=True)):
        if start < 0 or start + length > len(source):
            raise ValueError(f"offsets[{index}]: got {start}, wanted {length} bytes inside the {len(source)} of source")
    return offsets
