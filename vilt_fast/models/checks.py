"""What has to hold of single arguments of a forward call."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vilt_fast.configs.encoder import EncoderConfig, PatchConfig
from vilt_fast.contracts.exporting import is_exporting
from vilt_fast.packing import Check, Layout, raise_first
from vilt_fast.pixels import CHANNELS, PackedPixels

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


def check_layout(
    layout: Layout, checks: list[Check], text_shape: tuple[int, int], grid_size: tuple[int, int], device: torch.device
) -> Layout:
    """A layout that came with a batch; raises unless it is of one of that shape, there, or where a check says so."""
    if not isinstance(layout, Layout):
        raise ValueError(f"layout must be what plan() of the model gave, got {type(layout).__name__}")
    if is_exporting():
        raise ValueError("layout: torch.export lays out each batch anew, in the program that it makes; leave it out")
    found = ((layout.batch_size, layout.text_length), layout.grid_size, layout.text_row.device)
    wanted = (text_shape, grid_size, device)
    for name, ours, theirs in zip(("(pairs, words)", "a grid of", "tensors on"), found, wanted, strict=True):
        if ours != theirs:
            raise ValueError(f"layout is of another batch: it has {name} {ours}, wanted {theirs}; plan() this one")
    raise_first(checks)
    return layout


def check_pixels(pixels: Tensor, pixel_mask: Tensor | None, config: PatchConfig) -> tuple[int, int]:
    """(GH, GW) of padded images; raises unless they are (B, C, H, W) floats of at least one patch."""
    if pixels.ndim != 4:
        raise ValueError(f"pixel_values must be (batch, channels, height, width), got shape {tuple(pixels.shape)}")
    if not pixels.is_floating_point():
        raise ValueError(f"pixel_values must be floating point, got {pixels.dtype}; use the image processor")
    if pixels.shape[1] != config.num_channels:
        raise ValueError(f"pixel_values must have num_channels = {config.num_channels} channels, got {pixels.shape[1]}")
    patch = config.patch_shape[0]
    grid_size = pixels.shape[2] // patch, pixels.shape[3] // patch
    if 0 in grid_size:
        raise ValueError(
            f"pixel_values must be at least one patch of {patch} x {patch} pixels, got "
            f"{pixels.shape[2]} x {pixels.shape[3]}"
        )
    check_shape("pixel_mask", pixel_mask, (pixels.shape[0], *pixels.shape[2:]))
    return grid_size


def check_packed(
    pixels: PackedPixels, pixel_mask: Tensor | None, config: PatchConfig, batch: int, device: torch.device
) -> tuple[int, int]:
    """(GH, GW) of packed images that go with texts; raises unless there are as many, of whole patches."""
    check_packed_images(pixels, pixel_mask, config)
    if pixels.pairs != batch:
        raise ValueError(
            f"pixel_values must have as many images as there are texts, {batch}, got {pixels.pairs}; where several "
            "texts are about one image, say which with `picture`"
        )
    if pixels.device != device:
        raise ValueError(f'pixel_values is on {pixels.device}, the text on {device}; move it with .to("{device}")')
    patch = config.patch_shape[0]
    for index, (height, width) in enumerate(pixels.sizes):
        if height % patch or width % patch:
            raise ValueError(
                f"pixel_values: image {index} is {height} x {width} pixels, wanted multiples of the patch, {patch}; "
                "let the processor resize, with size_divisor a multiple of the patch"
            )
    return pixels.grid_size(patch)


def check_packed_images(pixels: PackedPixels, pixel_mask: Tensor | None, config: PatchConfig) -> None:
    """Raise unless they have the model's channels, and no mask."""
    if pixel_mask is not None:
        raise ValueError("pixel_mask goes with padded pixel_values; packed ones know their sizes")
    if config.num_channels != CHANNELS:
        raise ValueError(f"pixel_values: packed images have {CHANNELS} channels, the model {config.num_channels}")


def check_head_mask(head_mask: Tensor | None, config: EncoderConfig) -> Tensor | None:
    """(layers, heads) or None; raises unless it is one number a head."""
    if head_mask is None:
        return None
    if check_tensor("head_mask", head_mask).is_complex():
        raise ValueError(f"head_mask must hold real numbers, got {head_mask.dtype}")
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if tuple(head_mask.shape) not in ((heads,), (layers, heads)):
        raise ValueError(f"head_mask must be ({heads},) or ({layers}, {heads}), got shape {tuple(head_mask.shape)}")
    return head_mask.expand(layers, heads)


def check_labels(
    labels: Tensor, shape: tuple[int, ...], *, classes: int | None = None, ignore: bool = False, name: str = "labels"
) -> list[Check]:
    """Conditions on labels of that shape: integers in 0..classes - 1, or any numbers if that is None, finite ones.

    ignore: whether -100 means "no label". name: of the argument.
    """
    refuse_unreadable(name, check_tensor(name, labels))
    check_shape(name, labels, shape)
    if classes is None:
        if labels.is_complex():
            raise ValueError(f"{name} must hold real numbers, got {labels.dtype}")
        refuse_non_finite_mask(name, labels)
        return []
    labels = integers(name, labels)
    if ignore:
        return [range_check(name, labels.masked_fill(labels == -100, 0), classes, " or -100")]
    return [range_check(name, labels, classes)]


def check_probabilities(labels: Tensor, shape: tuple[int, ...]) -> list[Check]:
    """Conditions on labels of that shape that a divergence is taken from: finite numbers, none below 0."""
    checks, wrong = check_labels(labels, shape), in_floats(labels) < 0
    return [*checks, (wrong.any(), lambda: f"labels must not be negative, got {labels[wrong][0].item()}")]


def in_floats(values: Tensor) -> Tensor:
    """Real numbers in a dtype that all operations know: 32 bits, or more where they have more."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def range_check(name: str, values: Tensor, size: int, note: str = "") -> Check:
    """The condition that values are in 0..size - 1."""
    wrong = (values < 0) | (values >= size)
    return wrong.any(), lambda: f"{name} must be in 0..{size - 1}{note}, got {int(values[wrong][0])}"


def refuse_unreadable(name: str, tensor: Tensor) -> None:
    """Raise where no operation can read the values of a tensor, or there are none."""
    is_meta = tensor.device.type == "meta"  # by `tensor.is_meta` torch.compile would make a graph of nothing else
    if tensor.layout is torch.strided and not (is_meta or tensor.is_nested) and tensor.dtype not in _NEVER_READ:
        return
    if is_meta:
        raise ValueError(f"{name} is on the meta device, which holds no values; make it on a device that computes")
    if tensor.dtype in _NEVER_READ:
        raise ValueError(f"{name} is in {tensor.dtype}, which is not computed with; .dequantize() it, or .float()")
    kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    raise ValueError(f"{name} must be a dense tensor, got a {kind} one; .to_dense() makes it one, or padding")


def refuse_non_finite_mask(name: str, mask: Tensor) -> None:
    """Raise where a mask of floats, or labels, on the host has NaN or infinite values."""
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


def check_rows(name: str, rows: Tensor, mask: Tensor | None) -> None:
    """Raise unless rows (B, n, d) are floats, finite where their mask (B, n) keeps them; see below."""
    if not rows.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {rows.dtype}")
    refuse_non_finite_rows(name, rows, mask)


def refuse_non_finite_rows(name: str, rows: Tensor, mask: Tensor | None) -> None:
    """Raise where a row (B, n, d) on the host that its mask (B, n) keeps has NaN or infinite values."""
    if not rows.is_cpu or rows.numel() == 0 or not _can_read():
        return
    if all(math.isfinite(extreme.item()) for extreme in rows.detach().aminmax()):
        return
    wrong = ~rows.isfinite().all(2)
    wrong = wrong if mask is None else wrong & (mask.cpu() != 0)
    places = wrong.nonzero().tolist()
    if places:
        pair, row = places[0]
        raise ValueError(f"{name}: row {row} of pair {pair} has NaN or infinite values")


def _can_read() -> bool:
    """Whether tensors have values, and not while a call is traced or transformed (vmap)."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
