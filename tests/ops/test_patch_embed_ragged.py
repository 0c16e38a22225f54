"""patch_embed from bytes: folding against fp64 and against the unfolded path, the kernel against the reference."""

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vilt_fast.packing import Layout
from vilt_fast.pixels import PackedPixels, fold_normalisation
from vilt_fast.reference import patch_embed as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VILT = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIP = dict(mean=(0.48, 0.457, 0.408), std=(0.268, 0.261, 0.275))
TABLE = (3, 4)


def normalise(pixels: Tensor, packed: PackedPixels) -> Tensor:
    """(N, C, p, p) bytes to what the processor would give, in fp64."""
    mean, std = (torch.tensor(numbers, dtype=torch.float64).view(3, 1, 1) for numbers in (packed.mean, packed.std))
    return (pixels.double() * packed.rescale_factor - mean) / std


def case(patch: int, hidden: int, sides: list[tuple[int, int]], dtype: torch.dtype, seed: int = 0, **numbers: Any):
    """Pictures of `sides` patches and everything that patch_embed reads, in `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    sizes = [(rows * patch, columns * patch) for rows, columns in sides]
    total = 3 * sum(height * width for height, width in sizes)
    packed = PackedPixels(torch.randint(0, 256, (total,), dtype=torch.uint8, generator=generator), sizes, **numbers)
    pairs = packed.pairs
    text = torch.ones(pairs, 2, dtype=torch.bool)
    layout = Layout.build(text, None, None, packed.grid_size(patch), grid=packed.pair_grid(patch))
    parameters = {
        "weight": normal(hidden, 3, patch, patch, scale=(3 * patch * patch) ** -0.5),
        "bias": normal(hidden),
        "position": normal(1 + TABLE[0] * TABLE[1], hidden),
        "cls_token": normal(hidden),
        "modality": normal(3, hidden),
    }
    pair_modality = torch.randint(0, 3, (pairs,), generator=generator)
    return packed, layout, parameters, pair_modality


def embed(
    module: Any,
    packed: PackedPixels,
    layout: Layout,
    parameters: dict[str, Tensor],
    pair_modality: Tensor,
    *,
    tokens_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """patch_embed from the bytes of a case."""
    weight, bias, scale = fold_normalisation(
        parameters["weight"], parameters["bias"], packed.mean, packed.std, packed.rescale_factor
    )
    tokens = torch.full((layout.total_tokens, weight.shape[0]), -7.0, dtype=tokens_dtype or weight.dtype)
    tensors = (packed.data, weight, bias, *(parameters[name] for name in ("position", "cls_token", "modality")))
    indices = (pair_modality, layout.grid, layout.patch_index, layout.patch_row, layout.cls_row)
    return module.patch_embed(
        tokens.to(device),
        *(tensor.to(device) for tensor in (*tensors, *indices)),
        table_size=TABLE,
        grid_size=layout.grid_size,
        pixel_offset=packed.pair_offset.to(device),
        pixel_scale=scale,
    ).cpu()


def embed_padded(
    packed: PackedPixels, layout: Layout, parameters: dict[str, Tensor], pair_modality: Tensor, dtype: torch.dtype
) -> Tensor:
    """The same by the padded path from normalised pixels in `dtype`, noise in the padding."""
    patch = parameters["weight"].shape[-1]
    height, width = (cells * patch for cells in layout.grid_size)
    pixels = torch.randn(packed.pairs, 3, height, width, dtype=dtype)
    for pair, index in enumerate(packed.image_of_pair):
        h, w = packed.sizes[index]
        image = packed.data[packed.offsets[index] : packed.offsets[index + 1]].view(h, w, 3).permute(2, 0, 1)
        pixels[pair, :, :h, :w] = normalise(image, packed).to(dtype)
    wide = {name: tensor.to(dtype) for name, tensor in parameters.items()}
    tokens = torch.full((layout.total_tokens, wide["weight"].shape[0]), -7.0, dtype=dtype)
    indices = (pair_modality, layout.grid, layout.patch_index, layout.patch_row, layout.cls_row)
    return reference.patch_embed(tokens, pixels, *wide.values(), *indices, table_size=TABLE)


# --- folding ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    mean=st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3),
    std=st.lists(st.floats(0.05, 2.0).map(lambda x: -x) | st.floats(0.05, 2.0), min_size=3, max_size=3),
    factor=st.sampled_from([1 / 255, 1.0, 2**-8, -0.01]),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_folding_is_exact_algebra(mean: list, std: list, factor: float, has_bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    weight, bias = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    pixels = torch.randint(0, 256, (7, 3, 4, 4)).double()
    folded, shift, scale = fold_normalisation(weight, bias if has_bias else None, mean, std, factor)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
    wanted = torch.einsum("ncyx,dcyx->nd", (pixels * factor - mean) / std, weight) + (bias if has_bias else 0)
    got = scale * torch.einsum("ncyx,dcyx->nd", pixels - 128, folded) + shift
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_std_leaves_the_weight_as_it_is(dtype: torch.dtype) -> None:
    weight = torch.randn(4, 3, 8, 8).to(dtype)
    folded, bias, scale = fold_normalisation(weight, None, (0.5, 0.4, 0.3), (0.5, 0.5, 0.5), 1 / 255)
    assert torch.equal(folded, weight) and folded.dtype == dtype and bias.dtype == torch.float32
    assert folded.is_contiguous(memory_format=torch.channels_last) and scale == 2 / 255


@pytest.mark.parametrize("numbers", [VILT, CLIP], ids=["ViLT", "CLIP"])
@pytest.mark.parametrize("picture", ["noise", "dark", "smooth", "grey"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_folded_loses_no_more_than_unfolded(dtype: torch.dtype, picture: str, numbers: dict[str, Any]) -> None:
    """3,072 terms a patch, as in ViLT-B/32, products accumulated in fp32 on both sides, as the kernels do."""
    torch.manual_seed(0)
    packed = PackedPixels(torch.zeros(3, dtype=torch.uint8), [(1, 1)], **numbers)
    weight, bias = (0.02 * torch.randn(64, 3, 32, 32)).to(dtype), (0.02 * torch.randn(64)).to(dtype)
    bytes_of = {
        "noise": lambda: torch.randint(0, 256, (200, 3, 32, 32)),
        "dark": lambda: torch.randint(0, 12, (200, 3, 32, 32)),
        "smooth": lambda: torch.randint(0, 226, (200, 3, 1, 1)) + torch.randint(0, 30, (200, 3, 32, 32)),
        "grey": lambda: torch.randint(120, 136, (200, 3, 32, 32)),
    }
    pixels = bytes_of[picture]()
    exact = torch.einsum("nk,dk->nd", normalise(pixels, packed).flatten(1), weight.double().flatten(1)) + bias.double()
    unfolded = normalise(pixels, packed).to(dtype).float().flatten(1) @ weight.float().flatten(1).T + bias.float()
    folded, shift, scale = fold_normalisation(weight, bias, packed.mean, packed.std, packed.rescale_factor)
    got = (pixels - 128.0).flatten(1) @ folded.float().flatten(1).T * scale + shift
    errors = [(result.double() - exact).square().mean().sqrt().item() for result in (got, unfolded)]
    # One std: neither weight nor bytes are rounded. Several: the weight is, in place of the pixels, which is as bad for
    # most pictures, and worse by a fifth where all normalised pixels happen to lie just below a power of two and so are
    # rounded little (dark). In fp32 the order of the sum is all that matters.
    slack = 0.1 if numbers is VILT and dtype != torch.float32 else 1.25
    assert errors[0] <= slack * errors[1], errors


# --- the whole operation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [VILT, CLIP], ids=["ViLT", "CLIP"])
@pytest.mark.parametrize("patch", [4, 14, 32])
def test_reference_equals_the_padded_path(patch: int, numbers: dict[str, Any]) -> None:
    arguments = case(patch, 12, [(2, 3), (1, 1), (3, 1)], torch.float64, picture=[1, 0, 2, 0], **numbers)
    got, wanted = embed(reference, *arguments), embed_padded(*arguments, torch.float64)
    assert (wanted != -7).any() and (wanted == -7).any()
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.fixture(scope="session")
def kernel(device: torch.device) -> ModuleType:
    from vilt_fast.kernels import patch_embed

    return patch_embed


@pytest.mark.parametrize(
    ("patch", "hidden", "dtype", "numbers"),
    [
        (32, 64, torch.float32, VILT),
        (32, 64, torch.bfloat16, CLIP),
        (32, 64, torch.float16, VILT),
        (16, 24, torch.float32, CLIP),
        (14, 40, torch.bfloat16, VILT),  # a patch is no power of two, nor are its runs
    ],
    ids=str,
)
def test_kernel_equals_the_reference(
    kernel: ModuleType,
    device: torch.device,
    tolerances: ModuleType,
    patch: int,
    hidden: int,
    dtype: torch.dtype,
    numbers: dict[str, Any],
) -> None:
    packed, layout, parameters, pair_modality = case(
        patch, hidden, [(2, 3), (1, 1), (3, 1)], dtype, picture=[1, 0, 2, 0], **numbers
    )
    got = embed(kernel, packed, layout, parameters, pair_modality, device=device)
    wide = {name: tensor.double() for name, tensor in parameters.items()}
    exact = embed_padded(packed, layout, wide, pair_modality, torch.float64)
    by_torch = embed_padded(packed, layout, parameters, pair_modality, dtype)
    assert torch.equal(got == -7, exact == -7)  # rows that nothing goes to
    tolerances.check("patch_embed", got, exact, by_torch)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_reference_in_16_bits_is_no_worse_than_unfolded(dtype: torch.dtype) -> None:
    packed, layout, parameters, pair_modality = case(32, 32, [(2, 3), (3, 2)], dtype, **VILT)
    wide = {name: tensor.double() for name, tensor in parameters.items()}
    exact = embed_padded(packed, layout, wide, pair_modality, torch.float64)
    results = (
        embed(reference, packed, layout, parameters, pair_modality),
        embed_padded(packed, layout, parameters, pair_modality, dtype),
    )
    errors = [(result.double() - exact).square().mean().sqrt().item() for result in results]
    assert 0 < errors[0] <= errors[1], errors


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_byte_converts_exactly(kernel: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """A weight of ones and zeros picks one byte a column: each of the 256 comes back as it is, and nothing is added."""
    packed, layout, parameters, pair_modality = case(16, 256, [(1, 1)], dtype, **VILT)
    packed = PackedPixels(torch.arange(256, dtype=torch.uint8).repeat_interleave(3), packed.sizes, **VILT)
    picks = torch.zeros(256, 3, 16, 16)
    picks.view(256, 3, 256)[:, 0].fill_diagonal_(1.0)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    weights = (picks.to(dtype), torch.full((256,), 128.0), *(nothing[n] for n in ("position", "cls_token", "modality")))
    indices = (pair_modality, layout.grid, layout.patch_index, layout.patch_row, layout.cls_row)
    tensors = (torch.zeros(layout.total_tokens, 256), packed.data, *weights, *indices)
    options = dict(table_size=TABLE, grid_size=layout.grid_size, pixel_offset=packed.pair_offset.to(device))
    got = kernel.patch_embed(*(tensor.to(device) for tensor in tensors), **options).cpu()
    assert torch.equal(got[layout.patch_row[0]], torch.arange(256.0))


@pytest.mark.parametrize(("dtype", "hidden"), [(torch.bfloat16, 272), (torch.float16, 256)], ids=str)
def test_wider_programs_give_the_same_bits(
    kernel: ModuleType, device: torch.device, dtype: torch.dtype, hidden: int
) -> None:
    """Whole numbers, so that sums are exact whatever the interpreter's BLAS does with them."""
    from vilt_fast.kernels import launch, switches

    packed, layout, parameters, pair_modality = case(16, hidden, [(2, 3), (1, 1)], dtype, **VILT)
    parameters["weight"] = (parameters["weight"] * 64).round()
    results = []
    for shared in (False, True):
        with switches.forced(shared_bytes=shared):
            results.append(embed(kernel, packed, layout, parameters, pair_modality, device=device))
            if not launch.INTERPRETED:
                continue
            empties = (tensor.to(dtype) for tensor in (torch.empty(0, hidden), parameters["weight"]))
            assert kernel._plan(*empties, TABLE, "bilinear", True).configuration["BLOCK_N"] == (256 if shared else 128)
    assert torch.equal(*results)


def test_registration(kernel: ModuleType, device: torch.device) -> None:
    packed, layout, parameters, pair_modality = case(4, 16, [(1, 2), (1, 1)], torch.float32, **VILT)
    tensors = (torch.zeros(layout.total_tokens, 16), packed.data, *parameters.values(), pair_modality)
    tensors += (layout.grid, layout.patch_index, layout.patch_row, layout.cls_row)
    tokens, *rest = (tensor.to(device) for tensor in tensors)
    offset = packed.pair_offset.to(device)

    def run(pixels: Tensor) -> Tensor:
        options = dict(table_size=TABLE, grid_size=layout.grid_size, pixel_offset=offset, pixel_scale=0.5)
        return kernel.patch_embed(tokens.clone(), pixels, *rest[1:], **options)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(rest[0]), run(rest[0]))


def test_a_row_does_not_depend_on_the_batch(kernel: ModuleType, device: torch.device) -> None:
    packed, layout, parameters, pair_modality = case(16, 32, [(2, 2), (1, 3), (2, 1)], torch.float32, **VILT)
    together = embed(kernel, packed, layout, parameters, pair_modality, device=device)
    alone = PackedPixels(packed.data[packed.offsets[1] : packed.offsets[2]].clone(), packed.sizes[1:2], **VILT)
    text = torch.ones(1, 2, dtype=torch.bool)
    layout_alone = Layout.build(text, None, None, alone.grid_size(16), grid=alone.pair_grid(16))
    single = embed(kernel, alone, layout_alone, parameters, pair_modality[1:2], device=device)
    start, end = layout.cu_seqlens[1:3].tolist()
    if device.type == "cuda":
        assert torch.equal(together[start:end], single)
    else:  # the BLAS under the interpreter adds up the last rows of a block in another order
        torch.testing.assert_close(together[start:end], single, rtol=0, atol=1e-6)


def test_unused_places_and_a_weight_in_either_memory_format(kernel: ModuleType, device: torch.device) -> None:
    packed, layout, parameters, pair_modality = case(16, 32, [(2, 2), (1, 3)], torch.float32, **VILT)
    weight, bias, scale = fold_normalisation(parameters["weight"], parameters["bias"], packed.mean, packed.std, 1 / 255)
    pad = torch.full((5,), -1, dtype=torch.int32)
    results = []
    for held in (weight, weight.contiguous()):
        for index, row in ((layout.patch_index, layout.patch_row), (torch.cat([layout.patch_index, pad]),) * 2):
            row = torch.cat([layout.patch_row, pad]) if len(row) > len(layout.patch_row) else row
            tensors = (packed.data, held, bias, *(parameters[n] for n in ("position", "cls_token", "modality")))
            tensors += (pair_modality, layout.grid, index, row, layout.cls_row)
            tokens = torch.full((layout.total_tokens, 32), -7.0, device=device)
            options = dict(table_size=TABLE, grid_size=layout.grid_size, pixel_scale=scale)
            offset = packed.pair_offset.to(device)
            out = kernel.patch_embed(tokens, *(t.to(device) for t in tensors), **options, pixel_offset=offset)
            assert out is tokens
            results.append(out.cpu())
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (dict(grid_size=None), "grid_size"),
        (dict(pixels=torch.zeros(9, 9, dtype=torch.uint8)), "pixels: got shape"),
        (dict(pixels=torch.zeros(9)), "pixels: got dtype torch.float32"),
        (dict(pixel_offset=torch.zeros(2, dtype=torch.int32)), "pixel_offset: got dtype"),
        (dict(pixel_offset=torch.zeros(3, dtype=torch.int64)), "pixel_offset: got shape"),
    ],
    ids=str,
)
def test_refusals(kernel: ModuleType, device: torch.device, change: dict[str, Any], part: str) -> None:
    packed, layout, parameters, pair_modality = case(16, 32, [(1, 1), (1, 1)], torch.float32, **VILT)
    options = dict(table_size=TABLE, grid_size=layout.grid_size, pixel_offset=packed.pair_offset)
    pixels = change.pop("pixels", packed.data)
    options |= change
    tensors = (torch.zeros(layout.total_tokens, 32), pixels, *parameters.values(), pair_modality)
    tensors += (layout.grid, layout.patch_index, layout.patch_row, layout.cls_row)
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    with pytest.raises(ValueError, match=part):
        kernel.patch_embed(*(tensor.to(device) for tensor in tensors), **options)
