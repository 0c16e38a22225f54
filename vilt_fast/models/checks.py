"""What has to hold of single arguments of a forward call."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vilt_fast.packing import Check
from vilt_fast.pixels import PackedPixels

# What PyTorch stores, but computes with in few operations: quantised and 8-bit floats.
_NEVER_READ = {torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4}
_NEVER_READ |= {dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype) and "float8" in str(dtype)}


def exactly_one(first_name: str, first: Any, second_name: str, second: Any) -> Any:
    """The one of the two that is there; a tensor, or PackedPixels where they may stand."""
    if (first is None) == (second is None):
        found = "neither" if first is None else "both"
        raise ValueError(f"exactly one of {first_name} and {second_name} must be given, got {found}")
    chosen, name = (first, first_name) if second is None else (second, second_name)
    return chosen if name == "pixel_values" and isinstance(chosen, PackedPixels) else check_tensor(name, chosen)


def check_tensor(name: str, value: object) -> Tensor:
    """Raises unless it is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(value).__name__}; pass return_tensors='pt'")
    return value


def check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises unless the tensor has that shape, or is None."""
    if tensor is not None and tuple(check_tensor(name, tensor).shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def integers(name: str, tensor: Tensor) -> Tensor:
    """As int64; raises unless they are integers."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must hold integers, got {tensor.dtype}")
    return tensor.long()


def range_check(name: str, values: Tensor, size: int, note: str = "") -> Check:
    """The condition that values are in 0..size - 1."""
    wrong = (values < 0) | (values >= size)
    return wrong.any(), lambda: f"{name} must be in 0..{size - 1}{note}, got {int(values[wrong][0])}"


def refuse_unreadable(name: str, tensor: Tensor) -> None:
    """Raise where no operation can read the values of a tensor, or there are none."""
    if tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested) and tensor.dtype not in _NEVER_READ:
        return
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device, which holds no values; make it on a device that computes")
    if tensor.dtype in _NEVER_READ:
        raise ValueError(f"{name} is in {tensor.dtype}, which is not computed with; .dequantize() it, or .float()")
    kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    raise ValueError(f"{name} must be a dense tensor, got a {kind} one; .to_dense() makes it one, or padding")


def refuse_non_finite_mask(name: str, mask: Tensor) -> None:
    """Raise where a mask of floats on the host has NaN or infinite values."""
    if mask.is_floating_point() and mask.is_cpu and _can_read() and not mask.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values, wanted finite ones, such as 0 and 1")


def refuse_non_finite_pixels(pixels: Any, pixel_mask: Tensor | None) -> None:
    """Raise where an image on the host has NaN or infinite pixels that are real ones by its mask."""
    if isinstance(pixels, PackedPixels) or not pixels.is_cpu or not _can_read():
        return
    if all(math.isfinite(extreme.item()) for extreme in pixels.detach().aminmax()):
        return
    wrong = ~pixels.isfinite().all(1)  # (B, H, W)
    wrong = wrong if pixel_mask is None else wrong & (pixel_mask != 0)
    images = wrong.flatten(1).any(1).nonzero()
    if len(images):
        raise ValueError(f"pixel_values: image {int(images[0])} has NaN or infinite pixels")


def _can_read() -> bool:
    """Whether tensors have values, and not while a call is traced or transformed (vmap)."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
