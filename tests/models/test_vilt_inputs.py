"""Invalid input is refused where it enters, with a ValueError that names the argument."""

import pytest
import torch

from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.models import vilt

CONFIG = dict(
    vocab_size=20,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=16,
    max_position_embeddings=6,
    modality_type_vocab_size=3,
    image_size=32,
    patch_size=16,
    num_labels=4,
    num_images=2,
)
PAIRS, WORDS, HEIGHT, WIDTH = 2, 5, 32, 48


@pytest.fixture(scope="module")
def models():
    """One of each class, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = getattr(vilt, name)(ViltConfig(**CONFIG)).eval()
        return made[name]

    return get


def inputs(**changes):
    """A good call of two pairs with `changes`; None removes an argument."""
    good = {
        "input_ids": torch.randint(0, 20, (PAIRS, WORDS)),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "token_type_ids": torch.zeros(PAIRS, WORDS, dtype=torch.long),
        "pixel_values": torch.randn(PAIRS, 3, HEIGHT, WIDTH),
        "pixel_mask": pixel_mask((HEIGHT, WIDTH), (16, 32)),
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def pixel_mask(*sides):
    mask = torch.zeros(len(sides), HEIGHT, WIDTH, dtype=torch.long)
    for picture, (height, width) in zip(mask, sides, strict=True):
        picture[:height, :width] = 1
    return mask


def with_value(tensor, index, value):
    changed = tensor.clone()
    changed[index] = value
    return changed


def l_shaped():
    mask = pixel_mask((32, 48), (32, 48))
    mask[1, 16:, 16:] = 0
    return mask


def with_hole():
    return with_value(pixel_mask((32, 48), (32, 48)), (0, 20, 20), 0)


def off_corner():
    mask = torch.zeros(PAIRS, HEIGHT, WIDTH, dtype=torch.long)
    mask[:, 16:, 16:] = 1
    return mask


IDS = torch.zeros(PAIRS, WORDS, dtype=torch.long)
PIXELS = torch.zeros(PAIRS, 3, HEIGHT, WIDTH)
FULL = torch.ones(PAIRS, HEIGHT, WIDTH, dtype=torch.long)
EMBEDS = torch.zeros(PAIRS, WORDS, 24)
IMAGE = torch.zeros(PAIRS, 7, 24)

# What is wrong, the changes that make it so, and what the message must name.
BAD = {
    "more texts than pictures": (dict(pixel_values=PIXELS[:1], pixel_mask=FULL[:1]), "pixel_values"),
    "more pictures than texts": (dict(input_ids=IDS[:1], attention_mask=None, token_type_ids=None), "pixel_values"),
    "more picture embeddings": (
        dict(pixel_values=None, pixel_mask=None, image_embeds=torch.zeros(3, 7, 24)),
        "image_embeds",
    ),
    "no text": (dict(input_ids=None), "input_ids.*inputs_embeds"),
    "text twice": (dict(inputs_embeds=EMBEDS), "input_ids.*inputs_embeds"),
    "no picture": (dict(pixel_values=None, pixel_mask=None), "pixel_values.*image_embeds"),
    "picture twice": (dict(image_embeds=IMAGE), "pixel_values.*image_embeds"),
    "text too long": (
        dict(input_ids=torch.zeros(PAIRS, 7, dtype=torch.long), attention_mask=None, token_type_ids=None),
        "max_position_embeddings",
    ),
    "embeddings too long": (
        dict(input_ids=None, inputs_embeds=torch.zeros(PAIRS, 7, 24), attention_mask=None, token_type_ids=None),
        "max_position_embeddings",
    ),
    "no words": (dict(input_ids=IDS[:, :0], attention_mask=None, token_type_ids=None), "input_ids"),
    "no pairs": (
        dict(input_ids=IDS[:0], attention_mask=None, token_type_ids=None, pixel_values=PIXELS[:0], pixel_mask=None),
        "input_ids",
    ),
    "ids without a batch": (dict(input_ids=IDS[0], attention_mask=None, token_type_ids=None), "input_ids"),
    "ids that are floats": (dict(input_ids=IDS.float()), "input_ids"),
    "ids that are a list": (dict(input_ids=IDS.tolist()), "input_ids"),
    "id too large": (dict(input_ids=with_value(IDS, (1, 2), 20)), "input_ids.*20"),
    "id negative": (dict(input_ids=with_value(IDS, (0, 0), -1)), "input_ids.*-1"),
    "type too large": (dict(token_type_ids=with_value(IDS, (1, 0), 2)), "token_type_ids.*2"),
    "type negative": (dict(token_type_ids=with_value(IDS, (1, 0), -5)), "token_type_ids.*-5"),
    "types of another shape": (dict(token_type_ids=IDS[:, :4]), "token_type_ids"),
    "embeddings of another width": (dict(input_ids=None, inputs_embeds=torch.zeros(PAIRS, WORDS, 25)), "inputs_embeds"),
    "picture embeddings of another width": (
        dict(pixel_values=None, pixel_mask=None, image_embeds=torch.zeros(PAIRS, 7, 25)),
        "image_embeds",
    ),
    "picture embeddings without rows": (
        dict(pixel_values=None, pixel_mask=None, image_embeds=IMAGE[:, :0]),
        "image_embeds",
    ),
    "mask of another number of picture embeddings": (
        dict(pixel_values=None, pixel_mask=torch.ones(PAIRS, 6), image_embeds=IMAGE),
        "pixel_mask",
    ),
    "mask of no picture embedding": (
        dict(pixel_values=None, pixel_mask=torch.tensor([[1] * 7, [0] * 7]), image_embeds=IMAGE),
        "pixel_mask",
    ),
    "patches dropped from picture embeddings": (
        dict(pixel_values=None, pixel_mask=None, image_embeds=IMAGE, patch_mask=torch.ones(PAIRS, 2, 3)),
        "patch_mask",
    ),
    "words of another mask": (dict(attention_mask=torch.ones(PAIRS, 4)), "attention_mask"),
    "no word to attend to": (dict(attention_mask=torch.tensor([[1] * 5, [0] * 5])), "attention_mask"),
    "pixel mask empty": (dict(pixel_mask=pixel_mask((32, 48), (0, 0))), "pixel_mask.*image 1"),
    "pixel mask L-shaped": (dict(pixel_mask=l_shaped()), "pixel_mask.*image 1.*rectangle"),
    "pixel mask with a hole": (dict(pixel_mask=with_hole()), "pixel_mask.*image 0.*rectangle"),
    "pixel mask off the corner": (dict(pixel_mask=off_corner()), "pixel_mask.*top left"),
    "pixel mask smaller than the picture": (dict(pixel_mask=FULL[:, :31]), "pixel_mask"),
    "pixel mask with channels": (dict(pixel_mask=torch.ones(PAIRS, 3, HEIGHT, WIDTH)), "pixel_mask"),
    "pixel mask of fewer pictures": (dict(pixel_mask=FULL[:1]), "pixel_mask"),
    "pixels of one channel": (dict(pixel_values=PIXELS[:, :1]), "num_channels"),
    "pixels channels last": (dict(pixel_values=PIXELS.permute(0, 2, 3, 1), pixel_mask=None), "num_channels"),
    "pixels without a batch": (dict(pixel_values=PIXELS[0], pixel_mask=None), "pixel_values"),
    "pixels that are integers": (dict(pixel_values=PIXELS.to(torch.uint8)), "pixel_values"),
    "pixels smaller than a patch": (dict(pixel_values=PIXELS[..., :15], pixel_mask=None), "pixel_values.*patch"),
    "heads of another number": (dict(head_mask=torch.ones(4)), "head_mask"),
    "layers of another number": (dict(head_mask=torch.ones(3, 3)), "head_mask"),
    "patches of another grid": (dict(patch_mask=torch.ones(PAIRS, 3, 2)), "patch_mask"),
    "patches of fewer pictures": (dict(patch_mask=torch.ones(1, 2, 3)), "patch_mask"),
    "patches of pixels": (dict(patch_mask=FULL), "patch_mask"),
    "seed negative": (dict(seed=-1), "seed"),
    "seed a float": (dict(seed=0.5), "seed"),
    "picture index of another shape": (dict(image_index=torch.tensor([1])), "image_index"),
    "picture index negative": (dict(image_index=torch.tensor([0, -1])), "image_index"),
    "picture index a float": (dict(image_index=torch.tensor([0.0, 1.0])), "image_index"),
}


@pytest.mark.parametrize("what", BAD)
def test_refused(models, what):
    changes, named = BAD[what]
    with pytest.raises(ValueError, match=named):
        models("ViltModel")(**inputs(**changes))


@pytest.mark.parametrize("what", ["text too long", "id too large", "pixel mask L-shaped", "picture twice"])
@pytest.mark.parametrize(
    "name",
    [
        "ViltForMaskedLM",
        "ViltForQuestionAnswering",
        "ViltForImageAndTextRetrieval",
        "ViltForImageTextMatching",
        "ViltForTokenClassification",
    ],
)
def test_refused_by_every_head(models, name, what):
    changes, named = BAD[what]
    with pytest.raises(ValueError, match=named):
        models(name)(**inputs(**changes))


def test_the_good_call_is_good(models):
    """Nothing above fails for another reason."""
    out = models("ViltModel")(**inputs())
    assert out.last_hidden_state.isfinite().all()


@pytest.mark.parametrize("index", [-1, 3, 1.5, torch.tensor([1, 3]), torch.tensor([1, 2, 1])], ids=str)
def test_modality_out_of_range(models, index):
    with pytest.raises(ValueError, match="image_token_type_idx"):
        models("ViltModel")(**inputs(image_token_type_idx=index))


BAD_LABELS = {
    "ViltForMaskedLM": [
        torch.zeros(PAIRS, WORDS + 1, dtype=torch.long),
        torch.zeros(PAIRS, dtype=torch.long),
        torch.zeros(PAIRS, WORDS),
        torch.full((PAIRS, WORDS), 20),
        torch.full((PAIRS, WORDS), -1),
    ],
    "ViltForQuestionAnswering": [torch.zeros(PAIRS, 5), torch.zeros(PAIRS, dtype=torch.long), torch.zeros(1, 4)],
    "ViltForImageAndTextRetrieval": [
        torch.tensor([0, 1, 0]),
        torch.tensor([0, 2]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([[0], [1]]),
        torch.tensor([1, 1]),  # no pair of a match and a non-match to rank
    ],
    "ViltForImageTextMatching": [torch.tensor([0]), torch.tensor([0, 2]), torch.tensor([0.0, 1.0])],
    "ViltForTokenClassification": [
        torch.zeros(PAIRS, WORDS - 1, dtype=torch.long),
        torch.full((PAIRS, WORDS), 4),
        torch.zeros(PAIRS, WORDS),
    ],
    "ViltForImagesAndTextClassification": [torch.tensor([0]), torch.tensor([0, 4]), torch.tensor([0.0, 1.0])],
}


@pytest.mark.parametrize("name, place", [(name, i) for name, cases in BAD_LABELS.items() for i in range(len(cases))])
def test_labels_refused(models, name, place):
    given = inputs()
    if name == "ViltForImagesAndTextClassification":
        given["pixel_values"] = given["pixel_values"][:, None].repeat(1, 2, 1, 1, 1)
        given["pixel_mask"] = given["pixel_mask"][:, None].repeat(1, 2, 1, 1)
    with pytest.raises(ValueError, match="labels"):
        models(name)(**given, labels=BAD_LABELS[name][place])


@pytest.mark.parametrize("name", BAD_LABELS)
def test_labels_that_are_a_list_are_refused(models, name):
    given = inputs()
    if name == "ViltForImagesAndTextClassification":
        given = several(2)
    with pytest.raises(ValueError, match="labels"):
        models(name)(**given, labels=[0, 1])


def several(num_images, **changes):
    return inputs(
        pixel_values=torch.randn(PAIRS, num_images, 3, HEIGHT, WIDTH),
        pixel_mask=pixel_mask((HEIGHT, WIDTH), (16, 32))[:, None].repeat(1, num_images, 1, 1),
        **changes,
    )


@pytest.mark.parametrize(
    "given, named",
    [
        (several(1), "pixel_values.*num_images"),
        (several(3), "pixel_values.*num_images"),
        (inputs(), "pixel_values.*num_images"),
        ({**several(2), "pixel_mask": FULL}, "pixel_mask"),
        ({**several(2), "pixel_mask": FULL[:, None]}, "pixel_mask"),
        ({**several(2), "patch_mask": torch.ones(PAIRS, 2, 3)}, "patch_mask"),
        ({**several(2), "input_ids": IDS[:1], "attention_mask": None, "token_type_ids": None}, "pixel_values"),
        ({**several(2), "pixel_values": None}, "pixel_values.*image_embeds"),
        ({**several(2), "pixel_values": None, "pixel_mask": None, "image_embeds": IMAGE}, "image_embeds.*num_images"),
        ({**several(2), "input_ids": None}, "input_ids.*inputs_embeds"),
        ({**several(2), "attention_mask": torch.ones(PAIRS, 4)}, "attention_mask"),
    ],
)
def test_several_pictures_refused(models, given, named):
    with pytest.raises(ValueError, match=named):
        models("ViltForImagesAndTextClassification")(**given)


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(hidden_size=25), "hidden_size.*num_attention_heads"),
        (dict(num_attention_heads=5), "hidden_size.*num_attention_heads"),
        (dict(num_attention_heads=0), "num_attention_heads"),
        (dict(hidden_size=-24), "hidden_size"),
        (dict(num_hidden_layers=-1), "num_hidden_layers"),
        (dict(image_size=8), "image_size"),
        (dict(patch_size=0), "patch_size"),
        (dict(patch_size=(16, 8)), "patch_size"),
        (dict(max_image_length=0), "max_image_length"),
        (dict(vocab_size=0), "vocab_size"),
        (dict(hidden_act="gelu_typo"), "hidden_act"),
    ],
)
def test_config_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        vilt.ViltModel(ViltConfig(**{**CONFIG, **changes}))


@pytest.mark.parametrize(
    "changes, named", [(dict(num_images=-1), "num_images"), (dict(num_images=3), "modality_type_vocab_size")]
)
def test_config_refused_by_the_head_for_several_pictures(changes, named):
    with pytest.raises(ValueError, match=named):
        vilt.ViltForImagesAndTextClassification(ViltConfig(**{**CONFIG, **changes}))


def test_a_config_of_another_class_is_refused():
    with pytest.raises(ValueError, match="config"):
        vilt.ViltModel(CONFIG)


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(head_mask=torch.ones(4)), ("(3,)", "(2, 3)", "(4,)")),
        (dict(pixel_values=PIXELS[:, :1]), ("3", "1")),
        (dict(attention_mask=torch.ones(PAIRS, 4)), ("(2, 5)", "(2, 4)")),
        (dict(input_ids=with_value(IDS, (1, 2), 20)), ("0..19", "20")),
    ],
    ids=["head_mask", "pixel_values", "attention_mask", "input_ids"],
)
def test_errors_say_what_came_and_what_is_wanted(models, changes, told):
    """One of each kind, in full."""
    with pytest.raises(ValueError) as caught:
        models("ViltModel")(**inputs(**changes))
    for part in told:
        assert part in str(caught.value)


def test_a_model_is_whole_after_a_refused_call(models):
    """A refused call changes neither parameters nor the next result."""
    model = models("ViltForQuestionAnswering")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = inputs()
    with torch.no_grad():
        expected = model(**given).logits
        for changes, _ in list(BAD.values())[:10]:
            with pytest.raises(ValueError):
                model(**inputs(**changes))
        assert torch.equal(model(**given).logits, expected), "logits"
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value), name


@pytest.mark.parametrize(
    "name", ["ViltForMaskedLM", "ViltForTokenClassification", "ViltForImagesAndTextClassification"]
)
def test_labels_of_any_integer_type(models, name):
    several = name == "ViltForImagesAndTextClassification"
    given = inputs(pixel_values=torch.randn(PAIRS, 2, 3, HEIGHT, WIDTH), pixel_mask=None) if several else inputs()
    labels = torch.arange(PAIRS) if several else torch.arange(PAIRS * WORDS).view(PAIRS, WORDS) % 4
    losses = [models(name)(**given, labels=labels.to(kind)).loss for kind in (torch.int64, torch.int32, torch.uint8)]
    assert losses[0] == losses[1] == losses[2]
