"""The embeddings of a frozen model: tables as the operations read them, and the launches that fill the packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast import ops
from vilt_fast.contracts.positions import BILINEAR
from vilt_fast.frozen.blocks import Affine
from vilt_fast.layers.embeddings import place_image_embeds
from vilt_fast.layers.regions import aligned_positions
from vilt_fast.packing import Layout
from vilt_fast.pixels import PackedPixels


@dataclass(frozen=True, eq=False)
class TextTables:
    """What `ops.text_embed` reads."""

    word: Tensor | None  # None: of regions
    position: Tensor
    token_type: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    modality: Tensor | None  # (d,), the row of text
    eps: float


@dataclass(frozen=True, eq=False)
class PatchTables:
    """What `ops.patch_embed` reads."""

    weight: Tensor  # (d, C, p, p), in channels-last memory
    bias: Tensor | None
    position: Tensor
    cls_token: Tensor
    modality: Tensor | None  # (M, d)
    mask_token: Tensor | None  # (d,)
    table_size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class PatchEmbedding:
    """Of images, and of words beside them; see `vilt_fast.layers.embeddings`."""

    text: TextTables | None  # None: images alone
    patches: PatchTables

    def __call__(
        self,
        rows: Tensor,
        layout: Layout,
        pixels: Tensor | PackedPixels | None,
        *,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pair_modality: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        folded: tuple[Tensor, Tensor, float] | None = None,
        pixel_offset: Tensor | None = None,
        interpolation: str | None = BILINEAR,
        masked: Tensor | None = None,
    ) -> Tensor:
        """Fill `rows` (total_tokens, d), every one of them.

        folded: of PackedPixels, the projection for their normalisation, see `vilt_fast.pixels.fold_normalisation`.
        """
        if self.text is not None:
            assert token_type_ids is not None
            rows = ops.text_embed(
                rows,
                text_row=layout.text_row,
                input_ids=input_ids,
                token_type_ids=token_type_ids,
                inputs_embeds=inputs_embeds,
                **vars(self.text),
            )
        tables = self.patches
        if pixels is None:
            assert image_embeds is not None and tables.modality is not None and pair_modality is not None
            modality = tables.modality[pair_modality[layout.patch_index.long() // image_embeds.shape[1]]]
            return place_image_embeds(rows, layout, image_embeds.to(rows.dtype), modality)
        places: dict[str, Any] = {**vars(tables), "mask_token": None if masked is None else tables.mask_token}
        options: dict[str, Any] = {}
        copies, (patch_index, patch_row) = layout.copies, layout.projected_patches
        if isinstance(pixels, PackedPixels):
            assert folded is not None
            weight, bias, scale = folded
            offset = pixels.pair_offset if pixel_offset is None else pixel_offset
            places = places | {"weight": weight, "bias": bias}
            options = {"grid_size": layout.grid_size, "pixel_offset": offset, "pixel_scale": scale}
        rows = ops.patch_embed(
            rows,
            pixels=pixels.data if isinstance(pixels, PackedPixels) else pixels,
            pair_modality=pair_modality,
            grid=layout.grid,
            patch_index=patch_index,
            patch_row=patch_row,
            cls_row=layout.cls_row,
            interpolation=interpolation,
            masked=masked,
            **places,
            **options,
        )
        return rows if copies is None else rows.index_copy_(0, copies.target, rows[copies.source])


@dataclass(frozen=True, eq=False)
class RegionEmbedding:
    """Of words and regions; see `vilt_fast.layers.embeddings.VisualBertEmbeddings`."""

    text: TextTables
    projection: Affine
    visual: TextTables  # its position table has the one row that regions have

    def __call__(
        self,
        rows: Tensor,
        layout: Layout,
        features: Tensor | None,
        *,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        visual_token_type_ids: Tensor | None = None,
        image_text_alignment: Tensor | None = None,
    ) -> Tensor:
        """Fill `rows` (total_tokens, d), every one of them.

        Args:
            features: (B, V, visual_embedding_dim), or (regions, visual_embedding_dim) of those alone that become rows,
                in order; None: texts alone.
            visual_token_type_ids: (B, V) int64; None: ones.
            image_text_alignment: (B, V, n) int64.
        """
        rows = ops.text_embed(
            rows,
            text_row=layout.text_row,
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            **vars(self.text),
        )
        if features is None:
            return rows
        place, aligned = layout.patch_index.long(), None
        if image_text_alignment is not None:
            look_up = partial(F.embedding, weight=self.text.position)
            aligned = aligned_positions(look_up, image_text_alignment.flatten(0, 1)[place])
        if features.ndim == 3:
            features = features.flatten(0, 1)[place]
        types = torch.ones_like(place) if visual_token_type_ids is None else visual_token_type_ids.flatten()[place]
        return ops.text_embed(
            rows,
            text_row=layout.patch_row[:, None],
            input_ids=None,
            token_type_ids=types[:, None],
            inputs_embeds=self.projection(features.to(rows.dtype), residual=aligned)[:, None],
            **vars(self.visual),
        )
