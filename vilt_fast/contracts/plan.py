"""Where every token of a batch comes from and goes to: what `patch_sample` returns on both sides."""

from typing import NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """The rows of a batch of B pairs, with L word columns and N places for patches."""

    grid: Tensor  # (B, 2) int32: valid patches (height, width) of each image
    text_count: Tensor  # (B,) int32: words kept
    patch_count: Tensor  # (B,) int32: patches kept
    cu_seqlens: Tensor  # (B + 1,) int32: first row of each pair; a pair is words, CLS, patches
    text_row: Tensor  # (B, L) int32: row of each word, -1 where masked
    cls_row: Tensor  # (B,) int32: row of each CLS, -1 for an image without one
    patch_index: Tensor  # (N,) int32: b * GH * GW + y * GW + x of the kept patches, ascending, then -1
    patch_row: Tensor  # (N,) int32: row of each kept patch, then -1


def pixels_per_patch(pixels: int, patches: int) -> float:
    """pixels / patches, rounded to fp32 as PyTorch's nearest interpolation does; 0 without patches."""
    if patches == 0:
        return 0.0
    # On the host: a GPU divides by a Python number as a multiplication by its reciprocal, which can lose the last bit.
    dividend, divisor = (torch.tensor(n, dtype=torch.float32, device="cpu") for n in (pixels, patches))
    return (dividend / divisor).item()
