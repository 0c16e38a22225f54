"""Which patch of which image becomes a token, and at which row of the packed tensor every token stands.

Two launches, one program per pair in each, and nothing is read back by the host:

    select   grid of the image, words and patches kept; where there are more valid patches than `max_patches`, the
             largest sampling key that wins
    place    prefix sums over the pairs before this one, then the rows of words, CLS and patches in raster order

The sample is uniform without replacement: every valid patch draws one Philox4x32-10 number (Salmon et al. 2011) from
(seed, index of the image, its ordinal in the image's own grid), and the smallest (draw, ordinal) win. The last
winner is found bit by bit, from the top: a bit is set if fewer than `max_patches` keys lie below what is then known.

      key = draw << ORDINAL_BITS | ordinal      0 1 0 ? ? ? ...      cells in blocks of BLOCK_C, of which the
                                                    ^ 1 if count(keys < 0101000...) < n       first stays in registers

Not supported: masks that are no rectangle at the top left (the grid is read along column 0 and row 0), 2**30 cells.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vilt_fast.contracts.plan import Plan, pixels_per_patch

from . import launch
from .shipped import Configuration, compiled, empty

# Cells, words and pairs that a program handles at a time.
_BLOCK_C, _BLOCK_L, _BLOCK_B = 2048, 1024, 1024
# Sizes of a batch are not specialised: a new one must not compile a new kernel.
_UNSPECIALISED = ["words", "rows", "columns", "height", "width", "pairs", "places", "max_patches", "seed"]
_UNSPECIALISED += ["stride_xb", "stride_xh", "stride_xw"]


@triton.jit
def _valid_patches(mask_ptrs, stride, pixels, patches, step, BLOCK_G: tl.constexpr):
    """Number of patches along one axis whose nearest pixel, floor(i * step) in fp32, is not zero in the mask."""
    g_offs = tl.arange(0, BLOCK_G)
    pixel = tl.minimum((g_offs.to(tl.float32) * step).to(tl.int32), pixels - 1)
    value = tl.load(mask_ptrs + pixel.to(tl.int64) * stride, mask=g_offs < patches, other=0)
    return tl.sum((value != 0).to(tl.int32), 0)


@triton.jit
def _cells(patch_mask_ptr, first, grid_height, grid_width, cells, columns, BLOCK_C: tl.constexpr):
    """Of a block of cells of the padded grid: whether each holds a patch to keep, and its ordinal."""
    c_offs = first + tl.arange(0, BLOCK_C)
    y, x = c_offs // columns, c_offs % columns
    valid = (c_offs < cells) & (y < grid_height) & (x < grid_width)
    if patch_mask_ptr is not None:
        valid = valid & (tl.load(patch_mask_ptr + c_offs, mask=valid, other=0) != 0)
    return valid, y * grid_width + x


@triton.jit
def _keys(valid, ordinal, seed, image, ORDINAL_BITS: tl.constexpr):
    """(draw, ordinal) in one int64; a cell that is not valid gets a key above all others."""
    low = (image & 0xFFFFFFFF).to(tl.uint32) + tl.zeros_like(ordinal).to(tl.uint32)
    high = (image >> 32).to(tl.uint32) + tl.zeros_like(ordinal).to(tl.uint32)
    draw, _, _, _ = tl.philox(seed, ordinal.to(tl.uint32), low, high, tl.zeros_like(low))
    return tl.where(valid, (draw.to(tl.int64) << ORDINAL_BITS) + ordinal, 1 << (32 + ORDINAL_BITS))


@triton.jit(do_not_specialize=_UNSPECIALISED)
def select_kernel(
    grid_ptr,  # (B, 2)
    text_count_ptr,  # (B,)
    patch_count_ptr,  # (B,)
    last_key_ptr,  # (B,) int64 or None
    pixel_mask_ptr,  # (B, H, W) or None
    attention_mask_ptr,  # (B, L)
    patch_mask_ptr,  # (B, GH, GW) or None
    image_index_ptr,  # (B,) int64
    words,
    rows,
    columns,
    height,
    width,
    stride_xb,
    stride_xh,
    stride_xw,
    step_height,
    step_width,
    max_patches,
    seed: tl.int64,
    BLOCK_L: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ORDINAL_BITS: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    l_offs = tl.arange(0, BLOCK_L)
    text_count = 0
    for start in range(0, words, BLOCK_L):
        word = tl.load(attention_mask_ptr + pair * words + start + l_offs, mask=start + l_offs < words, other=0)
        text_count += tl.sum((word != 0).to(tl.int32), 0)
    tl.store(text_count_ptr + pair, text_count)

    grid_height, grid_width = rows, columns
    if pixel_mask_ptr is not None:
        pixel_mask_ptr += pair * stride_xb
        grid_height = _valid_patches(pixel_mask_ptr, stride_xh, height, rows, step_height, BLOCK_G)
        grid_width = _valid_patches(pixel_mask_ptr, stride_xw, width, columns, step_width, BLOCK_G)
    tl.store(grid_ptr + pair * 2, grid_height)
    tl.store(grid_ptr + pair * 2 + 1, grid_width)

    cells = rows * columns
    if patch_mask_ptr is not None:
        patch_mask_ptr += pair * cells
    count = 0
    for start in range(0, cells, BLOCK_C):
        valid, _ = _cells(patch_mask_ptr, start, grid_height, grid_width, cells, columns, BLOCK_C)
        count += tl.sum(valid.to(tl.int32), 0)
    if last_key_ptr is not None:
        image = tl.load(image_index_ptr + pair)
        last_key = tl.full((), (1 << (32 + ORDINAL_BITS)) - 1, dtype=tl.int64)
        if count > max_patches:
            sizes = (grid_height, grid_width, cells, columns)
            last_key = _nth_key(patch_mask_ptr, sizes, max_patches, seed, image, BLOCK_C, ORDINAL_BITS)
            count = max_patches
        tl.store(last_key_ptr + pair, last_key)
    tl.store(patch_count_ptr + pair, count)


@triton.jit
def _nth_key(patch_mask_ptr, sizes, n, seed, image, BLOCK_C: tl.constexpr, ORDINAL_BITS: tl.constexpr):
    """The n-th smallest key of an image, or -1 where n is 0."""
    grid_height, grid_width, cells, columns = sizes
    valid, ordinal = _cells(patch_mask_ptr, 0, grid_height, grid_width, cells, columns, BLOCK_C)
    keys = _keys(valid, ordinal, seed, image, ORDINAL_BITS)
    known = tl.full((), 0, dtype=tl.int64)
    one = tl.full((), 1, dtype=tl.int64)
    for bit in range(32 + ORDINAL_BITS):
        candidate = known + (one << (31 + ORDINAL_BITS - bit))
        below = tl.sum((keys < candidate).to(tl.int32), 0)
        for start in range(BLOCK_C, cells, BLOCK_C):
            valid, ordinal = _cells(patch_mask_ptr, start, grid_height, grid_width, cells, columns, BLOCK_C)
            below += tl.sum((_keys(valid, ordinal, seed, image, ORDINAL_BITS) < candidate).to(tl.int32), 0)
        known = tl.where(below < n, candidate, known)
    return tl.where(n == 0, -1, known)


@triton.jit
def _sums_before(pair, text_count_ptr, patch_count_ptr, pairs, HAS_CLS: tl.constexpr, BLOCK_B: tl.constexpr):
    """Rows and patches of the pairs before this one, and patches of all pairs."""
    row, patch, patches = 0, 0, 0
    for start in range(0, pairs, BLOCK_B):
        b_offs = start + tl.arange(0, BLOCK_B)
        before = b_offs < pair
        text_count = tl.load(text_count_ptr + b_offs, mask=before, other=0)
        patch_count = tl.load(patch_count_ptr + b_offs, mask=b_offs < pairs, other=0)
        patches += tl.sum(patch_count, 0)
        patch_count = tl.where(before, patch_count, 0)
        patch += tl.sum(patch_count, 0)
        row += tl.sum(text_count + patch_count + tl.where(before, HAS_CLS, 0), 0)
    return row, patch, patches


@triton.jit(do_not_specialize=_UNSPECIALISED)
def place_kernel(
    cu_seqlens_ptr,  # (B + 1,)
    text_row_ptr,  # (B, L)
    cls_row_ptr,  # (B,)
    patch_index_ptr,  # (B * places,)
    patch_row_ptr,  # (B * places,)
    grid_ptr,  # (B, 2)
    text_count_ptr,  # (B,)
    patch_count_ptr,  # (B,)
    last_key_ptr,  # (B,) int64 or None
    attention_mask_ptr,  # (B, L)
    patch_mask_ptr,  # (B, GH, GW) or None
    image_index_ptr,  # (B,) int64
    words,
    rows,
    columns,
    pairs,
    places,
    seed: tl.int64,
    HAS_CLS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ORDINAL_BITS: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    row, patch, patches = _sums_before(pair, text_count_ptr, patch_count_ptr, pairs, HAS_CLS, BLOCK_B)
    tl.store(cu_seqlens_ptr + pair, row)

    c_offs = tl.arange(0, BLOCK_C)
    # The places past the last patch of the batch: each program fills those that fall among its own.
    for start in range(0, places, BLOCK_C):
        place = pair * places + start + c_offs
        unused = (start + c_offs < places) & (place >= patches)
        tl.store(patch_index_ptr + place, -1, mask=unused)
        tl.store(patch_row_ptr + place, -1, mask=unused)

    l_offs = tl.arange(0, BLOCK_L)
    for start in range(0, words, BLOCK_L):
        column = start + l_offs
        word = tl.load(attention_mask_ptr + pair * words + column, mask=column < words, other=0)
        kept = (word != 0).to(tl.int32)
        text_row = tl.where(kept != 0, row + tl.cumsum(kept, 0) - 1, -1)
        tl.store(text_row_ptr + pair * words + column, text_row, mask=column < words)
        row += tl.sum(kept, 0)

    tl.store(cls_row_ptr + pair, row if HAS_CLS else -1)
    row += HAS_CLS

    cells = rows * columns
    grid_height, grid_width = tl.load(grid_ptr + pair * 2), tl.load(grid_ptr + pair * 2 + 1)
    if patch_mask_ptr is not None:
        patch_mask_ptr += pair * cells
    first_patch = patch
    for start in range(0, cells, BLOCK_C):
        valid, ordinal = _cells(patch_mask_ptr, start, grid_height, grid_width, cells, columns, BLOCK_C)
        if last_key_ptr is not None:
            keys = _keys(valid, ordinal, seed, tl.load(image_index_ptr + pair), ORDINAL_BITS)
            valid = valid & (keys <= tl.load(last_key_ptr + pair))
        place = patch + tl.cumsum(valid.to(tl.int32), 0) - 1
        tl.store(patch_index_ptr + place, (pair * cells).to(tl.int32) + start + c_offs, mask=valid)
        tl.store(patch_row_ptr + place, row + place - first_patch, mask=valid)
        patch += tl.sum(valid.to(tl.int32), 0)
    row += patch - first_patch
    if pair == pairs - 1:
        tl.store(cu_seqlens_ptr + pairs, row)


# --- launchers --------------------------------------------------------------------------------------------------------


def _block(size: int, least: int, most: int) -> int:
    """Never a small block: most batches then share one compiled kernel."""
    return min(max(launch.next_power_of_2(size), least), most)


def _blocks(words: int, cells: int) -> dict[str, int]:
    """Block sizes and warps that both kernels have; one warp counts without a barrier."""
    blocks = {"BLOCK_L": _block(words, 64, _BLOCK_L), "BLOCK_C": min(512, _BLOCK_C) if cells <= 512 else _BLOCK_C}
    return blocks | {"ORDINAL_BITS": max((cells - 1).bit_length(), 9), "num_warps": 1 if cells <= 512 else 8}


def _new_plan(attention_mask: Tensor, cells: int, max_patches: int) -> Plan:
    """The Plan's tensors, not initialised."""
    batch, words = attention_mask.shape
    places = min(cells, max_patches) if max_patches >= 0 else cells
    shapes = ((batch, 2), (batch,), (batch,), (batch + 1,), (batch, words), (batch,))
    shapes += ((batch * places,), (batch * places,))
    return Plan(*(attention_mask.new_empty(shape, dtype=torch.int32) for shape in shapes))


def _launch(
    attention_mask: Tensor,
    pixel_mask: Tensor | None,
    patch_mask: Tensor | None,
    rows: int,
    columns: int,
    max_patches: int,
    seed: int,
    image_index: Tensor,
    has_cls: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, words = attention_mask.shape
    plan = _new_plan(attention_mask, rows * columns, max_patches)
    if batch == 0:
        plan.cu_seqlens.zero_()
        return tuple(plan)
    last_key = attention_mask.new_empty(batch, dtype=torch.int64) if 0 <= max_patches < rows * columns else None
    height, width = (rows, columns) if pixel_mask is None else pixel_mask.shape[1:]
    blocks = _blocks(words, rows * columns)
    masks = launch.contiguous(attention_mask, patch_mask, image_index)
    launch.run(
        *(select_kernel, (batch,)),
        *(plan.grid, plan.text_count, plan.patch_count, last_key, pixel_mask),
        *masks,
        *(words, rows, columns, height, width),
        *((0, 0, 0) if pixel_mask is None else pixel_mask.stride()),
        *(pixels_per_patch(height, rows), pixels_per_patch(width, columns)),
        *(max_patches, seed),
        BLOCK_G=_block(max(rows, columns), 64, 2**30),
        **blocks,
    )
    launch.run(
        *(place_kernel, (batch,)),
        *(plan.cu_seqlens, plan.text_row, plan.cls_row, plan.patch_index, plan.patch_row),
        *(plan.grid, plan.text_count, plan.patch_count, last_key),
        *masks,
        *(words, rows, columns, batch, plan.patch_index.shape[0] // batch, seed),
        HAS_CLS=int(has_cls),
        BLOCK_B=_block(batch, 256, _BLOCK_B),
        **blocks,
    )
    return tuple(plan)


_patch_sample = torch.library.custom_op("vilt_fast::patch_sample", _launch, mutates_args=())
_patch_sample.register_fake(
    lambda attention_mask, pixel_mask, patch_mask, rows, columns, max_patches, *_: tuple(
        _new_plan(attention_mask, rows * columns, max_patches)
    )
)


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    shipped = []
    for grid, limited in (((12, 20), False), ((12, 20), True), ((60, 64), True)):
        cells = grid[0] * grid[1]
        masks = (empty("i1", 1, 40), empty("i64", 1, 384, 640), empty("i1", 1, *grid))
        name = f"{cells} cells" + ", sampled" * limited
        shipped += compiled(target, name, _launch, *masks, *grid, 200 if limited else -1, 0, empty("i64", 1), True)
    masks = (empty("i1", 1, 40), None, empty("i1", 1, 1, 36))  # of VisualBERT: regions in one row, no pixels, no CLS
    return shipped + compiled(target, "36 regions", _launch, *masks, 1, 36, -1, 0, empty("i64", 1), False)


# --- public function --------------------------------------------------------------------------------------------------


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
    """`vilt_fast.reference.patch_sample.patch_sample` on the device, for fewer than 2**30 cells."""
    op, (rows, columns) = "patch_sample", grid_size
    launch.check_device(op, attention_mask, pixel_mask, patch_mask, image_index)
    launch.check_tensor(op, "attention_mask", attention_mask, ("B", "L"), torch.bool)
    batch = attention_mask.shape[0]
    if pixel_mask is not None:
        launch.check_tensor(op, "pixel_mask", pixel_mask, (batch, "H", "W"), pixel_mask.dtype)
    launch.check_tensor(op, "patch_mask", patch_mask, (batch, rows, columns), torch.bool)
    launch.check_tensor(op, "image_index", image_index, (batch,), torch.int64)
    if not 0 <= seed < 2**63:
        raise ValueError(f"{op}: seed: got {seed}, wanted 0 <= seed < 2**63")
    if rows < 0 or columns < 0 or batch * rows * columns >= 2**30:
        raise ValueError(f"{op}: grid_size: got {grid_size} for {batch} pairs, wanted fewer than 2**30 cells")
    masks = (attention_mask, pixel_mask, patch_mask)
    return Plan(*_patch_sample(*masks, rows, columns, max_patches, seed, image_index, has_cls))
