"""Words and pixels to rows of the packed tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.layers.dropout import HiddenDropout
from vilt_fast.layers.untouched import is_untouched, skippable
from vilt_fast.packing import Layout
from vilt_fast.pixels import PackedPixels, fold_normalisation
from vilt_fast.reference.patch_embed import cells, gather_bytes, gather_patches, interpolate


@skippable(
    word_embeddings=nn.Embedding,
    position_embeddings=nn.Embedding,
    token_type_embeddings=nn.Embedding,
    LayerNorm=nn.LayerNorm,
    dropout=HiddenDropout,
)
class TextEmbeddings(nn.Module):
    """Tables of words, positions and types, and the normalisation of their sum."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, d, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, d)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, d)
        self.LayerNorm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.dropout = HiddenDropout(config.hidden_dropout_prob)

    @property
    def position_ids(self) -> Tensor:
        """(1, positions) int64: word l of a text has position l.

        Raises:
            ValueError: on assignment; other positions go into `inputs_embeds`.
        """
        return torch.arange(self.position_embeddings.num_embeddings, device=self.position_embeddings.weight.device)[
            None
        ]

    @position_ids.setter
    def position_ids(self, value: Tensor) -> None:
        raise ValueError("text_embeddings.position_ids cannot be set: word l has position l")

    def forward(
        self, position_ids: Tensor, input_ids: Tensor | None, token_type_ids: Tensor, inputs_embeds: Tensor | None
    ) -> Tensor:
        """The words that are not masked, (words,) indices each or (words, d) embeddings, to (words, d)."""
        words = inputs_embeds
        if words is None:
            words = self.word_embeddings(input_ids)
        rows = words + self.position_embeddings(position_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(rows))


@skippable(projection=nn.Conv2d)
class PatchEmbeddings(nn.Module):
    """The patch projection, held as the convolution it is in a checkpoint."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        patch = config.patch_shape
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, C, p, p), each an image of its own, to (patches, d).

        Raises:
            ValueError: another module stands there, and makes something else of them than one pixel each.
        """
        projection, patch = self.projection, patches.shape[2:]
        if isinstance(projection, nn.Conv2d) and (projection.stride != patch or projection.padding != (0, 0)):
            raise ValueError(
                f"patch_embeddings.projection must not reach over its patch: got stride {projection.stride} and "
                f"padding {projection.padding}, wanted {tuple(patch)} and (0, 0)"
            )
        projected = projection(patches)
        if projected.ndim != 4 or projected.shape[2:] != (1, 1):
            raise ValueError(
                f"patch_embeddings.projection must make (patches, hidden_size, 1, 1) of {tuple(patches.shape)}, one "
                f"patch each, got {tuple(projected.shape)}"
            )
        return projected.flatten(1)


class ViltEmbeddings(nn.Module):
    """Both halves of the sequence, each row written at its place in the packed tensor."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.table_size
        self.text_embeddings = TextEmbeddings(config)
        self.patch_embeddings = PatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, rows * columns + 1, config.hidden_size))
        self.token_type_embeddings = nn.Embedding(config.modality_type_vocab_size, config.hidden_size)
        self.dropout = HiddenDropout(config.hidden_dropout_prob)

    @property
    def table_size(self) -> tuple[int, int]:
        """Rows and columns of `position_embeddings`, as the configuration says now.

        Raises:
            ValueError: it says otherwise.
        """
        rows, columns = self.config.table_size
        if self.position_embeddings.shape[1] != rows * columns + 1:
            raise ValueError(
                f"embeddings.position_embeddings has {self.position_embeddings.shape[1]} rows, config.image_size and "
                f"config.patch_size ask for {rows} x {columns} + 1"
            )
        return rows, columns

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
    ) -> tuple[Tensor, Layout]:
        """Embed a batch.

        Args:
            layout: of the batch.
            input_ids, token_type_ids: (B, L) int64. inputs_embeds: (B, L, d) in place of `input_ids`.
            pixel_values: (B, C, H, W) or PackedPixels. image_embeds: (B, places, d) in place of `pixel_values`.
            pair_modality: (B,) int64, the modality row of each pair's image.

        Returns:
            (total_tokens, d), and the layout, in the place of Hugging Face's mask.

        Raises:
            ValueError: the weights are on the meta device, or of 8 bits.
        """
        if self.cls_token.is_meta:
            raise ValueError("the model is on the meta device, which holds no weights: load them first")
        if self.cls_token.element_size() == 1:
            raise ValueError(
                f"the model is in {self.cls_token.dtype}, which is not computed with: .to(torch.bfloat16), or quantise "
                "its products alone, with torchao.quantization.quantize_"
            )
        # zeros, not empty: the reference differentiates through the rows it overwrites, where garbage could be NaN.
        tokens = self.cls_token.new_zeros(layout.total_tokens, self.cls_token.shape[-1])
        tokens = self._embed_words(tokens, layout, input_ids, token_type_ids, inputs_embeds)
        if pixel_values is not None:
            return self._embed_patches(tokens, layout, pixel_values, pair_modality), layout
        # Not dropped, as in Hugging Face: whoever made them has done that.
        assert image_embeds is not None
        places = layout.patch_index.long()
        modality = self.token_type_embeddings(pair_modality[places // image_embeds.shape[1]])
        return place_image_embeds(tokens, layout, image_embeds, modality), layout

    def _embed_words(
        self,
        tokens: Tensor,
        layout: Layout,
        input_ids: Tensor | None,
        token_type_ids: Tensor,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        text, modality = self.text_embeddings, self.token_type_embeddings
        tables = (text.word_embeddings, text.position_embeddings, text.token_type_embeddings, modality)
        if self._is_one_step(text, TextEmbeddings) and all(map(_is_table, tables)):
            return ops.text_embed(
                tokens,
                text_row=layout.text_row,
                input_ids=input_ids,
                token_type_ids=token_type_ids,
                inputs_embeds=inputs_embeds,
                word=text.word_embeddings.weight,
                position=text.position_embeddings.weight,
                token_type=text.token_type_embeddings.weight,
                ln_weight=text.LayerNorm.weight,
                ln_bias=text.LayerNorm.bias,
                modality=modality.weight[0],
                eps=text.LayerNorm.eps,
            )
        place = layout.word_place
        input_ids = None if input_ids is None else input_ids.flatten()[place]
        inputs_embeds = None if inputs_embeds is None else inputs_embeds.flatten(0, 1)[place]
        rows = text(place % layout.text_length, input_ids, token_type_ids.flatten()[place], inputs_embeds)
        rows = rows + modality(torch.zeros_like(place))
        return tokens.index_copy(0, layout.word_row, rows.to(tokens.dtype))

    def _embed_patches(
        self, tokens: Tensor, layout: Layout, pixels: Tensor | PackedPixels, pair_modality: Tensor
    ) -> Tensor:
        is_one_step = self._is_one_step(self.patch_embeddings, PatchEmbeddings)
        is_one_step = is_one_step and is_untouched(self.dropout, HiddenDropout)
        is_one_step = is_one_step and _is_table(self.token_type_embeddings)
        is_one_step = is_one_step and self.patch_embeddings.projection.kernel_size == self.config.patch_shape
        embed = self._embed_patches_at_once if is_one_step else self._call_patch_modules
        tokens, copies = embed(tokens, layout, pixels, pair_modality), layout.copies
        return tokens if copies is None else tokens.index_copy(0, copies.target, tokens[copies.source])

    def _embed_patches_at_once(
        self, tokens: Tensor, layout: Layout, pixels: Tensor | PackedPixels, pair_modality: Tensor
    ) -> Tensor:
        projection = self.patch_embeddings.projection
        weight, bias = projection.weight, projection.bias
        options: dict[str, Any] = {}
        if isinstance(pixels, PackedPixels):
            packed, pixels = pixels, pixels.data
            # Folded anew in each call: it is one pass over the weight, and nothing goes stale.
            weight, bias, scale = fold_normalisation(weight, bias, packed.mean, packed.std, packed.rescale_factor)
            options = {"grid_size": layout.grid_size, "pixel_offset": packed.pair_offset, "pixel_scale": scale}
        patch_index, patch_row = layout.projected_patches
        return ops.patch_embed(
            tokens,
            pixels=pixels,
            weight=weight,
            bias=bias,
            position=self.position_embeddings[0],
            cls_token=self.cls_token[0, 0],
            modality=self.token_type_embeddings.weight,
            pair_modality=pair_modality,
            grid=layout.grid,
            patch_index=patch_index,
            patch_row=patch_row,
            cls_row=layout.cls_row,
            table_size=self.table_size,
            **options,
        )

    def _call_patch_modules(
        self, tokens: Tensor, layout: Layout, pixels: Tensor | PackedPixels, pair_modality: Tensor
    ) -> Tensor:
        """The same as `reference.patch_embed`, each module called, and dropout before the modality rows."""
        patch_index, patch_row = layout.projected_patches
        (image, y, x), patch = cells(patch_index, layout.grid_size), self.config.patch_shape[0]
        if isinstance(pixels, PackedPixels):
            places = (pixels.pair_offset[image], layout.grid[image, 1], y, x)
            patches = pixels.normalise(gather_bytes(pixels.data, *places, patch=patch), tokens.dtype)
        else:
            patches = gather_patches(pixels, image, y, x, patch=patch)
        projected = self.patch_embeddings(patches.to(tokens.dtype))
        position = self.position_embeddings[0]
        projected = projected + interpolate(position[1:], self.table_size, layout.grid[image], y, x)
        cls = (self.cls_token[0, 0] + position[0]).expand(len(pair_modality), -1)
        rows = self.dropout(torch.cat((cls, projected.to(cls.dtype))))
        rows = rows + self.token_type_embeddings(torch.cat((pair_modality, pair_modality[image])))
        return tokens.index_copy(0, torch.cat((layout.cls_row, patch_row)).long(), rows.to(tokens.dtype))

    def _is_one_step(self, part: nn.Module, kind: type[nn.Module]) -> bool:
        """Whether nothing in a half of the embeddings was touched or drops, so that it can be one step."""
        return is_untouched(part, kind) and is_untouched(self.token_type_embeddings, nn.Embedding)


def _is_table(embedding: Any) -> bool:
    """Whether nobody wants a gradient of an untouched nn.Embedding by rules of its own."""
    ruled = embedding.padding_idx is not None or embedding.sparse or embedding.scale_grad_by_freq
    return not (ruled and torch.is_grad_enabled() and embedding.weight.requires_grad)


def place_image_embeds(tokens: Tensor, layout: Layout, image_embeds: Tensor, modality: Tensor) -> Tensor:
    """The rows of a caller's images, (B, places, d), and the modality row of each, (patches, d), at their places."""
    rows = image_embeds.flatten(0, 1)[layout.patch_index.long()] + modality
    return tokens.index_copy(0, layout.patch_row.long(), rows.to(tokens.dtype))
