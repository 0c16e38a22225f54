"""The regions of a batch that become rows, and the positions of the words that go with them (Li et al. 2019, 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vilt_fast.packing import Layout


class KeptRegions(NamedTuple):
    """The regions of a batch that become rows, in the order of `Layout.patch_row`."""

    features: Tensor  # (regions, visual_embedding_dim)
    types: Tensor  # (regions,) int64
    alignment: Tensor | None  # (regions, n) int64


def kept_regions(
    layout: Layout, dtype: torch.dtype, features: Tensor, types: Tensor, alignment: Tensor | None
) -> KeptRegions:
    """The regions of (B, V, ...) that are not masked, their features in a dtype."""
    place = layout.patch_index.long()
    alignment = None if alignment is None else alignment.flatten(0, 1)[place]
    return KeptRegions(features.flatten(0, 1)[place].to(dtype), types.flatten()[place], alignment)


def aligned_positions(look_up: Callable[[Tensor], Tensor], alignment: Tensor) -> Tensor:
    """The mean of the positions of the words that go with each region, zero where none does.

    Args:
        look_up: indices to rows of the table of positions. alignment: (regions, n) int64, -1 for none.

    Returns:
        (regions, d).
    """
    aligned = alignment >= 0
    rows = look_up(alignment.clamp(min=0)) * aligned[:, :, None]
    return rows.sum(1) / aligned.sum(1, keepdim=True).clamp(min=1)
