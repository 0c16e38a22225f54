"""Pixels of chosen patches -> rows of the packed tensor, in one pass (Kim et al. 2021, section 3.1).

    row = W patch + b + interpolated(position table -> the image's grid)[y, x] + modality[image]
    CLS = cls_token + position[0] + modality[image]
    a masked patch has mask_token in the place of W patch + b; ViT has no modality, ViLT no mask_token

A matrix product whose left operand is gathered from the images as they are: no im2col buffer, no padding read. K runs
over (channel, patch row, patch column), so that a patch row is one contiguous piece of an image row:

         image b, channel c                 BLOCK_K = STEP_ROWS patch rows of PATCH_COLUMNS pixels
        +------+------+------+                 (PATCH_COLUMNS is `patch` rounded up to a power of two)
        | p x p|######|      |            +-----------+        W^T        +-----------+
        +------+------+------+   BLOCK_M  | row | row |  x  (BLOCK_K,  =  |  BLOCK_N  | + bias + position + modality
        |######|      |      |   patches  +-----------+      BLOCK_N)     +-----------+
        +------+------+------+                                     positions are read from the table in the epilogue

Images that stayed bytes are ragged and lie as (height, width, channel): a patch row is `patch * CHANNELS` bytes side
by side, which are read as CHANNELS runs of `patch` bytes in place of the channels. A byte u counts as u - 128, which is
exact in every float dtype; the sums are multiplied by `pixel_scale` at the end. With the switch `shared_bytes` a
program has 256 columns, and half as many programs convert the same bytes.

Programs past the blocks of patches write the CLS rows. The tile depends on shapes of the model, dtype and chip alone:
an image's rows are bit for bit the same in any batch. Not supported: padded integer pixels, backward.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vilt_fast.contracts.positions import BICUBIC, BICUBIC_SCALE, BILINEAR, check_interpolation

from . import launch, switches
from .no_backward import refuse_backward
from .patch_checks import as_bytes, check_pixels, check_tables, fits
from .patch_tiles import halves, load_bytes, load_pixels, load_weight, write_cls, write_patches
from .shipped import Configuration, compiled, empty

BYTES = "patch_embed_bytes"  # in the tables, of images that stayed bytes


# Sizes of a batch are not specialised: a new one must not compile a new kernel.
@triton.jit(do_not_specialize=["pairs", "places", "grid_rows", "grid_columns"])
def patch_embed_kernel(
    tokens_ptr,  # (rows, hidden)
    pixels_ptr,  # (B, CHANNELS, H, W), or (bytes,) uint8 where there is pixel_offset_ptr
    pixel_offset_ptr,  # (B,) int64 or None
    weight_ptr,  # (hidden, CHANNELS, PATCH, PATCH), contiguous; for bytes (hidden, PATCH, PATCH, CHANNELS)
    bias_ptr,  # (hidden,) or None
    position_ptr,  # (1 + TABLE_ROWS * TABLE_COLUMNS, hidden)
    cls_token_ptr,  # (hidden,)
    modality_ptr,  # (M, hidden) or None
    mask_token_ptr,  # (hidden,) or None
    pair_modality_ptr,  # (B,) int64 or None
    grid_ptr,  # (B, 2) int32
    patch_index_ptr,  # (places,) int32
    patch_row_ptr,  # (places,) int32
    cls_row_ptr,  # (B,) int32
    masked_ptr,  # (B, grid_rows, grid_columns) uint8 or None
    pairs,
    places,
    hidden,
    grid_rows,
    grid_columns,
    stride_token,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    stride_position,
    stride_modality,
    pixel_scale,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    PATCH_COLUMNS: tl.constexpr,
    TABLE_ROWS: tl.constexpr,
    TABLE_COLUMNS: tl.constexpr,
    INTERPOLATION: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP_ROWS: tl.constexpr,
    SUBTILES: tl.constexpr,
    EVEN_N: tl.constexpr,
):
    n_blocks = tl.cdiv(hidden, BLOCK_N)
    n_first = tl.program_id(0) % n_blocks * BLOCK_N
    n_offs = n_first + tl.arange(0, BLOCK_N)
    m_block = tl.program_id(0) // n_blocks
    m_blocks = tl.cdiv(places, BLOCK_M)
    tables = (tokens_ptr, bias_ptr, position_ptr, modality_ptr, pair_modality_ptr, grid_ptr, mask_token_ptr)
    if m_block >= m_blocks:
        first = (m_block - m_blocks) * BLOCK_M
        write_cls(
            tables, cls_token_ptr, cls_row_ptr, first, pairs, hidden, n_offs, stride_token, stride_modality, BLOCK_M
        )
        return
    m_offs = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    index = tl.load(patch_index_ptr + m_offs, mask=m_offs < places, other=-1)
    if tl.max(index, 0) < 0:
        return

    # An unused place of a block reads patch 0 and a column past the last reads the last: the loop has no mask for it.
    cell = tl.maximum(index, 0)
    x = cell % grid_columns
    y = cell // grid_columns % grid_rows
    image = cell // (grid_columns * grid_rows)
    # Ahead of the loop, so that less has to be kept for what follows it.
    row = tl.load(patch_row_ptr + m_offs, mask=index >= 0, other=-1)
    RAGGED: tl.constexpr = pixel_offset_ptr is not None
    if RAGGED:
        RUN: tl.constexpr = PATCH * CHANNELS
        ALIGN: tl.constexpr = PATCH & -PATCH  # divides every offset and pitch, as the sides are whole patches
        pitch = tl.load(grid_ptr + image * 2 + 1) * RUN
        patch_offs = tl.load(pixel_offset_ptr + image) + (y * PATCH).to(tl.int64) * pitch + x * RUN
        pitch = tl.multiple_of(pitch[:, None], (ALIGN, ALIGN))
        patch_ptrs = pixels_ptr + tl.multiple_of(patch_offs[:, None], (ALIGN, ALIGN))
    else:
        patch_offs = image.to(tl.int64) * stride_b + (y * PATCH).to(tl.int64) * stride_h + x * PATCH * stride_w
        patch_ptrs = pixels_ptr + patch_offs[:, None]
    STRIDE_C: tl.constexpr = PATCH if RAGGED else PATCH * PATCH
    STRIDE_ROW: tl.constexpr = PATCH * CHANNELS if RAGGED else PATCH
    weight_ptrs = weight_ptr + tl.minimum(n_offs, hidden - 1)[:, None] * (CHANNELS * PATCH * PATCH)

    STEPS: tl.constexpr = (PATCH + STEP_ROWS - 1) // STEP_ROWS
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, CHANNELS * STEPS):
        channel, first_row = step // STEPS, step % STEPS * STEP_ROWS
        if RAGGED:
            pixels = load_bytes(patch_ptrs, pitch, channel, first_row, PATCH, PATCH_COLUMNS, STEP_ROWS)
        else:
            pixels = load_pixels(
                patch_ptrs, channel, first_row, stride_c, stride_h, stride_w, PATCH, PATCH_COLUMNS, STEP_ROWS
            )
        weight = load_weight(weight_ptrs, channel, first_row, PATCH, PATCH_COLUMNS, STEP_ROWS, STRIDE_C, STRIDE_ROW)
        pixels = pixels.to(weight.dtype)
        accumulator = tl.dot(pixels, tl.trans(weight), accumulator, input_precision=INPUT_PRECISION)

    if RAGGED:
        accumulator = accumulator * pixel_scale
    is_masked = row < 0  # of those that are written, none
    if masked_ptr is not None:
        is_masked = tl.load(masked_ptr + (image * grid_rows + y) * grid_columns + x) != 0
    patches = (row, image, y, x, is_masked)
    strides = (stride_token, stride_position, stride_modality)
    if SUBTILES == 1:
        write_patches(
            accumulator, tables, patches, n_first, hidden, strides, EVEN_N, TABLE_ROWS, TABLE_COLUMNS, INTERPOLATION
        )
    else:
        # A quarter of the columns at a time: all that they read of tables would leave room for one program only.
        left, right = halves(accumulator)
        quarters = halves(left) + halves(right)
        for i in tl.static_range(4):
            n = n_first + i * (BLOCK_N // 4)
            write_patches(
                quarters[i], tables, patches, n, hidden, strides, EVEN_N, TABLE_ROWS, TABLE_COLUMNS, INTERPOLATION
            )


# --- launchers --------------------------------------------------------------------------------------------------------


def heuristic(*, op: str, arch: str, N: int, K: int, bucket: str, dtype: str) -> dict[str, Any]:
    """Tile by chip and dtype of the weight; BLOCK_K is about the pixels of a step."""
    if dtype == "float32":
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 1, "SUBTILES": 1}
    if dtype == "tf32":
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3, "SUBTILES": 1}
    # The tile of the linear kernels: 128 x 128 keeps two programs on a multiprocessor, one writes while one multiplies.
    tile = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3, "SUBTILES": 4}
    if launch.family(arch) == "sm90" and op == BYTES and _is_roomy(K):
        tile["maxnreg"] = 128  # without a word it takes 160, and two programs do not fit; nothing spills
    return tile | {"num_stages": 2} if launch.family(arch) == "gfx942" else tile


def _is_roomy(K: int) -> bool:
    """Whether patches have sides of 16, 32, 48 or 64 (three channels): most load without masks, none spills."""
    return K % 768 == 0


def _plan(
    tokens: Tensor, weight: Tensor, table_size: Sequence[int], interpolation: str | None, ragged: bool
) -> launch.Program:
    hidden, channels, patch, _ = weight.shape
    # A pair may not depend on its batch, so neither may the tile: it is not asked for by rows.
    asked = {"N": hidden, "K": channels * patch * patch, "dtype": launch.product_name(weight.dtype)}
    arch, op = launch.arch_of(tokens), BYTES if ragged else "patch_embed"
    tile = dict(launch.configuration(op, arch=arch, **asked, heuristic=heuristic))
    if interpolation in (BICUBIC, BICUBIC_SCALE):  # sixteen entries a patch spill where registers are held down
        tile.pop("maxnreg", None)
    is_wanted = ragged and weight.dtype != torch.float32 and _is_roomy(asked["K"])
    if is_wanted and switches.is_on("shared_bytes", arch, **asked):
        tile = {key: value for key, value in tile.items() if key != "maxnreg"} | {"BLOCK_N": 256}
    columns = launch.next_power_of_2(patch)
    step_rows = min(max(tile.pop("BLOCK_K") // columns, 1), columns)
    tile["BLOCK_N"] = min(tile["BLOCK_N"], max(launch.next_power_of_2(hidden), 16))
    return launch.Program(
        patch_embed_kernel,
        CHANNELS=channels,
        PATCH=patch,
        PATCH_COLUMNS=columns,
        STEP_ROWS=step_rows,
        TABLE_ROWS=table_size[0],
        TABLE_COLUMNS=table_size[1],
        INTERPOLATION=interpolation,
        INPUT_PRECISION=launch.input_precision(weight.dtype),
        # Without masks the fp32 kernel of sm80 spills.
        EVEN_N=tile["SUBTILES"] > 1 and hidden % tile["BLOCK_N"] == 0,
        **tile,
    )


def _key(
    tokens: Tensor,
    pixels: Tensor,
    pixel_offset: Tensor | None,
    parameters: Sequence[Tensor | None],
    indices: Sequence[Tensor | None],
    table_size: Sequence[int],
    interpolation: str | None,
) -> tuple[Any, ...]:
    strides = None if pixel_offset is not None else tuple((stride == 1, stride % 16) for stride in pixels.stride())
    weight = parameters[0]
    assert weight is not None
    return (
        *("patch_embed", *table_size, interpolation, strides),
        *map(launch.batch_traits, (pixels, pixel_offset, *indices)),
        *map(launch.traits, (tokens, *parameters)),
        *(None if parameter is None else parameter.shape for parameter in parameters),
        None if weight.dtype != torch.float32 else torch.get_float32_matmul_precision(),
    )


def _launch(
    tokens: Tensor,
    pixels: Tensor,
    pixel_offset: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor,
    cls_token: Tensor,
    modality: Tensor | None,
    mask_token: Tensor | None,
    pair_modality: Tensor | None,
    grid: Tensor,
    patch_index: Tensor,
    patch_row: Tensor,
    cls_row: Tensor,
    masked: Tensor | None,
    table_size: Sequence[int],
    grid_size: Sequence[int],
    interpolation: str | None,
    pixel_scale: float,
) -> None:
    ragged = pixel_offset is not None
    weight = weight.contiguous(memory_format=torch.channels_last if ragged else torch.contiguous_format)
    pixel_offset, bias, mask_token = launch.contiguous(pixel_offset, bias, mask_token)
    modality = None if modality is None else launch.row_major(modality)
    parameters = (weight, bias, launch.row_major(position), cls_token.contiguous(), modality, mask_token)
    indices = launch.contiguous(pair_modality, grid, patch_index, patch_row, cls_row, masked)
    key = _key(tokens, pixels, pixel_offset, parameters, indices, table_size, interpolation)
    program = launch.plans.get(key) or _plan(tokens, weight, table_size, interpolation, ragged)
    if launch.recording is None:
        launch.plans[key] = program
    _run(program, tokens, pixels, pixel_offset, parameters, indices, grid_size, pixel_scale)


def _run(
    program: launch.Program,
    tokens: Tensor,
    pixels: Tensor,
    pixel_offset: Tensor | None,
    parameters: Sequence[Any],
    indices: Sequence[Any],
    grid_size: Sequence[int],
    pixel_scale: float,
) -> None:
    pairs, places, hidden = len(indices[1]), len(indices[2]), tokens.shape[1]
    if pairs == 0:
        return
    block_m, block_n = program.configuration["BLOCK_M"], program.configuration["BLOCK_N"]
    blocks = launch.cdiv(places, block_m) + launch.cdiv(pairs, block_m)
    position, modality = parameters[2], parameters[4]
    program(
        (blocks * launch.cdiv(hidden, block_n), 1, 1),
        *(tokens, pixels, pixel_offset, *parameters, *indices),
        *(pairs, places, hidden, *grid_size, tokens.stride(0)),
        *((0, 0, 0, 1) if pixel_offset is not None else pixels.stride()),
        *(position.stride(0), 0 if modality is None else modality.stride(0), pixel_scale),
    )


_patch_embed = torch.library.custom_op("vilt_fast::patch_embed", _launch, mutates_args=("tokens",))


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    cases = [("bf16", "bf16", 32), ("fp32", "bf16", 32), ("fp16", "fp16", 16), ("bf16", "bf16", 14)]
    cases += [("u8", "bf16", 32), ("u8", "fp16", 16), ("u8", "fp32", 32)]
    cases += [("bf16", "bf16", 8), ("fp32", "fp32", 32), ("fp32", "tf32", 32)]
    shipped = [configuration for case in cases for configuration in _shipped(target, "", *case)]
    for *case, interpolation in (  # ViT's
        ("bf16", "bf16", None),
        ("u8", "bf16", None),
        ("bf16", "bf16", BICUBIC_SCALE),
        ("u8", "bf16", BICUBIC),
        ("fp32", "fp32", BICUBIC),
    ):
        shipped += _shipped(target, f", {interpolation}", *case, 16, interpolation)
    shipped += _shipped(target, ", masked", "bf16", "bf16", 16, None, is_masked=True)
    if target in switches.SWITCHES["shared_bytes"].families:
        with switches.forced(shared_bytes=True):
            shipped += _shipped(target, ", shared_bytes", "u8", "bf16", 32)
    return shipped


def _shipped(
    target: str,
    name: str,
    pixel_dtype: str,
    dtype: str,
    patch: int,
    interpolation: str | None = BILINEAR,
    is_masked: bool = False,
) -> list[Configuration]:
    ragged, indices = pixel_dtype == "u8", empty("i32", 144)
    pixels = empty(pixel_dtype, 384 * 384 * 3) if ragged else empty(pixel_dtype, 1, 3, 384, 384)
    weight, table = empty(dtype, 768, 3, patch, patch), empty(dtype, 145, 768)
    bias = empty("fp32", 768) if ragged else table[0]  # of folded weights it is fp32
    has_modality = interpolation == BILINEAR  # as in ViLT
    arguments = (table, pixels, empty("i64", 1) if ragged else None, weight, bias, table, table[0])
    arguments += (table[:2] if has_modality else None, table[0] if is_masked else None)
    arguments += (empty("i64", 1) if has_modality else None, empty("i32", 1, 2), indices, indices, indices[:1])
    arguments += (empty("u8", 1, 12, 12) if is_masked else None, (12, 12), (12, 12), interpolation, 0.5)
    return compiled(target, f"p{patch} {pixel_dtype} x {dtype}{name}", _launch, *arguments, tf32=dtype == "tf32")


# --- public function --------------------------------------------------------------------------------------------------


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
    """`vilt_fast.reference.patch_embed.patch_embed`, written in place into `tokens`, which it returns.

    Floats are fp32, fp16 or bf16; pixels are rounded to the dtype of `weight`, whose p is from 4 to 64. fp32 is
    multiplied as torch.get_float32_matmul_precision() says. For bytes a weight in channels-last memory is used as it
    is, another one is copied. No gradients.
    """
    parameters = (weight, bias, position, cls_token, modality, mask_token)
    indices = (pair_modality, grid, patch_index, patch_row, cls_row, None if masked is None else as_bytes(masked))
    if launch.is_direct() and fits(tokens, pixels, weight, pixel_offset, indices, grid_size):
        key = _key(tokens, pixels, pixel_offset, parameters, indices, table_size, interpolation)
        program = launch.plans.get(key)
        if program is not None:
            patch = weight.shape[3]
            cells = grid_size if pixel_offset is not None else (pixels.shape[2] // patch, pixels.shape[3] // patch)
            assert cells is not None
            _run(program, tokens, pixels, pixel_offset, parameters, indices, cells, float(pixel_scale))
            return launch.written(tokens)
    launch.check_device("patch_embed", tokens, pixels, pixel_offset, *parameters, *indices)
    check_interpolation("patch_embed", interpolation)
    grid_size = check_pixels(pixels, weight, grid, grid_size, pixel_offset)
    check_tables(tokens, parameters, indices, table_size, grid_size)
    given = (tokens, pixels, pixel_offset, *parameters, *indices)
    if launch.is_direct(*given):
        _launch(*given, table_size, grid_size, interpolation, float(pixel_scale))
        return launch.written(tokens)
    _patch_embed(*given, table_size, grid_size, interpolation, float(pixel_scale))
    return refuse_backward("patch_embed", tokens, pixels, *parameters)
