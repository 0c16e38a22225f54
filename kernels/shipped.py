"""What the launches of a kernel file compile for a chip that is not here: launchers run on tensors without data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.jit import mangle_type

from . import launch

# Of a launch; every other key of a configuration is a constexpr.
OPTIONS = ("num_warps", "num_stages", "matrix_instr_nonkdim", "launch_pdl", "maxnreg")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
_DTYPES |= {"i64": torch.int64, "i32": torch.int32, "u8": torch.uint8, "i1": torch.bool}


class Configuration(NamedTuple):
    """One specialisation of a kernel, as Triton's compiler takes it."""

    name: str
    function: Any  # the `@triton.jit` function
    signature: dict[str, str]
    constexprs: dict[str, Any]
    attributes: dict[tuple[int, ...], list]
    options: dict[str, Any]


def empty(dtype: str, *shape: int) -> Tensor:
    """A tensor without data: "bf16", "fp16", "fp32", "tf32" (fp32 for tensor cores), "i64", "i32", "u8" or "i1"."""
    return torch.empty(shape, dtype=_DTYPES[dtype], device="meta")


def compiled(
    target: str, name: str, launcher: Callable[..., object], *arguments: Any, tf32: bool = False
) -> list[Configuration]:
    """What a call of a launcher compiles on a target, one for each of its launches.

    Args:
        target: "sm80", "sm90", "sm100" or "gfx942".
        name: unique among the configurations of a kernel; "{BLOCK_M}" stands for that constexpr or option.
        launcher: called with `arguments`, whose tensors are `empty`.
        tf32: multiply fp32 on tensor cores. Triton offers it on NVIDIA only: elsewhere there is no configuration.
    """
    if tf32 and target.startswith("gfx"):
        return []
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        launch.recording = recording = launch.Recording(target, [])
        launcher(*arguments)
    finally:
        launch.recording = None
        torch.set_float32_matmul_precision(before)
    return [describe(name, *noted) for noted in recording.launches]


def describe(name: str, kernel: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Configuration:
    """The configuration that a launch of `kernel` with these arguments compiles, specialised as Triton does it.

    Raises:
        TypeError: an argument of `kernel` is missing, unknown or duplicate.
    """
    options = {key: named[key] for key in OPTIONS if key in named}
    bound = kernel.signature.bind(*arguments, **{key: named[key] for key in named if key not in options})
    bound.apply_defaults()
    signature, constexprs, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = bound.arguments[parameter.name]
        specialised = not parameter.do_not_specialize
        kind = "constexpr" if parameter.is_constexpr else mangle_type(value, specialised)
        signature[parameter.name] = kind if kind == "constexpr" else parameter.annotation_type or kind
        if kind == "constexpr":
            constexprs[parameter.name] = value
        elif specialised and isinstance(value, Tensor | int):
            address = value.data_ptr() if isinstance(value, Tensor) else value
            attributes |= {} if address % 16 else {(index,): [["tt.divisibility", 16]]}
    return Configuration(name.format(**constexprs, **options), kernel, signature, constexprs, attributes, options)
