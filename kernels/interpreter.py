"""Correct bfloat16 arithmetic and checked memory in Triton's interpreter, for tests.

Triton's interpreter keeps a bfloat16 block as uint16 and computes on the bit patterns; its fp32 -> bf16 cast
truncates. `patch()` makes every operation on bf16 blocks compute in fp32 and round to nearest even, which is what
a GPU does, and keeps NumPy from warning of infinities, which a GPU does not. It also makes a kernel that reads or
writes past its tensors raise, which is otherwise seen only when the process dies. For tests and `vilt-fast check`.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_Handle = interpreter.TensorHandle
_BITWISE = {np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift}


def bf16_to_fp32(bits: np.ndarray) -> np.ndarray:
    """uint16 bit patterns of bfloat16 as fp32 values (exact)."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def fp32_to_bf16(values: np.ndarray) -> np.ndarray:
    """fp32 values as uint16 bit patterns of bfloat16, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).reshape(np.shape(values))


def _is_bf16(handle: _Handle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _values(handle: _Handle) -> np.ndarray:
    return bf16_to_fp32(handle.data) if _is_bf16(handle) else handle.data


def _rounded(values: np.ndarray, dtype: tl.dtype) -> _Handle:
    """`values` as a handle of `dtype`; a comparison's bools pass through, as they do in the interpreter."""
    if dtype.scalar == tl.bfloat16 and values.dtype != np.bool_:
        values = fp32_to_bf16(values)
    return _Handle(values, dtype.scalar)


def _patch_operator(original: Callable, arity: int) -> Callable:
    """Wraps builder.<unary|binary|ternary>_op(handles..., op): bf16 handles go through fp32."""

    @functools.wraps(original)
    def operator(self, *arguments):
        handles, op = arguments[:arity], arguments[arity]
        # A select and the bitwise operations move bit patterns, and they are right as they are.
        if op is np.where or op in _BITWISE or not any(_is_bf16(h) for h in handles):
            with np.errstate(all="ignore"):
                return original(self, *arguments)
        dtype = handles[-1].dtype if arity == 3 else handles[0].dtype
        with np.errstate(all="ignore"):
            return _rounded(op(*map(_values, handles)), dtype)

    return operator


def _patch_cast(original: Callable) -> Callable:
    """Wraps the casts: to bf16 rounds to nearest even from any type, from bf16 widens first."""

    @functools.wraps(original)
    def cast(self, src, dst_type, *rounding):
        target = dst_type.scalar
        if _is_bf16(src) and target == tl.bfloat16:
            return src
        if _is_bf16(src) and not target.is_fp8():
            return _Handle(_values(src).astype(interpreter._get_np_dtype(target)), target)
        if target == tl.bfloat16 and not src.dtype.scalar.is_fp8():
            return _Handle(fp32_to_bf16(src.data.astype(np.float32)), target)
        return original(self, src, dst_type, *rounding)

    return cast


def _dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    """a @ b + d, with 16-bit operands widened; the products and sums are fp32, as on a GPU."""
    if any(h.dtype.scalar.is_fp8() for h in (a, b)):
        return _DOT(self, a, b, d, input_precision, max_num_imprecise_acc)
    product = np.matmul(_values(a).astype(d.data.dtype), _values(b).astype(d.data.dtype))
    return _Handle(product + d.data, d.dtype.scalar)


def _fma(self, x, y, z):
    with np.errstate(all="ignore"):
        return _rounded(_values(x) * _values(y) + _values(z), z.dtype)


def _patch_reduction(original: Callable) -> Callable:
    """Wraps ReduceOps.sum and .min_max: a bf16 block is widened, reduced, and rounded once."""

    @functools.wraps(original)
    def reduction(self, input, *operations, **named):
        block = input[0] if isinstance(input, tuple) else input
        if not _is_bf16(block.handle):
            return original(self, input, *operations, **named)
        wide = original(self, self.to_tensor(_values(block.handle), tl.float32), *operations, **named)
        parts = wide if isinstance(wide, tuple) else (wide,)
        out = tuple(
            self.to_tensor(fp32_to_bf16(part.handle.data), tl.bfloat16) if part.dtype == tl.float32 else part
            for part in parts
        )
        return out if isinstance(wide, tuple) else out[0]

    return reduction


# --- memory -----------------------------------------------------------------------------------------------------------

_extents: list[tuple[int, int]] = []  # first and last byte + 1 of every tensor of the launch that runs


def _extent(tensor: Any) -> tuple[int, int]:
    """Bytes from the first to the last element of a tensor, which may be a view."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (steps + 1) * tensor.element_size() if tensor.numel() else first


def _tensors(arguments: Iterable[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _tensors(argument)
        elif isinstance(argument, interpreter.TensorDescriptor):
            yield argument.base
        elif hasattr(argument, "data_ptr"):
            yield argument


def _patch_arguments(original: Callable) -> Callable:
    """Wraps the copy of a launch's arguments to the host: notes where its tensors are."""

    @functools.wraps(original)
    def arguments(self, positional, named):
        copied = original(self, positional, named)
        _extents[:] = map(_extent, _tensors((*copied[0], *copied[1].values())))
        return copied

    return arguments


def _patch_access(original: Callable, kind: str) -> Callable:
    """Wraps the masked load or store: every address that the mask lets through must lie in one of the tensors."""

    @functools.wraps(original)
    def access(self, ptrs, *rest, **named):
        mask = rest[0] if kind == "read" else rest[1]
        reached = np.broadcast_to(ptrs.data, mask.data.shape)[mask.data]
        if reached.size:
            size = max(ptrs.get_element_ty().primitive_bitwidth // 8, 1)
            first, end = int(reached.min()), int(reached.max()) + size
            if not any(start <= first and end <= stop for start, stop in _extents):
                raise IndexError(f"a kernel {kind}s bytes {first} to {end}, and its tensors are at {_extents}")
        return original(self, ptrs, *rest, **named)

    return access


_DOT = interpreter.InterpreterBuilder.create_dot
_patched = False


def patch() -> None:
    """Corrects bfloat16 and checks memory in this process's interpreter; a second call does nothing."""
    global _patched
    if _patched:
        return
    _patched = True
    builder, reductions = interpreter.InterpreterBuilder, interpreter.ReduceOps
    for name, arity in (("unary_op", 1), ("binary_op", 2), ("ternary_op", 3)):
        setattr(builder, name, _patch_operator(getattr(builder, name), arity))
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(builder, name, _patch_cast(getattr(builder, name)))
    builder.create_dot = _dot
    builder.create_fma = _fma
    builder.create_rsqrt = lambda self, arg: _rounded(1 / np.sqrt(_values(arg)), arg.dtype)
    for name in ("sum", "min_max"):
        setattr(reductions, name, _patch_reduction(getattr(reductions, name)))
    builder.create_masked_load = _patch_access(builder.create_masked_load, "read")
    builder.create_masked_store = _patch_access(builder.create_masked_store, "write")
    executor = interpreter.GridExecutor
    executor._init_args_hst = _patch_arguments(executor._init_args_hst)
