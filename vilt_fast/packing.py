"""The layout of a packed batch: which token stands at which row, made once and handed down.

A batch of B pairs becomes one flat (total_tokens, d) tensor. Pair b owns rows cu_seqlens[b] to cu_seqlens[b + 1] - 1:
its words (none in a batch of images alone), the CLS of its image, its patches in raster order. Nothing else computes a
length, a mask or a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from vilt_fast import ops
from vilt_fast.contracts.exporting import apart, is_exporting
from vilt_fast.contracts.plan import Plan

# A condition on values that live on the device, a bool scalar that is True where something is wrong, and what to say.
Check: TypeAlias = tuple[Tensor, Callable[[], str]]


class _once(cached_property[Any]):
    """A cached_property that torch.compile traces, which knows no locks: there it is computed at each of its uses."""

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        return self.func(instance) if torch.compiler.is_compiling() else super().__get__(instance, owner)


class Copies(NamedTuple):
    """Patches that several pairs share: projected for the first of them, copied for the others. All int64."""

    projected: Tensor  # (n,): places in `Layout.patch_index` of the patches to project
    source: Tensor  # (m,): rows of projected patches
    target: Tensor  # (m,): rows that equal them


@dataclass(frozen=True)
class Layout:
    """Where every token of a batch comes from and goes to. All tensors are on the device of the inputs.

    Args:
        cu_seqlens: (B + 1,) int32, first row of each pair.
        text_row: (B, L) int32, row of each word, -1 where it is masked.
        word_row: (words,) int64, the rows of the words that are not masked, in the order of `text_row`.
        cls_row: (B,) int32, row of each image's CLS, -1 where there is none (`image_embeds`, regions).
        patch_index: (patches,) int32, b * GH * GW + y * GW + x of each patch that is a token.
        patch_row: (patches,) int32, its row.
        grid: (B, 2) int32, valid patches (height, width) of each image.
        text_count, patch_count: (B,) int32.
        grid_size: (GH, GW), the patches of the padded batch.
        has_cls: whether images have a CLS row.
        total_tokens: rows of the flat tensor.
        max_seqlen: length of the longest pair.
        max_patches: patches of the image with the most.
        copies: patches that need no projection of their own; None: every patch has its own.
    """

    cu_seqlens: Tensor
    text_row: Tensor
    word_row: Tensor
    cls_row: Tensor
    patch_index: Tensor
    patch_row: Tensor
    grid: Tensor
    text_count: Tensor
    patch_count: Tensor
    grid_size: tuple[int, int]
    has_cls: bool
    total_tokens: int
    max_seqlen: int
    max_patches: int
    copies: Copies | None = None

    @classmethod
    def build(
        cls,
        attention_mask: Tensor,
        pixel_mask: Tensor | None,
        patch_mask: Tensor | None,
        grid_size: tuple[int, int],
        *,
        max_patches: int = -1,
        seed: int = 0,
        image_index: Tensor | None = None,
        has_cls: bool = True,
        grid: Tensor | None = None,
        checks: list[Check] | None = None,
    ) -> Layout:
        """Plan a batch where its masks are, and read back to the host once: see `from_plan`.

        Args:
            attention_mask: (B, L) bool, L = 0 for images alone. pixel_mask: (B, H, W) or None.
            patch_mask: (B, GH, GW) bool or None.
            grid_size, max_patches, seed, image_index, has_cls: as in `vilt_fast.reference.patch_sample`.
            grid: (B, 2) integers, the valid patches of each image where they are known, in place of `pixel_mask`.
            checks: conditions on values that ride on the same read.

        Raises:
            ValueError: a condition is True; the message of the first one.
        """
        if image_index is None:
            image_index = torch.arange(len(attention_mask), device=attention_mask.device)
        # `patch_sample` reads a known grid from a mask with one pixel per patch.
        mask = pixel_mask if grid is None else top_left_mask(grid, grid_size)
        plan = ops.patch_sample(
            attention_mask, mask, patch_mask, grid_size, max_patches, seed, image_index, has_cls=has_cls
        )
        checks = [*(checks or []), *_mask_checks(attention_mask, pixel_mask)]
        return cls.from_plan(plan, grid_size, has_cls=has_cls, checks=checks)

    @classmethod
    def from_plan(
        cls, plan: Plan, grid_size: tuple[int, int], *, has_cls: bool = True, checks: Sequence[Check] = ()
    ) -> Layout:
        """The layout of a plan; its counts and the outcome of all checks are read back to the host together, once."""
        lengths, words, patches = plan.cu_seqlens.diff(), plan.text_count, plan.patch_count
        counts = [plan.cu_seqlens[-1], words.sum(), patches.sum(), lengths.max(), patches.max()]
        read = torch.stack([value.to(torch.int64) for value in (*counts, *(wrong for wrong, _ in checks))]).tolist()
        _raise_first(read[len(counts) :], checks)
        total_tokens, total_words, total_patches, max_seqlen, max_patches = read[: len(counts)]
        plan = plan._replace(patch_index=plan.patch_index[:total_patches], patch_row=plan.patch_row[:total_patches])
        return cls(
            **plan._asdict(),
            word_row=_leading(plan.text_row, total_words),
            grid_size=grid_size,
            has_cls=has_cls,
            total_tokens=total_tokens,
            max_seqlen=max_seqlen,
            max_patches=max_patches,
        )

    def sharing(self, leaders: Sequence[int], patch_counts: Sequence[int]) -> Layout:
        """The same layout with `copies`, where pairs share all their patches.

        `leaders` has for each pair the first with the same patches, `patch_counts` is the host's `patch_count`.
        """
        followers = [pair for pair, leader in enumerate(leaders) if leader != pair]
        if not followers:
            return self
        counts = torch.tensor(patch_counts, device="cpu")
        first = counts.cumsum(0) - counts

        def places_of(pairs: Sequence[int]) -> Tensor:
            chosen = torch.tensor(pairs, device="cpu")
            before = counts[chosen].cumsum(0) - counts[chosen]  # places of the pairs before each in the result
            places = torch.arange(int(counts[chosen].sum()), device="cpu")
            return places + (first[chosen] - before).repeat_interleave(counts[chosen])

        lists = [places_of([pair for pair, leader in enumerate(leaders) if leader == pair])]
        lists += [places_of([leaders[pair] for pair in followers]), places_of(followers)]
        joined, device = torch.cat(lists), self.patch_row.device
        joined = (joined.pin_memory() if device.type == "cuda" else joined).to(device, non_blocking=True)
        projected, source, target = joined.split([len(part) for part in lists])
        row = self.patch_row.long()
        return replace(self, copies=Copies(projected, row[source], row[target]))

    @property
    def batch_size(self) -> int:
        """B, the pairs."""
        return self.text_row.shape[0]

    @property
    def text_length(self) -> int:
        """L, the word columns of the padded batch."""
        return self.text_row.shape[1]

    @property
    def first(self) -> Tensor:
        """(B,) int32: the row of each pair's first word, the one that the pooler reads."""
        return self.cu_seqlens[:-1]

    @property
    def before_last(self) -> Tensor:
        """(B,) int32: the row of the word before each pair's last one; VisualBERT reads its answers there."""
        return self.first + self.text_count - 2

    def words_alone(self) -> Layout:
        """The layout of the same batch without its images; its rows are those of `word_row`, in order."""
        kept, count = self.text_row >= 0, self.text_count
        ends = count.cumsum(0, dtype=torch.int32)
        rows = torch.where(kept, (ends - count)[:, None] + kept.cumsum(1, dtype=torch.int32) - 1, -1)
        none = self.patch_row[:0]
        return Layout(
            cu_seqlens=torch.nn.functional.pad(ends, (1, 0)),
            text_row=rows,
            word_row=torch.arange(len(self.word_row), device=rows.device),
            cls_row=torch.full_like(self.cls_row, -1),
            patch_index=none,
            patch_row=none,
            grid=torch.zeros_like(self.grid),
            text_count=count,
            patch_count=torch.zeros_like(self.patch_count),
            grid_size=(1, 0),
            has_cls=False,
            total_tokens=len(self.word_row),
            max_seqlen=self.text_length,  # at most: nothing is read back for it
            max_patches=0,
        )

    @_once
    def padded_row(self) -> Tensor:
        """(B, L + CLS + max_patches) int64: the row behind each place of the padded form, -1 for padding."""
        if not self.has_cls:  # image_embeds, regions: every row keeps the place in which it came
            image_row = self.patch_row.new_full((self.batch_size * self.grid_size[1],), -1)
            image_row = image_row.index_copy(0, self.patch_index.long(), self.patch_row)
            return torch.cat((self.text_row, image_row.view(self.batch_size, self.grid_size[1])), 1).long()
        places = torch.arange(int(self.has_cls) + self.max_patches, device=self.text_row.device)
        image_count = int(self.has_cls) + self.patch_count[:, None]
        image_row = (self.first + self.text_count)[:, None] + places
        return torch.cat((self.text_row, torch.where(places < image_count, image_row, -1)), 1).long()

    @_once
    def word_place(self) -> Tensor:
        """(words,) int64: where in the flattened (B, L) text each row of `word_row` stands."""
        return _places(self.text_row, len(self.word_row))

    @property
    def word_position(self) -> Tensor:
        """(words,) int64: where in its text each row of `word_row` stands."""
        return self.word_place - self.word_place // self.text_length * self.text_length  # ONNX has no remainder

    @property
    def projected_patches(self) -> tuple[Tensor, Tensor]:
        """`patch_index` and `patch_row` of the patches that need a projection of their own."""
        if self.copies is None:
            return self.patch_index, self.patch_row
        return self.patch_index[self.copies.projected], self.patch_row[self.copies.projected]

    def place(self, words: Tensor | None, cls: Tensor | None, patches: Tensor | None) -> Tensor:
        """Rows at their places: (total_tokens, d), zero where nothing came.

        Args:
            words: (words, d), for `word_row`; cls: (B, d), for `cls_row`; patches: (patches, d), for `patch_row`. None:
                there are none.
        """
        pairs = ((self.word_row, words), (self.cls_row, cls), (self.patch_row, patches))
        row = torch.cat([row.long() for row, part in pairs if part is not None])
        rows = torch.cat([part for _, part in pairs if part is not None])
        return rows.new_zeros(self.total_tokens, rows.shape[1]).index_copy(0, row, rows)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L + CLS + max_patches, d) to (total_tokens, d): the inverse of `unpack`."""
        return padded.flatten(0, 1)[_places(self.padded_row, self.total_tokens)]

    def unpack(self, tokens: Tensor) -> Tensor:
        """(total_tokens, d) to (B, L + CLS + max_patches, d), zero where nothing stands."""
        return _place(tokens, self.padded_row)

    def unpack_text(self, tokens: Tensor) -> Tensor:
        """(total_tokens, d) to (B, L, d), the words alone, zero where they are masked."""
        return _place(tokens, self.text_row.long())

    def unpack_words(self, values: Tensor) -> Tensor:
        """(words, n), one row for each of `word_row`, to (B, L, n), zero where words are masked."""
        return place_words(values, self.text_row >= 0)

    def unpack_patches(self, values: Tensor) -> Tensor:
        """(patches, n), one row for each of `patch_index`, to (B, GH, GW, n), zero where no patch stood."""
        grid = values.new_zeros(self.batch_size * self.grid_size[0] * self.grid_size[1], values.shape[1])
        return grid.index_copy(0, self.patch_index.long(), values).view(self.batch_size, *self.grid_size, -1)

    def unpack_attention(self, rows: Tensor) -> Tensor:
        """(total_tokens, heads, max_seqlen) of `ops.attention_rows` for every row to (B, heads, places, places)."""
        padded = _place(rows.flatten(1), self.padded_row)
        padded = padded.unflatten(-1, rows.shape[1:])  # (B, places, heads, max_seqlen)
        key = torch.where(self.padded_row >= 0, self.padded_row - self.first[:, None], rows.shape[-1])
        padded = torch.nn.functional.pad(padded, (0, 1))  # one zero column for the keys of padding
        key = key[:, None, None, :].expand(*padded.shape[:3], -1)
        return padded.gather(-1, key).transpose(1, 2)

    def patch_grid(self) -> Tensor:
        """(B, max_patches, 2) int64: (y, x) of the patch at each place of the padded form, -1 for padding."""
        width, cells = self.grid_size[1], self.grid_size[0] * self.grid_size[1]
        cell = self.patch_index.long() % cells
        places = torch.stack((cell // width, cell % width), 1)
        flat = places.new_full((self.total_tokens, 2), -1).index_copy(0, self.patch_row.long(), places)
        row = self.padded_row[:, self.text_length + int(self.has_cls) :]
        return torch.where(row[..., None] >= 0, flat[row.clamp(min=0)], -1)


def take_words(padded: Tensor, kept: Tensor) -> Tensor:
    """(B, L, d) to (words, d), one row for each True of (B, L); under `torch.export` one for each word."""
    if is_exporting():
        return apart(padded).flatten(0, 1)
    return padded[kept]


def place_words(values: Tensor, kept: Tensor) -> Tensor:
    """The inverse of `take_words`: (words, n) to (B, L, n), zero where `kept` is False."""
    if is_exporting():
        return values.view(*kept.shape, values.shape[1]).masked_fill(~kept[..., None], 0)
    ordinal = kept.flatten().cumsum(0).view_as(kept) - 1
    return _place(values, torch.where(kept, ordinal, -1))


def raise_first(checks: Sequence[Check]) -> None:
    """Read the outcome of all checks back to the host; ValueError with the message of the first that is wrong."""
    if checks and not is_exporting():
        _raise_first(torch.stack([wrong for wrong, _ in checks]).tolist(), checks)


def _raise_first(outcomes: Sequence[int], checks: Sequence[Check]) -> None:
    for wrong, (_, message) in zip(outcomes, checks, strict=True):
        if wrong:
            raise ValueError(message())


def top_left_mask(size: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, H, W) bool for (B, 2) sizes and shape (H, W): True in the top left size[b] = (height, width)."""
    y = torch.arange(shape[0], device=size.device)[:, None]
    x = torch.arange(shape[1], device=size.device)
    return (y < size[:, 0, None, None]) & (x < size[:, 1, None, None])


def _places(row: Tensor, count: int) -> Tensor:
    """(count,) int64: where entries are >= 0, in order. `count` is known: nothing is read back, as by nonzero()."""
    return (row.flatten() < 0).to(torch.uint8).argsort(stable=True)[:count]


def _leading(row: Tensor, count: int) -> Tensor:
    """(count,) int64: the entries >= 0 in order."""
    return row.flatten()[_places(row, count)].long()


def _place(rows: Tensor, row: Tensor) -> Tensor:
    """rows[row] with zeros where `row` is negative: (B, places, d)."""
    padding = row < 0
    return rows[row.clamp(min=0)].masked_fill(padding[..., None], 0)


def _mask_checks(attention_mask: Tensor, pixel_mask: Tensor | None) -> list[Check]:
    """What must hold of the two masks for the plan to mean anything."""

    def check(wrong: Tensor, message: str) -> Check:
        return wrong.any(), lambda: message.format(int(wrong.nonzero()[0]))

    checks = []
    if attention_mask.shape[1] > 0:  # else there are no words at all
        checks.append(check(~attention_mask.any(1), "attention_mask: row {} has no word to attend to"))
    if pixel_mask is not None:
        mask = pixel_mask != 0
        size = torch.stack((mask[:, :, 0].sum(1), mask[:, 0, :].sum(1)), 1)
        rectangle = top_left_mask(size, (mask.shape[1], mask.shape[2]))
        message = (
            "pixel_mask: the valid pixels of image {} must form one rectangle that starts at the top left corner; to "
            "drop patches inside an image, use patch_mask"
        )
        checks.append(check(~mask.any(2).any(1), "pixel_mask: image {} has no valid pixel"))
        checks.append(check((mask != rectangle).any(2).any(1), message))
    return checks
