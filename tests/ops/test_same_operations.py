"""Which operations the families run, live and frozen: all are on one house, so none may have one of its own."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

import vilt_fast
from vilt_fast import ops
from vilt_fast.pixels import PackedPixels

ENCODER = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)
SIZES = dict(**ENCODER, patch_size=8, image_size=32)
TEXT = dict(vocab_size=50, max_position_embeddings=12, modality_type_vocab_size=3)
BATCH = 2
EVERYWHERE = {"layer_norm.layer_norm", "linear.linear", "attention.attention"}
PATCHES = "patch_embed.patch_embed"


class Recorder:
    """Stands in the place of `ops.side`, through which every operation goes; notes what is called."""

    def __init__(self):
        self.real, self.names = ops.side, set()

    def __call__(self, reference, tensor):
        file, found = reference.__name__.rpartition(".")[2], self.real(reference, tensor)
        assert file in ops.OPERATIONS

        def noting(name):
            def call(*arguments, **options):
                self.names.add(f"{file}.{name}")
                return getattr(found, name)(*arguments, **options)

            return call

        return SimpleNamespace(**{name: noting(name) for name in vars(found) if callable(getattr(found, name))})


def packed():
    sizes = ((16, 24), (32, 8))
    return PackedPixels(torch.randint(256, (sum(3 * h * w for h, w in sizes),), dtype=torch.uint8), sizes)


def images():
    """Ways in which both families get their images, with the masks of patches that both take."""
    mask = torch.zeros(BATCH, 24, 32, dtype=torch.int64)
    mask[0, :16, :24], mask[1] = 1, 1
    kept = torch.ones(BATCH, 3, 4, dtype=torch.int64)
    kept[:, 0, 1] = 0
    pixels = torch.randn(BATCH, 3, 24, 32)
    return [
        {"pixel_values": torch.randn(BATCH, 3, 32, 32)},
        {"pixel_values": pixels, "pixel_mask": mask},
        {"pixel_values": pixels, "pixel_mask": mask, "patch_mask": kept},
        {"pixel_values": packed()},
    ]


def regions(model):
    """Ways in which words and regions come; those that a plan on the host does not take too."""
    words = torch.randint(1, 50, (BATCH, 5))
    mask, kept = torch.ones(BATCH, 5).long(), torch.ones(BATCH, 3)
    mask[0, 3:], kept[1, 0] = 0, 0
    one = {"input_ids": words, "attention_mask": mask}
    if isinstance(model, vilt_fast.VisualBertForRegionToPhraseAlignment):
        one["region_to_phrase_position"] = torch.randint(-1, 8, (BATCH, 4))
    some = {**one, "visual_embeds": torch.randn(BATCH, 3, 10), "visual_attention_mask": kept}
    aligned = torch.randint(-1, 5, (BATCH, 3, 2))
    found = [some, {**some, "image_text_alignment": aligned, "position_ids": words % 12}]
    return [one, *found] if "region_to_phrase_position" not in one else found


def calls(family, model):
    """The arguments of calls that differ in what they run."""
    if family == "visual_bert":
        return regions(model)
    extra = {}
    if family == "vilt":
        extra = {"input_ids": torch.randint(1, 50, (BATCH, 5)), "attention_mask": torch.ones(BATCH, 5).long()}
    found = [{**extra, **one} for one in images()]
    if isinstance(model, vilt_fast.ViTModel) or hasattr(model, "decoder"):
        found.append({"pixel_values": torch.randn(BATCH, 3, 32, 32), "bool_masked_pos": torch.rand(BATCH, 16) < 0.5})
    return found


FAMILIES = {
    "vilt": (
        vilt_fast.ViltConfig(**SIZES, **TEXT, num_labels=3),
        [vilt_fast.ViltModel, vilt_fast.ViltForQuestionAnswering, vilt_fast.ViltForTokenClassification],
    ),
    "vit": (
        vilt_fast.ViTConfig(**SIZES, num_labels=3, encoder_stride=8),
        [
            lambda config: vilt_fast.ViTModel(config, use_mask_token=True),
            vilt_fast.ViTForImageClassification,
            vilt_fast.ViTForMaskedImageModeling,
        ],
    ),
    "visual_bert": (
        vilt_fast.VisualBertConfig(
            **ENCODER,
            vocab_size=50,
            max_position_embeddings=12,
            visual_embedding_dim=10,
            num_labels=3,
            pad_token_id=None,
        ),
        [
            vilt_fast.VisualBertModel,
            vilt_fast.VisualBertForPreTraining,
            vilt_fast.VisualBertForQuestionAnswering,
            vilt_fast.VisualBertForRegionToPhraseAlignment,
        ],
    ),
}


@pytest.fixture(scope="module")
def operations():
    """By family and form, the names of the functions that were called."""
    torch.manual_seed(0)
    found = defaultdict(set)
    with pytest.MonkeyPatch.context() as patch:
        for family, (config, kinds) in FAMILIES.items():
            for model in (kind(config) for kind in kinds):
                forms = {"live": model.eval(), "frozen": vilt_fast.freeze(model)}
                for form, call in forms.items():
                    patch.setattr(ops, "side", recorder := Recorder())
                    for given in calls(family, model):
                        call(**given)
                    if form == "live":
                        model(**given, output_attentions=True, output_hidden_states=True)
                        model(**given, head_mask=torch.rand(2, 2))
                        model.train()(**given)[0].sum().backward()
                    patch.undo()
                    found[family, form] |= recorder.names
    return found


@pytest.mark.parametrize("form", ["live", "frozen"])
@pytest.mark.parametrize("family", ["vit", "visual_bert"])
def test_no_operation_of_its_own(operations, family, form):
    vilt, found = operations["vilt", form], operations[family, form]
    assert vilt >= {*EVERYWHERE, PATCHES} and found >= EVERYWHERE, "the recorder missed some"
    assert found <= vilt, f"of {family} alone: {', '.join(sorted(found - vilt))}"


@pytest.mark.parametrize("form", ["live", "frozen"])
def test_what_vilt_has_beyond_them(operations, form):
    """Words beyond ViT, patches beyond VisualBERT; and the recorder tells families apart."""
    assert operations["vilt", form] - operations["vit", form] == {"text_embed.text_embed"}
    assert operations["vilt", form] - operations["visual_bert", form] == {PATCHES}


def test_every_name_is_of_the_list(operations):
    names = {name.partition(".")[0] for some in operations.values() for name in some}
    assert names <= set(ops.OPERATIONS)
    assert "resize" not in names, "the models take images of the size that they are"
