"""Words and pixels to rows of the packed tensor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.packing import Layout
from vilt_fast.pixels import PackedPixels, fold_normalisation


class TextEmbeddings(nn.Module):
    """Tables of words, positions and types, and the normalisation of their sum."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, d, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, d)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, d)
        self.LayerNorm = nn.LayerNorm(d, eps=config.layer_norm_eps)


class PatchEmbeddings(nn.Module):
    """The patch projection, held as the convolution it is in a checkpoint."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        patch = config.patch_shape
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)


class ViltEmbeddings(nn.Module):
    """Both halves of the sequence, each row written at its place in the packed tensor."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        rows, columns = self.table_size = config.table_size
        self.text_embeddings = TextEmbeddings(config)
        self.patch_embeddings = PatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, rows * columns + 1, config.hidden_size))
        self.token_type_embeddings = nn.Embedding(config.modality_type_vocab_size, config.hidden_size)
        self.dropout_p = config.hidden_dropout_prob

    def forward(
        self,
        layout: Layout,
        *,
        input_ids: Tensor | None,
        token_type_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | PackedPixels | None = None,
        image_embeds: Tensor | None = None,
        pair_modality: Tensor,
    ) -> Tensor:
        """Embed a batch.

        Args:
            layout: of the batch.
            input_ids, token_type_ids: (B, L) int64. inputs_embeds: (B, L, d) in place of `input_ids`.
            pixel_values: (B, C, H, W) or PackedPixels. image_embeds: (B, places, d) in place of `pixel_values`.
            pair_modality: (B,) int64, the modality row of each pair's image.

        Returns:
            (total_tokens, d).
        """
        modality = self.token_type_embeddings.weight
        # Dropout comes before the modality row is added, so with dropout that row has to come later.
        dropping = self.training and self.dropout_p > 0
        table = torch.zeros_like(modality) if dropping else modality
        text = self.text_embeddings
        tokens = ops.text_embed(
            # zeros, not empty: the reference differentiates through the rows it overwrites, where garbage could be NaN.
            modality.new_zeros(layout.total_tokens, modality.shape[1]),
            text_row=layout.text_row,
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            word=text.word_embeddings.weight,
            position=text.position_embeddings.weight,
            token_type=text.token_type_embeddings.weight,
            ln_weight=text.LayerNorm.weight,
            ln_bias=text.LayerNorm.bias,
            modality=table[0],
            eps=text.LayerNorm.eps,
        )
        if pixel_values is not None:
            tokens = self._embed_patches(tokens, layout, pixel_values, table, pair_modality)
        if dropping:
            tokens = F.dropout(tokens, self.dropout_p)
        if image_embeds is not None:  # not dropped, as in Hugging Face: whoever made them has done that
            tokens = place_image_embeds(tokens, layout, image_embeds, table, pair_modality)
        if dropping:
            tokens = tokens + modality[_modality_of_rows(layout, pair_modality)]
        return tokens

    def _embed_patches(
        self, tokens: Tensor, layout: Layout, pixels: Tensor | PackedPixels, modality: Tensor, pair_modality: Tensor
    ) -> Tensor:
        projection, copies = self.patch_embeddings.projection, layout.copies
        weight, bias = projection.weight, projection.bias
        options: dict[str, Any] = {}
        if isinstance(pixels, PackedPixels):
            packed, pixels = pixels, pixels.data
            # Folded anew in each call: it is one pass over the weight, and nothing goes stale.
            weight, bias, scale = fold_normalisation(weight, bias, packed.mean, packed.std, packed.rescale_factor)
            options = {"grid_size": layout.grid_size, "pixel_offset": packed.pair_offset, "pixel_scale": scale}
        tokens = ops.patch_embed(
            tokens,
            pixels=pixels,
            weight=weight,
            bias=bias,
            position=self.position_embeddings[0],
            cls_token=self.cls_token[0, 0],
            modality=modality,
            pair_modality=pair_modality,
            grid=layout.grid,
            patch_index=layout.patch_index if copies is None else layout.patch_index[copies.projected],
            patch_row=layout.patch_row if copies is None else layout.patch_row[copies.projected],
            cls_row=layout.cls_row,
            table_size=self.table_size,
            **options,
        )
        return tokens if copies is None else tokens.index_copy(0, copies.target, tokens[copies.source])


def place_image_embeds(
    tokens: Tensor, layout: Layout, image_embeds: Tensor, modality: Tensor, pair_modality: Tensor
) -> Tensor:
    source = layout.patch_index.long()
    rows = image_embeds.flatten(0, 1)[source] + modality[pair_modality[source // image_embeds.shape[1]]]
    return tokens.index_copy(0, layout.patch_row.long(), rows.to(tokens.dtype))


def _modality_of_rows(layout: Layout, pair_modality: Tensor) -> Tensor:
    """(total_tokens,) int64: 0 for words, the image's modality for everything else."""
    lengths = layout.cu_seqlens.diff().long()
    rows = pair_modality.repeat_interleave(lengths, output_size=layout.total_tokens)
    return rows.index_fill(0, layout.word_row, 0)
