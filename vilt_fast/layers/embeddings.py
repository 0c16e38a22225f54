"""Words, pixels and regions to rows of the packed tensor."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.configs.visual_bert import VisualBertConfig
from vilt_fast.configs.vit import ViTConfig
from vilt_fast.contracts.positions import BILINEAR
from vilt_fast.layers.dropout import HiddenDropout
from vilt_fast.layers.patches import ImageEmbeddings, PatchEmbeddings, check_computable, fresh_rows, is_table
from vilt_fast.layers.projection import linear
from vilt_fast.layers.regions import KeptRegions, aligned_positions, kept_regions
from vilt_fast.layers.untouched import is_untouched, skippable
from vilt_fast.packing import Layout
from vilt_fast.padding import PaddedLayout
from vilt_fast.pixels import PackedPixels


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


class ViltEmbeddings(ImageEmbeddings):
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
        self.mask_token = None
        self.dropout = HiddenDropout(config.hidden_dropout_prob)

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
        if isinstance(layout, PaddedLayout):
            words = self._word_rows(layout, input_ids, token_type_ids, inputs_embeds)
            if pixel_values is not None:
                images = self._image_rows(layout.patch_index, layout, pixel_values, BILINEAR, pair_modality, None)
                return layout.place(words, *images), layout
            assert image_embeds is not None
            rows = rows_of_embeds(layout, image_embeds, self._modality_rows(layout, pair_modality))
            return layout.place(words, None, rows), layout
        tokens = self._embed_words(fresh_rows(self.cls_token, layout), layout, input_ids, token_type_ids, inputs_embeds)
        if pixel_values is not None:
            tokens = self._embed_images(
                tokens, layout, pixel_values, interpolation=BILINEAR, pair_modality=pair_modality
            )
            return tokens, layout
        assert image_embeds is not None
        return place_image_embeds(tokens, layout, image_embeds, self._modality_rows(layout, pair_modality)), layout

    def _modality_rows(self, layout: Layout, pair_modality: Tensor) -> Tensor:
        """(patches, d), the row of each patch's pair."""
        return self.token_type_embeddings(pair_modality[layout.patch_index.long() // layout.grid_size[1]])

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
        is_one_step = is_untouched(text, TextEmbeddings) and is_untouched(modality, nn.Embedding)
        if is_one_step and all(map(is_table, tables)):
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
        rows = self._word_rows(layout, input_ids, token_type_ids, inputs_embeds)
        return tokens.index_copy(0, layout.word_row, rows.to(tokens.dtype))

    def _word_rows(
        self, layout: Layout, input_ids: Tensor | None, token_type_ids: Tensor, inputs_embeds: Tensor | None
    ) -> Tensor:
        """(words, d), a row for each of `layout.word_row`, each module called."""
        place = layout.word_place
        input_ids = None if input_ids is None else input_ids.flatten()[place]
        inputs_embeds = None if inputs_embeds is None else inputs_embeds.flatten(0, 1)[place]
        rows = self.text_embeddings(layout.word_position, input_ids, token_type_ids.flatten()[place], inputs_embeds)
        return rows + self.token_type_embeddings(torch.zeros_like(place))


class ViTEmbeddings(ImageEmbeddings):
    """CLS, patches and their positions, each row written at its place in the packed tensor."""

    def __init__(self, config: ViTConfig, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.table_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.patch_embeddings = PatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, rows * columns + 1, config.hidden_size))
        self.token_type_embeddings = None
        self.dropout = HiddenDropout(config.hidden_dropout_prob)

    def forward(
        self,
        layout: Layout,
        *,
        pixel_values: Tensor | PackedPixels,
        interpolation: str | None,
        masked: Tensor | None = None,
    ) -> tuple[Tensor, Layout]:
        """Embed a batch.

        Args:
            layout: of the batch.
            pixel_values: (B, C, H, W) or PackedPixels.
            interpolation: how positions are read, see `vilt_fast.contracts.positions`.
            masked: (B, GH, GW) bool, True for patches that become `mask_token`; None: no patch.

        Returns:
            (total_tokens, d), and the layout.

        Raises:
            ValueError: the weights are on the meta device, or of 8 bits.
        """
        if isinstance(layout, PaddedLayout):
            images = self._image_rows(layout.patch_index, layout, pixel_values, interpolation, None, masked)
            return layout.place(None, *images), layout
        tokens = fresh_rows(self.cls_token, layout)
        return self._embed_images(tokens, layout, pixel_values, interpolation=interpolation, masked=masked), layout


def rows_of_embeds(layout: Layout, image_embeds: Tensor, modality: Tensor) -> Tensor:
    """(patches, d): of a caller's images, (B, places, d), with the modality row of each patch, (patches, d)."""
    # Not dropped, as in Hugging Face: whoever made them has done that.
    return image_embeds.flatten(0, 1)[layout.patch_index.long()] + modality


def place_image_embeds(tokens: Tensor, layout: Layout, image_embeds: Tensor, modality: Tensor) -> Tensor:
    """`rows_of_embeds` at their places."""
    rows = rows_of_embeds(layout, image_embeds, modality)
    return tokens.index_copy(0, layout.patch_row.long(), rows.to(tokens.dtype))


@skippable(
    word_embeddings=nn.Embedding,
    position_embeddings=nn.Embedding,
    token_type_embeddings=nn.Embedding,
    LayerNorm=nn.LayerNorm,
    dropout=HiddenDropout,
    visual_token_type_embeddings=nn.Embedding,
    visual_position_embeddings=nn.Embedding,
    visual_projection=nn.Linear,
)
class VisualBertEmbeddings(nn.Module):
    """Words and regions, each row written at its place in the packed tensor (Li et al. 2019, section 3.2)."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        d, positions, types = config.hidden_size, config.max_position_embeddings, config.type_vocab_size
        self.word_embeddings = nn.Embedding(config.vocab_size, d, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(positions, d)
        self.token_type_embeddings = nn.Embedding(types, d)
        self.LayerNorm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.dropout = HiddenDropout(config.hidden_dropout_prob)
        self.visual_token_type_embeddings = nn.Embedding(types, d)
        self.visual_position_embeddings = nn.Embedding(positions, d)
        self.visual_projection = nn.Linear(config.visual_embedding_dim, d)

    @property
    def position_ids(self) -> Tensor:
        """(1, positions) int64: word l of a text has position l, unless a call says otherwise."""
        table = self.position_embeddings
        return torch.arange(table.num_embeddings, device=table.weight.device)[None]

    def forward(
        self,
        layout: Layout,
        *,
        input_ids: Tensor | None,
        token_type_ids: Tensor,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        visual_embeds: Tensor | None = None,
        visual_token_type_ids: Tensor | None = None,
        image_text_alignment: Tensor | None = None,
    ) -> tuple[Tensor, Layout]:
        """Embed a batch.

        Args:
            layout: of the batch; its patches are the regions.
            input_ids, token_type_ids: (B, L) int64. position_ids: likewise; None: each word's column.
            inputs_embeds: (B, L, d) in place of `input_ids`.
            visual_embeds: (B, V, visual_embedding_dim); None: texts alone. visual_token_type_ids: (B, V) int64.
            image_text_alignment: (B, V, n) int64, the positions of words that go with a region, -1 for none.

        Returns:
            (total_tokens, d), and the layout.

        Raises:
            ValueError: the weights are on the meta device, or of 8 bits.
        """
        texts = (self.word_embeddings, self.position_embeddings, self.token_type_embeddings)
        tables = (*texts, self.visual_token_type_embeddings, self.visual_position_embeddings)
        is_one_step = is_untouched(self, VisualBertEmbeddings) and all(map(is_table, tables))
        is_one_step = is_one_step and not isinstance(layout, PaddedLayout)
        embed = self._embed_at_once if is_one_step else self._call_modules
        weight = next(parameter for parameter in self.parameters() if parameter.is_floating_point())
        # accelerate keeps weights elsewhere, and moves them in when their own module is called.
        if not (weight.is_meta and any(hasattr(module, "_hf_hook") for module in self.modules())):
            check_computable(weight)
        regions = None
        if visual_embeds is not None:
            assert visual_token_type_ids is not None
            regions = kept_regions(layout, weight.dtype, visual_embeds, visual_token_type_ids, image_text_alignment)
        return embed(weight, layout, input_ids, token_type_ids, position_ids, inputs_embeds, regions), layout

    def _embed_at_once(
        self,
        weight: Tensor,
        layout: Layout,
        input_ids: Tensor | None,
        token_type_ids: Tensor,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        regions: KeptRegions | None,
    ) -> Tensor:
        norm: dict[str, Any] = {
            "ln_weight": self.LayerNorm.weight,
            "ln_bias": self.LayerNorm.bias,
            "eps": self.LayerNorm.eps,
        }
        position = self.position_embeddings.weight
        tokens = ops.text_embed(
            fresh_rows(weight, layout),
            text_row=layout.text_row,
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            word=self.word_embeddings.weight,
            position=position,
            token_type=self.token_type_embeddings.weight,
            modality=None,
            position_ids=position_ids,
            **norm,
        )
        if regions is None:
            return tokens
        aligned = None
        if regions.alignment is not None:
            aligned = aligned_positions(partial(F.embedding, weight=position), regions.alignment)
        return ops.text_embed(
            tokens,
            text_row=layout.patch_row[:, None],
            input_ids=None,
            token_type_ids=regions.types[:, None],
            inputs_embeds=linear(self.visual_projection, regions.features, residual=aligned)[:, None],
            word=None,
            position=self.visual_position_embeddings.weight,
            token_type=self.visual_token_type_embeddings.weight,
            modality=None,
            **norm,
        )

    def _call_modules(
        self,
        weight: Tensor,
        layout: Layout,
        input_ids: Tensor | None,
        token_type_ids: Tensor,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        regions: KeptRegions | None,
    ) -> Tensor:
        """The same, each module called."""
        place = layout.word_place
        position = layout.word_position if position_ids is None else position_ids.flatten()[place]
        words = self.word_embeddings(input_ids.flatten()[place]) if input_ids is not None else None
        if words is None:
            assert inputs_embeds is not None
            words = inputs_embeds.flatten(0, 1)[place].to(weight.dtype)
        words = words + self.position_embeddings(position) + self.token_type_embeddings(token_type_ids.flatten()[place])
        rows, found = words, None
        if regions is not None:
            found = self.visual_projection(regions.features)
            found = found + self.visual_position_embeddings(torch.zeros_like(regions.types))
            found = found + self.visual_token_type_embeddings(regions.types)
            if regions.alignment is not None:
                found = found + aligned_positions(self.position_embeddings, regions.alignment)
            rows = torch.cat((words, found))
        rows = self.dropout(self.LayerNorm(rows)).to(weight.dtype)
        return layout.place(rows[: words.shape[0]], None, None if found is None else rows[words.shape[0] :])
