"""What every launcher needs: the chip at hand, a configuration for the size at hand, and checks of what came in.

A configuration is a plain dictionary of a kernel's constexprs and launch options. It is looked up, first match wins:

    1. the table of this GPU and this Triton version that `vilt-fast tune` wrote, in $VILT_FAST_CONFIGS (default
       ~/.cache/vilt_fast/configs) as <gpu>-triton-<x.y>.json, see `table_name`; and then the one of that name that
       ships in kernels/configs, where there is one
    2. the table that ships for the chip's family, kernels/configs/<family>.json
    3. the heuristic of the operation, a plain function in its kernel file

Nothing is measured or tuned here.
"""

import contextlib
import functools
import json
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor, nn
from torch._ops import _len_torch_dispatch_stack_pre_dispatch as _predispatch_modes

from .registry import BUCKETS, CLASSES
from .tables import check_entries

# @triton.jit reads the switch when it decorates, so one answer holds for the life of the process.
INTERPRETED: bool = triton.knobs.runtime.interpret

# What kernels take, unless they say otherwise.
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_PLAIN = (Tensor, nn.Parameter)
SHIPPED = Path(__file__).parent / "configs"
CONFIGS = "VILT_FAST_CONFIGS"  # the environment variable of a folder of tables
_BOUNDS = tuple(BUCKETS.values())
# Shared memory that one program can have, in bytes.
SHARED_LIMIT = {"sm80": 166912, "sm90": 232448, "sm100": 232448, "gfx942": 65536}


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least `n` (and at least 1)."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    """`a / b` rounded up; triton.cdiv costs a tenth of a launch."""
    return -(-a // b)


# --- the chip ---------------------------------------------------------------------------------------------------------


@functools.cache
def _arch_of_device(index: int) -> str:
    with torch.cuda.device(index):  # -1 changes nothing
        target = triton.runtime.driver.active.get_current_target()
    return f"sm{target.arch}" if target.backend == "cuda" else target.arch.split(":")[0]


def arch_of(tensor: Tensor) -> str:
    """Architecture that will run a kernel on `tensor`: "sm80", "sm90", "gfx942", ... or "interpreter"."""
    if recording is not None:
        return recording.arch
    return "interpreter" if INTERPRETED else _arch_of_device(tensor.get_device())


def family(arch: str) -> str:
    """The shipped table an architecture uses: sm80 (8.x and 12.x), sm90, sm100 (10.x), gfx942 or interpreter."""
    if arch == "interpreter":
        return arch
    if arch.startswith("gfx"):
        return "gfx942"
    major = int(arch.removeprefix("sm")) // 10
    # 12.x has neither wgmma nor tensor memory, and the 99 KB of shared memory of 8.6: its kernels are Ampere's.
    return {9: "sm90", 10: "sm100", 11: "sm100"}.get(major, "sm80")


def multiprocessors(index: int) -> int:
    """Multiprocessors of a device; 2 in the interpreter, so that persistent loops take more than one turn."""
    return 2 if INTERPRETED or recording is not None else _multiprocessors(index)


@functools.cache
def _multiprocessors(index: int) -> int:
    return triton.runtime.driver.active.utils.get_device_properties(max(index, 0))["multiprocessor_count"]


@functools.cache
def _device_type() -> str:
    """Where Triton's active driver launches: "cuda" (NVIDIA and AMD alike), or what another driver says."""
    try:
        return triton.runtime.driver.active.get_active_torch_device().type
    except RuntimeError:  # no driver at all
        return "cuda"


def product_name(dtype: torch.dtype) -> str:
    """Name of a product's dtype in the tables: "tf32" for fp32 on tensor cores, else "float32", "float16", ..."""
    return "tf32" if input_precision(dtype) == "tf32" else str(dtype).removeprefix("torch.")


def input_precision(dtype: torch.dtype) -> str:
    """`input_precision` of `tl.dot`: fp32 follows torch.get_float32_matmul_precision(), 16-bit inputs do not care."""
    # Triton offers tf32 on NVIDIA only.
    wants_tf32 = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if wants_tf32 and not torch.version.hip else "ieee"


def row_major(tensor: Tensor) -> Tensor:
    """A matrix as kernels address it: the same one, or a copy where its rows are not contiguous or very far apart."""
    # Offsets inside a tile are 32 bits: 256 rows of this stride.
    fits = tensor.stride(0) < 2**23 and (tensor.stride(-1) == 1 or tensor.shape[-1] == 1)
    return tensor if fits else tensor.contiguous()


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same tensors, copied where they are not contiguous; None stays None."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


# --- launches ---------------------------------------------------------------------------------------------------------


class Recording(NamedTuple):
    """What `shipped.compiled` notes instead of launching, as on the chip `arch`."""

    arch: str
    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]  # kernel, arguments, arguments by name


recording: Recording | None = None


def run(kernel: Any, grid: tuple[int, ...], out: Any, *arguments: Any, **named: Any) -> None:
    """Launches `kernel` on the GPU of its first argument. Constexprs and options are named."""
    if INTERPRETED or recording is not None:
        Program(kernel, **named)(grid, out, *arguments)
        return
    specialised = _specialised(kernel)
    classes = [_class_of(*pair) for pair in zip((out, *arguments), specialised, strict=False)]
    key = (kernel, out.get_device(), *classes, *named.values())
    program = plans[key] = plans.get(key) or Program(kernel, **named)
    program((*grid, 1, 1)[:3], out, *arguments)


@functools.cache
def _specialised(kernel: Any) -> list[bool]:
    return [not parameter.do_not_specialize for parameter in kernel.params if not parameter.is_constexpr]


def _class_of(value: Any, is_specialised: bool) -> Any:
    """What Triton specialises of an argument."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if type(value) is not int:
        return value if value is None else type(value)
    width = 32 if -(2**31) <= value < 2**31 else 64 if value < 2**63 else -64  # int32, int64, uint64
    return (value == 1, value % 16 == 0, width) if is_specialised else width


class Program:
    """A kernel with a configuration, for launches that all compile to one program.

    The first launch compiles it; those that follow go past Triton's look at every argument, which costs more than the
    rest of a launch. So the arguments must agree in whatever Triton specialises: dtypes, addresses and integers that
    are multiples of 16 or are not, integers that are 1 or are not. `plans` are keyed by these.
    """

    __slots__ = ("compiled", "configuration", "constants", "kernel")

    def __init__(self, kernel: Any, **configuration: Any) -> None:
        self.kernel, self.configuration = kernel, configuration
        self.compiled: Any = None
        self.constants: list[Any] = []

    def __call__(self, grid: tuple[int, ...], out: Any, *arguments: Any) -> None:
        """Launches on the GPU of `out`, a tensor or a descriptor of one; `arguments` end before the constexprs."""
        if self.compiled is None:
            self._compile_and_launch(grid, out, *arguments)
            return
        base = out if isinstance(out, Tensor) else out.base
        if base.is_cuda and base.get_device() != torch.cuda.current_device():
            with torch.cuda.device_of(base):
                self.compiled[grid](out, *arguments, *self.constants)
        else:
            self.compiled[grid](out, *arguments, *self.constants)

    def _compile_and_launch(self, grid: tuple[int, ...], out: Any, *arguments: Any) -> None:
        if recording is not None:
            recording.launches.append((self.kernel, (out, *arguments), self.configuration))
            return
        with torch.cuda.device_of(getattr(out, "base", out)):
            compiled = self.kernel[grid](out, *arguments, **self.configuration)  # None in the interpreter
        if not INTERPRETED:
            values = {p.name: p.default for p in self.kernel.params if p.has_default} | self.configuration
            self.constants = [values[p.name] for p in self.kernel.params if p.is_constexpr]
            self.compiled = compiled  # last: another thread may launch from here on


# How operations are launched, by name and class of shapes. What has a plan has passed its checks.
plans: dict[tuple[Any, ...], Any] = {}


def is_direct(*tensors: Tensor | None) -> bool:
    """Whether an operation may go past `torch.library`: nothing traces, transforms, watches or wants a gradient.

    And `tensors` are plain ones. A tensor that is not has `traits` that no plan has.
    """
    if torch.is_grad_enabled() or recording is not None or torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack() or _predispatch_modes():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None:
        return False
    return all(tensor is None or is_plain(tensor) and not tensor.is_meta for tensor in tensors)


def is_plain(tensor: Tensor) -> bool:
    """Whether the memory of a tensor holds its values: no subclass, no lazy negation."""
    return type(tensor) in _PLAIN and not tensor.is_neg()


def traits(tensor: Tensor | None) -> Any:
    """What a plan depends on of a tensor whose sizes are known: where it is, dtype, strides, alignment."""
    if tensor is None:
        return None
    if not is_plain(tensor):
        return object()  # equal to nothing
    return tensor.device, tensor.dtype, tensor.stride(), tensor.data_ptr() % 16 == 0


def batch_traits(tensor: Tensor | None) -> Any:
    """`traits` of a tensor whose sizes and strides are those of a batch, which nothing is specialised for."""
    if tensor is None:
        return None
    if not is_plain(tensor):
        return object()
    return tensor.device, tensor.dtype, tensor.is_contiguous(), tensor.data_ptr() % 16 == 0


def written(tensor: Tensor) -> Tensor:
    """A tensor that a launch wrote into, past PyTorch, which is told so."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)
    return tensor


# --- configurations ---------------------------------------------------------------------------------------------------


def size_bucket(rows: int) -> str:
    """Name of the size class of `rows`: "tiny", "small", "medium" or "large"."""
    return CLASSES[bisect_left(_BOUNDS, rows)]


def table_name(gpu: str, triton_version: str) -> str:
    """File name of a tuned table, for example "nvidia-h200-triton-3.6.json"."""
    words = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"{words}-triton-{'.'.join(triton_version.split('.')[:2])}.json"


def tuned_tables() -> Path:
    """Folder that `vilt-fast tune` writes to and launchers read from."""
    return Path(os.environ.get(CONFIGS) or Path.home() / ".cache" / "vilt_fast" / "configs")


def read_table(path: Path) -> list[dict[str, Any]]:
    """Entries of a table, or an empty list where there is no such file.

    Raises:
        ValueError: the file is not a table.
    """
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text())["entries"]
        assert all(isinstance(entry["op"], str | list) and isinstance(entry["config"], dict) for entry in entries)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f'{path}: got no table, wanted {{"entries": [{{"op": ..., "config": {{...}}}}]}}') from error
    return entries


@functools.cache
def table_entries(arch: str) -> list[dict[str, Any]]:
    """What the tables say of a chip, the first that counts first.

    Raises:
        ValueError: $VILT_FAST_CONFIGS is no folder, or a table holds what counts for nothing; names the file.
    """
    if os.environ.get(CONFIGS) and not tuned_tables().is_dir():
        raise ValueError(f"${CONFIGS}: got {tuned_tables()}, wanted a folder: make it, or leave the variable out")
    paths = [SHIPPED / f"{family(arch)}.json"]
    if torch.cuda.is_available() and arch == _arch_of_device(torch.cuda.current_device()):
        name = table_name(torch.cuda.get_device_name(), triton.__version__)
        paths = [tuned_tables() / name, SHIPPED / name, *paths]
    found = []
    for path in paths:
        entries = read_table(path)
        check_entries(path, entries)
        found += entries
    return found


def matches(entry: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether an entry applies; a key is one value or a list of them, and a key that is not there fits everything."""
    wanted = ((entry.get(key, value), value) for key, value in asked.items())
    return all(value == want or isinstance(want, list) and value in want for want, value in wanted)


@functools.cache
def _configuration(op: str, arch: str, N: int, K: int, bucket: str, dtype: str, heuristic: Callable) -> dict:
    asked = {"op": op, "N": N, "K": K, "bucket": bucket, "dtype": dtype}
    for entry in table_entries(arch):
        if matches(entry, asked):
            return entry["config"]
    return heuristic(arch=arch, **asked)


_forced: dict[str, dict[str, Any]] = {}


@contextlib.contextmanager
def forced(op: str, config: dict[str, Any]) -> Iterator[None]:
    """Makes `configuration` answer `config` for `op` inside a `with` block, so that it can be measured."""
    _forced[op] = config
    plans.clear()
    try:
        yield
    finally:
        del _forced[op]
        plans.clear()


def configuration(
    op: str,
    *,
    arch: str,
    N: int,
    K: int = 0,
    rows: int = 0,
    dtype: torch.dtype | str,
    heuristic: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Configuration of a kernel for a size; the caller must not change the dictionary.

    Args:
        op: name of the kernel, as in the tables.
        arch: what `arch_of` said.
        N, K: the two sizes the table is keyed by (columns out and in; an operation says what it puts there).
        rows: rows of the flat tensor; only their size class matters. Left out where no tile may depend on them.
        dtype: dtype of the input, or its name in the tables ("float32", "float16", "bfloat16", or "tf32").
        heuristic: called with op, arch, N, K, bucket, dtype (a name) where no entry fits.
    """
    if op in _forced:
        return _forced[op]
    return _configuration(op, arch, N, K, size_bucket(rows), str(dtype).removeprefix("torch."), heuristic)


def forget_configurations() -> None:
    """Reads the tables again at the next launch, after one was written."""
    table_entries.cache_clear()
    _configuration.cache_clear()
    plans.clear()


# --- checks -----------------------------------------------------------------------------------------------------------


def check_device(op: str, *tensors: Tensor | None) -> None:
    """Raises unless every tensor is where a kernel can read it: on one GPU, or on the CPU under the interpreter.

    Raises:
        ValueError: tensors on different devices, or on a device without kernels.
    """
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"{op}: got tensors on {', '.join(sorted(map(str, devices)))}, wanted one device")
    kind = next(iter(devices)).type
    if kind in ("cuda", "meta") or INTERPRETED and kind == "cpu":
        return
    if not (INTERPRETED or torch.compiler.is_compiling()) and kind == _device_type():  # of another driver of Triton
        return
    if INTERPRETED:
        raise ValueError(f"{op}: got tensors on {kind}, wanted cpu or cuda under TRITON_INTERPRET=1")
    raise ValueError(
        f"{op}: got tensors on {kind}, wanted cuda; on a CPU the kernels run under TRITON_INTERPRET=1 only, "
        'or use vilt_fast.backend("reference")'
    )


def check_tensor(
    op: str,
    argument: str,
    tensor: Tensor | None,
    shape: Sequence[int | str],
    dtypes: Sequence[torch.dtype] | torch.dtype = FLOATS,
    *,
    row_major: bool = False,
) -> None:
    """Raises unless a tensor has the shape and dtype wanted.

    Args:
        op, argument: names for the message.
        tensor: what came; None, for an argument that was left out, passes.
        shape: wanted shape; a string stands for any size and names it.
        dtypes: wanted dtype, or the dtypes allowed; fp32, fp16 and bf16 where left out.
        row_major: the last dimension must be contiguous (rows may be strided).

    Raises:
        ValueError: names the operation, the argument, what came and what is wanted.
    """
    if tensor is None:
        return
    fits = tensor.dim() == len(shape)
    for got, want in zip(tensor.shape, shape, strict=False):
        fits = fits and (got == want or isinstance(want, str))
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{op}: {argument}: got shape {tuple(tensor.shape)}, wanted ({wanted})")
    allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else dtypes
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype) for dtype in allowed)
        raise ValueError(f"{op}: {argument}: got dtype {tensor.dtype}, wanted {names}")
    if row_major and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{op}: {argument}: got strides {tensor.stride()}, wanted a contiguous last dimension (stride 1)"
        )
