"""What `patch_embed` reads, blocks of pixels, bytes and weights, and what it writes: rows of patches and CLS rows."""

import triton
import triton.language as tl

from vilt_fast.contracts import positions

BILINEAR = tl.constexpr(positions.BILINEAR)
BICUBIC_SCALE = tl.constexpr(positions.BICUBIC_SCALE)
SCALE_EXCESS = tl.constexpr(positions.SCALE_EXCESS)
CUBIC_A = tl.constexpr(positions.CUBIC_A)


@triton.jit
def load_pixels(
    patch_ptrs,  # (BLOCK_M, 1), the first pixel of each patch
    channel,
    first_row,  # of the patch
    stride_c,
    stride_h,
    stride_w,
    PATCH: tl.constexpr,
    PATCH_COLUMNS: tl.constexpr,
    STEP_ROWS: tl.constexpr,
):
    """(BLOCK_M, STEP_ROWS * PATCH_COLUMNS) pixels of one channel, in their own dtype, zero outside the patch."""
    k_offs = tl.arange(0, STEP_ROWS * PATCH_COLUMNS)
    row, column = k_offs // PATCH_COLUMNS, k_offs % PATCH_COLUMNS
    ptrs = patch_ptrs + channel * stride_c + first_row * stride_h + (row * stride_h + column * stride_w)[None, :]
    if PATCH == PATCH_COLUMNS and PATCH % STEP_ROWS == 0:
        pixels = tl.load(ptrs)
    else:
        pixels = tl.load(ptrs, mask=((first_row + row < PATCH) & (column < PATCH))[None, :], other=0.0)
    return pixels


@triton.jit
def load_bytes(
    patch_ptrs,  # (BLOCK_M, 1), the first byte of each patch
    pitch,  # (BLOCK_M, 1), bytes from one row of each image to the next
    run,
    first_row,  # of the patch
    PATCH: tl.constexpr,
    PATCH_COLUMNS: tl.constexpr,
    STEP_ROWS: tl.constexpr,
):
    """(BLOCK_M, STEP_ROWS * PATCH_COLUMNS) fp32: bytes less 128 of one run of each patch row; any outside the patch."""
    k_offs = tl.arange(0, STEP_ROWS * PATCH_COLUMNS)
    row, column = k_offs // PATCH_COLUMNS, k_offs % PATCH_COLUMNS
    ptrs = patch_ptrs + (row[None, :] * pitch + column[None, :]) + (first_row * pitch + run * PATCH)
    if PATCH == PATCH_COLUMNS and PATCH % STEP_ROWS == 0:
        pixels = tl.load(ptrs)
    else:
        pixels = tl.load(ptrs, mask=((first_row + row < PATCH) & (column < PATCH))[None, :], other=0)
    # u in the last bits of 2^23 is 2^23 + u. NVIDIA converts integers at a quarter of the rate of operations on bits.
    return (pixels.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0


@triton.jit
def load_weight(
    weight_ptrs,  # (BLOCK_N, 1), the first weight of each output
    channel,
    first_row,
    PATCH: tl.constexpr,
    PATCH_COLUMNS: tl.constexpr,
    STEP_ROWS: tl.constexpr,
    STRIDE_C: tl.constexpr,
    STRIDE_ROW: tl.constexpr,
):
    """(BLOCK_N, STEP_ROWS * PATCH_COLUMNS) weights in the order of the pixels, zero outside the patch."""
    k_offs = tl.arange(0, STEP_ROWS * PATCH_COLUMNS)
    ptrs = weight_ptrs + channel * STRIDE_C + first_row * STRIDE_ROW
    row, column = k_offs // PATCH_COLUMNS, k_offs % PATCH_COLUMNS
    if PATCH == PATCH_COLUMNS and PATCH % STEP_ROWS == 0:
        if STRIDE_ROW == PATCH:
            weight = tl.load(ptrs + k_offs[None, :])
        else:
            weight = tl.load(ptrs + (row * STRIDE_ROW + column)[None, :])
    else:
        mask = (first_row + row < PATCH) & (column < PATCH)
        weight = tl.load(ptrs + (row * STRIDE_ROW + column)[None, :], mask=mask[None, :], other=0.0)
    return weight


@triton.jit
def _taps(cell, cells, SIZE: tl.constexpr):
    """The two table entries on one axis around each cell of a grid of `cells`, and the weight of the second."""
    step = tl.where(cells > 1, (SIZE - 1.0) / tl.maximum(cells - 1, 1).to(tl.float32), 0.0)
    place = cell.to(tl.float32) * step
    first = tl.minimum(place.to(tl.int32), SIZE - 1)
    return first, tl.minimum(first + 1, SIZE - 1), place - first.to(tl.float32)


@triton.jit
def _weighted(table_ptrs, mask, entry, weight, stride):
    """(BLOCK_M, BLOCK_N) fp32: entries of a table, (BLOCK_M,), times a weight each."""
    return tl.load(table_ptrs + entry[:, None] * stride, mask=mask).to(tl.float32) * weight[:, None]


@triton.jit
def _cubic(distance, NEAR: tl.constexpr):
    """Keys' kernel within one entry (NEAR), and from one to two."""
    if NEAR:
        out = (distance * (CUBIC_A + 2) - (CUBIC_A + 3)) * distance * distance + 1
    else:
        out = (((distance - 5) * distance + 8) * distance - 4) * CUBIC_A
    return out


@triton.jit
def _cubic_tap(place, first, i: tl.constexpr, SIZE: tl.constexpr):
    """The table entry number i of four on one axis, edges repeated, and its weight."""
    entry = tl.minimum(tl.maximum(first.to(tl.int32) + (i - 1), 0), SIZE - 1)
    distance = tl.abs(place - (first + (i - 1)))
    return entry, _cubic(distance, i == 1 or i == 2)


@triton.jit
def _bilinear(table_ptrs, mask, y, x, height, width, stride, TABLE_ROWS: tl.constexpr, TABLE_COLUMNS: tl.constexpr):
    """(BLOCK_M, BLOCK_N) fp32: the table read bilinearly, corners aligned, at cell (y, x) of a (height, width) grid."""
    top, bottom, down = _taps(y, height, TABLE_ROWS)
    left, right, across = _taps(x, width, TABLE_COLUMNS)
    # Four weights a patch and one multiply-add each, instead of three blends of six operations.
    out = _weighted(table_ptrs, mask, top * TABLE_COLUMNS + left, (1 - down) * (1 - across), stride)
    out += _weighted(table_ptrs, mask, top * TABLE_COLUMNS + right, (1 - down) * across, stride)
    out += _weighted(table_ptrs, mask, bottom * TABLE_COLUMNS + left, down * (1 - across), stride)
    return out + _weighted(table_ptrs, mask, bottom * TABLE_COLUMNS + right, down * across, stride)


@triton.jit
def _bicubic(
    out,  # (BLOCK_M, BLOCK_N) fp32, to which it is added
    table_ptrs,
    mask,
    y,
    x,
    height,
    width,
    stride,
    TABLE_ROWS: tl.constexpr,
    TABLE_COLUMNS: tl.constexpr,
    HAS_EXCESS: tl.constexpr,
):
    """The table read bicubically, from the middles of cells."""
    rows, columns = height.to(tl.float32), width.to(tl.float32)
    if HAS_EXCESS:
        excess = tl.where((height == TABLE_ROWS) & (width == TABLE_COLUMNS), 0.0, SCALE_EXCESS)
        rows, columns = rows + excess, columns + excess
    down = (y.to(tl.float32) + 0.5) * (TABLE_ROWS / rows) - 0.5
    across = (x.to(tl.float32) + 0.5) * (TABLE_COLUMNS / columns) - 0.5
    top, left = tl.floor(down), tl.floor(across)
    for i in tl.static_range(4):
        row, row_weight = _cubic_tap(down, top, i, TABLE_ROWS)
        for j in tl.static_range(4):
            column, weight = _cubic_tap(across, left, j, TABLE_COLUMNS)
            out += _weighted(table_ptrs, mask, row * TABLE_COLUMNS + column, row_weight * weight, stride)
    return out


@triton.jit
def _positions(
    table_ptrs,
    mask,
    y,
    x,
    height,
    width,
    stride,
    TABLE_ROWS: tl.constexpr,
    TABLE_COLUMNS: tl.constexpr,
    INTERPOLATION: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) fp32: the table at cell (y, x) of a (height, width) grid, see `contracts.positions`."""
    if INTERPOLATION is None:
        out = tl.load(table_ptrs + (y * TABLE_COLUMNS + x)[:, None] * stride, mask=mask).to(tl.float32)
    elif INTERPOLATION == BILINEAR:
        out = _bilinear(table_ptrs, mask, y, x, height, width, stride, TABLE_ROWS, TABLE_COLUMNS)
    else:
        out = tl.zeros((y.shape[0], table_ptrs.shape[1]), dtype=tl.float32)
        HAS_EXCESS: tl.constexpr = INTERPOLATION == BICUBIC_SCALE
        out = _bicubic(out, table_ptrs, mask, y, x, height, width, stride, TABLE_ROWS, TABLE_COLUMNS, HAS_EXCESS)
    return out


@triton.jit
def write_patches(
    products,
    tables,
    patches,
    n_first,
    hidden,
    strides,
    EVEN_N: tl.constexpr,
    TABLE_ROWS: tl.constexpr,
    TABLE_COLUMNS: tl.constexpr,
    INTERPOLATION: tl.constexpr,
):
    """Epilogue of `products`, (BLOCK_M, columns) from column `n_first` on: what is added, and the rows they go to."""
    tokens_ptr, bias_ptr, position_ptr, modality_ptr, pair_modality_ptr, grid_ptr, mask_token_ptr = tables
    row, image, y, x, is_masked = patches  # (BLOCK_M,) each
    stride_token, stride_position, stride_modality = strides
    n_offs = n_first + tl.arange(0, products.shape[1])
    # An unused place reads what patch 0 reads, and writes nothing.
    n_mask = None if EVEN_N else (n_offs < hidden)[None, :]
    height, width = tl.load(grid_ptr + image * 2), tl.load(grid_ptr + image * 2 + 1)
    table_ptrs = position_ptr + stride_position + n_offs[None, :]
    added = _positions(
        table_ptrs, n_mask, y, x, height, width, stride_position, TABLE_ROWS, TABLE_COLUMNS, INTERPOLATION
    )
    if modality_ptr is not None:
        kind = tl.load(pair_modality_ptr + image)
        added += tl.load(modality_ptr + kind[:, None] * stride_modality + n_offs[None, :], mask=n_mask).to(tl.float32)
    if mask_token_ptr is not None:
        mask_token = tl.load(mask_token_ptr + n_offs[None, :], mask=n_mask).to(tl.float32)
        products = tl.where(is_masked[:, None], mask_token, products)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + n_offs[None, :], mask=n_mask).to(tl.float32)
        if mask_token_ptr is not None:
            bias = tl.where(is_masked[:, None], 0.0, bias)
        added += bias
    tokens_ptrs = tokens_ptr + row[:, None].to(tl.int64) * stride_token + n_offs[None, :]
    mask = (row >= 0)[:, None] if EVEN_N else (row >= 0)[:, None] & n_mask
    tl.store(tokens_ptrs, (products + added).to(tokens_ptr.dtype.element_ty), mask=mask)


@triton.jit
def halves(block):
    """The left and the right half of the columns of a block."""
    pairs = tl.reshape(block, (block.shape[0], 2, block.shape[1] // 2))
    return tl.split(tl.permute(pairs, (0, 2, 1)))


@triton.jit
def write_cls(
    tables,
    cls_token_ptr,
    cls_row_ptr,
    first,
    pairs,
    hidden,
    n_offs,
    stride_token,
    stride_modality,
    BLOCK_M: tl.constexpr,
):
    """CLS rows of BLOCK_M pairs from `first` on, columns `n_offs`."""
    tokens_ptr, _, position_ptr, modality_ptr, pair_modality_ptr, _, _ = tables
    b_offs = first + tl.arange(0, BLOCK_M)
    n_mask = n_offs < hidden
    row = tl.load(cls_row_ptr + b_offs, mask=b_offs < pairs, other=-1)
    mask = (row >= 0)[:, None] & n_mask[None, :]
    shared = tl.load(cls_token_ptr + n_offs, mask=n_mask, other=0.0).to(tl.float32)
    shared += tl.load(position_ptr + n_offs, mask=n_mask, other=0.0).to(tl.float32)
    out = tl.broadcast_to(shared[None, :], mask.shape)
    if modality_ptr is not None:
        kind = tl.load(pair_modality_ptr + b_offs, mask=b_offs < pairs, other=0)
        modality_ptrs = modality_ptr + kind[:, None] * stride_modality + n_offs[None, :]
        out += tl.load(modality_ptrs, mask=mask, other=0.0).to(tl.float32)
    tokens_ptrs = tokens_ptr + row[:, None].to(tl.int64) * stride_token + n_offs[None, :]
    tl.store(tokens_ptrs, out.to(tokens_ptr.dtype.element_ty), mask=mask)
