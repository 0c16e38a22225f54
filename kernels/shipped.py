"""How a kernel file says what its launches compile, so that it can be compiled for a chip that is not here."""

from collections.abc import Mapping
from typing import Any


def describe(
    fn: Any, types: Mapping[str, str], constexprs: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list]]:
    """Signature, constexprs and attributes of one specialisation, as `shipped_configurations` returns them.

    Args:
        fn: the `@triton.jit` function.
        types: type of every argument that is not a constexpr: "*bf16", "i32", "fp32", "tensordesc<bf16[128, 64]>";
            ":16" at the end says that the pointer or the integer is a multiple of 16, as a launch would find out.
        constexprs: value of every constexpr argument, and of an argument that a launch would specialise (None, 1).

    Raises:
        ValueError: an argument of `fn` is missing or unknown.
    """
    given = set(types) | set(constexprs)
    if given != set(fn.arg_names) or len(given) != len(types) + len(constexprs):
        wrong = sorted(given ^ set(fn.arg_names)) or sorted(set(types) & set(constexprs))
        raise ValueError(f"{fn.__name__}: got arguments that are missing, unknown or twice there: {wrong}")
    signature = {n: types[n].removesuffix(":16") if n in types else "constexpr" for n in fn.arg_names}
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(fn.arg_names)
        if name in types and types[name].endswith(":16")
    }
    return signature, dict(constexprs), attrs
