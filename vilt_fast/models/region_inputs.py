"""The arguments of a forward call on words and regions, checked once where they enter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vilt_fast.configs.visual_bert import VisualBertConfig
from vilt_fast.models.arguments import TextArguments, TextBatch
from vilt_fast.models.checks import (
    check_head_mask,
    check_rows,
    check_shape,
    check_tensor,
    in_floats,
    integers,
    range_check,
)
from vilt_fast.packing import Check, Layout
from vilt_fast.padding import lay_out

_OF_HEADS = ("region_to_phrase_position", "choices", "fewest_words")
_OF_REGIONS = ("visual_attention_mask", "visual_token_type_ids", "image_text_alignment")


@dataclass(kw_only=True)
class RegionInputs(TextArguments):
    """What a caller of `VisualBertModel.forward` gave; see there for shapes and meaning."""

    position_ids: Tensor | None = None
    head_mask: Tensor | None = None
    visual_embeds: Tensor | None = None
    visual_attention_mask: Tensor | None = None
    visual_token_type_ids: Tensor | None = None
    image_text_alignment: Tensor | None = None
    region_to_phrase_position: Tensor | None = None  # of the head of that name
    choices: int = 1  # pairs for each question, after `fold_choices`
    fewest_words: int = 1  # that a text must have

    def given(self) -> dict[str, Any]:
        """What a caller gave, as arguments of `VisualBertModel.forward`."""
        return {name: value for name, value in vars(self).items() if value is not None and name not in _OF_HEADS}

    def fold_choices(self) -> RegionInputs:
        """(B, choices, ...) arguments as those of B * choices pairs.

        Raises:
            ValueError: one of them does not start with the (B, choices) of the text.
        """
        text = self.input_ids if self.inputs_embeds is None else self.inputs_embeds
        wanted = 3 if self.inputs_embeds is None else 4
        if text is None or check_tensor("input_ids", text).ndim != wanted or 0 in text.shape:
            got = None if text is None else tuple(text.shape)
            name = "input_ids" if self.inputs_embeds is None else "inputs_embeds"
            raise ValueError(f"{name} must be (batch, choices, words{', hidden_size' * (wanted == 4)}), got {got}")
        start = (text.shape[0], text.shape[1])
        folded: dict[str, Any] = {"choices": start[1]}
        for name, value in self.given().items():
            if name not in ("head_mask", "layout") and not (name == "image_text_alignment" and _is_flat(value, start)):
                folded[name] = _fold(name, value, start)
        return replace(self, **folded)

    def check(self, config: VisualBertConfig) -> RegionBatch:
        """The same batch in one form: every tensor there, of its shape and type; a ValueError says which is not."""
        words = self.check_words(config, has_positions=self.position_ids is not None)
        batch, length = self.text_shape()
        device, regions = self.device, self.check_regions(config, batch)
        positions = self.position_ids
        if positions is not None:
            if tuple(check_tensor("position_ids", positions).shape) == (1, length):
                positions = positions.expand(batch, length)
            check_shape("position_ids", positions, (batch, length))
            positions = integers("position_ids", positions).to(device)
        mask, types, alignment = self.visual_attention_mask, self.visual_token_type_ids, self.image_text_alignment
        ones = torch.ones(batch, regions, dtype=torch.bool, device=device)
        return RegionBatch(
            **words,
            position_ids=positions,
            visual_embeds=self.visual_embeds,
            visual_attention_mask=ones if mask is None else mask.to(device) != 0,
            visual_token_type_ids=(
                ones.long() if types is None else integers("visual_token_type_ids", types).to(device)
            ),
            image_text_alignment=None if alignment is None else alignment[:, :regions].long().to(device),
            head_mask=check_head_mask(self.head_mask, config),
            masks={name: getattr(self, name) for name in ("attention_mask", "visual_attention_mask")},
            chosen=self.region_to_phrase_position,
            fewest_words=self.fewest_words,
        )

    def check_regions(self, config: VisualBertConfig, batch: int) -> int:
        """V, the regions of each pair, 0 without any; a ValueError says what of them is wrong."""
        features = self.visual_embeds
        if features is None:
            alone = next((name for name in _OF_REGIONS if getattr(self, name) is not None), None)
            if alone is not None:
                raise ValueError(f"{alone} goes with visual_embeds, which are not given")
            return 0
        width = config.visual_embedding_dim
        if check_tensor("visual_embeds", features).ndim != 3 or features.shape[2] != width:
            raise ValueError(
                f"visual_embeds must be (batch, regions, visual_embedding_dim={width}), got {tuple(features.shape)}; "
                "the detector that makes the features must be the one that the model was trained with"
            )
        if features.shape[0] != batch:
            raise ValueError(f"visual_embeds must have as many rows as the text, {batch}, got {features.shape[0]}")
        regions = features.shape[1]
        check_shape("visual_attention_mask", self.visual_attention_mask, (batch, regions))
        check_shape("visual_token_type_ids", self.visual_token_type_ids, (batch, regions))
        check_rows("visual_embeds", features, self.visual_attention_mask)
        alignment = self.image_text_alignment
        if alignment is not None:
            integers("image_text_alignment", check_tensor("image_text_alignment", alignment))
            if alignment.ndim != 3 or alignment.shape[0] != batch or alignment.shape[1] < regions:
                raise ValueError(
                    f"image_text_alignment must be (batch={batch}, regions={regions} or more, words), got "
                    f"{tuple(alignment.shape)}"
                )
        return regions


@dataclass(kw_only=True)
class RegionBatch(TextBatch):
    """Inputs after their check: masks are bool, indices int64."""

    position_ids: Tensor | None
    visual_embeds: Tensor | None
    visual_attention_mask: Tensor
    visual_token_type_ids: Tensor
    image_text_alignment: Tensor | None
    head_mask: Tensor | None
    masks: dict[str, Tensor | None]  # as they came
    chosen: Tensor | None
    fewest_words: int

    def layout(self, config: VisualBertConfig, checks: list[Check]) -> Layout:
        """Plan the batch; all checks of values ride on the one read back to the host that this makes."""
        kept = self.visual_attention_mask
        checks = [*self.check_values(config), *checks]
        return lay_out(self.attention_mask, None, kept[:, None, :], (1, kept.shape[1]), has_cls=False, checks=checks)

    def check_values(self, config: Any) -> list[Check]:
        """See the base class."""
        checks, positions, types = super().check_values(config), config.max_position_embeddings, config.type_vocab_size
        table, kinds = " (max_position_embeddings)", " (type_vocab_size)"
        checks += [_mask_check(name, mask) for name, mask in self.masks.items() if mask is not None]
        if self.position_ids is not None:
            checks.append(range_check("position_ids", self.position_ids, positions, table))
        if self.visual_embeds is not None:
            checks.append(range_check("visual_token_type_ids", self.visual_token_type_ids, types, kinds))
        if self.image_text_alignment is not None:
            alignment = self.image_text_alignment
            aligned = alignment.masked_fill(alignment == -1, 0)
            checks.append(range_check("image_text_alignment", aligned, positions, f"{table} or -1"))
        if self.fewest_words > 1:
            checks.append(self._length_check())
        if self.chosen is not None:
            checks.append(self._chosen_check(self.chosen))
        return checks

    def _length_check(self) -> Check:
        count, fewest = self.attention_mask.sum(1), self.fewest_words
        short = (count > 0) & (count < fewest)  # none at all is refused elsewhere
        return (
            short.any(),
            lambda: (
                f"attention_mask: text {int(short.nonzero()[0])} has fewer than {fewest} words to attend to: "
                "the answer is read at the word before the last one"
            ),
        )

    def _chosen_check(self, chosen: Tensor) -> Check:
        name, places = "region_to_phrase_position", self.attention_mask.shape[1] + self.visual_attention_mask.shape[1]
        if chosen.is_complex():
            raise ValueError(f"{name} must hold whole numbers, got {chosen.dtype}")
        chosen = in_floats(chosen)
        wrong = (chosen < -1) | (chosen >= places) | (chosen != chosen.round())
        return (
            wrong.any().to(self.attention_mask.device),
            lambda: f"{name} must hold whole numbers in -1..{places - 1}, got {chosen[wrong][0].item():g}",
        )


def _mask_check(name: str, mask: Tensor) -> Check:
    wrong = (mask != 0) & (mask != 1)
    return wrong.any(), lambda: f"{name} must hold 0 and 1, got {mask[wrong][0].item()}"


def _fold(name: str, value: Any, start: tuple[int, int]) -> Tensor:
    shape = tuple(check_tensor(name, value).shape)
    if shape[:2] != start or len(shape) < 3:
        raise ValueError(f"{name} must start with (batch, choices) = {start}, got shape {shape}")
    return value.flatten(0, 1)


def _is_flat(alignment: Any, start: tuple[int, int]) -> bool:
    """Whether it is (B * choices, V, n), the one form that runs in transformers."""
    shape = tuple(check_tensor("image_text_alignment", alignment).shape)
    return len(shape) == 3 and shape[0] == start[0] * start[1]
