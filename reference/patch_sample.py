"""Which patch of which image becomes a token, and at which row of the packed tensor every token stands.

The sample is uniform without replacement: every valid patch draws one Philox number and the smallest ones win (Salmon
et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The counter is (ordinal of the patch in its own image,
index of the image), the key is the seed, so the draw depends on nothing else in the batch.
"""

import torch
from torch import Tensor

from vilt_fast.contracts.plan import Plan, pixels_per_patch

from .philox import MASK32, philox4x32


def patch_sample(
    attention_mask: Tensor,
    pixel_mask: Tensor | None,
    patch_mask: Tensor | None,
    grid_size: tuple[int, int],
    max_patches: int,
    seed: int,
    image_index: Tensor,
    *,
    has_cls: bool = True,
) -> Plan:
    """Plan a batch of pairs.

    Args:
        attention_mask: (B, L) bool, True for words that become tokens.
        pixel_mask: (B, H, W), nonzero for real pixels, a rectangle at the top left of each image; None: all real.
        patch_mask: (B, GH, GW) bool, True for patches that may become tokens; None: all.
        grid_size: (GH, GW), the patches of the padded batch.
        max_patches: at most so many patches of each image, chosen uniformly; negative: no limit.
        seed: key of the draw, 0 <= seed < 2**63.
        image_index: (B,) int64 >= 0, counter of the draw: the same image index gives the same draw.
        has_cls: whether each image has a CLS row.

    Returns:
        A Plan whose patch lists hold N = B * min(GH * GW, max_patches) places, -1 where unused.

    Raises:
        ValueError: from the kernel, where an argument has another shape, dtype or device than that.

    Example:
        >>> words = torch.tensor([[True, False, True], [True, True, True]])
        >>> plan = patch_sample(words, None, None, (1, 2), max_patches=-1, seed=0, image_index=torch.arange(2))
        >>> plan.cu_seqlens.tolist(), plan.text_row.tolist(), plan.patch_row.tolist()
        ([0, 5, 11], [[0, -1, 1], [5, 6, 7]], [3, 4, 9, 10])
    """
    device, (grid_height, grid_width) = attention_mask.device, grid_size
    batch, cells = attention_mask.shape[0], grid_height * grid_width
    grid = valid_patches(pixel_mask, batch, grid_size, device)  # (B, 2)

    y = torch.arange(grid_height, device=device)[:, None]
    x = torch.arange(grid_width, device=device)
    kept = (y < grid[:, 0, None, None]) & (x < grid[:, 1, None, None])  # (B, GH, GW)
    if patch_mask is not None:
        kept = kept & patch_mask
    if 0 <= max_patches < cells:
        ordinal = y * grid[:, 1, None, None] + x  # raster position in the image's own grid
        kept = sample(kept.flatten(1), ordinal.flatten(1), max_patches, seed, image_index).view_as(kept)
    kept = kept.flatten(1)  # (B, GH * GW)

    text_count, patch_count = attention_mask.sum(1), kept.sum(1)
    lengths = text_count + int(has_cls) + patch_count
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    start = cu_seqlens[:-1]
    text_row = torch.where(attention_mask, start[:, None] + attention_mask.cumsum(1) - 1, -1)
    first_patch = start + text_count + int(has_cls)
    row = first_patch[:, None] + kept.cumsum(1) - 1  # (B, GH * GW)

    places = batch * (cells if max_patches < 0 else min(cells, max_patches))
    index = kept.flatten().nonzero().flatten()
    patch_index = _pad(index, places)
    patch_row = _pad(row.flatten()[index], places)
    cls_row = start + text_count if has_cls else torch.full_like(start, -1)
    tensors = (grid, text_count, patch_count, cu_seqlens, text_row, cls_row, patch_index, patch_row)
    return Plan(*(tensor.to(torch.int32) for tensor in tensors))


def valid_patches(pixel_mask: Tensor | None, batch: int, grid_size: tuple[int, int], device: torch.device) -> Tensor:
    """(B, 2) valid patches: a patch is valid where the mask's nearest pixel is, read along column 0 and row 0."""
    if pixel_mask is None:
        return torch.tensor(grid_size, device=device).expand(batch, 2)
    height, width = pixel_mask.shape[1:]
    column = pixel_mask[:, nearest_pixels(height, grid_size[0], device), 0] != 0
    row = pixel_mask[:, 0, nearest_pixels(width, grid_size[1], device)] != 0
    return torch.stack((column.sum(1), row.sum(1)), 1)


def nearest_pixels(pixels: int, patches: int, device: torch.device | str = "cpu") -> Tensor:
    """(patches,) int64: the pixel that stands for each patch, floor(i * pixels / patches) in float32 as in PyTorch."""
    if patches and pixels % patches == 0:  # the same, and sizes may be symbols
        return torch.arange(patches, device=device) * (pixels // patches)
    return (torch.arange(patches, device=device) * pixels_per_patch(pixels, patches)).long().clamp(max=pixels - 1)


def sample(valid: Tensor, ordinal: Tensor, count: int, seed: int, image_index: Tensor) -> Tensor:
    """(B, cells) bool: of the valid patches, the `count` with the smallest draws; ties go to the smaller ordinal."""
    draw = philox(seed, ordinal, image_index[:, None].expand_as(ordinal))
    key = torch.where(valid, (draw << 31) + ordinal, torch.iinfo(torch.int64).max)
    rank = key.argsort(1).argsort(1)
    return valid & (rank < count)


def philox(seed: int, counter: Tensor, stream: Tensor) -> Tensor:
    """First word of Philox4x32-10 with key = `seed` and counter (counter, stream low, stream high, 0).

    Args:
        seed: 0 <= seed < 2**64.
        counter: int64 in [0, 2**32); stream: int64 >= 0, same shape.

    Returns:
        int64 in [0, 2**32), the shape of `counter`. Equals `triton.language.philox(seed, ...)[0]`.
    """
    return philox4x32((counter, stream & MASK32, stream >> 32, 0), (seed & MASK32, seed >> 32))[0]


def _pad(values: Tensor, places: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, places - len(values)), value=-1)
