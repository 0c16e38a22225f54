"""What `patch_embed` asks of its arguments."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import launch


def as_bytes(masked: Tensor) -> Tensor:
    """(B, GH, GW) bool as uint8, for a kernel."""
    if masked.dtype != torch.bool:
        raise ValueError(f"patch_embed: masked: got dtype {masked.dtype}, wanted torch.bool")
    return masked.view(torch.uint8)


def fits(
    tokens: Tensor,
    pixels: Tensor,
    weight: Tensor,
    pixel_offset: Tensor | None,
    indices: Sequence[Any],
    grid_size: tuple[int, int] | None,
) -> bool:
    """Whether the sizes that a plan does not know go together."""
    pair_modality, grid, patch_index, patch_row, cls_row, masked = indices
    if weight.ndim != 4 or tokens.ndim != 2 or masked is not None:  # those are rare: checked one by one
        return False
    pairs = grid.shape[:1]
    if pixel_offset is None:
        are_pixels = pixels.ndim == 4 and pixels.shape[:2] == (*pairs, weight.shape[1])
    else:
        are_pixels = grid_size is not None and pixels.ndim == 1 and pixel_offset.shape == pairs
    return (
        are_pixels
        and tokens.shape[1] == weight.shape[0]
        and grid.shape == (*pairs, 2)
        and (pair_modality is None or pair_modality.shape == pairs)
        and cls_row.shape == pairs
        and patch_index.shape == patch_row.shape
        and patch_index.ndim == 1
    )


def check_tables(
    tokens: Tensor,
    parameters: Sequence[Any],
    indices: Sequence[Any],
    table_size: tuple[int, int],
    grid_size: tuple[int, int],
) -> None:
    """Raises ValueError unless everything but the pixels has the shape and dtype wanted."""
    op, (weight, bias, position, cls_token, modality, mask_token) = "patch_embed", parameters
    pair_modality, grid, patch_index, patch_row, cls_row, masked = indices
    pairs, hidden = grid.shape[0], weight.shape[0]
    launch.check_tensor(op, "tokens", tokens, ("rows", hidden), row_major=True)
    launch.check_tensor(op, "bias", bias, (hidden,))
    launch.check_tensor(op, "position", position, (1 + table_size[0] * table_size[1], hidden))
    launch.check_tensor(op, "cls_token", cls_token, (hidden,))
    couples = {"modality, pair_modality": (modality, pair_modality), "mask_token, masked": (mask_token, masked)}
    for names, couple in couples.items():
        if sum(tensor is None for tensor in couple) == 1:
            raise ValueError(f"{op}: {names}: got one of them, wanted both or none")
    launch.check_tensor(op, "modality", modality, ("M", hidden))
    launch.check_tensor(op, "pair_modality", pair_modality, (pairs,), torch.int64)
    launch.check_tensor(op, "mask_token", mask_token, (hidden,))
    launch.check_tensor(op, "masked", masked, (pairs, *grid_size), torch.uint8)
    launch.check_tensor(op, "patch_index", patch_index, ("N",), torch.int32)
    launch.check_tensor(op, "patch_row", patch_row, patch_index.shape, torch.int32)
    launch.check_tensor(op, "cls_row", cls_row, (pairs,), torch.int32)


def check_pixels(
    pixels: Tensor, weight: Tensor, grid: Tensor, grid_size: tuple[int, int] | None, pixel_offset: Tensor | None
) -> tuple[int, int]:
    """(GH, GW); raises ValueError unless the pixels are what the weight and the grids ask for."""
    op = "patch_embed"
    launch.check_tensor(op, "weight", weight, ("d", "C", "p", "p"))
    _, channels, patch, columns = weight.shape
    if patch != columns or not 4 <= patch <= 64:
        raise ValueError(f"{op}: weight: got shape {tuple(weight.shape)}, wanted square patches of 4 to 64")
    launch.check_tensor(op, "grid", grid, ("B", 2), torch.int32)
    if pixel_offset is None:
        launch.check_tensor(op, "pixels", pixels, (grid.shape[0], channels, "H", "W"))
        return pixels.shape[2] // patch, pixels.shape[3] // patch
    launch.check_tensor(op, "pixels", pixels, ("bytes",), torch.uint8, row_major=True)
    launch.check_tensor(op, "pixel_offset", pixel_offset, (grid.shape[0],), torch.int64)
    if grid_size is None:
        raise ValueError(f"{op}: grid_size: got None with pixel_offset, wanted (GH, GW)")
    return grid_size
