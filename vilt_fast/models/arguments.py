"""The arguments of a forward call as they came: what all families do with them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from vilt_fast.models.checks import (
    check_rows,
    check_shape,
    exactly_one,
    integers,
    range_check,
    refuse_non_finite_mask,
    refuse_unreadable,
)
from vilt_fast.packing import Check, Layout
from vilt_fast.pixels import PackedPixels

_MASKS = {"attention_mask", "pixel_mask", "patch_mask", "head_mask", "bool_masked_pos", "visual_attention_mask"}
Given = TypeVar("Given", bound="Arguments")


@dataclass(kw_only=True)
class Arguments:
    """Base of a family's inputs, whose fields are the arguments of its forward.

    Args:
        layout: of this batch, where it was planned before (`PlanMixin.plan`).

    Raises:
        ValueError: a tensor cannot be read, or a mask on the host is NaN or infinite.
    """

    layout: Layout | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                refuse_unreadable(name, value)
                if name in _MASKS:
                    refuse_non_finite_mask(name, value)
            elif isinstance(value, PackedPixels):
                refuse_unreadable(name, value.data)

    def to(self: Given, device: torch.device) -> Given:
        """The same inputs with every tensor on `device`."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor | PackedPixels):
                moved[field.name] = value.to(device)
        return replace(self, **moved)


@dataclass(kw_only=True)
class TextArguments(Arguments):
    """Base of the inputs of a family that reads words."""

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the text is, and everything has to be."""
        return exactly_one("input_ids", self.input_ids, "inputs_embeds", self.inputs_embeds).device

    def text_shape(self) -> tuple[int, int]:
        """(B, L)."""
        text = exactly_one("input_ids", self.input_ids, "inputs_embeds", self.inputs_embeds)
        rank = 2 if text is self.input_ids else 3
        if text.ndim != rank or 0 in text.shape[:2]:
            wanted = "input_ids: (batch, words)" if rank == 2 else "inputs_embeds: (batch, words, hidden_size)"
            raise ValueError(f"{wanted}, none of them 0, is wanted, got shape {tuple(text.shape)}")
        return text.shape[0], text.shape[1]

    def check_words(self, config: Any, *, has_positions: bool = False) -> dict[str, Any]:
        """The fields of a `TextBatch`; raises where one of them has another shape or dtype.

        has_positions: whether positions come with the words, so that the table sets no limit to their number.
        """
        batch, length = self.text_shape()
        if length > config.max_position_embeddings and not has_positions:
            raise ValueError(
                f"the text must have at most max_position_embeddings = {config.max_position_embeddings} tokens, got "
                f"{length}; pass truncation=True to the tokenizer"
            )
        check_shape("attention_mask", self.attention_mask, (batch, length))
        if self.inputs_embeds is not None:
            check_shape("inputs_embeds", self.inputs_embeds, (batch, length, config.hidden_size))
            check_rows("inputs_embeds", self.inputs_embeds, self.attention_mask)
        check_shape("token_type_ids", self.token_type_ids, (batch, length))
        mask, types = self.attention_mask, self.token_type_ids
        ones = torch.ones(batch, length, dtype=torch.bool, device=self.device)
        zeros = torch.zeros_like(ones, dtype=torch.int64)
        return {
            "input_ids": None if self.input_ids is None else integers("input_ids", self.input_ids),
            "attention_mask": ones if mask is None else mask.to(self.device) != 0,
            "token_type_ids": zeros if types is None else integers("token_type_ids", types),
            "inputs_embeds": self.inputs_embeds,
        }


@dataclass(kw_only=True)
class TextBatch:
    """Words after their check: masks are bool, indices int64."""

    input_ids: Tensor | None
    attention_mask: Tensor
    token_type_ids: Tensor
    inputs_embeds: Tensor | None

    def check_values(self, config: Any) -> list[Check]:
        """What must hold of the values."""
        checks = [range_check("token_type_ids", self.token_type_ids, config.type_vocab_size, " (type_vocab_size)")]
        if self.input_ids is not None:
            checks.append(range_check("input_ids", self.input_ids, config.vocab_size, " (vocab_size)"))
        return checks
