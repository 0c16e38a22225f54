"""The layout of a batch, made on the host: no device waits, and everything small travels in one copy.

The rules are those of `vilt_fast.reference.patch_sample`, which stays the oracle; here they are written for speed, in
NumPy, for images whose valid patches form a rectangle.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilt_fast.models.arguments import TextArguments
from vilt_fast.packing import Layout
from vilt_fast.pixels import CHANNELS, PackedPixels
from vilt_fast.reference.patch_sample import nearest_pixels, sample

# What is int64 on a device; all else is int32.
_WIDE = {"input_ids", "token_type_ids", "pair_modality", "pixel_offset", "word_row"}


_OF_UNPACKING = ("text_count", "patch_count", "word_row")  # of a layout
_PLAIN_DTYPES = {torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float16}


class Words(NamedTuple):
    """The texts of a batch on the host."""

    input_ids: np.ndarray  # (B, L) int64
    attention_mask: np.ndarray  # (B, L) bool
    token_type_ids: np.ndarray  # (B, L) int64

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]]) -> Words:
        """Texts of one type, padded at the right with 0."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        mask = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.zeros(mask.shape, np.int64)
        input_ids[mask] = np.fromiter(chain.from_iterable(rows), np.int64, lengths.sum())
        return cls(input_ids, mask, np.zeros_like(input_ids))


class HostBatch(NamedTuple):
    """A batch that is planned: all on the host but the pixels, which are where they came."""

    words: Words | None  # None: images alone
    plan: HostPlan
    pixels: Tensor | PackedPixels | None  # or the features of regions
    modality: np.ndarray | None = None  # (B,) int64, the row of the modality table that each image gets
    leaders: list[int] | None = None  # of `PackedPixels.leaders`, where pairs share images
    options: dict[str, Any] = {}  # of the embeddings, which come as they are
    asked: dict[str, Any] = {}  # what the head reads of the call

    def send(
        self, device: torch.device, *, places: np.ndarray | None = None, into: Tensor | None = None
    ) -> tuple[Layout, dict[str, Any]]:
        """The layout on a device, and what else the embeddings read.

        Args:
            device: where to.
            places, into: of `vilt_fast.frozen.graphs.Buckets`, for a batch of which a graph reads the first rows.
        """
        arrays: dict[str, np.ndarray] = {}
        if self.words is not None:
            arrays |= {"input_ids": self.words.input_ids, "token_type_ids": self.words.token_type_ids}
        if self.modality is not None:
            arrays["pair_modality"] = self.modality
        if isinstance(self.pixels, PackedPixels):
            offsets = np.array(self.pixels.offsets, np.int64)
            arrays["pixel_offset"] = offsets[list(self.pixels.image_of_pair)]
        if places is None:
            sent = {**self.plan.arrays, **arrays}
        else:  # who reads first rows alone unpacks nothing
            sent = {"places": places, **self.plan.arrays, **arrays}
            for name in _OF_UNPACKING:
                del sent[name]
        tensors = send(sent, device, into)
        layout = self.plan.layout(tensors)
        if self.leaders is not None:
            layout = layout.sharing(self.leaders, self.plan.arrays["patch_count"].tolist())
        return layout, {**{name: tensors[name] for name in arrays}, **self.options}


class Checked(NamedTuple):
    """A batch that was planned on the device."""

    layout: Layout
    pixels: Tensor | PackedPixels | None
    given: dict[str, Any]  # what else the embeddings read
    head_mask: Tensor | None
    asked: dict[str, Any] = {}  # what the head reads of the call


@dataclass(frozen=True)
class HostPlan:
    """A layout as arrays on the host; `tensors` of these make it one on a device."""

    arrays: dict[str, np.ndarray]  # integers: the tensors of `Layout`, by name
    grid_size: tuple[int, int]
    has_cls: bool
    total_tokens: int
    max_seqlen: int
    max_patches: int

    @property
    def first(self) -> np.ndarray:
        """(B,): see `Layout.first`."""
        return self.arrays["cu_seqlens"][:-1]

    @property
    def before_last(self) -> np.ndarray:
        """(B,): see `Layout.before_last`."""
        return self.first + self.arrays["text_count"] - 2

    @property
    def pairs(self) -> int:
        """B."""
        return len(self.arrays["cls_row"])

    def layout(self, tensors: dict[str, Tensor]) -> Layout:
        """The layout, once its arrays have become `tensors` (and others with them)."""
        # What was not sent nobody reads; any tensor stands in for it.
        own: dict[str, Any] = {name: tensors.get(name, tensors["cls_row"]) for name in self.arrays}
        return Layout(
            **own,
            has_cls=self.has_cls,
            grid_size=self.grid_size,
            total_tokens=self.total_tokens,
            max_seqlen=self.max_seqlen,
            max_patches=self.max_patches,
        )


def blank_pixels(config: Any, count: int, dtype: torch.dtype) -> list[Tensor | PackedPixels]:
    """Images of one patch each, in every form that a model takes."""
    patch = config.patch_shape[0]
    blanks: list[Tensor | PackedPixels] = [torch.zeros(count, config.num_channels, patch, patch, dtype=dtype)]
    if config.num_channels == CHANNELS:
        data = torch.zeros(count * CHANNELS * patch * patch, dtype=torch.uint8)
        blanks.append(PackedPixels(data, ((patch, patch),) * count))
    return blanks


def usual_grids(
    pixels: Any, pixel_mask: Tensor | None, batch: int, config: Any
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """(B, 2) valid patches of each image, and (GH, GW); None for pixels and masks that are unusual or wrong."""
    patch = config.patch_shape[0]
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or not pixels.is_floating_point() or pixels.requires_grad:
        return None
    if pixels.shape[:2] != (batch, config.num_channels) or min(pixels.shape[2:]) < patch:
        return None
    grid_size = pixels.shape[2] // patch, pixels.shape[3] // patch
    if pixel_mask is None:
        return np.tile(grid_size, (batch, 1)), grid_size
    mask = host_array(pixel_mask)
    if mask is None or mask.shape != (batch, *pixels.shape[2:]):
        return None
    grids = grids_of_mask(mask, grid_size)
    return None if grids is None else (grids, grid_size)


def host_array(tensor: Any) -> np.ndarray | None:
    """A plain tensor on the host as an array; None for anything else."""
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or tensor.requires_grad:
        return None
    if tensor.dtype not in _PLAIN_DTYPES or tensor.layout != torch.strided:
        return None
    return tensor.numpy()


def usual_words(inputs: TextArguments, config: Any) -> Words | None:
    """The words of a call where they are the usual ones, on the host and right."""
    ids, mask, types = (
        None if tensor is None else host_array(tensor)
        for tensor in (inputs.input_ids, inputs.attention_mask, inputs.token_type_ids)
    )
    if ids is None or ids.ndim != 2 or 0 in ids.shape or ids.shape[1] > config.max_position_embeddings:
        return None
    if not _is_in_range(ids, config.vocab_size):
        return None
    if inputs.token_type_ids is None:
        types = np.zeros_like(ids)
    elif types is None or types.shape != ids.shape or not _is_in_range(types, config.type_vocab_size):
        return None
    if inputs.attention_mask is None:
        return Words(ids, np.ones(ids.shape, bool), types)
    if mask is None or mask.shape != ids.shape:
        return None
    return Words(ids, mask != 0, types)


def _is_in_range(values: np.ndarray, size: int) -> bool:
    # As unsigned numbers those below 0 are large.
    return values.dtype == np.int64 and values.view(np.uint64).max() < size


def make_plan(
    attention_mask: np.ndarray,
    grids: np.ndarray,
    grid_size: tuple[int, int],
    *,
    max_patches: int = -1,
    seed: int = 0,
    image_index: np.ndarray | None = None,
    patch_mask: np.ndarray | None = None,
    has_cls: bool = True,
) -> HostPlan:
    """Plan a batch.

    Args:
        attention_mask: (B, L) bool, True for words that become tokens; L = 0 for images alone.
        grids: (B, 2) integers, the valid patches (height, width) of each image, at most `grid_size`.
        grid_size, max_patches, seed: as in `vilt_fast.reference.patch_sample`.
        image_index: (B,) int64, likewise; None: 0, 1, ...
        patch_mask: (B, GH, GW) bool, True for patches that may become tokens; None: all.
        has_cls: whether each image has a CLS row.
    """
    batch, cells = len(grids), grid_size[0] * grid_size[1]
    if patch_mask is None and not 0 <= max_patches < cells and (grids == grid_size).all():  # images of one size
        patch_count, patch_index = np.full(batch, cells), np.arange(batch * cells)
    else:
        rows, columns = _axes(*grid_size)
        kept = ((rows < grids[:, :1])[:, :, None] & (columns < grids[:, 1:])[:, None, :]).reshape(batch, cells)
        if patch_mask is not None:
            kept = kept & patch_mask.reshape(batch, cells)
        if 0 <= max_patches < cells:
            kept = _sampled(kept, grids, grid_size, max_patches, seed, image_index)
        patch_count, patch_index = kept.sum(1), kept.ravel().nonzero()[0]
    text_count = attention_mask.sum(1)
    lengths = text_count + patch_count + int(has_cls)
    cu_seqlens = np.zeros(batch + 1, np.int32)
    lengths.cumsum(out=cu_seqlens[1:])
    starts = cu_seqlens[:-1]
    first_patch = starts + text_count + int(has_cls)
    text_row = np.where(attention_mask, starts[:, None] + (attention_mask.cumsum(1) - 1), -1)
    shift = first_patch - (patch_count.cumsum() - patch_count)  # a pair's first row of patches less its first place
    patch_row = np.arange(len(patch_index)) + shift.repeat(patch_count)
    return HostPlan(
        arrays={
            "grid": grids,
            "text_count": text_count,
            "patch_count": patch_count,
            "cu_seqlens": cu_seqlens,
            "text_row": text_row,
            "cls_row": starts + text_count if has_cls else np.full(batch, -1),
            "patch_index": patch_index,
            "patch_row": patch_row,
            "word_row": text_row[attention_mask],
        },
        grid_size=grid_size,
        has_cls=has_cls,
        total_tokens=int(cu_seqlens[-1]),
        max_seqlen=int(lengths.max()),
        max_patches=int(patch_count.max()),
    )


def grids_of_mask(pixel_mask: np.ndarray, grid_size: tuple[int, int]) -> np.ndarray | None:
    """(B, 2) valid patches of each image; None where some image's valid pixels are no rectangle at its top left.

    A patch is valid where its nearest pixel is, as in `vilt_fast.reference.patch_sample`.

    Args:
        pixel_mask: (B, H, W), nonzero for real pixels.
        grid_size: (GH, GW).
    """
    _, rows, columns = pixel_mask.shape
    sides = sides_of_mask(pixel_mask)
    if sides is None:
        return None
    tall, wide = _patches_within(rows, grid_size[0]), _patches_within(columns, grid_size[1])
    return np.array([(tall[height], wide[width]) for height, width in sides])


def sides_of_mask(pixel_mask: np.ndarray) -> list[tuple[int, int]] | None:
    """(height, width) of each image's valid pixels; None where they are no rectangle at the top left of some image.

    Args:
        pixel_mask: (B, H, W), nonzero for real pixels.
    """
    _, rows, columns = pixel_mask.shape
    valid = _scratch(rows * columns).reshape(rows, columns)
    sides = []
    for mask in pixel_mask:
        np.not_equal(mask, 0, out=valid)  # in a quarter of the time that PyTorch takes for it
        area = np.count_nonzero(valid)
        if area == rows * columns:
            sides.append((rows, columns))
            continue
        height, width = np.count_nonzero(valid[:, 0]), np.count_nonzero(valid[0])
        if area == 0 or area != height * width or np.count_nonzero(valid[:height, :width]) != area:
            return None
        sides.append((int(height), int(width)))
    return sides


_threads = threading.local()


def _scratch(size: int) -> np.ndarray:
    """(size,) bool, this thread's own: memory that comes anew from the system costs more than the work on it."""
    if getattr(_threads, "scratch", np.empty(0)).size < size:
        _threads.scratch = np.empty(size, bool)
    return _threads.scratch[:size]


def send(arrays: dict[str, np.ndarray], device: torch.device, into: Tensor | None = None) -> dict[str, Tensor]:
    """Integers of any width as tensors on a device, int64 where `_WIDE` says so and int32 elsewhere.

    They travel in one copy that nobody waits for, to the start of `into` (words,) int64 where it is given. Each starts
    at a multiple of 16 bytes, whatever was before it: kernels are compiled for that.
    """
    starts, end = [], 0  # in words of 8 bytes
    for name, array in arrays.items():
        starts.append(end)
        end += array.size + array.size % 2 if name in _WIDE else -(-array.size // 4) * 2
    wide = np.empty(end, np.int64)
    narrow = wide.view(np.int32)
    for (name, array), start in zip(arrays.items(), starts, strict=True):
        if name in _WIDE:
            wide[start : start + array.size] = array.ravel()
        else:
            narrow[2 * start : 2 * start + array.size] = array.ravel()
    packet = torch.from_numpy(wide)
    if device.type == "cuda":
        packet = packet.pin_memory()
    packet = packet.to(device, non_blocking=True) if into is None else into[:end].copy_(packet, non_blocking=True)
    halves = packet.view(torch.int32)
    tensors = {}
    for (name, array), start in zip(arrays.items(), starts, strict=True):
        stride = (array.shape[1], 1) if array.ndim == 2 else (1,)
        if name in _WIDE:
            tensors[name] = packet.as_strided(array.shape, stride, start)
        else:
            tensors[name] = halves.as_strided(array.shape, stride, 2 * start)
    return tensors


def _sampled(
    kept: np.ndarray,
    grids: np.ndarray,
    grid_size: tuple[int, int],
    max_patches: int,
    seed: int,
    image_index: np.ndarray | None,
) -> np.ndarray:
    """(B, cells) bool: the draw of the reference."""
    rows, columns = _axes(*grid_size)
    ordinal = (rows[:, None] * grids[:, 1, None, None] + columns).reshape(kept.shape)
    index = np.arange(len(grids)) if image_index is None else image_index
    valid, place, stream = (torch.from_numpy(array) for array in (kept, ordinal, index))
    return sample(valid, place, max_patches, seed, stream).numpy()


@cache
def _axes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(height), np.arange(width)


@cache
def _patches_within(pixels: int, patches: int) -> list[int]:
    """For 0, 1, ... `pixels` valid pixels of a side, how many patches have their nearest pixel among them."""
    return np.searchsorted(nearest_pixels(pixels, patches).numpy(), np.arange(pixels + 1)).tolist()
