"""Linear projection of chosen patches + interpolated position + modality (Kim et al. 2021, section 3.1).

Without modality it is ViT's (Dosovitskiy et al. 2021, equation 1, and section 3.2 for the positions of larger images).
"""

import torch
from torch import Tensor

from vilt_fast.contracts.positions import BICUBIC_SCALE, BILINEAR, CUBIC_A, SCALE_EXCESS, check_interpolation

from .placing import which_count, write_rows


def patch_embed(
    tokens: Tensor,
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor,
    cls_token: Tensor,
    modality: Tensor | None,
    pair_modality: Tensor | None,
    grid: Tensor,
    patch_index: Tensor,
    patch_row: Tensor,
    cls_row: Tensor,
    *,
    table_size: tuple[int, int],
    grid_size: tuple[int, int] | None = None,
    pixel_offset: Tensor | None = None,
    pixel_scale: float = 1.0,
    interpolation: str | None = BILINEAR,
    mask_token: Tensor | None = None,
    masked: Tensor | None = None,
) -> Tensor:
    """Project the chosen patches of a batch of images and put each, and every image's CLS, at its row.

    The images are padded, (B, C, H, W) floats, or ragged: flat bytes, image b (h * p, w * p, C) from
    pixel_offset[b] on, where (h, w) is its grid. A byte u counts as pixel_scale * (u - 128), and products are
    accumulated in fp32 or fp64; `vilt_fast.pixels.fold_normalisation` makes weight, bias and scale for that.

    Args:
        tokens: (rows, d); every row that nothing goes to is passed on as it is.
        pixels: (B, C, H, W), any float dtype; or (bytes,) uint8, with `grid_size` and `pixel_offset`.
        weight: (d, C, p, p); bias: (d,) or None.
        position: (1 + P * Q, d): the CLS row, then a P x Q table in raster order.
        cls_token: (d,).
        modality: (M, d); pair_modality: (B,) int64, the row of it that image b gets. Both None: there is none.
        grid: (B, 2) int32, the valid patches (height, width) of each image: the table is interpolated to it.
        patch_index: (N,) int32, b * GH * GW + y * GW + x of each chosen patch, -1 past the last one; GH = H // p.
        patch_row: (N,) int32, the row each goes to; cls_row: (B,) int32, -1 for an image without CLS.
        table_size: (P, Q).
        grid_size: (GH, GW) that `patch_index` counts in, for ragged images; pixel_offset: (B,) int64, the first byte
            of each, a multiple of C * p * p; several may be the same. pixel_scale: for ragged images.
        interpolation: one of `vilt_fast.contracts.positions.INTERPOLATIONS`.
        mask_token: (d,), what stands in the place of the projection of a masked patch; masked: (B, GH, GW) bool, True
            for those. Both None: no patch is masked.

    Returns:
        (rows, d): `tokens` with patches and CLS written. The kernel writes in place, this function does not.

    Raises:
        ValueError: `interpolation` is none of those; from the kernel also where an argument has another shape, dtype or
            device than that.

    Example:
        >>> pixels = torch.arange(16.0).view(1, 1, 4, 4)  # one image of four patches; patches 1 and 2 are chosen
        >>> tables = torch.zeros(5, 1), torch.ones(1), torch.zeros(1, 1)  # position, cls_token, modality
        >>> places = [torch.tensor(t) for t in ([0], [[2, 2]], [1, 2], [1, 2], [0])]  # pair_modality to cls_row
        >>> mean = torch.full((1, 1, 2, 2), 0.25)
        >>> patch_embed(torch.zeros(3, 1), pixels, mean, None, *tables, *places, table_size=(2, 2)).T
        tensor([[ 1.0000,  4.5000, 10.5000]])
    """
    check_interpolation("patch_embed", interpolation)
    patch = weight.shape[-1]
    if grid_size is None or pixel_offset is None:
        grid_size = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    chosen = which_count(patch_index)
    image, y, x = cells(patch_index[chosen].clamp(min=0), grid_size)

    if pixel_offset is not None:
        patches = gather_bytes(pixels, pixel_offset[image], grid[image, 1], y, x, patch=patch, channels=weight.shape[1])
        dtype = torch.promote_types(weight.dtype, torch.float32)
        wide = weight.permute(0, 2, 3, 1).flatten(1).to(dtype)
        rows = torch.nn.functional.linear(patches.flatten(1).to(dtype) - 128, wide) * pixel_scale
        rows = rows if bias is None else rows + bias
    else:
        patches = gather_patches(pixels, image, y, x, patch=patch).flatten(1).to(weight.dtype)
        rows = torch.nn.functional.linear(patches, weight.flatten(1), bias)
    if mask_token is not None and masked is not None:
        rows = torch.where(masked[image, y, x][:, None], mask_token.to(rows.dtype), rows)
    rows = rows + interpolate(position[1:], table_size, grid[image], y, x, interpolation)
    cls = (cls_token + position[0]).expand(len(cls_row), -1)  # (B, d)
    if modality is not None and pair_modality is not None:
        rows, cls = rows + modality[pair_modality[image]], cls + modality[pair_modality]

    tokens = write_rows(tokens, patch_row[chosen], rows.to(tokens.dtype))
    has_cls = which_count(cls_row)
    return write_rows(tokens, cls_row[has_cls], cls[has_cls].to(tokens.dtype))


def cells(patch_index: Tensor, grid_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) int64 each: the image of each patch, and its cell (y, x), from a `patch_index` without -1."""
    (grid_height, grid_width), cell = grid_size, patch_index.long()
    row, image = cell // grid_width, cell // (grid_height * grid_width)
    return image, row - image * grid_height, cell - row * grid_width  # ONNX has no remainder by a size


def gather_patches(pixels: Tensor, image: Tensor, y: Tensor, x: Tensor, *, patch: int) -> Tensor:
    """(N, C, p, p): the patches at (N,) cells (y, x) of padded images (B, C, H, W)."""
    return all_patches(pixels, patch=patch)[image, y, x]


def all_patches(pixels: Tensor, *, patch: int) -> Tensor:
    """(B, GH, GW, C, p, p), a view: every patch of padded images (B, C, H, W)."""
    grid_height, grid_width = pixels.shape[2] // patch, pixels.shape[3] // patch
    tiles = pixels[:, :, : grid_height * patch, : grid_width * patch]
    tiles = tiles.unflatten(3, (grid_width, patch)).unflatten(2, (grid_height, patch))  # (B, C, GH, p, GW, p)
    return tiles.permute(0, 2, 4, 1, 3, 5)


def gather_bytes(
    pixels: Tensor, offset: Tensor, grid_width: Tensor, y: Tensor, x: Tensor, *, patch: int, channels: int = 3
) -> Tensor:
    """(N, p, p, C) uint8: the patches at (N,) cells (y, x) of the ragged images that start at `offset`.

    The sides of an image are whole patches, so that a row of a patch is one of the runs of p * C bytes that the buffer
    falls into.
    """
    run = patch * channels
    runs = pixels[: len(pixels) // run * run].view(-1, run)
    row = y[:, None] * patch + torch.arange(patch, device=pixels.device)  # (N, p), pixel rows of the image
    patches = runs[(offset // run)[:, None] + row * grid_width[:, None] + x[:, None]]  # (N, p, p * C)
    return patches.unflatten(2, (patch, channels))


def interpolate(
    table: Tensor, table_size: tuple[int, int], grid: Tensor, y: Tensor, x: Tensor, interpolation: str | None = BILINEAR
) -> Tensor:
    """A (P * Q, d) table stretched over the grid of each patch, and read at its cell.

    Args:
        table: (P * Q, d); table_size: (P, Q).
        grid: (N, 2), (h, w) of the image of each patch; y, x: (N,) its cell.
        interpolation: see `vilt_fast.contracts.positions`.

    Returns:
        (N, d) in the dtype of `table`.
    """
    rows, columns = table_size
    if interpolation is None:
        return table[y * columns + x]
    dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
    taps = _linear_taps if interpolation == BILINEAR else _cubic_taps
    excess = torch.zeros(grid.shape[0], dtype=dtype, device=grid.device)
    if interpolation == BICUBIC_SCALE:
        excess += SCALE_EXCESS * (grid != grid.new_tensor(table_size)).any(1).to(dtype)
    down, across = taps(y, grid[:, 0], rows, excess), taps(x, grid[:, 1], columns, excess)
    out = torch.zeros((), dtype=dtype, device=table.device)
    for row, row_weight in down:
        line = torch.zeros_like(out)
        for column, column_weight in across:
            line = line + column_weight[:, None] * table[row * columns + column]
        out = out + row_weight[:, None] * line
    return out.to(table.dtype)


def _linear_taps(cell: Tensor, cells: Tensor, size: int, excess: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Two entries on one axis around each cell, and their weights: (N,) each."""
    step = torch.where(cells > 1, (size - 1) / (cells - 1).clamp(min=1).to(excess.dtype), 0.0)
    place = cell.to(excess.dtype) * step
    first = place.long().clamp(max=size - 1)
    weight = place - first
    return [(first, 1 - weight), ((first + 1).clamp(max=size - 1), weight)]


def _cubic_taps(cell: Tensor, cells: Tensor, size: int, excess: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Four entries, the table's edges repeated past its ends, and their weights (Keys 1981): (N,) each."""
    place = (cell + 0.5).to(excess.dtype) * (size / (cells + excess)) - 0.5
    first = place.floor()
    t, a = place - first, CUBIC_A
    weights = [
        ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
        ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
    ]
    return [((first.long() + i - 1).clamp(0, size - 1), weight) for i, weight in enumerate(weights)]
