"""patch_sample: the same integers as the reference, for any masks, limits and seeds."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vilt_fast.reference import patch_sample as reference

pytest.importorskip("triton", reason="the kernels need Triton")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from vilt_fast.kernels import patch_sample as kernel  # noqa: E402

SEED = 2**40 + 12345


def _masks(
    batch: int, words: int, grid_size: tuple[int, int], patch: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words, pixels (a rectangle at the top left of each picture), patches, and indices of pictures."""
    g = torch.Generator().manual_seed(seed)
    rows, columns = grid_size
    pixel_mask = torch.zeros(batch, rows * patch, columns * patch, dtype=torch.int64)
    for picture in pixel_mask:
        height, width = (int(torch.randint(1, n + 1, (), generator=g)) for n in grid_size)
        picture[: height * patch, : width * patch] = 1
    attention_mask = torch.rand(batch, words, generator=g) < 0.6
    patch_mask = torch.rand(batch, rows, columns, generator=g) < 0.8
    image_index = torch.randint(0, 2**40, (batch,), generator=g)
    return tuple(mask.to(device) for mask in (attention_mask, pixel_mask, patch_mask, image_index))


def _check(masks: tuple, grid_size: tuple[int, int], max_patches: int, seed: int = SEED, **options) -> tuple:
    attention_mask, pixel_mask, patch_mask, image_index = masks
    arguments = (attention_mask, pixel_mask, patch_mask, grid_size, max_patches, seed, image_index)
    got = kernel.patch_sample(*arguments, **options)
    wanted = reference.patch_sample(*arguments, **options)
    assert got._fields == wanted._fields
    for name, left, right in zip(got._fields, got, wanted, strict=True):
        assert left.dtype == right.dtype == torch.int32, name
        assert torch.equal(left, right), name
    return got


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("max_patches", [-1, 0, 1, 20, 47, 48, 1000])
def test_limits(max_patches, has_cls, device, poisoned) -> None:
    masks = _masks(5, 7, (6, 8), 4, 0, device)
    _check(masks, (6, 8), max_patches, has_cls=has_cls)
    _check((masks[0], None, None, masks[3]), (6, 8), max_patches, has_cls=has_cls)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 4),
    words=st.integers(0, 9),
    rows=st.integers(1, 7),
    columns=st.integers(1, 9),
    patch=st.integers(1, 5),
    max_patches=st.integers(-1, 40),
    seed=st.integers(0, 2**63 - 1),
    absent=st.sampled_from(["none", "pixels", "patches", "both"]),
)
def test_any_masks(batch, words, rows, columns, patch, max_patches, seed, absent, device) -> None:
    words_mask, pixels, patches, index = _masks(batch, words, (rows, columns), patch, seed % 1000, device)
    masks = (words_mask, *(None if absent in (k, "both") else m for k, m in (("pixels", pixels), ("patches", patches))))
    _check((*masks, index), (rows, columns), max_patches, seed)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.float16], ids=str)
def test_mask_dtypes_and_strides(dtype, device) -> None:
    """Sizes that are no multiple of the grid, so that the nearest pixel is rounded; views into larger tensors."""
    attention_mask, _, patch_mask, index = _masks(3, 6, (5, 7), 1, 1, device)
    pixel_mask = torch.zeros(3, 2, 93, 241, dtype=dtype, device=device)
    for picture, (height, width) in zip(pixel_mask, ((93, 1), (40, 200), (7, 241)), strict=True):
        picture[0, :height, :width] = 1
    apart = attention_mask.t().contiguous().t(), patch_mask.transpose(1, 2).contiguous().transpose(1, 2)
    _check((apart[0], pixel_mask[:, 0, ::1, ::2], apart[1], index), (5, 7), 9)
    expanded = pixel_mask[:1, 0].expand(3, 93, 241)
    _check((attention_mask, expanded, patch_mask, index), (5, 7), -1)


def test_nearest_pixels(device) -> None:
    """A mask with one pixel set after another: the grid tells exactly which pixel stands for each patch."""
    for height, patches in ((384, 12), (100, 12), (97, 13), (1333, 41)):
        # Pictures that end just before and at the pixel of a patch, where a last bit would tell.
        pixels = reference.nearest_pixels(height, patches)[1::4]
        heights = torch.cat((pixels, pixels + 1)).to(device)[:, None]
        masks = (torch.arange(height, device=device) < heights)[:, :, None]
        words = torch.ones(len(heights), 1, dtype=torch.bool, device=device)
        _check((words, masks, None, torch.arange(len(heights), device=device)), (patches, 1), -1)


def test_empty_masks(device, poisoned) -> None:
    attention_mask, pixel_mask, patch_mask, index = _masks(3, 4, (3, 5), 2, 2, device)
    empty = (torch.zeros_like(attention_mask), torch.zeros_like(pixel_mask), torch.zeros_like(patch_mask))
    for max_patches in (-1, 4):
        plan = _check((*empty, index), (3, 5), max_patches)
        assert plan.cu_seqlens.tolist() == [0, 1, 2, 3]  # a CLS each
        _check((*empty, index), (3, 5), max_patches, has_cls=False)
        _check((attention_mask, pixel_mask, empty[2], index), (3, 5), max_patches)
        full = (torch.ones_like(attention_mask), torch.ones_like(pixel_mask), torch.ones_like(patch_mask))
        _check((*full, index), (3, 5), max_patches)


def test_no_pairs_and_no_words(device, poisoned) -> None:
    _check(_masks(0, 3, (2, 2), 2, 0, device), (2, 2), -1)
    _check(_masks(2, 0, (2, 2), 2, 0, device), (2, 2), 3)


def test_many_cells_words_and_pairs(device, monkeypatch) -> None:
    """Blocks smaller than the sizes, so that every loop takes several turns."""
    for name, size in (("_BLOCK_C", 64), ("_BLOCK_L", 4), ("_BLOCK_B", 2)):
        monkeypatch.setattr(kernel, name, size)
    masks = _masks(3, 11, (9, 15), 2, 3, device)
    for max_patches in (-1, 20):
        _check(masks, (9, 15), max_patches)


def test_a_draw_depends_on_the_picture_alone(device) -> None:
    """The same picture keeps the same patches in another batch, at another place, in a wider grid."""
    attention_mask, _, patch_mask, index = _masks(4, 3, (6, 6), 1, 4, device)
    pixel_mask = torch.ones(4, 6, 6, dtype=torch.int64, device=device)
    batch = kernel.patch_sample(attention_mask, pixel_mask, patch_mask, (6, 6), 7, SEED, index)
    wide = [torch.nn.functional.pad(mask[2:3], (0, 3, 0, 2)) for mask in (pixel_mask, patch_mask)]
    alone = kernel.patch_sample(attention_mask[2:3], *wide, (8, 9), 7, SEED, index[2:3])
    places = batch.patch_index[batch.patch_index // 36 == 2] % 36
    kept = alone.patch_index[alone.patch_index >= 0]
    assert (places // 6 * 9 + places % 6).tolist() == kept.tolist()
    other = kernel.patch_sample(attention_mask, pixel_mask, patch_mask, (6, 6), 7, SEED + 1, index)
    assert not torch.equal(other.patch_index, batch.patch_index)


@triton.jit
def _philox_kernel(out_ptr, counter_ptr, stream_ptr, seed: tl.int64, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    stream = tl.load(stream_ptr)
    keys = kernel._keys(offs >= 0, tl.load(counter_ptr + offs), seed, stream, 30)
    tl.store(out_ptr + offs, keys)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 7, 2**63 - 1])
def test_philox(seed, device) -> None:
    counter = torch.tensor([0, 1, 2**16, 2**30 - 1], dtype=torch.int32, device=device)
    for stream in (0, 1, 2**32 - 1, 2**32, 2**62 + 5):
        keys = torch.empty(4, dtype=torch.int64, device=device)
        _philox_kernel[(1,)](keys, counter, torch.tensor([stream], device=device), seed, BLOCK=4)
        streams = torch.full((4,), stream, device=device)
        assert torch.equal(keys - counter >> 30, reference.philox(seed, counter.long(), streams))


# --- arguments and registration ---------------------------------------------------------------------------------------

_ARGUMENTS = {
    "attention_mask": torch.ones(2, 3, dtype=torch.bool),
    "pixel_mask": torch.ones(2, 8, 8, dtype=torch.int64),
    "patch_mask": torch.ones(2, 2, 2, dtype=torch.bool),
    "grid_size": (2, 2),
    "max_patches": 3,
    "seed": 0,
    "image_index": torch.arange(2),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_mask": torch.ones(2, 3).long()}, "attention_mask: got dtype torch.int64, wanted torch.bool"),
        ({"pixel_mask": torch.ones(1, 8, 8)}, r"pixel_mask: got shape \(1, 8, 8\), wanted \(2, H, W\)"),
        ({"patch_mask": torch.ones(2, 2, 3).bool()}, r"patch_mask: got shape \(2, 2, 3\), wanted \(2, 2, 2\)"),
        ({"image_index": torch.arange(2).int()}, "image_index: got dtype torch.int32, wanted torch.int64"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 2**63}, "seed: got 9223372036854775808"),
        ({"grid_size": (2**15, 2**14), "patch_mask": None}, r"grid_size: .* fewer than 2\*\*30 cells"),
        ({"image_index": torch.arange(2, device="meta")}, "wanted one device"),
    ],
)
def test_bad_arguments(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        kernel.patch_sample(**(_ARGUMENTS | change))


def test_registration(device) -> None:
    masks = [_ARGUMENTS[name].to(device) for name in ("attention_mask", "pixel_mask", "patch_mask")]
    index = _ARGUMENTS["image_index"].to(device)
    for optional in (masks, [masks[0], None, None]):
        torch.library.opcheck(torch.ops.vilt_fast.patch_sample.default, (*optional, 2, 2, 3, SEED, index, True))

    def plan(attention_mask: Tensor, pixel_mask: Tensor) -> tuple:
        return tuple(kernel.patch_sample(attention_mask, pixel_mask, None, (2, 2), 3, SEED, index))

    compiled = torch.compile(plan, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(*masks[:2]), plan(*masks[:2])))


def test_the_launcher_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no values: a launcher that asked for one would raise."""
    grids = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *arguments, **options: grids.append(grid)

    monkeypatch.setattr(kernel, "select_kernel", Recorder())
    monkeypatch.setattr(kernel, "place_kernel", Recorder())
    masks = [_ARGUMENTS[name].to("meta") for name in ("attention_mask", "pixel_mask", "patch_mask", "image_index")]
    plan = kernel._launch(*masks[:3], 2, 2, 3, 0, masks[3], True)
    assert grids == [(2,), (2,)]
    assert [tensor.device.type for tensor in plan] == ["meta"] * 8


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(("patch", "max_patches"), [(32, -1), (32, 100), (16, 200), (8, 1000)])
def test_real_sizes(patch, max_patches, gpu) -> None:
    """256 pairs, and as many cells as small patches make; the launches wait for nothing."""
    grid_size = (608 // patch, 640 // patch)
    masks = tuple(mask.cpu() for mask in _masks(256, 40, grid_size, patch, 0, gpu))
    on_gpu = tuple(mask.to(gpu) for mask in masks)
    arguments = (grid_size, max_patches, SEED)
    kernel.patch_sample(*on_gpu[:3], *arguments, on_gpu[3])
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = kernel.patch_sample(*on_gpu[:3], *arguments, on_gpu[3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # The reference runs on the CPU, where its fp32 quotients are the nearest ones.
    wanted = reference.patch_sample(*masks[:3], *arguments, masks[3])
    for name, left, right in zip(got._fields, got, wanted, strict=True):
        assert torch.equal(left.cpu(), right), name
