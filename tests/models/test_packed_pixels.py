"""Packed bytes give what padded floats give: every head, limits, masks, shared images, gradients, errors."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vilt_fast import ops
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.models import vilt
from vilt_fast.models.inputs import Inputs
from vilt_fast.packing import Layout
from vilt_fast.pixels import PackedPixels

PATCH, WORDS = 8, 6
CONFIG = dict(
    vocab_size=20,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=16,
    max_position_embeddings=WORDS,
    modality_type_vocab_size=3,
    image_size=4 * PATCH,
    patch_size=PATCH,
    num_labels=4,
    num_images=2,
)
HEADS = [
    "ViltModel",
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForImageAndTextRetrieval",
    "ViltForImageTextMatching",
    "ViltForImagesAndTextClassification",
    "ViltForTokenClassification",
]
# fp32: sums of a few hundred terms, folded and not, each about 1e-6 off; fp64: the same at 1e-16.
TOLERANCE = {torch.float32: dict(rtol=1e-5, atol=1e-5), torch.float64: dict(rtol=1e-10, atol=1e-10)}
NORMALISATIONS = {
    "ViLT": dict(mean=0.5, std=0.5),
    "CLIP": dict(mean=(0.48, 0.457, 0.408), std=(0.268, 0.261, 0.275)),
    "none": dict(mean=0, std=1, rescale_factor=1 / 64),
}


def model(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> torch.nn.Module:
    """A model with every parameter random, so that a term that is missing shows."""
    made = getattr(vilt, name)(ViltConfig(**{**CONFIG, **changes}))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return made.to(dtype).eval()


def pictures(count: int, seed: int = 0, *, like: str = "ViLT", picture: Any = None) -> PackedPixels:
    """Random images of one to four patches per side."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randint(1, 5, (count, 2), generator=generator) * PATCH
    data = torch.randint(0, 256, (int(sides.prod(1).sum()) * 3,), dtype=torch.uint8, generator=generator)
    return PackedPixels(data, sides.tolist(), picture=picture, **NORMALISATIONS[like])


def padded(packed: PackedPixels, dtype: torch.dtype, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """pixel_values and pixel_mask of every pair, as the processor would make them, with noise in the padding."""
    sizes = [packed.sizes[index] for index in packed.image_of_pair]
    height, width = size or tuple(np.max(packed.sizes, 0).tolist())
    values = torch.randn(len(sizes), 3, height, width, dtype=dtype)
    mask = torch.zeros(len(sizes), height, width, dtype=torch.long)
    mean, std = (torch.tensor(numbers, dtype=torch.float64) for numbers in (packed.mean, packed.std))
    for pair, index in enumerate(packed.image_of_pair):
        h, w = packed.sizes[index]
        image = packed.data[packed.offsets[index] : packed.offsets[index + 1]].view(h, w, 3)
        values[pair, :, :h, :w] = ((image.double() * packed.rescale_factor - mean) / std).permute(2, 0, 1).to(dtype)
        mask[pair, :h, :w] = 1
    return {"pixel_values": values, "pixel_mask": mask}


def words(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, WORDS + 1, (count,), generator=generator)
    return {
        "input_ids": torch.randint(0, CONFIG["vocab_size"], (count, WORDS), generator=generator),
        "attention_mask": (torch.arange(WORDS) < lengths[:, None]).long(),
    }


def check_close(name: str, got: Any, wanted: Any, **tolerance: float) -> None:
    """torch.testing.assert_close, which says by how much and where, with the name of what is compared."""
    torch.testing.assert_close(got, wanted, msg=lambda text: f"{name}: {text}", **tolerance)


def check_outputs(got: Any, wanted: Any, dtype: torch.dtype) -> None:
    """Every field of two outputs that is a tensor."""
    assert list(got) == list(wanted)
    tensors = [field for field in wanted if isinstance(wanted[field], Tensor)]
    assert tensors
    for field in tensors:
        assert wanted[field].numel(), field
        check_close(field, got[field], wanted[field], **TOLERANCE[dtype])


@pytest.fixture
def projected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of patch_embed projected."""
    counts: list[int] = []
    before = ops.patch_embed

    def count(*arguments: Any, **options: Any) -> Tensor:
        counts.append(int((options["patch_index"] >= 0).sum()))
        return before(*arguments, **options)

    monkeypatch.setattr(ops, "patch_embed", count)
    return counts


@pytest.mark.parametrize("like", list(NORMALISATIONS))
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_every_head_equals_the_padded_path(name: str, dtype: torch.dtype, like: str) -> None:
    per_text = 2 if name == "ViltForImagesAndTextClassification" else 1
    packed, text = pictures(3 * per_text, like=like), words(3)
    reference = padded(packed, dtype)
    if per_text == 2:
        reference = {key: value.unflatten(0, (3, 2)) for key, value in reference.items()}
    tested = model(name, dtype)
    with torch.no_grad():
        got, wanted = tested(**text, pixel_values=packed), tested(**text, **reference)
    check_outputs(got, wanted, dtype)


def layout(tested: torch.nn.Module, **inputs: Any) -> Layout:
    return Inputs(**inputs).check(tested.config, torch.device("cpu")).layout(tested.config, False, [])


@pytest.mark.parametrize("limit", [-1, 1, 5, 100])
@pytest.mark.parametrize("masked", [False, True], ids=["every patch", "patch_mask"])
@pytest.mark.parametrize("indexed", [False, True], ids=["by place", "image_index"])
def test_the_same_patches_at_the_same_rows(limit: int, masked: bool, indexed: bool) -> None:
    tested, packed, text = model("ViltModel", max_image_length=limit), pictures(5, seed=limit + 1), words(5)
    options: dict[str, Any] = {"seed": 3}
    if masked:
        options["patch_mask"] = torch.rand(5, *packed.grid_size(PATCH)) < 0.6
    if indexed:
        options["image_index"] = torch.tensor([7, 0, 7, 2**40, 1])
    reference = padded(packed, torch.float64)
    got = layout(tested, **text, pixel_values=packed, **options)
    wanted = layout(tested, **text, **reference, **options)
    for name in ("cu_seqlens", "text_row", "word_row", "cls_row", "patch_index", "patch_row", "grid", "patch_count"):
        check_close(name, getattr(got, name), getattr(wanted, name), rtol=0, atol=0)
    assert (got.grid_size, got.total_tokens, got.max_seqlen) == (
        wanted.grid_size,
        wanted.total_tokens,
        wanted.max_seqlen,
    )
    with torch.no_grad():
        outputs = [tested(**text, **pixels, **options) for pixels in ({"pixel_values": packed}, reference)]
    check_outputs(*outputs, torch.float64)


@pytest.mark.parametrize("limit", [-1, 3])
def test_a_shared_image_is_projected_once(limit: int, projected: list[int]) -> None:
    seen = [2, 0, 2, 2, 0, 1]
    tested, text = model("ViltModel", max_image_length=limit), words(6)
    shared = pictures(3, picture=seen)
    reference = padded(shared, torch.float64)
    with torch.no_grad():
        got = tested(**text, pixel_values=shared, seed=5)
        # One image, one draw: the padded path is told so.
        wanted = tested(**text, **reference, seed=5, image_index=torch.tensor(seen))
    check_outputs(got, wanted, torch.float64)
    cells = [height * width // PATCH**2 for height, width in shared.sizes]
    kept = [cells[index] if limit < 0 else min(cells[index], limit) for index in range(3)]
    assert projected == [sum(kept), sum(kept[index] for index in seen)]


def test_shared_rows_are_the_same_bits(projected: list[int]) -> None:
    tested, text, seen = model("ViltModel", torch.float32), words(4), (0, 1, 0, 0)
    shared = pictures(2, picture=seen)
    parts = [shared.data[shared.offsets[i] : shared.offsets[i + 1]] for i in seen]
    repeated = PackedPixels(torch.cat(parts), [shared.sizes[i] for i in seen])
    rows = []
    for packed in (shared, repeated):
        batch = Inputs(**text, pixel_values=packed).check(tested.config, torch.device("cpu"))
        with torch.no_grad():
            rows.append(
                tested.embeddings(
                    batch.layout(tested.config, False, []),
                    input_ids=batch.input_ids,
                    token_type_ids=batch.token_type_ids,
                    pixel_values=packed,
                    pair_modality=batch.pair_modality,
                )[0]
            )
    assert projected[0] < projected[1]
    # The reference multiplies matrices of other heights, where BLAS may add in another order; a kernel does not.
    check_close("embeddings", rows[0], rows[1], rtol=1e-6, atol=1e-6)


def test_statements_about_the_same_two_images(projected: list[int]) -> None:
    """NLVR2: an image is projected once for each place it takes in a pair, because the places differ in modality."""
    tested, text = model("ViltForImagesAndTextClassification"), words(3)
    packed = pictures(2, picture=[[0, 1], [0, 1], [1, 0]])
    reference = {key: value.unflatten(0, (3, 2)) for key, value in padded(packed, torch.float64).items()}
    with torch.no_grad():
        check_outputs(tested(**text, pixel_values=packed), tested(**text, **reference), torch.float64)
    cells = sum(height * width // PATCH**2 for height, width in packed.sizes)
    assert projected == [2 * cells, 3 * cells]


@pytest.mark.parametrize("option", ["patch_mask", "image_index"])
def test_pairs_that_see_different_patches_are_projected_each(option: str, projected: list[int]) -> None:
    tested, text = model("ViltModel", max_image_length=3), words(4)
    packed = pictures(2, seed=4, picture=[0, 1, 1, 0])
    assert min(height * width // PATCH**2 for height, width in packed.sizes) > 3, "nothing would be drawn"
    options = {
        "patch_mask": {"patch_mask": torch.rand(4, *packed.grid_size(PATCH)) < 0.7},
        "image_index": {"image_index": torch.tensor([4, 5, 6, 7])},
    }[option]
    index = {"image_index": torch.tensor(packed.picture), **options}
    with torch.no_grad():
        got = tested(**text, pixel_values=packed, seed=1, **options)
        wanted = tested(**text, **padded(packed, torch.float64), seed=1, **index)
    check_outputs(got, wanted, torch.float64)
    assert projected[0] == projected[1]


def test_hidden_states_and_attentions_are_at_the_same_places() -> None:
    tested, text, packed = model("ViltForQuestionAnswering"), words(3), pictures(3, seed=2)
    options = dict(output_hidden_states=True, output_attentions=True)
    with torch.no_grad():
        got = tested(**text, pixel_values=packed, **options)
        wanted = tested(**text, **padded(packed, torch.float64), **options)
    for name in ("hidden_states", "attentions"):
        check_close(name, got[name], wanted[name], **TOLERANCE[torch.float64])


@pytest.mark.parametrize("like", ["ViLT", "CLIP"])
def test_gradients_pass_through_the_folding(like: str) -> None:
    tested, text, packed = model("ViltForQuestionAnswering"), words(4), pictures(3, like=like, picture=[0, 2, 1, 2])
    gradients = []
    for pixels in ({"pixel_values": packed}, padded(packed, torch.float64)):
        tested.zero_grad()
        tested(**text, **pixels).logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in tested.named_parameters()})
    assert gradients[0]["vilt.embeddings.patch_embeddings.projection.weight"].abs().max() > 0
    check_close("gradients", *gradients, rtol=1e-9, atol=1e-9)


def test_an_updated_weight_is_used_in_the_next_call() -> None:
    tested, text, packed = model("ViltModel"), words(2), pictures(2)
    with torch.no_grad():
        before = tested(**text, pixel_values=packed).pooler_output
        projection = tested.embeddings.patch_embeddings.projection
        projection.weight.data.mul_(-1)  # behind autograd's back: no version counter moves
        after = tested(**text, pixel_values=packed).pooler_output
        assert (after - before).abs().max() > 1e-3
        wanted = tested(**text, **padded(packed, torch.float64)).pooler_output
    check_close("pooler_output", after, wanted, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("limit", [-1, 2])
def test_the_whole_model_on_kernels(limit: int) -> None:
    """In Triton's interpreter, or on a GPU: layout and rows of shared images, then everything after them."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    from vilt_fast.kernels import launch

    device = torch.device("cpu" if launch.INTERPRETED else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU, and Triton was imported without TRITON_INTERPRET=1")
    tested = model("ViltForQuestionAnswering", torch.float32, max_image_length=limit)
    text, packed = words(3), pictures(2, picture=[1, 0, 1])
    with torch.no_grad(), ops.backend("reference"):
        wanted = tested(**text, pixel_values=packed, seed=4).logits
    tested, text = tested.to(device), {name: tensor.to(device) for name, tensor in text.items()}
    with torch.no_grad(), ops.backend("kernels"):
        got = tested(**text, pixel_values=packed.to(device), seed=4).logits
    check_close("logits", got.cpu(), wanted, rtol=1e-4, atol=1e-4)  # fp32 sums in another order, two layers


def test_bytes_after_the_last_image_are_not_read() -> None:
    tested, text, packed = model("ViltModel"), words(2), pictures(2)
    longer = PackedPixels(torch.cat([packed.data, torch.full((1001,), 77, dtype=torch.uint8)]), packed.sizes)
    with torch.no_grad():
        got, wanted = (tested(**text, pixel_values=pixels).pooler_output for pixels in (longer, packed))
    check_close("pooler_output", got, wanted, rtol=0, atol=0)


def refused(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    for part in parts:
        assert re.search(part, str(caught.value)), str(caught.value)


ODD = PackedPixels(torch.zeros(9 * 8 * 3, dtype=torch.uint8), [(9, 8)], picture=[0, 0, 0])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (dict(pixel_values=pictures(3), pixel_mask=torch.ones(3, 32, 32)), ("pixel_mask",)),
        (dict(pixel_values=pictures(2)), ("pixel_values", "3, got 2", "picture")),
        (dict(pixel_values=pictures(3, picture=[0, 1])), ("3, got 2",)),
        (dict(pixel_values=ODD), ("image 0 is 9 x 8", "multiples of the patch, 8")),
        (dict(pixel_values=pictures(3).to("meta")), ("pixel_values is on the meta device",)),
        (dict(pixel_values=pictures(3), patch_mask=torch.ones(3, 9, 9)), ("patch_mask",)),
        (dict(pixel_values=pictures(3), image_embeds=torch.ones(3, 2, 24)), ("both",)),
    ],
    ids=["pixel_mask", "few", "few by picture", "odd size", "device", "patch_mask", "image_embeds"],
)
def test_inputs_that_contradict_each_other(arguments: dict[str, Any], parts: tuple[str, ...]) -> None:
    refused(lambda: model("ViltForQuestionAnswering")(**words(3), **arguments), *parts)


def test_images_that_do_not_fit_the_model() -> None:
    grey = model("ViltModel", num_channels=1)
    refused(lambda: grey(**words(3), pixel_values=pictures(3)), "3 channels, the model 1")
    several = model("ViltForImagesAndTextClassification")
    refused(lambda: several(**words(3), pixel_values=pictures(3)), "num_images = 2", "6, got 3")


BYTES = torch.zeros(8 * 8 * 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (dict(data=BYTES.float()), "data: got torch.float32"),
        (dict(data=BYTES.view(8, -1)), "wanted a flat uint8"),
        (dict(data=BYTES.repeat_interleave(2)[::2]), "contiguous"),
        (dict(data=BYTES[1:]), "got 191 bytes, wanted the 192"),
        (dict(sizes=[(8, 0)]), r"sizes\[0\]"),
        (dict(sizes=[]), "at least one image"),
        (dict(picture=[]), "at least one image"),
        (dict(picture=[0, 1]), r"picture\[1\]: got 1"),
        (dict(picture=[-1]), r"picture\[0\]: got -1"),
        (dict(picture=[0.0]), "picture: got 0.0"),
        (dict(std=0), "no std of 0"),
        (dict(mean=(0.5, float("nan"), 0.5)), "finite"),
        (dict(mean=(0.5, 0.5)), "mean: got 2 numbers"),
        (dict(rescale_factor=0.0), "rescale_factor"),
    ],
)
def test_an_impossible_batch_is_refused(arguments: dict[str, Any], part: str) -> None:
    refused(lambda: PackedPixels(**{"data": BYTES, "sizes": [(8, 8)], **arguments}), part)


def test_moving_changes_only_the_device() -> None:
    packed = pictures(3, like="CLIP", picture=torch.tensor([[0, 2], [1, 1]]))
    assert packed.to("cpu") is packed
    moved = packed.to("meta")
    assert moved.device.type == "meta" and moved.picture == (0, 2, 1, 1)
    assert (moved.sizes, moved.mean, moved.std, moved.rescale_factor) == (
        packed.sizes,
        packed.mean,
        packed.std,
        packed.rescale_factor,
    )
    assert len(packed) == 3 and packed.pairs == 4
    assert packed.image_index.tolist() == [0, 2, 1, 1]
    assert packed.pair_offset.tolist() == [packed.offsets[i] for i in packed.picture]
    assert packed.pair_grid(PATCH).tolist() == [list(grid) for grid in packed.grids(PATCH)]
