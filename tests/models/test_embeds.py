"""Rows that a caller has embedded (`inputs_embeds`, `image_embeds`): any float dtype, and nothing that is no number."""

import pytest
import torch

import vilt_fast
from vilt_fast.models.heads import divergence

SIZES = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)


def vilt():
    config = vilt_fast.ViltConfig(**SIZES, image_size=32, patch_size=8)
    given = {"inputs_embeds": torch.randn(2, 5, 24), "image_embeds": torch.randn(2, 4, 24)}
    return vilt_fast.ViltModel(config).eval(), given


def visual_bert():
    config = vilt_fast.VisualBertConfig(**SIZES, visual_embedding_dim=10)
    given = {"inputs_embeds": torch.randn(2, 5, 24), "visual_embeds": torch.randn(2, 4, 10)}
    return vilt_fast.VisualBertModel(config).eval(), given


@pytest.fixture(params=[vilt, visual_bert], ids=lambda make: make.__name__)
def made(request):
    torch.manual_seed(0)
    return request.param()


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_of_another_dtype(made, dtype, grad):
    """They are converted to the model's, by every path."""
    model, given = made
    given = {name: rows.to(dtype) for name, rows in given.items()}
    with torch.set_grad_enabled(grad):
        got = model(**given).last_hidden_state
    wanted = model(**{name: rows.float() for name, rows in given.items()}).last_hidden_state
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)  # sums in another order


@pytest.mark.parametrize("form", ["live", "frozen"])
@pytest.mark.parametrize("place", ["inputs_embeds", "the other"])
def test_no_numbers(made, form, place):
    model, given = made
    call = model if form == "live" else vilt_fast.freeze(model)
    name = next(name for name in given if (name == "inputs_embeds") == (place == "inputs_embeds"))
    wrong = given[name].clone()
    wrong[1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match=f"{name}: row 2 of pair 1 has NaN or infinite values"):
        call(**{**given, name: wrong})
    kept = torch.ones(wrong.shape[:2])
    kept[1, 2] = 0
    masks = {"inputs_embeds": "attention_mask", "image_embeds": "pixel_mask", "visual_embeds": "visual_attention_mask"}
    assert call(**{**given, name: wrong, masks[name]: kept}).last_hidden_state.isfinite().all()
    for rows in (torch.ones_like(wrong).long(), torch.complex(given[name], given[name])):
        with pytest.raises(ValueError, match=f"{name} must be floating point, got torch"):
            call(**{**given, name: rows})


def test_a_complex_head_mask(made):
    model, given = made
    with pytest.raises(ValueError, match="head_mask must hold real numbers, got torch.complex64"):
        model(**given, head_mask=torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int64, torch.float16, torch.bool])
def test_places_of_phrases_in_any_real_dtype(dtype):
    torch.manual_seed(0)
    config = vilt_fast.VisualBertConfig(**SIZES, visual_embedding_dim=10)
    model = vilt_fast.VisualBertForRegionToPhraseAlignment(config).eval()
    given = {"input_ids": torch.randint(50, (2, 5)), "visual_embeds": torch.randn(2, 4, 10)}
    places = torch.tensor([[0, 1], [1, 0]])
    wanted = model(**given, region_to_phrase_position=places).logits
    assert torch.equal(model(**given, region_to_phrase_position=places.to(dtype)).logits, wanted)
    with pytest.raises(ValueError, match="must hold whole numbers, got torch.complex64"):
        model(**given, region_to_phrase_position=places.to(torch.complex64))


def test_the_dtype_of_a_divergence():
    logits, labels = torch.randn(2, 3).bfloat16(), torch.rand(2, 3)
    assert divergence(logits, labels.bfloat16()).dtype == torch.bfloat16
    assert divergence(logits, labels).dtype == torch.float32
    assert divergence(logits, torch.ones(2, 3, dtype=torch.uint16)).dtype == torch.bfloat16
