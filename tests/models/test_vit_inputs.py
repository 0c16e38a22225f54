"""Invalid input to a ViT is refused where it enters, with a ValueError that names the argument."""

import pytest
import torch

from vilt_fast import (
    PackedPixels,
    ViltConfig,
    ViltModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    freeze,
)

CONFIG = dict(
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    image_size=32,
    patch_size=8,
    encoder_stride=8,
    num_labels=5,
)
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MASKED = torch.ones(2, 16, dtype=torch.bool)
WHOLE = torch.ones(2, 32, 32)
SMALL = WHOLE.clone()
SMALL[1, 7:] = 0
HOLE = WHOLE.clone()
HOLE[1, 3, 3] = 0
NAN = PIXELS.clone()
NAN[1, 0, 5, 5] = float("nan")


@pytest.fixture(scope="module")
def models():
    """Each of the three, and a base model with a mask token."""
    torch.manual_seed(0)
    config = ViTConfig(**CONFIG)
    made = {
        cls.__name__: cls(config).eval() for cls in (ViTModel, ViTForImageClassification, ViTForMaskedImageModeling)
    }
    return {**made, "with token": ViTModel(config, use_mask_token=True).eval()}


def bytes_of(*sizes, **options):
    return PackedPixels(torch.zeros(sum(3 * h * w for h, w in sizes), dtype=torch.uint8), sizes, **options)


WRONG = {
    "no pixels": (dict(pixel_values=None), "pixel_values must be given"),
    "a list": (dict(pixel_values=[1.0]), "pixel_values must be a torch tensor, got list"),
    "an array": (dict(pixel_values=PIXELS.numpy()), "pixel_values must be a torch tensor, got ndarray"),
    "one image": (dict(pixel_values=PIXELS[0]), r"\(batch, channels, height, width\), got shape \(3, 32, 32\)"),
    "no image": (dict(pixel_values=PIXELS[:0]), "at least one image"),
    "integers": (dict(pixel_values=PIXELS.long()), "pixel_values must be floating point, got torch.int64"),
    "channels": (dict(pixel_values=PIXELS[:, :1]), "num_channels = 3 channels, got 1"),
    "more channels": (dict(pixel_values=PIXELS.repeat(1, 2, 1, 1)), "num_channels = 3 channels, got 6"),
    "less than a patch": (
        dict(pixel_values=PIXELS[..., :7], interpolate_pos_encoding=True),
        "at least one patch of 8 x 8 pixels, got 32 x 7",
    ),
    "another size": (dict(pixel_values=PIXELS[..., :24]), "32 x 32 pixels.* got 32 x 24; pass interpolate_pos_enc"),
    "another size, said": (
        dict(pixel_values=PIXELS[..., :31], interpolate_pos_encoding=False),
        "32 x 32 pixels, as config.image_size says, got 32 x 31",
    ),
    "NaN": (dict(pixel_values=NAN), "image 1 has NaN or infinite pixels"),
    "infinite": (dict(pixel_values=PIXELS / 0), "image 0 has NaN or infinite pixels"),
    "a word": (dict(interpolate_pos_encoding="yes"), "interpolate_pos_encoding must be True, False or None, got 'yes'"),
    "mask of pixels": (dict(pixel_mask=WHOLE[:, :, :31]), r"pixel_mask must have shape \(2, 32, 32\), got \(2, 32, 31"),
    "mask of patches": (dict(pixel_mask=torch.ones(2, 4, 4)), r"pixel_mask must have shape \(2, 32, 32\)"),
    "a hole": (dict(pixel_mask=HOLE), "image 1 must form one rectangle.*use patch_mask"),
    "a small image": (dict(pixel_mask=SMALL), "image 1 make less than one patch of 8 x 8"),
    "nothing": (dict(pixel_mask=WHOLE * 0), "image 0 has no valid pixel"),
    "mask, no interpolation": (dict(pixel_mask=WHOLE, interpolate_pos_encoding=False), "False goes without pixel_mask"),
    "NaN in a mask": (dict(pixel_mask=WHOLE / 0), "pixel_mask holds NaN or infinite"),
    "flat patch mask": (dict(patch_mask=MASKED), r"patch_mask must have shape \(2, 4, 4\), got \(2, 16\)"),
    "three heads": (dict(head_mask=torch.ones(3)), r"head_mask must be \(2,\) or \(1, 2\), got shape \(3,\)"),
    "list of heads": (dict(head_mask=[1, 1]), "head_mask must be a torch tensor"),
    "packed, small": (dict(pixel_values=bytes_of((32, 32), (9, 7))), "image 1 is 9 x 7 pixels, wanted at least one"),
    "packed and masked": (dict(pixel_values=bytes_of((32, 32)), pixel_mask=WHOLE[:1]), "pixel_mask goes with padded"),
    "packed, no interpolation": (
        dict(pixel_values=bytes_of((32, 32), (40, 32)), interpolate_pos_encoding=False),
        "as config.image_size says, got 32 x 32, 40 x 32",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=list(WRONG))
@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"])
def test_refused(models, name, case):
    changes, words = case
    with pytest.raises(ValueError, match=words):
        models[name](**{"pixel_values": PIXELS, **changes})


@pytest.mark.parametrize("name", ["with token", "ViTForMaskedImageModeling"])
@pytest.mark.parametrize(
    "masked, words",
    [
        (MASKED[:, :15], r"one entry for each patch, shape \(2, 16\) for a grid of 4 x 4, got \(2, 15\)"),
        (MASKED[:1], r"shape \(2, 16\) for a grid of 4 x 4, got \(1, 16\)"),
        (MASKED.view(2, 2, 8), r"got \(2, 2, 8\)"),
        (MASKED.tolist(), "bool_masked_pos must be a torch tensor, got list"),
        (MASKED / 0, "bool_masked_pos holds NaN or infinite values"),
    ],
    ids=["length", "batch", "grid", "list", "infinite"],
)
def test_masked_positions_refused(models, name, masked, words):
    with pytest.raises(ValueError, match=words):
        models[name](PIXELS, masked)


def test_masked_positions_need_a_token(models):
    with pytest.raises(ValueError, match="bool_masked_pos needs a mask token.*use_mask_token=True"):
        models["ViTModel"](PIXELS, MASKED)


def test_a_stride_that_is_not_the_patch(models):
    """Refused with a mask alone, as in transformers: the reconstruction has another size then."""
    model = ViTForMaskedImageModeling(ViTConfig(**{**CONFIG, "encoder_stride": 4}))
    with pytest.raises(ValueError, match="bool_masked_pos needs encoder_stride = patch_size.*= 4 and patch_size = 8"):
        model(PIXELS, MASKED)
    assert model(PIXELS).reconstruction.shape == (2, 3, 16, 16)


FLOATS = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
LABELS = {
    "list": ({}, [1, 2], "labels must be a torch tensor, got list"),
    "length": ({}, torch.tensor([1]), r"labels must have shape \(2,\), got \(1,\)"),
    "range": ({}, torch.tensor([1, 5]), r"labels must be in 0\.\.4 or -100, got 5"),
    "negative": ({}, torch.tensor([-1, 2]), r"labels must be in 0\.\.4 or -100, got -1"),
    "columns": ({}, torch.tensor([[1, 2]]), r"labels must have shape \(2,\), got \(1, 2\)"),
    "floats for classes": ({}, torch.tensor([0.5, 1.0]), r"labels must have shape \(2, 5\), got \(2,\)"),
    "NaN": ({}, FLOATS / 0 * 0, "labels holds NaN or infinite values"),
    "classes by name": (
        {"problem_type": "single_label_classification"},
        torch.tensor([0.5, 1.0]),
        "labels must hold integers, got torch.float32",
    ),
    "several by name": (
        {"problem_type": "multi_label_classification"},
        torch.tensor([1, 2]),
        r"labels must have shape \(2, 5\), got \(2,\)",
    ),
    "regression": ({"problem_type": "regression"}, FLOATS[:, 0], r"labels must have shape \(2, 5\), got \(2,\)"),
    "complex": ({"problem_type": "regression"}, FLOATS + 1j, "labels must hold real numbers, got torch.complex64"),
    "one number": ({"num_labels": 1}, FLOATS, r"labels must have shape \(2,\), got \(2, 5\)"),
    "infinite": ({"num_labels": 1}, FLOATS[:, 0] / 0, "labels holds NaN or infinite values"),
    "no classifier": ({"num_labels": 0}, torch.tensor([0, 0]), "config.num_labels is 0, there is nothing to learn"),
}


@pytest.mark.parametrize("case", LABELS.values(), ids=list(LABELS))
@pytest.mark.parametrize("states", [False, True], ids=["packed", "states"])
def test_labels_refused(case, states):
    changes, labels, words = case
    model = ViTForImageClassification(ViTConfig(**{**CONFIG, **changes}))
    with pytest.raises(ValueError, match=words):
        model(PIXELS, labels=labels, output_hidden_states=states)


@pytest.mark.parametrize(
    "field, value",
    [
        ("image_size", 7),
        ("patch_size", (8, 4)),
        ("encoder_stride", 0),
        ("pooler_output_size", 0),
        ("pooler_act", 3),
        ("pooler_act", "no such"),
        ("position_interpolation", "bicubic"),
        ("num_attention_heads", 5),
        ("qkv_bias", 1),
        ("num_channels", 0),
        ("drop_distillation_token", "yes"),
        ("hidden_act", "no such"),
        ("layer_norm_eps", 0),
        ("hidden_dropout_prob", 2),
        ("problem_type", "guessing"),
    ],
)
def test_configurations_refused(field, value):
    with pytest.raises(ValueError, match=field):
        ViTModel(ViTConfig(**{**CONFIG, field: value}))


def test_a_configuration_of_the_other_family():
    with pytest.raises(
        ValueError, match=r"config must be a ViTConfig of vilt_fast.configs.vit, got ViltConfig of \S+$"
    ):
        ViTModel(ViltConfig())
    with pytest.raises(ValueError, match="config must be a ViltConfig of vilt_fast.configs.vilt, got ViTConfig"):
        ViltModel(ViTConfig())


def test_a_configuration_of_transformers(vit_oracle):
    with pytest.raises(
        ValueError, match=r"got ViTConfig of transformers\S+; ViTConfig.from_dict\(config.to_dict\(\)\)"
    ):
        ViTModel(vit_oracle.transformers.ViTConfig(**CONFIG))


def test_one_channel():
    """Greyscale, by the configuration; packed bytes have three."""
    model = ViTModel(ViTConfig(**{**CONFIG, "num_channels": 1}))
    assert model(PIXELS[:, :1]).last_hidden_state.shape == (2, 17, 24)
    with pytest.raises(ValueError, match="packed images have 3 channels, the model 1"):
        model(bytes_of((32, 32)))


SMALLEST = CONFIG | dict(num_attention_heads=3, image_size=16, patch_size=8)


def test_labels_by_place_are_no_head_mask():
    """transformers 5 has `labels` where 4.37, and this class, have `head_mask`."""
    model = ViTForImageClassification(ViTConfig(**SMALLEST))
    pixels = torch.randn(3, 3, 16, 16)
    for form in (model, freeze(model)):
        with pytest.raises(ValueError, match=r"head_mask .* got torch.int64; labels go by name"):
            form(pixels, torch.tensor([0, 1, 1]))
    assert model(pixels, torch.tensor([True, False, True])).logits.shape[0] == 3


def test_the_switch_is_a_truth_value():
    """As live, so frozen."""
    model = ViTModel(ViTConfig(**SMALLEST))
    for form in (model, freeze(model)):
        with pytest.raises(ValueError, match="interpolate_pos_encoding must be True, False or None, got 1"):
            form(torch.randn(1, 3, 16, 16), interpolate_pos_encoding=1)


def test_a_mask_that_starts_elsewhere_is_refused_for_that():
    model = ViTModel(ViTConfig(**SMALLEST))
    mask = torch.ones(2, 16, 16)
    mask[1, :8] = 0
    with pytest.raises(ValueError, match="image 1 must form one rectangle that starts at the top left"):
        model(torch.randn(2, 3, 16, 16), pixel_mask=mask)
