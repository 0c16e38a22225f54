"""Tensors that hold no numbers, or none that mean anything, are refused by name, live and frozen."""

import warnings

import pytest
import torch

import vilt_fast
from vilt_fast.models.vilt import ViltForQuestionAnswering

NAN, INF = float("nan"), float("inf")
SLOTTED = "ViltForImagesAndTextClassification"


@pytest.fixture(scope="module")
def forms(small_config):
    """The live and the frozen form of a class, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            model = getattr(vilt_fast, name)(
                small_config(num_labels=3, modality_type_vocab_size=3, num_images=2)
            ).eval()
            made[name] = model, vilt_fast.freeze(model)
        return made[name]

    return get


def inputs_for(name):
    slots = (2,) if name == SLOTTED else ()
    return {
        "input_ids": torch.randint(0, 31, (2, 5)),
        "attention_mask": torch.ones(2, 5, dtype=torch.int64),
        "token_type_ids": torch.zeros(2, 5, dtype=torch.int64),
        "pixel_values": torch.randn(2, *slots, 3, 16, 24),
        "pixel_mask": torch.ones(2, *slots, 16, 24, dtype=torch.int64),
    }


def unusual_for(name):
    """Arguments, and those that they stand for."""
    return {
        "inputs_embeds": (torch.randn(2, 5, 48), ("input_ids",)),
        "image_embeds": (torch.randn(2, 7, 48), ("pixel_values", "pixel_mask")),
        "head_mask": (torch.ones(2, 4), ()),
        "patch_mask": (torch.ones(2, 2, 3), ()),
        "image_index": (torch.zeros(2, dtype=torch.int64), ()),
    }


def quantised(tensor):
    with warnings.catch_warnings():  # deprecated, and still there
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8)


KINDS = {
    "meta": (lambda tensor: tensor.to("meta"), "is on the meta device"),
    "sparse": (lambda tensor: tensor.to_sparse(), "must be a dense tensor, got a sparse_coo one"),
    "nested": (
        lambda tensor: torch.nested.nested_tensor([*tensor.float()]),
        "must be a dense tensor, got a nested one",
    ),
    "quantised": (quantised, "is in torch.quint8, which is not computed with"),
    "float8": (lambda tensor: tensor.to(torch.float8_e4m3fn), "is in torch.float8_e4m3fn, which is not computed with"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ViltForQuestionAnswering", SLOTTED, "ViltForMaskedLM"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_cannot_be_read(forms, name, kind):
    change, message = KINDS[kind]
    usual = inputs_for(name)
    calls = {argument: {**usual, argument: change(tensor)} for argument, tensor in usual.items()}
    if name != SLOTTED:
        for argument, (tensor, others) in unusual_for(name).items():
            rest = {other: value for other, value in usual.items() if other not in others}
            calls[argument] = {**rest, argument: change(tensor)}
    for form in forms(name):
        for argument, given in calls.items():
            with pytest.raises(ValueError, match=f"^{argument} {message}"):
                form(**given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_labels_that_cannot_be_read(forms, kind):
    change, message = KINDS[kind]
    name = "ViltForQuestionAnswering"
    with pytest.raises(ValueError, match=f"^labels {message}"):
        forms(name)[0](**inputs_for(name), labels=change(torch.rand(2, 3)))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("with_mask", [True, False])
def test_pixels_that_are_not_finite(forms, bad, dtype, with_mask):
    name = "ViltForQuestionAnswering"
    given = inputs_for(name)
    given["pixel_values"] = given["pixel_values"].to(dtype)
    given["pixel_values"][1, 2, 5, 3] = bad
    given = given if with_mask else {key: value for key, value in given.items() if key != "pixel_mask"}
    for form in forms(name):
        with pytest.raises(ValueError, match="pixel_values: image 1 has NaN or infinite pixels"):
            form(**given)


def test_the_second_image_of_the_second_text(forms):
    given = inputs_for(SLOTTED)
    given["pixel_values"][1, 1, 0, 0, 0] = NAN
    for form in forms(SLOTTED):
        with pytest.raises(ValueError, match="pixel_values: image 3 has NaN"):
            form(**given)


def test_pixels_that_no_patch_reads(forms):
    """Behind the mask anything may stand; large numbers are finite though their sum is not."""
    name = "ViltForQuestionAnswering"
    given = inputs_for(name)
    given["pixel_mask"][0, 8:] = 0
    poisoned = {**given, "pixel_values": given["pixel_values"].clone()}
    poisoned["pixel_values"][0, :, 8:] = NAN
    large = {**given, "pixel_values": torch.full_like(given["pixel_values"], 1e38)}
    for form in forms(name):
        with torch.no_grad():
            assert torch.equal(form(**poisoned).logits, form(**given).logits)
            form(**large)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("mask", ["attention_mask", "pixel_mask", "patch_mask", "head_mask"])
def test_masks_that_are_not_finite(forms, mask, bad):
    name = "ViltForQuestionAnswering"
    usual = inputs_for(name)
    tensor = unusual_for(name)[mask][0] if mask in unusual_for(name) else usual[mask].float()
    assert all(form(**usual, **{}).logits.isfinite().all() for form in forms(name))
    tensor.flatten()[-1] = bad
    for form in forms(name):
        with pytest.raises(ValueError, match=f"{mask} holds NaN or infinite values"):
            form(**{**usual, mask: tensor})


@pytest.mark.parametrize("batch", [0, 1])
def test_no_images_are_no_extremes(forms, batch):
    given = inputs_for("ViltForQuestionAnswering")
    given |= {"pixel_values": given["pixel_values"][:batch], "pixel_mask": given["pixel_mask"][:batch]}
    for form in forms("ViltForQuestionAnswering"):
        with pytest.raises(ValueError, match="pixel_values must have as many rows as the text, 2"):
            form(**given)


def test_a_model_that_computes_nothing(small_config):
    name = "ViltForQuestionAnswering"
    with pytest.raises(ValueError, match="the model is on the meta device, which holds no weights"):
        ViltForQuestionAnswering(small_config()).to("meta")(**inputs_for(name))
    with pytest.raises(ValueError, match=r"the model is in torch.float8_e4m3fn, which is not computed with.*bfloat16"):
        ViltForQuestionAnswering(small_config()).to(torch.float8_e4m3fn)(**inputs_for(name))
