"""Correct bfloat16 arithmetic and checked memory in Triton's interpreter, for tests.

Triton's interpreter keeps a bfloat16 block as uint16 and computes on the bit patterns; its fp32 -> bf16 cast
truncates. `patch()` makes every operation on bf16 blocks compute in fp32 and round to nearest even, which is what
a GPU does, and keeps NumPy from warning of infinities, which a GPU does not. It also makes a kernel that reads or
writes past its tensors raise, which is otherwise seen only when the process dies. For tests and `vilt-fast check`.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_Handle = interpreter.TensorHandle


def bf16_to_fp32(bits: np.ndarray) -> np.ndarray:
    """uint16 bit patterns of bfloat16 as fp32 values (exact)."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def fp32_to_bf16(values: np.ndarray) -> np.ndarray:
    """fp32 values as uint16 bit patterns of bfloat16, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).reshape(np.shape(values))


def _is_bf16(value: Any) -> bool:
    return isinstance(value, _Handle | tl.tensor) and value.dtype.scalar == tl.bfloat16


def _widened(handle: _Handle) -> _Handle:
    return _Handle(bf16_to_fp32(handle.data), tl.float32)


def _patch_operation(original: Callable, typed: int) -> Callable:
    """Wraps an operation on handles, whose result has the type of argument `typed`: bf16 handles go through fp32."""

    @functools.wraps(original)
    def operation(self, *arguments):
        wide = [_widened(argument) if _is_bf16(argument) else argument for argument in arguments]
        with np.errstate(all="ignore"):
            out = original(self, *wide)
        # A comparison gives bools of whatever type, as it does without this.
        rounds = _is_bf16(arguments[typed]) and out.data.dtype != np.bool_
        return _Handle(fp32_to_bf16(out.data), tl.bfloat16) if rounds else out

    return operation


def _patch_cast(original: Callable) -> Callable:
    """Wraps the casts: to bf16 rounds to nearest even from any type, from bf16 widens first."""

    @functools.wraps(original)
    def cast(self, src, dst_type, *rounding):
        source, target = src.dtype.scalar, dst_type.scalar
        if tl.bfloat16 not in (source, target) or source.is_fp8() or target.is_fp8():
            with np.errstate(all="ignore"):
                return original(self, src, dst_type, *rounding)
        values = bf16_to_fp32(src.data) if _is_bf16(src) else src.data
        if target == tl.bfloat16:
            return _Handle(fp32_to_bf16(values.astype(np.float32)), target)
        return _Handle(values.astype(interpreter._get_np_dtype(target)), target)

    return cast


def _patch_reduction(original: Callable) -> Callable:
    """Wraps a reduction of blocks: bf16 blocks are widened, reduced, and rounded once."""

    @functools.wraps(original)
    def reduction(self, blocks):
        wide = [tl.tensor(_widened(b.handle), tl.block_type(tl.float32, b.shape)) if _is_bf16(b) else b for b in blocks]
        out = original(self, tuple(wide))
        parts = out if isinstance(out, tuple | list) else (out,)
        return tuple(
            self.to_tensor(fp32_to_bf16(part.handle.data), tl.bfloat16) if _is_bf16(block) else part
            for part, block in zip(parts, blocks, strict=True)
        )

    return reduction


# --- memory -----------------------------------------------------------------------------------------------------------

_extents: list[tuple[int, int]] = []  # first and last byte + 1 of every tensor of the launch that runs


def _extent(tensor: Any) -> tuple[int, int]:
    """Bytes from the first to the last element of a tensor, which may be a view."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (steps + 1) * tensor.element_size() if tensor.numel() else first


def _patch_arguments(original: Callable) -> Callable:
    """Wraps the copy of a launch's arguments to the host: notes where its tensors are."""

    @functools.wraps(original)
    def arguments(self, positional, named):
        copied = original(self, positional, named)
        bases = (getattr(value, "base", value) for value in (*copied[0], *copied[1].values()))  # of descriptors
        _extents[:] = [_extent(base) for base in bases if hasattr(base, "data_ptr")]
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


@functools.cache
def patch() -> None:
    """Corrects bfloat16 and checks memory in this process's interpreter; a second call does nothing."""
    builder, reductions = interpreter.InterpreterBuilder, interpreter.ReduceOps
    # Where the argument stands whose type is the result's.
    typed = {"unary_op": 0, "binary_op": 0, "ternary_op": 2, "create_fma": 2, "create_rsqrt": 0, "create_dot": 2}
    for name, place in typed.items():
        setattr(builder, name, _patch_operation(getattr(builder, name), place))
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(builder, name, _patch_cast(getattr(builder, name)))
    reductions.apply_impl = _patch_reduction(reductions.apply_impl)
    builder.create_masked_load = _patch_access(builder.create_masked_load, "read")
    builder.create_masked_store = _patch_access(builder.create_masked_store, "write")
    executor = interpreter.GridExecutor
    executor._init_args_hst = _patch_arguments(executor._init_args_hst)
