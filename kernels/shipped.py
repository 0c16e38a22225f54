"""How a kernel file says what its launches compile, so that it can be compiled for a chip that is not here."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Of a launch; every other key of a configuration is a constexpr.
OPTIONS = ("num_warps", "num_stages", "matrix_instr_nonkdim", "launch_pdl")


class Configuration(NamedTuple):
    """One specialisation of a kernel, as Triton's compiler takes it."""

    name: str
    function: Any  # the `@triton.jit` function
    signature: dict[str, str]
    constexprs: dict[str, Any]
    attributes: dict[tuple[int, ...], list]
    options: dict[str, Any]


def describe(name: str, fn: Any, types: Mapping[str, str], constexprs: Mapping[str, Any]) -> Configuration:
    """The configuration that a launch of `fn` with these arguments compiles.

    Args:
        name: unique among the configurations of `fn`.
        fn: the `@triton.jit` function.
        types: type of every argument that is not a constexpr: "*bf16", "i32", "fp32", "tensordesc<bf16[128, 64]>";
            ":16" at the end says that the pointer or the integer is a multiple of 16, as a launch would find out.
        constexprs: value of every constexpr argument, of an argument that a launch would specialise (None, 1), and of
            the OPTIONS of the launch.

    Raises:
        ValueError: an argument of `fn` is missing or unknown.
    """
    options = {key: constexprs[key] for key in OPTIONS if key in constexprs}
    constexprs = {key: value for key, value in constexprs.items() if key not in options}
    given = set(types) | set(constexprs)
    if given != set(fn.arg_names) or len(given) != len(types) + len(constexprs):
        wrong = sorted(given ^ set(fn.arg_names)) or sorted(set(types) & set(constexprs))
        raise ValueError(f"{fn.__name__}: got arguments that are missing, unknown or duplicate: {wrong}")
    signature = {n: types[n].removesuffix(":16") if n in types else "constexpr" for n in fn.arg_names}
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(fn.arg_names) if types.get(n, "").endswith(":16")
    }
    return Configuration(name, fn, signature, constexprs, attributes, options)
