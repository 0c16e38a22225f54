"""Pillow's bicubic and bilinear for 8-bit images of any sizes, bit for bit, in two launches per batch.

    out[j] = clip8((2^21 + sum_t w[j, t] in[first[j] + t]) >> 22)        along one axis, then along the other

Keys' cubic convolution (1981, a = -1/2) or a triangle, in fixed point, as in Pillow's src/libImaging/Resample.c: the
host makes the tables of either in float64, the device adds integers. An image is `rows` of `row_bytes`, and a program
makes a tile of it:

     horizontal: taps are `channels` bytes apart        vertical: taps are a row apart
     +-------------------+                              +-------------------+
     | BLOCK_M x BLOCK_N |  a weight a column           | BLOCK_M x BLOCK_N |  a weight a row
     +-------------------+                              +-------------------+

The tiles of all images stand in one line; a program finds its image by counting the images that begin before it.
The first launch writes a scratch buffer whose rows start at multiples of 16 bytes, so that the second loads them in
words. An axis that does not change is copied, as a pass of one tap that weighs 1.

Not supported: alpha (multiply beforehand, as Pillow does), boxes, gradients, other filters, an image of 2 GiB.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vilt_fast.contracts import pillow

from . import launch
from .shipped import Configuration, compiled, empty

PRECISION_BITS = tl.constexpr(pillow.PRECISION_BITS)
HALF = tl.constexpr(1 << (pillow.PRECISION_BITS - 1))  # rounds to nearest
MAX_BYTES = (1 << 31) - (1 << 16)  # of one image: offsets inside it are int32, and a tile may reach past its end
ALIGN = tl.constexpr(16)  # bytes, the widest load
# 32 bytes a thread: many loads in flight, and a weight serves many of them.
TILE = {"BLOCK_M": 16, "BLOCK_N": 256, "BLOCK_JOBS": 256}
NUM_WARPS = 4

# What a job, one pass over one image, tells its programs; int64.
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
def _weigh(in_ptr, in_offs, step, weights_ptr, weight_offs, table_size, taps, AXIS: tl.constexpr):
    """The sum over taps of pixel times weight, one for each place on AXIS; taps are `step` bytes apart."""
    acc = tl.zeros_like(in_offs) + HALF  # (BLOCK_M, BLOCK_N) int32
    for _ in range(taps):
        # Weights in one dimension: of two, Triton 3.6 would move the pixels to where the weights are, for every tap.
        weights = tl.load(weights_ptr + weight_offs)
        acc += tl.load(in_ptr + in_offs).to(tl.int32) * tl.expand_dims(weights, 1 - AXIS)
        in_ptr += step
        weights_ptr += table_size
    return acc


@triton.jit(do_not_specialize=["num_jobs"])
def resize_kernel(
    out_ptr,  # uint8, images whose rows are OUT_STRIDE apart, at OUT_OFFSET
    in_ptr,  # uint8, images whose rows are IN_STRIDE apart, at IN_OFFSET
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
        acc = _weigh(in_ptr, in_offs, in_stride, weights_ptr, m_in, table_size, taps, 0)
    elif tl.load(job_ptr + VERTICAL) != 0:
        in_offs = (tl.load(first_ptr + m_in) * in_stride)[:, None] + n_in[None, :]
        acc = _weigh(in_ptr, in_offs, in_stride, weights_ptr, m_in, table_size, taps, 0)
    else:
        channels = tl.load(job_ptr + CHANNELS).to(tl.int32)
        pixel = n_in // channels
        n_first = tl.load(first_ptr + pixel) * channels + n_in % channels
        in_offs = (m_in * in_stride)[:, None] + n_first[None, :]
        acc = _weigh(in_ptr, in_offs, channels, weights_ptr, pixel, table_size, taps, 1)

    # An arithmetic shift: a negative sum goes down, and is clipped to 0 as in Pillow.
    value = tl.minimum(tl.maximum(acc >> PRECISION_BITS, 0), 255).to(tl.uint8)
    out_ptrs = out_ptr + m_offs[:, None] * out_stride + n_offs[None, :]
    tl.store(out_ptrs, value, mask=(m_offs < rows)[:, None] & (n_offs < row_bytes)[None, :])


# --- launcher ---------------------------------------------------------------------------------------------------------


class _Jobs(NamedTuple):
    """What the two launches need besides the pixels."""

    words: Tensor  # int32 on the host: the jobs of both launches, as pairs of words, then the tables
    tiles: tuple[int, int]
    scratch_bytes: int
    starts: list[int]  # of the results, and the total
    vertical_last: bool  # in every image


def _tiles(rows: int, row_bytes: int) -> int:
    return launch.cdiv(rows, TILE["BLOCK_M"]) * launch.cdiv(row_bytes, TILE["BLOCK_N"])


def _jobs(shapes: Sequence, sizes: Sequence, offsets: Sequence[int], rule: str, resample: str) -> _Jobs:
    tables: list[Tensor] = []
    tables_size = 0
    fields: dict[tuple[int, int], tuple[int, int, int]] = {}  # TABLE, TABLE_SIZE and TAPS by size before and after
    jobs, starts = ([], []), [0]
    tiles, scratch_bytes, vertical_last = [0, 0], 0, True
    for index, ((height, width, channels), (h, w), offset) in enumerate(zip(shapes, sizes, offsets, strict=True)):
        # Where the width stays the order of the passes is free, and horizontal first is faster.
        vertical = width != w and pillow.vertical_first(height, width, h, w, rule)
        axes = ((height, h), (width, w)) if vertical else ((width, w), (height, h))
        for axis in axes:
            if axis not in fields:
                table = pillow.resample_table(*axis, resample)
                fields[axis] = (tables_size, axis[1], len(table) - 1)
                tables.append(table.flatten())
                tables_size += table.numel()
        rows, row_bytes = (h, width * channels) if vertical else (height, w * channels)
        stride = launch.cdiv(row_bytes, ALIGN.value) * ALIGN.value
        out_bytes = w * channels
        if max(height * width * channels, rows * stride, h * out_bytes) > MAX_BYTES:
            raise ValueError(f"images[{index}]: got {height} x {width} to {h} x {w}, wanted less than 2 GiB per image")
        place = (tiles[0], offset, scratch_bytes, width * channels, stride, rows, row_bytes, channels)
        jobs[0].append((*place, vertical, *fields[axes[0]]))
        place = (tiles[1], scratch_bytes, starts[-1], stride, out_bytes, h, out_bytes, channels)
        jobs[1].append((*place, not vertical, *fields[axes[1]]))
        tiles = [tiles[0] + _tiles(rows, row_bytes), tiles[1] + _tiles(h, out_bytes)]
        scratch_bytes += rows * stride
        starts.append(starts[-1] + h * out_bytes)
        vertical_last &= not vertical
    words = torch.cat([torch.tensor(jobs, device="cpu").view(torch.int32).flatten(), *tables])
    return _Jobs(words, tuple(tiles), scratch_bytes + TILE["BLOCK_N"], starts, vertical_last)


def _launch(
    source: Tensor,
    jobs: Tensor,
    images: int,
    first_tiles: int,
    second_tiles: int,
    scratch_bytes: int,
    out_bytes: int,
    vertical_last: bool,
) -> Tensor:
    scratch, out = source.new_empty(scratch_bytes), source.new_empty(out_bytes)
    job_words = 2 * images * FIELDS.value  # a field is two words
    tables = jobs[2 * job_words :]
    first, second = (jobs[at : at + job_words].view(torch.int64) for at in (0, job_words))
    common = {"num_jobs": images, "num_warps": NUM_WARPS, **TILE}
    launch.run(resize_kernel, (first_tiles,), scratch, source, first, tables, ALIGNED_ROWS=False, **common)
    launch.run(resize_kernel, (second_tiles,), out, scratch, second, tables, ALIGNED_ROWS=vertical_last, **common)
    return out


_resize = torch.library.custom_op("vilt_fast::resize", _launch, mutates_args=())
_resize.register_fake(
    lambda source, jobs, images, first_tiles, second_tiles, scratch_bytes, out_bytes, *_: source.new_empty(out_bytes)
)


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    source, jobs = empty("u8", 17)[1:], empty("i32", 4 * FIELDS.value + 4)
    packed, aligned = (
        compiled(target, "", _launch, source, jobs, 1, 1, 1, 16, 16, vertical_last) for vertical_last in (False, True)
    )
    shipped = zip(("first", "second", "second, aligned rows"), (*packed, aligned[1]), strict=True)
    return [configuration._replace(name=name) for name, configuration in shipped]


# --- public functions -------------------------------------------------------------------------------------------------


def resize(
    images: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    rule: str = pillow.ADAPTIVE,
    resample: str = "bicubic",
) -> list[Tensor]:
    """`vilt_fast.reference.resize.resize`, for images on one device; the results are views of one buffer.

    Raises:
        ValueError: also where an image, what is between its two passes, or its result takes 2 GiB.
    """
    shapes = pillow.check_images(images, sizes, rule, resample)
    if not images:
        return []
    launch.check_device("resize", *images)
    flat = [image.reshape(-1) for image in images]
    source = flat[0] if len(flat) == 1 else torch.cat(flat)
    out, starts = resize_packed(source, shapes, sizes, rule=rule, resample=resample)
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
    rule: str = pillow.ADAPTIVE,
    resample: str = "bicubic",
) -> tuple[Tensor, list[int]]:
    """`vilt_fast.reference.resize.resize_packed`; `source` may hold more than 2^31 bytes, an image may not."""
    launch.check_device("resize_packed", source)
    offsets = pillow.check_packed(source, shapes, sizes, offsets, rule, resample)
    if not offsets:
        return source.new_empty(0), [0]
    work = _jobs(shapes, sizes, offsets, rule, resample)
    words = work.words.pin_memory() if source.is_cuda else work.words
    words = words.to(source.device, non_blocking=True)
    out = _resize(source, words, len(offsets), *work.tiles, work.scratch_bytes, work.starts[-1], work.vertical_last)
    return out, work.starts
