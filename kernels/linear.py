"""out = act(x W^T + b) + r: the affine map of every projection (Vaswani et al. 2017, section 3.3).

One program makes tiles of the output; the accumulator is fp32 and stays in registers until the epilogue is done:

              K                          BLOCK_N
         +---------+                  +-----------+
    x    | ->  ->  | BLOCK_M     out  | act(.+b)+r| BLOCK_M
         +---------+                  +-----------+
    W    | ->  ->  | BLOCK_N          (in two halves of columns where SUBTILES is 2)
         +---------+

Tiles are visited in groups of GROUP_M rows of tiles, so that a group's x and all of W stay in the L2 cache.

Two kernels compute the same sums: `linear_pointer` (any chip, any strides: one tile a program) and
`linear_descriptor` (TMA on sm_90 and later: each program walks over many tiles). Every element adds its products in
the order of K in chunks of one matrix instruction, whatever the tile, so a row's result does not depend on how many
rows there are or on its place among them. For the same reason there is no split of K.

LayerNorm can be part of a product (`linear_of_normed`): the tile is made of rows as they are, and the epilogue takes
their mean and scale from moments that the product before wrote (`linear_and_moments`, see row_moments.py).

Not supported: fp8 and integer inputs, operands of different dtypes, and gradients.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vilt_fast.contracts.moments import GROUP

from . import launch, switches
from .activations import ACTIVATIONS
from .linear_tiles import linear_descriptor, linear_pointer
from .no_backward import refuse_gradients
from .row_moments import UNROLLED, new_moments, row_moments
from .shipped import Configuration, compiled, empty

# --- configurations ---------------------------------------------------------------------------------------------------


def heuristic(*, op: str, arch: str, N: int, K: int, bucket: str, dtype: str) -> dict[str, Any]:
    """Tiles where no table has an entry: 128 rows where there are tiles enough to fill the chip, 64 elsewhere.

    Args:
        op: "linear_pointer"; "linear_descriptor", or that with "_residual", "_normed" or "_moments" after it.
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
        # There the sum is in tensor memory, and read by halves; the mean and scale of rows for two halves would spill.
        config |= {"BIAS_FIRST": op == "linear_descriptor_normed"} if chip == "sm100" else {}
        is_normed = chip == "sm100" and op == "linear_descriptor_normed"
        if is_normed and K > UNROLLED.value * GROUP:
            config["BLOCK_N"] = 64  # a loop over the groups of wide rows keeps more registers
        # A half of a tile that makes moments holds whole groups of 64 columns.
        is_whole = is_normed or op == "linear_descriptor_moments"
        halves = 1 if is_whole and config["BLOCK_N"] < 2 * GROUP else 2
        config |= {
            "SUBTILES": halves,
            "FLATTEN": op in ("linear_descriptor", "linear_descriptor_normed"),
            "programs": 2,
        }
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


def _choose(x: Tensor, w: Tensor, residual: Tensor | None, variant: str = "") -> dict[str, Any]:
    """A configuration; one with `programs`, per multiprocessor, is of the descriptor kernel.

    variant: what its epilogue does beside that of `linear`: "_normed" or "_moments".
    """
    (N, K), arch, dtype = w.shape, launch.arch_of(x), launch.product_name(x.dtype)
    # The output is new: contiguous, and at a multiple of 16 bytes.
    described = N * x.element_size() % 16 == 0
    described = described and all(tensor is None or _describable(tensor) for tensor in (x, w, residual))
    # fp32 as it is has no matrix unit to feed, so the plain kernel does.
    if not described or launch.family(arch) not in ("sm90", "sm100") or dtype == "float32":
        op = "linear_pointer"
    else:
        op = "linear_descriptor" + (variant or ("" if residual is None else "_residual"))
    rows = x.shape[0]
    config = launch.configuration(op, arch=arch, N=N, K=K, rows=rows, dtype=dtype, heuristic=heuristic)
    return switches.with_pdl(config, arch, N=N, K=K, bucket=launch.size_bucket(rows), dtype=dtype)


class Normed(NamedTuple):
    """What makes a product of rows one of normalised rows, see `vilt_fast.reference.linear.linear_of_normed`."""

    moments: Tensor | None  # (2, K / 64, rows) fp32
    column_sums: Tensor | None  # (N,) fp32
    eps: float | None


AS_THEY_ARE = Normed(None, None, None)


class _Plan:
    """A launch for all rows of a size class."""

    def __init__(self, x: Tensor, w: Tensor, activation: str | None, config: dict[str, Any]) -> None:
        options, (self.N, K) = dict(config), w.shape
        self.block_m, self.block_n, self.block_k = (config[f"BLOCK_{axis}"] for axis in "MNK")
        self.column_tiles = launch.cdiv(self.N, self.block_n)
        self.columns = self.block_n // config.get("SUBTILES", 1)
        programs = options.pop("programs", None)
        self.programs = None if programs is None else programs * launch.multiprocessors(x.get_device())
        kernel = linear_pointer if programs is None else linear_descriptor
        product = {"N": self.N, "K": K, "ACTIVATION": activation, "PRECISION": launch.input_precision(x.dtype)}
        self.program = launch.Program(kernel, **product, **options)

    def run(self, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """The product in a new tensor."""
        out = x.new_empty((x.shape[0], self.N))
        if x.shape[0]:
            self.write(out, x, w, bias, residual)
        return out

    def write(
        self,
        out: Tensor,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        normed: Normed = AS_THEY_ARE,
        out_moments: Tensor | None = None,
    ) -> None:
        rows, (moments, sums, eps) = x.shape[0], normed
        tiles = launch.cdiv(rows, self.block_m) * self.column_tiles
        if self.programs is None:
            strides = (out.stride(0), x.stride(0), w.stride(0), None if residual is None else residual.stride(0))
            self.program((tiles, 1, 1), out, x, w, bias, residual, moments, sums, rows, *strides, eps)
            return
        added = None if residual is None else _describe(residual, self.block_m, self.columns)
        result, w_blocks = _describe(out, self.block_m, self.columns), _describe(w, self.block_n, self.block_k)
        operands = (_describe(x, self.block_m, self.block_k), w_blocks, bias, added, moments, sums)
        self.program((min(tiles, self.programs), 1, 1), result, out_moments, *operands, rows, eps)


def _key(x: Tensor, w: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None) -> tuple[Any, ...]:
    rows = x.shape[0]
    return (
        *("linear", activation, launch.size_bucket(rows), min(rows, 2), x.shape[1:], w.shape),
        None if bias is None else bias.shape,
        None if residual is None else (residual.shape[0] == rows, residual.shape[1:]),
        *map(launch.traits, (x, w, bias, residual)),
        None if x.dtype != torch.float32 else torch.get_float32_matmul_precision(),
    )


def _remember(key: tuple[Any, ...], plan: _Plan) -> _Plan:
    if launch.recording is None:
        launch.plans[key] = plan
    return plan


def _launch(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    if weight.shape[0] == 0:
        return input.new_empty((input.shape[0], 0))
    x, w = launch.row_major(input), launch.row_major(weight)
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else launch.row_major(residual)
    key = _key(x, w, bias, activation, residual)
    plan = launch.plans.get(key) or _remember(key, _Plan(x, w, activation, _choose(x, w, residual)))
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
    # Of VisualBERT: features of regions, with the positions of aligned words too, and 3129 answers.
    regions, aligned, answers = (768, 2048, None, False), (768, 1024, None, True), (3129, 768, None, False)
    cases += [("bf16", 226, *regions), ("bf16", 13504, *regions), ("bf16", 1688, *aligned), ("bf16", 226, *answers)]
    # The pointer kernel's longest epilogue is here for its registers.
    cases += [("bf16", 53831, *longest), ("fp32", 53831, *longest)]
    shipped = [entry for case in cases for entry in _shipped(target, *case)]
    has_descriptors = launch.family(target) in switches.HOPPER
    for shape in (qkv, out, up, down) if has_descriptors else (qkv, up):
        for rows in (226, 1688, 53831):
            shipped += _shipped(target, "bf16", rows, *shape, folded=True)
    # Wide rows, and the activation whose registers come closest.
    shipped += _shipped(target, "bf16", 53831, 4096, 4096, "gelu", False, folded=True)
    shipped += _shipped(target, "bf16", 226, 3072, 768, "tanh", False, folded=True)
    if has_descriptors:
        with switches.forced(pdl=True):
            for rows, shape in ((226, qkv), (226, out), (53831, up), (53831, down)):
                shipped += _shipped(target, "bf16", rows, *shape) + _shipped(target, "bf16", rows, *shape, folded=True)
            shipped += _shipped(target, "bf16", 226, *words)
    return list({str((entry.function.__name__, *entry[2:])): entry for entry in shipped}.values())


def _shipped(
    target: str, dtype: str, rows: int, N: int, K: int, activation: str | None, residual: bool, folded: bool = False
) -> list[Configuration]:
    name = f"{dtype} {N}x{K} {activation or 'none'}{'+residual' if residual else ''}"
    added = empty(dtype, rows, N) if residual else None
    if activation == "gelu_tanh":
        added = empty(dtype, 1, N).expand(rows, N)  # TMA cannot describe rows that overlap
    x, w, bias = empty(dtype, rows, K), empty(dtype, N, K), empty(dtype, N)
    call: Callable[[], object] = partial(_launch, x, w, bias, activation, added)
    if folded:
        name += "+moments" if residual else "+normed"
        vector, moments = empty("fp32", N), empty("fp32", 2, K // GROUP, rows)
        call = partial(linear_of_normed, x, moments, w, vector, vector, 1e-6, activation=activation)
        call = partial(linear_and_moments, x, w, bias, added) if residual else call
    name += " {BLOCK_M}x{BLOCK_N}x{BLOCK_K} w{num_warps} s{num_stages}"
    name += " pdl" if switches.is_on("pdl", target) else ""
    return compiled(target, name, call, tf32=dtype == "tf32")


# --- public functions -------------------------------------------------------------------------------------------------


def _check(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None = None
) -> None:
    launch.check_tensor("linear", "input", input, ("rows", "K"))
    launch.check_tensor("linear", "weight", weight, ("N", input.shape[1]), input.dtype)
    launch.check_tensor("linear", "bias", bias, (weight.shape[0],), input.dtype)
    launch.check_tensor("linear", "residual", residual, (input.shape[0], weight.shape[0]), input.dtype)
    if activation not in ACTIVATIONS:
        raise ValueError(f"linear: activation: got {activation!r}, wanted one of {ACTIVATIONS}")
    launch.check_device("linear", input, weight, bias, residual)


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
    _check(input, weight, bias, residual, activation)
    run = _launch if launch.is_direct(input, weight, bias, residual) else _linear
    return run(input, weight, bias, activation, residual)


def linear_and_moments(input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
    """`vilt_fast.reference.linear.linear_and_moments`: the descriptor kernel writes both, elsewhere a kernel follows.

    N is a multiple of 64 up to 4096; else as `linear`. For frozen models: not for torch.compile, and no gradients.
    """
    refuse_gradients("linear_and_moments", input, weight, bias, residual)
    x, w = launch.row_major(input), launch.row_major(weight)
    bias, residual = None if bias is None else bias.contiguous(), launch.row_major(residual)
    key = ("linear_and_moments", *_key(x, w, bias, None, residual))
    plan = launch.plans.get(key)
    if plan is None:
        _check(x, w, bias, residual)
        if w.shape[0] % GROUP:
            raise ValueError(f"linear_and_moments: weight: got {w.shape[0]} rows, wanted a multiple of {GROUP}")
        plan = _Plan(x, w, None, _choose(x, w, residual, "_moments"))
        if plan.programs is not None and plan.columns % GROUP:
            columns = plan.columns
            raise ValueError(f"linear_and_moments: a table's tile writes {columns} columns at a time, wanted {GROUP}")
        _remember(key, plan)
    out = x.new_empty((x.shape[0], plan.N))
    moments = None if plan.programs is None else new_moments(x, x.shape[0], plan.N)
    if x.shape[0]:
        plan.write(out, x, w, bias, residual, out_moments=moments)
    return out, row_moments(out) if moments is None else moments


def linear_of_normed(
    input: Tensor,
    moments: Tensor,
    weight: Tensor,
    column_sums: Tensor,
    bias: Tensor,
    eps: float,
    *,
    activation: str | None = None,
) -> Tensor:
    """`vilt_fast.reference.linear.linear_of_normed` in one kernel; activations as in `linear`.

    K is a multiple of 64; moments, sums and bias are contiguous. For frozen models: not for torch.compile, and no
    gradients.
    """
    refuse_gradients("linear_of_normed", input, moments, weight, column_sums, bias)
    x, w = launch.row_major(input), launch.row_major(weight)
    shapes = (x.shape[0] == moments.shape[-1], moments.shape[:-1], column_sums.shape)
    traits = (launch.batch_traits(moments), launch.traits(column_sums))
    key = ("linear_of_normed", *_key(x, w, bias, activation, None), *shapes, *traits)
    plan = launch.plans.get(key)
    if plan is None:
        _check(x, w, None, None, activation)
        _check_normed(x, w, moments, column_sums, bias)
        plan = _remember(key, _Plan(x, w, activation, _choose(x, w, None, "_normed")))
    out = x.new_empty((x.shape[0], plan.N))
    if x.shape[0]:
        plan.write(out, x, w, bias, None, Normed(moments, column_sums, float(eps)))
    return out


def _check_normed(x: Tensor, w: Tensor, moments: Tensor, column_sums: Tensor, bias: Tensor) -> None:
    (N, K), name = w.shape, "linear_of_normed"
    if K % GROUP:
        raise ValueError(f"{name}: input: got {K} columns, wanted a multiple of {GROUP}")
    launch.check_tensor(name, "moments", moments, (2, K // GROUP, x.shape[0]), torch.float32)
    launch.check_tensor(name, "column_sums", column_sums, (N,), torch.float32)
    launch.check_tensor(name, "bias", bias, (N,), torch.float32)
    if not all(tensor.is_contiguous() for tensor in (moments, column_sums, bias)):
        raise ValueError(f"{name}: moments, column_sums, bias: got strides, wanted contiguous tensors")
    launch.check_device(name, x, moments, w, column_sums, bias)
