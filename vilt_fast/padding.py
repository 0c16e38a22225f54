"""The layout under `torch.export`: every word and every patch of the padded batch has a row, be it masked or not.

Rows b * S to (b + 1) * S - 1 belong to pair b, S = L + CLS + GH * GW: its words, the CLS of its image, the cells of the
padded grid in raster order. So no size depends on data, and one graph serves all batches. Rows that hold no token are
zero after the embeddings, no key of any query, and nothing reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vilt_fast.contracts.exporting import always, apart, is_exporting
from vilt_fast.packing import Layout
from vilt_fast.reference.patch_sample import valid_patches


def lay_out(*masks_and_grid: Any, **options: Any) -> Layout:
    """`Layout.build` of a batch; under `torch.export` a `PaddedLayout`, for which nothing is read and nothing sampled.

    Raises:
        ValueError: as from these.
    """
    if not is_exporting():
        return Layout.build(*masks_and_grid, **options)
    for name in ("checks", "seed", "image_index"):
        options.pop(name, None)
    return PaddedLayout.of(*masks_and_grid, **options)


@dataclass(frozen=True, kw_only=True)
class PaddedLayout(Layout):
    """A `Layout` whose sizes follow from shapes alone. Places of the padded form are those of a packed batch.

    `word_row` and `patch_row` have the rows of all words and patches, `text_row` has -1 where a word is masked.

    Args:
        stands: (B, S) bool, True for rows that hold a token.
        has_gaps: whether some patches may be masked. has_one_grid: whether no image has a smaller grid.
    """

    stands: Tensor
    has_gaps: bool
    has_one_grid: bool

    @classmethod
    def of(
        cls,
        attention_mask: Tensor,
        pixel_mask: Tensor | None,
        patch_mask: Tensor | None,
        grid_size: tuple[int, int],
        *,
        max_patches: int = -1,
        has_cls: bool = True,
        grid: Tensor | None = None,
    ) -> PaddedLayout:
        """Plan a batch by arithmetic alone. Arguments as in `Layout.build`; values are not checked.

        Raises:
            ValueError: sizes that are known (PackedPixels); or fewer `max_patches` than an image may have: which of
                them become tokens would be drawn for each batch anew.
        """
        (batch, length), cells, device = attention_mask.shape, grid_size[0] * grid_size[1], attention_mask.device
        if max_patches >= 0 and not always(cells <= max_patches):
            raise ValueError(
                f"config.max_image_length: got {max_patches}, which samples patches of larger images; what is exported "
                "keeps all: set it to -1"
            )
        if grid is not None and pixel_mask is None:
            raise ValueError("pixel_values: PackedPixels have sizes that a program would keep; export padded images")
        kept = torch.ones(batch, cells, dtype=torch.bool, device=device)
        if grid is None:
            grid = valid_patches(pixel_mask, batch, grid_size, device)
        if pixel_mask is not None:
            y, x = torch.arange(grid_size[0], device=device)[:, None], torch.arange(grid_size[1], device=device)
            kept = ((y < grid[:, 0, None, None]) & (x < grid[:, 1, None, None])).flatten(1)
        if patch_mask is not None:
            kept = kept & patch_mask.flatten(1)
        size = length + int(has_cls) + cells
        cu_seqlens = torch.arange(batch + 1, device=device) * size
        start = cu_seqlens[:-1]
        word_row = start[:, None] + torch.arange(length, device=device)  # (B, L)
        patch_row = start[:, None] + (length + int(has_cls)) + torch.arange(cells, device=device)  # (B, GH * GW)
        return cls(
            cu_seqlens=cu_seqlens,
            text_row=torch.where(attention_mask, word_row, -1),
            word_row=word_row.flatten(),
            cls_row=start + length,
            patch_index=torch.arange(batch * cells, device=device),
            patch_row=patch_row.flatten(),
            grid=grid,
            text_count=attention_mask.sum(1),
            patch_count=kept.sum(1),
            grid_size=grid_size,
            has_cls=has_cls,
            total_tokens=batch * size,
            max_seqlen=size,
            max_patches=cells,
            stands=torch.cat((pad(attention_mask, (0, int(has_cls)), value=True), kept), 1),
            has_gaps=pixel_mask is not None or patch_mask is not None,
            has_one_grid=pixel_mask is None,
        )

    @property
    def row(self) -> Tensor:
        """(B, S) int64: every row, at its pair."""
        return torch.arange(self.total_tokens, device=self.stands.device).view(self.stands.shape)

    @property
    def kept_patches(self) -> Tensor:
        """(B, GH * GW) bool."""
        return self.stands[:, self.text_length + int(self.has_cls) :]

    @property
    def first(self) -> Tensor:
        """(B,) int64: the row of each pair's first word; without words, of its CLS."""
        words = self.stands[:, : max(self.text_length, 1)]
        return self.cu_seqlens[:-1] + words.to(torch.int64).argmax(1)

    @property
    def before_last(self) -> Tensor:
        """(B,) int64: the row of the word before each pair's last one."""
        words = self.stands[:, : self.text_length].to(torch.int64)
        is_it = words * (words.cumsum(1) == self.text_count[:, None] - 1)
        return self.cu_seqlens[:-1] + is_it.argmax(1)

    def words_alone(self) -> PaddedLayout:
        """The layout of the same batch without its images; its rows are those of `word_row`, in order."""
        return PaddedLayout.of(apart(self.stands[:, : self.text_length]), None, None, (1, 0), has_cls=False)

    @property
    def padded_row(self) -> Tensor:
        """(B, S) int64: the row behind each place of the padded form, -1 for padding."""
        rows = torch.where(self.stands, self.row, -1)
        if not (self.has_gaps and self.has_cls):
            return rows
        # The patches of an image stand one behind the other, as in a packed batch; those that are none go past the end.
        start = self.text_length + 1
        place = torch.where(self.kept_patches, self.kept_patches.cumsum(1) - 1, self.max_patches)
        patches = rows.new_full((self.batch_size, self.max_patches + 1), -1).scatter(1, place, rows[:, start:])
        return torch.cat((rows[:, :start], patches[:, :-1]), 1)

    @property
    def word_place(self) -> Tensor:
        """(B * L,) int64: where in the flattened (B, L) text each row of `word_row` stands."""
        return torch.arange(self.batch_size * self.text_length, device=self.stands.device)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, S, d) to (B * S, d): the inverse of `unpack`, but for the rows that hold no token, where anything is."""
        if not (self.has_gaps and self.has_cls):
            return padded.flatten(0, 1)
        start = self.text_length + 1
        place = start + (self.kept_patches.cumsum(1) - 1).clamp(min=0)
        place = torch.cat((self.row[:, :start], self.cu_seqlens[:-1, None] + place), 1)
        return padded.flatten(0, 1)[place.flatten()]

    def place(self, words: Tensor | None, cls: Tensor | None, patches: Tensor | None) -> Tensor:
        """See the base class; rows that hold no token are zero, whatever came."""
        parts = ((words, self.text_length), (cls, 1), (patches, self.max_patches))
        tokens = torch.cat([rows.view(self.batch_size, n, rows.shape[1]) for rows, n in parts if rows is not None], 1)
        return tokens.masked_fill(~self.stands[..., None], 0).flatten(0, 1)

    def unpack_patches(self, values: Tensor) -> Tensor:
        """See the base class."""
        values = values.masked_fill(~apart(self.kept_patches).flatten()[:, None], 0)
        return values.view(self.batch_size, *self.grid_size, values.shape[1])
