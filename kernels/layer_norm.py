"""y = (x - mean) / sqrt(var + eps) * w + b over each row (Ba et al. 2016, equation 4; biased variance).

One program holds ROWS rows in registers, so that memory is read once and written once:

                  BLOCK_D >= d
          +----------------------+
    ROWS  | row ->  sum, then    |   one warp up to 1024 columns: no shared memory, no barrier;
          | sum of (x - mean)^2  |   one more for every 1024 columns beyond
          +----------------------+

Statistics are fp32 and taken in two passes over the registers: no E[x^2] - E[x]^2, which cancels. Tiles depend on d
and dtype alone, so a row's result does not depend on the other rows.

Not supported: d above 4096, weights of another dtype than the rows, and gradients.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from . import launch, switches
from . import row_moments as _row_moments
from .shipped import Configuration, compiled, empty

MAX_D = 4096
row_moments = _row_moments.row_moments  # follows the switch of "layer_norm" in `vilt_fast.backend`


@triton.jit(do_not_specialize=["rows"])
def _layer_norm_kernel(
    out_ptr,  # (rows, d)
    x_ptr,  # (rows, d)
    weight_ptr,  # (d,)
    bias_ptr,  # (d,)
    rows,
    stride_om,
    stride_xm,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr = False,  # see `switches.with_pdl`
):
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    m_offs = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # (ROWS, 1)
    d_offs = tl.arange(0, BLOCK_D)[None, :]  # (1, BLOCK_D)
    d_mask = d_offs < D
    mask = (m_offs < rows) & d_mask
    x = tl.load(x_ptr + m_offs * stride_xm + d_offs, mask=mask, other=0.0).to(tl.float32)  # (ROWS, BLOCK_D)
    weight = tl.load(weight_ptr + d_offs, mask=d_mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + d_offs, mask=d_mask, other=0.0).to(tl.float32)

    mean = tl.sum(x, axis=1)[:, None] / D
    centred = tl.where(d_mask, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / D
    scale = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    y = tl.fma(centred * scale, weight, bias)
    tl.store(out_ptr + m_offs * stride_om + d_offs, y.to(out_ptr.dtype.element_ty), mask=mask)


# --- configurations ---------------------------------------------------------------------------------------------------


def heuristic(*, op: str, arch: str, N: int, K: int, bucket: str, dtype: str) -> dict[str, Any]:
    """ROWS and num_warps for rows of N columns; the other sizes do not matter."""
    if launch.family(arch) == "interpreter":
        return {"ROWS": 64, "num_warps": 4}
    # 32 columns a thread; up to 1024 columns that is one warp, which sums without shared memory or a barrier.
    return {"ROWS": 1, "num_warps": max(launch.next_power_of_2(N) // 1024, 1)}


# --- launcher ---------------------------------------------------------------------------------------------------------


def _plan(input: Tensor) -> launch.Program:
    (rows, d), arch = input.shape, launch.arch_of(input)
    # Whatever the number of rows: another tile could add a row's columns in another order.
    config = launch.configuration("layer_norm", arch=arch, N=d, dtype=input.dtype, heuristic=heuristic)
    config = switches.with_pdl(config, arch, N=d, bucket=launch.size_bucket(rows), dtype=input.dtype)
    return launch.Program(_layer_norm_kernel, D=d, BLOCK_D=launch.next_power_of_2(d), **config)


def _launch(input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x, weight, bias = launch.row_major(input), weight.contiguous(), bias.contiguous()
    key = _key(x, weight, bias)
    program = launch.plans.get(key) or _plan(x)
    if launch.recording is None:
        launch.plans[key] = program
    return _run(program, x, weight, bias, eps)


def _key(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Any, ...]:
    bucket = launch.size_bucket(x.shape[0])
    return "layer_norm", bucket, x.shape[1:], weight.shape, bias.shape, *map(launch.traits, (x, weight, bias))


def _run(program: launch.Program, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    rows, d = x.shape
    out = x.new_empty((rows, d))
    if rows:
        grid = (launch.cdiv(rows, program.configuration["ROWS"]), 1, 1)
        program(grid, out, x, weight, bias, rows, d, x.stride(0), eps)
    return out


_layer_norm = torch.library.custom_op("vilt_fast::layer_norm", _launch, mutates_args=())
_layer_norm.register_fake(lambda input, *_: input.new_empty(input.shape))


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    shipped = []
    for dtype, d in (("bf16", 768), ("fp16", 768), ("fp32", 768), ("bf16", 1536), ("fp32", 4096)):
        vector, name = empty(dtype, d), f"{dtype} d{d} rows{{ROWS}} w{{num_warps}}"
        shipped += compiled(target, name, _launch, empty(dtype, 211, d), vector, vector, 1e-6)
    if launch.family(target) in switches.SWITCHES["pdl"].families:
        with switches.forced(pdl=True):
            x, vector = empty("bf16", 211, 768), empty("bf16", 768)
            shipped += compiled(target, "bf16 d768 pdl", _launch, x, vector, vector, 1e-6)
    shipped += _row_moments.shipped_configurations(target)
    return shipped


# --- public function --------------------------------------------------------------------------------------------------


def layer_norm(input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`vilt_fast.reference.layer_norm.layer_norm` for fp32, fp16 and bf16, up to 4096 columns, with fp32 statistics.

    Weight and bias have the dtype of `input`, whose rows may be strided. No gradients.
    """
    eps = float(eps)
    if launch.is_direct():
        program = launch.plans.get(_key(input, weight, bias))
        if program is not None:
            return _run(program, input, weight, bias, eps)
    launch.check_tensor("layer_norm", "input", input, ("rows", "d"))
    d = input.shape[1]
    if not 0 < d <= MAX_D:
        raise ValueError(f"layer_norm: input: got {d} columns, wanted 1 to {MAX_D}")
    launch.check_tensor("layer_norm", "weight", weight, (d,), input.dtype)
    launch.check_tensor("layer_norm", "bias", bias, (d,), input.dtype)
    launch.check_device("layer_norm", input, weight, bias)
    run = _launch if launch.is_direct(input, weight, bias) else _layer_norm
    return run(input, weight, bias, eps)
