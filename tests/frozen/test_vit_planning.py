"""A frozen ViT plans images with a pixel mask on the host, as the live form does on the device."""

import pytest
import torch

import vilt_fast
from vilt_fast.frozen import vit
from vilt_fast.models.image_inputs import ImageInputs

SIZES = ((19, 32), (8, 9), (24, 31))  # of patches of 8: whole ones, and pixels that make none


@pytest.fixture
def model():
    torch.manual_seed(0)
    small = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3)
    return vilt_fast.ViTForImageClassification(vilt_fast.ViTConfig(**small, patch_size=8, image_size=24)).eval()


def masked():
    mask = torch.zeros(len(SIZES), 24, 32, dtype=torch.int64)
    for one, (height, width) in zip(mask, SIZES, strict=True):
        one[:height, :width] = 1
    return {"pixel_values": torch.randn(len(SIZES), 3, 24, 32), "pixel_mask": mask}


def test_a_pixel_mask(model):
    given = masked()
    plan = vit.plan(ImageInputs(**given), model.config).plan
    assert plan.arrays["grid"].tolist() == [[height // 8, width // 8] for height, width in SIZES]
    with torch.inference_mode():
        torch.testing.assert_close(vilt_fast.freeze(model)(**given).logits, model(**given).logits)


def _no_rectangle(mask):
    mask[0, 0, 0] = 0


def _no_patch(mask):
    mask[1] = 0
    mask[1, :8, :7] = 1


def _nothing(mask):
    mask[2] = 0


@pytest.mark.parametrize("change", [_no_rectangle, _no_patch, _nothing])
def test_what_is_wrong_is_refused_as_by_the_live_form(model, change):
    given, messages = masked(), []
    change(given["pixel_mask"])
    assert vit.plan(ImageInputs(**given), model.config) is None
    for form in (model, vilt_fast.freeze(model)):
        with pytest.raises(ValueError, match="pixel_mask") as caught:
            form(**given)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_images_of_one_size_want_no_interpolation_but_with_a_mask(model):
    given = masked()
    assert vit.plan(ImageInputs(**given, interpolate_pos_encoding=False), model.config) is None
    whole = {"pixel_values": torch.randn(2, 3, 24, 24), "pixel_mask": torch.ones(2, 24, 24, dtype=torch.int64)}
    options = vit.plan(ImageInputs(**whole), model.config).options
    assert options["interpolation"] is not None, "as the live form reads it"
