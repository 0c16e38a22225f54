"""The arguments of a forward call as they came: what all families do with them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from vilt_fast.models.checks import refuse_non_finite_mask, refuse_unreadable
from vilt_fast.pixels import PackedPixels

_MASKS = {"attention_mask", "pixel_mask", "patch_mask", "head_mask", "bool_masked_pos"}
Given = TypeVar("Given", bound="Arguments")


@dataclass(kw_only=True)
class Arguments:
    """Base of a family's inputs, whose fields are the arguments of its forward.

    Raises:
        ValueError: a tensor cannot be read, or a mask on the host is NaN or infinite.
    """

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
