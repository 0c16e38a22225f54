"""out = act(x W^T + b) + r: the affine map of every projection (Vaswani et al. 2017, section 3.3).

One program makes tiles of the output; the accumulator is fp32 and stays in registers until the epilogue is done:

              K                          BLOCK_N
         +---------+                  +-----------+
    x    | ->  ->  | BLOCK_M     out  | act(.+b)+r| BLOCK_M
         +---------+                  +-----------+
    W    | ->  ->  | BLOCK_N          (in two halves of columns where SUBTILES is 2)
         +---------+

Tiles are visited in groups of GROUP_M rows of tiles, so that a group's x and all of W stay in the L2 cache.

Two kernels compute the same sums: `_linear_pointer` (any chip, any strides: one tile a program) and
`_linear_descriptor` (TMA on sm_90 and later: each program walks over many tiles). Every element adds its products in
the order of K in chunks of one matrix instruction, whatever the tile, so a row's result does not depend on how many
rows there are or on its place among them. For the same reason there is no split of K.

Not supported: fp8 and integer inputs, operands of different dtypes, and gradients.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import launch
from .activations import ACTIVATIONS, activate
from .compile import describe

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _place_of(tile, rows, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """First row and first column of a tile: down GROUP_M tiles, then across, then the next group."""
    m_blocks = tl.cdiv(rows, BLOCK_M)
    per_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    first = tile // per_group * GROUP_M
    height = tl.minimum(m_blocks - first, GROUP_M)
    return (first + tile % per_group % height) * BLOCK_M, tile % per_group // height * BLOCK_N


@triton.jit
def _linear_pointer(
    out_ptr,  # (rows, N)
    x_ptr,  # (rows, K)
    w_ptr,  # (N, K)
    bias_ptr,  # (N,) or None
    residual_ptr,  # (rows, N) or None
    rows,
    stride_om,
    stride_xm,
    stride_wn,
    stride_rm,
    N: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    m_start, n_start = _place_of(tl.program_id(0), rows, N, BLOCK_M, BLOCK_N, GROUP_M)
    m_first, n_first = m_start.to(tl.int64), n_start.to(tl.int64)
    m_offs, n_offs, k_offs = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    # Past the edge the last row (column) is read again and its result dropped: the loop needs no mask for it.
    x_offs = tl.minimum(m_offs, rows - m_start - 1)
    w_offs = tl.minimum(n_offs, N - n_start - 1)
    x_ptrs = x_ptr + m_first * stride_xm + (x_offs[:, None] * stride_xm + k_offs[None, :])  # (BLOCK_M, BLOCK_K)
    w_ptrs = w_ptr + n_first * stride_wn + (w_offs[:, None] * stride_wn + k_offs[None, :])  # (BLOCK_N, BLOCK_K)

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            k_mask = k_offs[None, :] < K - k
            x = tl.load(x_ptrs, mask=k_mask, other=0.0)
            w = tl.load(w_ptrs, mask=k_mask, other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    n_mask = n_offs < N - n_start
    mask = (m_offs < rows - m_start)[:, None] & n_mask[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n_start + n_offs, mask=n_mask, other=0.0).to(tl.float32)[None, :]
    OUT_16BIT: tl.constexpr = out_ptr.dtype.element_ty.primitive_bitwidth == 16
    acc = activate(acc, ACTIVATION, OUT_16BIT)
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + m_first * stride_rm + n_start + (m_offs[:, None] * stride_rm + n_offs[None, :])
        acc += tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
    out_ptrs = out_ptr + m_first * stride_om + n_start + (m_offs[:, None] * stride_om + n_offs[None, :])
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _write(acc, out_desc, bias_ptr, residual_desc, m_start, n_start, N: tl.constexpr, ACTIVATION: tl.constexpr):
    """Epilogue of `acc`, a (BLOCK_M, columns) block of a tile at (m_start, n_start)."""
    if bias_ptr is not None:
        n_offs = n_start + tl.arange(0, acc.shape[1])
        acc += tl.load(bias_ptr + n_offs, mask=n_offs < N, other=0.0).to(tl.float32)[None, :]
    OUT_16BIT: tl.constexpr = out_desc.dtype.primitive_bitwidth == 16
    acc = activate(acc, ACTIVATION, OUT_16BIT)
    if residual_desc is not None:
        acc += residual_desc.load([m_start, n_start]).to(tl.float32)
    out_desc.store([m_start, n_start], acc.to(out_desc.dtype))


@triton.jit
def _linear_descriptor(
    out_desc,  # (rows, N) in blocks of (BLOCK_M, BLOCK_N / SUBTILES)
    x_desc,  # (rows, K) in blocks of (BLOCK_M, BLOCK_K)
    w_desc,  # (N, K) in blocks of (BLOCK_N, BLOCK_K)
    bias_ptr,  # (N,) or None
    residual_desc,  # (rows, N) in blocks of (BLOCK_M, BLOCK_N / SUBTILES), or None
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SUBTILES: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    tiles = tl.cdiv(rows, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    # A descriptor reads zeros past every edge and writes nothing there: no masks.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        m_start, n_start = _place_of(tile, rows, N, BLOCK_M, BLOCK_N, GROUP_M)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            x = x_desc.load([m_start, k])
            w = w_desc.load([n_start, k])
            acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        if SUBTILES == 2:
            # Half the columns at a time: half the registers and half the shared memory for what is on its way out.
            pair = tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
            left, right = tl.split(pair)  # (BLOCK_M, BLOCK_N / 2) each
            _write(left, out_desc, bias_ptr, residual_desc, m_start, n_start, N, ACTIVATION)
            _write(right, out_desc, bias_ptr, residual_desc, m_start, n_start + BLOCK_N // 2, N, ACTIVATION)
        else:
            _write(acc, out_desc, bias_ptr, residual_desc, m_start, n_start, N, ACTIVATION)


# --- configurations ---------------------------------------------------------------------------------------------------


def heuristic(*, op: str, arch: str, N: int, K: int, bucket: str, dtype: str) -> dict[str, Any]:
    """Tiles where no table has an entry: large where there are tiles enough to fill the chip, 64 rows elsewhere.

    Args:
        op: "linear_pointer", "linear_descriptor" or "linear_descriptor_residual".
        arch, N, K, bucket: see `launch.configuration`.
        dtype: "float16", "bfloat16", "tf32" or "float32" (fp32 without rounding of the inputs).
    """
    big = bucket in ("medium", "large")
    wide = dtype in ("float32", "tf32")
    config = {"BLOCK_M": 128 if big else 64, "BLOCK_N": 128 if big else 64, "BLOCK_K": 32 if wide else 64, "GROUP_M": 8}
    config |= {"num_warps": 8 if big else 4, "num_stages": 3}
    if launch.family(arch) == "interpreter":
        # The interpreter pays for every operation and not for its size.
        return config | {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 256} | _walk(op, programs=1)
    if dtype == "float32":
        # Multiply-adds without a matrix unit: a tile of 128x128 would need every register there is.
        config |= {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4}
    if launch.family(arch) == "gfx942":
        # One instruction shape for every tile keeps the order of the sums; 64 KB of shared memory hold two stages.
        return config | {"num_stages": 2, "matrix_instr_nonkdim": 16}
    return config | _walk(op, programs=2)


def _walk(op: str, programs: int) -> dict[str, Any]:
    """How a descriptor kernel walks over its tiles, with `programs` on a multiprocessor; nothing for the other."""
    if op == "linear_pointer":
        return {}
    # A flattened loop fetches the next tile during the epilogue, and keeps the residual's own shared memory alive:
    # with a residual, not flattening lets two programs fit, and they hide each other's epilogues.
    return {"SUBTILES": 2, "FLATTEN": op == "linear_descriptor", "programs": programs}


def _choose(op: str, input: Tensor, weight: Tensor) -> dict[str, Any]:
    rows, (N, K) = input.shape[0], weight.shape
    tf32 = launch.input_precision(input.dtype) == "tf32"
    dtype = "tf32" if tf32 else input.dtype
    return launch.configuration(op, arch=launch.arch_of(input), N=N, K=K, rows=rows, dtype=dtype, heuristic=heuristic)


# --- launchers --------------------------------------------------------------------------------------------------------


def _row_major(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _describable(tensor: Tensor) -> bool:
    """Whether TMA can read a matrix: base and row stride multiples of 16 bytes, rows that do not overlap."""
    rows, columns = tensor.shape
    stride = tensor.stride(0) if rows > 1 else columns
    return (
        tensor.data_ptr() % 16 == 0
        and stride >= columns
        and stride * tensor.element_size() % 16 == 0
        and (columns == 1 or tensor.stride(1) == 1)
    )


def _describe(tensor: Tensor, block_rows: int, block_columns: int) -> TensorDescriptor:
    rows, columns = tensor.shape
    stride = tensor.stride(0) if rows > 1 else columns
    return TensorDescriptor(tensor, [rows, columns], [stride, 1], [block_rows, block_columns])


def _launch_pointer(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    config: dict,
) -> None:
    rows, (N, K) = x.shape[0], w.shape
    grid = (launch.cdiv(rows, config["BLOCK_M"]) * launch.cdiv(N, config["BLOCK_N"]),)
    strides = (out.stride(0), x.stride(0), w.stride(0), None if residual is None else residual.stride(0))
    _linear_pointer[grid](
        out, x, w, bias, residual, rows, *strides, N, K, activation, launch.input_precision(x.dtype), **config
    )


def _launch_descriptor(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    config: dict,
) -> None:
    rows, (N, K) = x.shape[0], w.shape
    options = dict(config)
    programs = options.pop("programs") * launch.multiprocessors(x.device)
    block_m, block_n, block_k = (options[f"BLOCK_{axis}"] for axis in "MNK")
    grid = (min(programs, launch.cdiv(rows, block_m) * launch.cdiv(N, block_n)),)
    columns = block_n // options["SUBTILES"]
    descriptors = (_describe(out, block_m, columns), _describe(x, block_m, block_k), _describe(w, block_n, block_k))
    residual_desc = None if residual is None else _describe(residual, block_m, columns)
    precision = launch.input_precision(x.dtype)
    _linear_descriptor[grid](*descriptors, bias, residual_desc, rows, N, K, activation, precision, **options)


def _uses_descriptors(arch: str, precision: str, dtype: torch.dtype, tensors: tuple[Tensor | None, ...]) -> bool:
    if launch.family(arch) not in ("sm90", "sm100") or (dtype == torch.float32 and precision == "ieee"):
        return False
    return all(tensor is None or _describable(tensor) for tensor in tensors)


# --- registration -----------------------------------------------------------------------------------------------------


@torch.library.custom_op("vilt_fast::linear", mutates_args=())
def _linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    launch.check_device("linear", input, weight, bias, residual)
    rows, N = input.shape[0], weight.shape[0]
    out = input.new_empty((rows, N))
    if rows == 0 or N == 0:
        return out
    x, w = _row_major(input), _row_major(weight)
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else _row_major(residual)
    precision = launch.input_precision(input.dtype)
    with launch.on_device(input):
        if _uses_descriptors(launch.arch_of(input), precision, input.dtype, (out, x, w, residual)):
            op = "linear_descriptor" if residual is None else "linear_descriptor_residual"
            _launch_descriptor(out, x, w, bias, residual, activation, _choose(op, x, w))
        else:
            _launch_pointer(out, x, w, bias, residual, activation, _choose("linear_pointer", x, w))
    return out


@_linear.register_fake
def _(input, weight, bias, activation, residual):
    return input.new_empty((input.shape[0], weight.shape[0]))


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Affine map of rows with an optional activation and an optional residual, in that order, in one kernel.

    The sum over K is fp32. fp32 inputs are multiplied as they are where torch.get_float32_matmul_precision() is
    "highest", and rounded to tf32 where it is "high" or "medium". No gradients yet.

    Args:
        input: (rows, K), fp32, fp16 or bf16; rows may be strided.
        weight: (N, K), dtype of `input`.
        bias: (N,), dtype of `input`, or None.
        activation: None, "gelu" (exact; within 3e-6 of it for 16-bit outputs), "gelu_tanh", "relu" or "tanh".
        residual: (rows, N), dtype of `input`, added after the activation, or None.

    Returns:
        (rows, N) in the dtype of `input`.

    Raises:
        ValueError: a shape, dtype, device or activation that is not one of these.
    """
    launch.check_tensor("linear", "input", input, ("rows", "K"), DTYPES)
    launch.check_tensor("linear", "weight", weight, ("N", input.shape[1]), input.dtype)
    if bias is not None:
        launch.check_tensor("linear", "bias", bias, (weight.shape[0],), input.dtype)
    if residual is not None:
        launch.check_tensor("linear", "residual", residual, (input.shape[0], weight.shape[0]), input.dtype)
    if activation not in ACTIVATIONS:
        raise ValueError(f"linear: activation: got {activation!r}, wanted one of {ACTIVATIONS}")
    return _linear(input, weight, bias, activation, residual)
