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

A configuration with PDL and launch_pdl (sm_90 and later) lets a kernel start while the one before it ends
(programmatic dependent launch); no shipped one does.

Not supported: fp8 and integer inputs, operands of different dtypes, and gradients.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from vilt_fast.contracts.dtypes import FLOATS, product_name

from . import launch
from .activations import ACTIVATIONS, activate
from .shipped import Configuration, describe


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
    PDL: tl.constexpr = False,
):
    if PDL:
        gdc_wait()
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
    if PDL:
        gdc_launch_dependents()

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
    PDL: tl.constexpr = False,
):
    if PDL:
        gdc_wait()
        # The next kernel's programs start as soon as ours leave room for them.
        gdc_launch_dependents()
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
    """Tiles where no table has an entry: 128 rows where there are tiles enough to fill the chip, 64 elsewhere.

    Args:
        op: "linear_pointer", "linear_descriptor" or "linear_descriptor_residual".
        arch, N, K, bucket: see `launch.configuration`.
        dtype: "float16", "bfloat16", "tf32" or "float32" (fp32 inputs as they are).
    """
    chip, big = launch.family(arch), bucket in ("medium", "large")
    # The interpreter pays for every operation and hardly for its size.
    tile = (128, 256, 256) if chip == "interpreter" else (128, 128, 64) if big else (64, 64, 64)
    config: dict[str, Any] = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), tile, strict=True))
    config |= {"GROUP_M": 8, "num_warps": 8 if big else 4, "num_stages": 3}
    if dtype in ("tf32", "float32"):
        config["BLOCK_K"] //= 2
    if dtype == "float32" and chip != "interpreter":
        # Multiply-adds without a matrix unit keep their operands in registers: a smaller tile, or they spill.
        config |= {"BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8}
    if chip == "gfx942":
        # One instruction shape for every tile keeps the order of the sums; 64 KB of shared memory hold two stages.
        config |= {"num_stages": 2, "matrix_instr_nonkdim": 16}
    if op != "linear_pointer":
        # A flattened loop fetches the next tile during the epilogue, and keeps the residual's own shared memory alive:
        # with a residual, not flattening lets two programs fit, which hide each other's epilogues.
        config |= {"SUBTILES": 2, "FLATTEN": op == "linear_descriptor", "programs": 2}
    return config


def _choose(op: str, arch: str, N: int, K: int, rows: int, dtype: str) -> dict[str, Any]:
    return launch.configuration(op, arch=arch, N=N, K=K, rows=rows, dtype=dtype, heuristic=heuristic)


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    qkv, out = (2304, 768, None, False), (768, 768, None, True)
    up, down = (3072, 768, "gelu", False), (768, 3072, None, True)
    # Rows of 1, 8, 64 and 256 pairs through ViT-B; where size classes share tiles, they share a program.
    best = [("bf16", rows, *shape) for shape in (qkv, out, up, down) for rows in (226, 1688, 13504, 53831)]
    best += [("bf16", 256, 768, 768, "tanh", False), ("fp16", 53831, *up)]
    best += [("tf32", 226, *up), ("tf32", 53831, *up), ("tf32", 53831, *down)]
    # Rows that TMA cannot describe take the pointer kernel; the longest epilogue is here for its registers.
    plain = [("bf16", 53831, 3072, 768, "gelu_tanh", True), ("bf16", 226, 30522, 768, None, False)]
    plain += [("fp32", 53831, 3072, 768, "gelu_tanh", True)]
    descriptors = target in ("sm90", "sm100")
    cases = [(descriptors, *case) for case in best] + [(False, *case) for case in plain]
    found: dict[str, Configuration] = {}
    for case in cases:
        if target != "gfx942" or case[1] != "tf32":
            entry = _specialise(target, *case)
            found.setdefault(str((entry.function.__name__, *entry[2:])), entry)
    return list(found.values())


def _specialise(
    target: str, descriptors: bool, dtype: str, rows: int, N: int, K: int, activation: str | None, residual: bool
) -> Configuration:
    op = f"linear_descriptor{'_residual' if residual else ''}" if descriptors else "linear_pointer"
    element, precision = ("fp32", "tf32") if dtype == "tf32" else (dtype, "ieee")
    config = dict(_choose(op, target, N, K, rows, product_name(FLOATS[element], precision)))
    tile = "x".join(str(config[f"BLOCK_{axis}"]) for axis in "MNK")
    label = f"{dtype} {N}x{K} {activation or 'none'}{'+residual' if residual else ''} {tile}"
    label += f" w{config['num_warps']} s{config['num_stages']}"
    config.pop("programs", None)
    constexprs = {"PDL": False} | config | {"N": N, "K": K, "ACTIVATION": activation, "PRECISION": precision}
    types = {"bias_ptr": f"*{element}:16", "rows": "i32"}
    even = ":16" if N % 16 == 0 else ""
    if descriptors:
        block_m, block_n, block_k = (config[f"BLOCK_{axis}"] for axis in "MNK")
        types["out_desc"] = f"tensordesc<{element}[{block_m}, {block_n // config['SUBTILES']}]>"
        types["x_desc"] = f"tensordesc<{element}[{block_m}, {block_k}]>"
        types["w_desc"] = f"tensordesc<{element}[{block_n}, {block_k}]>"
        given = {"residual_desc": types["out_desc"]}
    else:
        types |= {key: f"*{element}:16" for key in ("out_ptr", "x_ptr", "w_ptr")}
        types |= {"stride_om": f"i32{even}", "stride_xm": "i32:16", "stride_wn": "i32:16"}
        given = {"residual_ptr": f"*{element}:16", "stride_rm": f"i32{even}"}
    types |= given if residual else {}
    constexprs |= {} if residual else dict.fromkeys(given)
    fn = _linear_descriptor if descriptors else _linear_pointer
    return describe(label, fn, types, constexprs)


# --- launchers --------------------------------------------------------------------------------------------------------


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


def _launch(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    config: dict[str, Any],
) -> None:
    """A configuration with `programs`, per multiprocessor, is one of the descriptor kernel."""
    rows, (N, K) = x.shape[0], w.shape
    block_m, block_n, block_k = (config[f"BLOCK_{axis}"] for axis in "MNK")
    tiles = launch.cdiv(rows, block_m) * launch.cdiv(N, block_n)
    product = (N, K, activation, launch.input_precision(x.dtype))
    if "programs" not in config:
        strides = (out.stride(0), x.stride(0), w.stride(0), None if residual is None else residual.stride(0))
        _linear_pointer[(tiles,)](out, x, w, bias, residual, rows, *strides, *product, **config)
        return
    options = dict(config)
    programs = min(tiles, options.pop("programs") * launch.multiprocessors(x.device))
    columns = block_n // options["SUBTILES"]
    descriptors = (_describe(out, block_m, columns), _describe(x, block_m, block_k), _describe(w, block_n, block_k))
    residual_desc = None if residual is None else _describe(residual, block_m, columns)
    _linear_descriptor[(programs,)](*descriptors, bias, residual_desc, rows, *product, **options)


def _uses_descriptors(arch: str, dtype: str, tensors: tuple[Tensor | None, ...]) -> bool:
    # fp32 as it is has no matrix unit to feed, so the plain kernel does.
    if launch.family(arch) not in ("sm90", "sm100") or dtype == "float32":
        return False
    return all(tensor is None or _describable(tensor) for tensor in tensors)


# --- registration -----------------------------------------------------------------------------------------------------


@torch.library.custom_op("vilt_fast::linear", mutates_args=())
def _linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    rows, N = input.shape[0], weight.shape[0]
    out = input.new_empty((rows, N))
    if rows == 0 or N == 0:
        return out
    x, w = launch.row_major(input), launch.row_major(weight)
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else launch.row_major(residual)
    arch, dtype = launch.arch_of(input), product_name(input.dtype, launch.input_precision(input.dtype))
    op = "linear_pointer"
    if _uses_descriptors(arch, dtype, (out, x, w, residual)):
        op = "linear_descriptor" if residual is None else "linear_descriptor_residual"
    with launch.on_device(input):
        _launch(out, x, w, bias, residual, activation, _choose(op, arch, N, input.shape[1], rows, dtype))
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
    """`vilt_fast.reference.linear.linear` in one kernel, for fp32, fp16 and bf16, all operands of one dtype.

    The sum over K is fp32, and fp32 is multiplied as torch.get_float32_matmul_precision() says. "gelu" is within 3e-6
    of exact for 16-bit outputs. Rows may be strided. No gradients.
    """
    launch.check_tensor("linear", "input", input, ("rows", "K"), FLOATS.values())
    launch.check_tensor("linear", "weight", weight, ("N", input.shape[1]), input.dtype)
    launch.check_tensor("linear", "bias", bias, (weight.shape[0],), input.dtype)
    launch.check_tensor("linear", "residual", residual, (input.shape[0], weight.shape[0]), input.dtype)
    if activation not in ACTIVATIONS:
        raise ValueError(f"linear: activation: got {activation!r}, wanted one of {ACTIVATIONS}")
    launch.check_device("linear", input, weight, bias, residual)
    return _linear(input, weight, bias, activation, residual)
