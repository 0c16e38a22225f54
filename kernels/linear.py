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

from . import launch
from .activations import ACTIVATIONS, activate
from .shipped import Configuration, compiled, empty


@triton.jit
def _place_of(tile, rows, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """First row and first column of a tile: down GROUP_M tiles, then across, then the next group."""
    m_blocks = tl.cdiv(rows, BLOCK_M)
    per_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    first = tile // per_group * GROUP_M
    height = tl.minimum(m_blocks - first, GROUP_M)
    return (first + tile % per_group % height) * BLOCK_M, tile % per_group // height * BLOCK_N


# A new number of rows must not compile a new kernel.
@triton.jit(do_not_specialize=["rows"])
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


@triton.jit(do_not_specialize=["rows"])
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


class _Descriptor(TensorDescriptor):
    """A descriptor of what `_describable` has checked."""

    def __post_init__(self) -> None:
        pass


def _describe(tensor: Tensor, block_rows: int, block_columns: int) -> TensorDescriptor:
    rows, columns = tensor.shape
    stride = tensor.stride(0) if rows > 1 else columns
    return _Descriptor(tensor, [rows, columns], [stride, 1], [block_rows, block_columns])


def _choose(x: Tensor, w: Tensor, residual: Tensor | None) -> dict[str, Any]:
    """A configuration; one with `programs`, per multiprocessor, is of the descriptor kernel."""
    (N, K), arch, dtype = w.shape, launch.arch_of(x), launch.product_name(x.dtype)
    # The output is new: contiguous, and at a multiple of 16 bytes.
    described = N * x.element_size() % 16 == 0
    described = described and all(tensor is None or _describable(tensor) for tensor in (x, w, residual))
    # fp32 as it is has no matrix unit to feed, so the plain kernel does.
    if not described or launch.family(arch) not in ("sm90", "sm100") or dtype == "float32":
        op = "linear_pointer"
    else:
        op = "linear_descriptor" if residual is None else "linear_descriptor_residual"
    return launch.configuration(op, arch=arch, N=N, K=K, rows=x.shape[0], dtype=dtype, heuristic=heuristic)


class _Plan:
    """A launch for all rows of a size class."""

    def __init__(self, x: Tensor, w: Tensor, activation: str | None, config: dict[str, Any]) -> None:
        options, (self.N, K) = dict(config), w.shape
        self.block_m, self.block_n, self.block_k = (config[f"BLOCK_{axis}"] for axis in "MNK")
        self.column_tiles = launch.cdiv(self.N, self.block_n)
        self.columns = self.block_n // config.get("SUBTILES", 1)
        programs = options.pop("programs", None)
        self.programs = None if programs is None else programs * launch.multiprocessors(x.get_device())
        kernel = _linear_pointer if programs is None else _linear_descriptor
        product = {"N": self.N, "K": K, "ACTIVATION": activation, "PRECISION": launch.input_precision(x.dtype)}
        self.program = launch.Program(kernel, **product, **options)

    def run(self, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """The product in a new tensor."""
        out = x.new_empty((x.shape[0], self.N))
        if x.shape[0]:
            self.write(out, x, w, bias, residual)
        return out

    def write(self, out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
        rows = x.shape[0]
        tiles = launch.cdiv(rows, self.block_m) * self.column_tiles
        if self.programs is None:
            strides = (out.stride(0), x.stride(0), w.stride(0), None if residual is None else residual.stride(0))
            self.program((tiles, 1, 1), out, x, w, bias, residual, rows, *strides)
            return
        added = None if residual is None else _describe(residual, self.block_m, self.columns)
        described = (_describe(out, self.block_m, self.columns), _describe(x, self.block_m, self.block_k))
        described += (_describe(w, self.block_n, self.block_k),)
        self.program((min(tiles, self.programs), 1, 1), *described, bias, added, rows)


def _key(x: Tensor, w: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None) -> tuple[Any, ...]:
    rows = x.shape[0]
    return (
        *("linear", activation, launch.size_bucket(rows), min(rows, 2), x.shape[1:], w.shape),
        None if bias is None else bias.shape,
        None if residual is None else (residual.shape[0] == rows, residual.shape[1:]),
        *map(launch.traits, (x, w, bias, residual)),
        None if x.dtype != torch.float32 else torch.get_float32_matmul_precision(),
    )


def _launch(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    if weight.shape[0] == 0:
        return input.new_empty((input.shape[0], 0))
    x, w = launch.row_major(input), launch.row_major(weight)
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else launch.row_major(residual)
    key = _key(x, w, bias, activation, residual)
    plan = launch.plans.get(key) or _Plan(x, w, activation, _choose(x, w, residual))
    if launch.recording is None:
        launch.plans[key] = plan
    return plan.run(x, w, bias, residual)


_linear = torch.library.custom_op("vilt_fast::linear", _launch, mutates_args=())
_linear.register_fake(lambda input, weight, *_: input.new_empty(input.shape[0], weight.shape[0]))


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    # Columns out, columns in, activation and residual; 30522 columns of 16 bits are rows that TMA cannot describe.
    qkv, out, words = (2304, 768, None, False), (768, 768, None, True), (30522, 768, None, False)
    up, down, longest = (3072, 768, "gelu", False), (768, 3072, None, True), (3072, 768, "gelu_tanh", True)
    # Rows of 1, 8, 64 and 256 pairs through ViT-B; where size classes share tiles, they share a program.
    cases = [("bf16", rows, *shape) for shape in (qkv, out, up, down) for rows in (226, 1688, 13504, 53831)]
    cases += [("bf16", 256, 768, 768, "tanh", False), ("fp16", 53831, *up), ("bf16", 226, *words)]
    cases += [("tf32", 226, *up), ("tf32", 53831, *up), ("tf32", 53831, *down)]
    # The pointer kernel's longest epilogue is here for its registers.
    cases += [("bf16", 53831, *longest), ("fp32", 53831, *longest)]
    shipped: dict[str, Configuration] = {}
    for dtype, rows, N, K, activation, residual in cases:
        name = f"{dtype} {N}x{K} {activation or 'none'}{'+residual' if residual else ''}"
        added = empty(dtype, rows, N) if residual else None
        if activation == "gelu_tanh":
            added = empty(dtype, 1, N).expand(rows, N)  # TMA cannot describe rows that overlap
        arguments = (empty(dtype, rows, K), empty(dtype, N, K), empty(dtype, N), activation, added)
        name += " {BLOCK_M}x{BLOCK_N}x{BLOCK_K} w{num_warps} s{num_stages}"
        found = compiled(target, name, _launch, *arguments, tf32=dtype == "tf32")
        shipped |= {str((entry.function.__name__, *entry[2:])): entry for entry in found}
    return list(shipped.values())


# --- public function --------------------------------------------------------------------------------------------------


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
    are_matrices = input.ndim == weight.ndim == 2 and (residual is None or residual.ndim == 2)
    if are_matrices and (activation is None or isinstance(activation, str)) and launch.is_direct():
        plan = launch.plans.get(_key(input, weight, bias, activation, residual))
        if plan is not None:
            return plan.run(input, weight, bias, residual)
    launch.check_tensor("linear", "input", input, ("rows", "K"))
    launch.check_tensor("linear", "weight", weight, ("N", input.shape[1]), input.dtype)
    launch.check_tensor("linear", "bias", bias, (weight.shape[0],), input.dtype)
    launch.check_tensor("linear", "residual", residual, (input.shape[0], weight.shape[0]), input.dtype)
    if activation not in ACTIVATIONS:
        raise ValueError(f"linear: activation: got {activation!r}, wanted one of {ACTIVATIONS}")
    launch.check_device("linear", input, weight, bias, residual)
    run = _launch if launch.is_direct(input, weight, bias, residual) else _linear
    return run(input, weight, bias, activation, residual)
