"""Mean and sum of squared deviations of every 64 columns of a row: made here, combined in order where they are used.

LayerNorm can then be part of the product that follows it (see linear.py), which needs mean and variance of a row when
its sum over K is done. The product before writes them where a tile's halves are whole groups of columns:

                  64   64   64   64
               +----+----+----+----+
    BLOCK_M    |    |    |    |    |   a group is summed by itself, whatever the tile; a row's mean and variance
               +----+----+----+----+   are those of its groups, combined from left to right (Chan et al. 1979)
    mean        m0   m1   m2   m3
    squares     s0   s1   s2   s3

Statistics are fp32, of the row as it was rounded, and squares are of deviations from the group's mean: nothing cancels.

Not supported: a number of columns that is no multiple of 64 or above 4096, and gradients.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vilt_fast.contracts.moments import GROUP

from . import launch, switches
from .no_backward import refuse_gradients
from .shipped import Configuration, compiled, empty

MAX_D = 4096
UNROLLED = tl.constexpr(24)  # groups of a row, up to which their loads are all early


@triton.jit
def _widened(block):
    """A block as fp32; of bf16 by its bits, or every element is rounded a second time, not in pairs as it is stored."""
    if block.dtype == tl.bfloat16:
        bits = block.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    return block.to(tl.float32)


@triton.jit
def write_moments(
    moments_ptr,  # (2, N / 64, rows)
    block,  # (BLOCK_M, COLUMNS) of rows of N columns, rounded as they are stored; groups may be past N
    m_offs,  # (BLOCK_M,)
    n_start,
    rows,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr = GROUP,
):
    """Writes the moments of the groups of a block."""
    COUNT: tl.constexpr = COLUMNS // GROUP
    groups = tl.reshape(_widened(block), (BLOCK_M, COUNT, GROUP))
    mean = tl.sum(groups, axis=2) * (1.0 / GROUP)  # (BLOCK_M, COUNT)
    deviation = groups - mean[:, :, None]
    squares = tl.sum(deviation * deviation, axis=2)
    g_offs = n_start // GROUP + tl.arange(0, COUNT)
    mask = (m_offs < rows)[:, None] & (g_offs < N // GROUP)[None, :]
    ptrs = moments_ptr + g_offs[None, :].to(tl.int64) * rows + m_offs[:, None]
    tl.store(ptrs, mean, mask=mask)
    tl.store(ptrs + tl.cast(rows, tl.int64) * (N // GROUP), squares, mask=mask)


@triton.jit
def row_scale(
    moments_ptr, m_offs, rows, eps, D: tl.constexpr, GROUP: tl.constexpr = GROUP, UNROLLED: tl.constexpr = UNROLLED
):
    """Mean and 1 / sqrt(var + eps) of the rows m_offs, as in `vilt_fast.reference.layer_norm.row_scale`."""
    COUNT: tl.constexpr = D // GROUP
    # Past the last row nothing is defined, and nothing is stored.
    mask = m_offs < rows
    mean_ptrs = moments_ptr + m_offs
    squares_ptrs = mean_ptrs + tl.cast(rows, tl.int64) * COUNT
    mean = tl.load(mean_ptrs, mask=mask)
    squares = tl.load(squares_ptrs, mask=mask)
    if COUNT <= UNROLLED:
        for done in tl.static_range(1, COUNT):
            mean_ptrs += rows
            squares_ptrs += rows
            delta = tl.load(mean_ptrs, mask=mask) - mean
            mean = tl.fma(delta, 1.0 / (done + 1), mean)
            squares += tl.fma(delta * delta, 1.0 * GROUP * done / (done + 1), tl.load(squares_ptrs, mask=mask))
    else:
        # Loads of that many groups, all early, would spill. Divisions are rounded, so the bits are those of above.
        for done in tl.range(1, COUNT, num_stages=1):
            mean_ptrs += rows
            squares_ptrs += rows
            count = tl.cast(done, tl.float32)
            delta = tl.load(mean_ptrs, mask=mask) - mean
            mean = tl.fma(delta, tl.div_rn(1.0, count + 1), mean)
            share = tl.div_rn(count * GROUP, count + 1)
            squares += tl.fma(delta * delta, share, tl.load(squares_ptrs, mask=mask))
    scale = tl.div_rn(1.0, tl.sqrt_rn(squares / D + eps))
    # A row of one value: what rounding left of its product must not be divided by the root of eps.
    return mean, tl.where(squares == 0.0, 0.0, scale)


@triton.jit(do_not_specialize=["rows"])
def _row_moments_kernel(
    moments_ptr,  # (2, D / GROUP, rows)
    x_ptr,  # (rows, D)
    rows,
    stride_xm,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr = False,  # see `switches.with_pdl`
):
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    m_offs = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d_offs = tl.arange(0, BLOCK_D)[None, :]
    mask = (m_offs < rows)[:, None] & (d_offs < D)
    x = tl.load(x_ptr + m_offs[:, None] * stride_xm + d_offs, mask=mask, other=0.0)  # (ROWS, BLOCK_D)
    write_moments(moments_ptr, x, m_offs, 0, rows, D, ROWS, BLOCK_D)


# --- configurations ---------------------------------------------------------------------------------------------------


def heuristic(*, op: str, arch: str, N: int, K: int, bucket: str, dtype: str) -> dict[str, Any]:
    """ROWS and num_warps for rows of N columns; the other sizes do not matter."""
    if launch.family(arch) == "interpreter":
        return {"ROWS": 64, "num_warps": 4}
    # A warp for each row, as in layer_norm.py, and eight rows to write 32 bytes at a time.
    return {"ROWS": 8, "num_warps": 8}


# --- launcher ---------------------------------------------------------------------------------------------------------


def new_moments(x: Tensor, rows: int, d: int) -> Tensor:
    """Unwritten moments of rows of d columns, where `x` is."""
    return torch.empty((2, d // GROUP, rows), dtype=torch.float32, device=x.device)


def _plan(input: Tensor) -> launch.Program:
    (rows, d), arch = input.shape, launch.arch_of(input)
    # Whatever the number of rows: another tile could add a group's columns in another order.
    config = launch.configuration("row_moments", arch=arch, N=d, dtype=input.dtype, heuristic=heuristic)
    config = switches.with_pdl(config, arch, N=d, bucket=launch.size_bucket(rows), dtype=input.dtype)
    return launch.Program(_row_moments_kernel, D=d, BLOCK_D=launch.next_power_of_2(d), **config)


def _launch(x: Tensor, program: launch.Program) -> Tensor:
    rows, d = x.shape
    moments = new_moments(x, rows, d)
    if rows:
        program((launch.cdiv(rows, program.configuration["ROWS"]), 1, 1), moments, x, rows, x.stride(0))
    return moments


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    shipped = []
    for dtype, d in (("bf16", 768), ("fp16", 1280)):
        x = empty(dtype, 211, d)
        shipped += compiled(target, f"{dtype} d{d} rows{{ROWS}} w{{num_warps}}", lambda x=x: _launch(x, _plan(x)))
    if launch.family(target) in switches.SWITCHES["pdl"].families:
        with switches.forced(pdl=True):
            shipped += compiled(target, f"{dtype} d{d} pdl", lambda: _launch(x, _plan(x)))
    return shipped


# --- public function --------------------------------------------------------------------------------------------------


def row_moments(input: Tensor) -> Tensor:
    """`vilt_fast.reference.layer_norm.row_moments` for fp32, fp16 and bf16, up to 4096 columns, as fp32.

    Rows may be strided. For frozen models: not for torch.compile, and no gradients.
    """
    refuse_gradients("row_moments", input)
    launch.check_tensor("row_moments", "input", input, ("rows", "d"))
    rows, d = input.shape
    if not 0 < d <= MAX_D or d % GROUP:
        raise ValueError(f"row_moments: input: got {d} columns, wanted a multiple of {GROUP} up to {MAX_D}")
    launch.check_device("row_moments", input)
    x = launch.row_major(input)
    key = ("row_moments", launch.size_bucket(rows), d, launch.traits(x))
    program = launch.plans.get(key) or _plan(x)
    if launch.recording is None:
        launch.plans[key] = program
    return _launch(x, program)
