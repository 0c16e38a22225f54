"""What others save of a ViT, or of what is nearly one: DeiT, DINO, MAE; and what is none is refused, untouched."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import vilt_fast
from vilt_fast import ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel, checkpoints

SIZES = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, image_size=16, patch_size=8
)
CLASSES = (ViTModel, ViTForImageClassification, ViTForMaskedImageModeling)
# fp32: the same products, summed in another order; the values are about one.
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture
def make(helpers, tmp_path):
    """transformers' random model of a class, and the directory in which it lies."""
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="it makes the directories")

    def of(name, config="ViTConfig", *, fields=SIZES, **options):
        model = getattr(transformers, name)(getattr(transformers, config)(**fields), **options)
        helpers.randomise(model, 1).eval().save_pretrained(tmp_path / name)
        return model, tmp_path / name

    return of


def ours(cls=ViTModel, **options):
    return cls(ViTConfig(**SIZES, encoder_stride=8), **options)


def images(seed=0):
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


# --- what is read --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_dino(make, caplog):
    """A ViT without pooler: the model gets a fresh one and says so, or none."""
    theirs, directory = make("ViTModel", add_pooling_layer=False)
    model, report = ViTModel.from_pretrained(directory, output_loading_info=True)
    assert report["missing_keys"] == {"pooler.dense.weight", "pooler.dense.bias"} and not report["unexpected_keys"]
    assert "fresh values: pooler.dense" in caplog.text
    caplog.clear()
    bare = ViTModel.from_pretrained(directory, add_pooling_layer=False)
    assert not caplog.records
    for mine in (model, bare):
        torch.testing.assert_close(mine(images()).last_hidden_state, theirs(images()).last_hidden_state, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViTMAEForPreTraining", "ViTMAEModel"])
def test_the_encoder_of_mae(make, name, caplog):
    """As transformers' ViTModel reads it; its decoder is left out, and named."""
    transformers = pytest.importorskip("transformers")
    small = dict(decoder_hidden_size=8, decoder_num_attention_heads=2, decoder_intermediate_size=8)
    _, directory = make(name, "ViTMAEConfig", fields={**SIZES, **small, "decoder_num_hidden_layers": 1})
    theirs = transformers.ViTModel.from_pretrained(directory, add_pooling_layer=False).eval()
    model, report = ViTModel.from_pretrained(directory, add_pooling_layer=False, output_loading_info=True)
    torch.testing.assert_close(model(images()).last_hidden_state, theirs(images()).last_hidden_state, **CLOSE)
    assert not report["missing_keys"]
    assert all(key.startswith("decoder.") for key in report["unexpected_keys"])
    assert bool(report["unexpected_keys"]) == (name == "ViTMAEForPreTraining") == ("decoder.mask_token" in caplog.text)
    classes, report = ViTForImageClassification.from_pretrained(
        directory, num_labels=7, strict=False, output_loading_info=True
    )
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert torch.equal(classes.vit.embeddings.cls_token, model.embeddings.cls_token)
    with pytest.raises(ValueError, match=r"does not fit ViTForImageClassification: 2 missing: classifier\.weight"):
        ViTForImageClassification.from_pretrained(directory)


@torch.no_grad()
@pytest.mark.parametrize(
    "name, cls",
    [
        ("DeiTModel", ViTModel),
        ("DeiTForImageClassificationWithTeacher", ViTForImageClassification),
        ("DeiTForImageClassification", ViTForImageClassification),
        ("DeiTForMaskedImageModeling", ViTForMaskedImageModeling),
    ],
)
def test_a_distilled_deit(helpers, make, name, cls, caplog):
    """Refused; when asked, what is left without the second token and its position, named once."""
    _, directory = make(name, "DeiTConfig", fields={**SIZES, "encoder_stride": 8, "num_labels": 3})
    with pytest.raises(ValueError, match="distilled DeiT, whose second token ViT does not have; drop_distillation_tok"):
        cls.from_pretrained(directory)
    model, report = cls.from_pretrained(directory, drop_distillation_token=True, output_loading_info=True)
    stored = load_file(directory / "model.safetensors")
    assert not report["missing_keys"]
    assert report["unexpected_keys"] == {key for key in stored if "distillation" in key}
    assert caplog.text.count("embeddings.distillation_token") == 1
    mine = {key.removeprefix("vit."): value for key, value in model.state_dict().items()}
    theirs = {key.removeprefix("deit.").removeprefix("cls_"): value for key, value in stored.items()}
    theirs = {key: value for key, value in theirs.items() if "distillation" not in key}
    assert mine.keys() == theirs.keys()
    table = theirs.pop("embeddings.position_embeddings")[0]
    assert torch.equal(mine["embeddings.position_embeddings"][0], table[[0, 2, 3, 4, 5]])
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    fresh = cls(ViTConfig(**SIZES, encoder_stride=8, num_labels=3))
    before = helpers.copy(fresh)
    with pytest.raises(ValueError, match="distilled DeiT"):  # without its configuration, too
        checkpoints.load_weights(fresh, directory)
    assert helpers.same(fresh.state_dict(), before)


@torch.no_grad()
def test_what_was_read_of_a_distilled_deit_is_a_vit(make, tmp_path):
    transformers = pytest.importorskip("transformers")
    _, directory = make("DeiTForImageClassificationWithTeacher", "DeiTConfig")
    model = ViTForImageClassification.from_pretrained(directory, drop_distillation_token=True)
    model.save_pretrained(tmp_path / "vit")
    fields = json.loads((tmp_path / "vit" / "config.json").read_text())
    assert fields["model_type"] == "vit" and "drop_distillation_token" not in fields
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path / "vit").eval()
    again = ViTForImageClassification.from_pretrained(tmp_path / "vit")
    assert torch.equal(again(images()).logits, model(images()).logits)
    torch.testing.assert_close(theirs(images()).logits, model(images()).logits, **CLOSE)


def test_a_head_of_another_task(make, caplog):
    """A classifier's body becomes that of masked pixels, for training, and the other way round when asked."""
    theirs, directory = make("ViTForImageClassification", fields={**SIZES, "encoder_stride": 8})
    _, report = ViTForMaskedImageModeling.from_pretrained(directory, output_loading_info=True)
    assert report["missing_keys"] == {"vit.embeddings.mask_token", "decoder.0.weight", "decoder.0.bias"}
    assert report["unexpected_keys"] == {"classifier.weight", "classifier.bias"}
    assert "skipped, ViTForMaskedImageModeling has no such head: classifier" in caplog.text
    model, report = ViTForImageClassification.from_pretrained(
        directory, num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {name for name, *_ in report["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert model.classifier.weight.shape == (9, 16) and model.classifier.weight.std() > 0


# --- what is refused -----------------------------------------------------------------------------------------------


def named(*names):
    return {name: torch.ones(2, 2) for name in names}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "state, words",
    [
        (named("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.weight"), "BERT"),
        (named("text_model.embeddings.token_embedding.weight", "vision_model.post_layernorm.weight"), "CLIP"),
        (named("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "cls_token"), "a timm vision transformer"),
        (named("vilt.embeddings.text_embeddings.word_embeddings.weight", "vilt.layernorm.weight"), "vilt"),
        (named("beit.embeddings.cls_token"), "beit"),
        (named("conv1.weight", "fc.bias"), "something else"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_architecture_by_its_names(helpers, tmp_path, cls, state, words):
    save_file(state, tmp_path / "weights.safetensors")
    model = ours(cls)
    before = helpers.copy(model)
    with pytest.raises(ValueError, match=f"holds no weights of {cls.__name__}: it looks like {words}"):
        checkpoints.load_weights(model, tmp_path / "weights.safetensors")
    assert helpers.same(model.state_dict(), before)


@pytest.mark.parametrize("kind", ["BertModel", "CLIPVisionModel", "BeitModel", "Dinov2Model", "ViltModel"])
def test_another_architecture_of_transformers(helpers, make, kind):
    fields = {key: value for key, value in SIZES.items() if kind != "BertModel" or "_size" not in key or "h" in key}
    other, directory = make(kind, kind.replace("Model", "Config"), fields=fields)
    kind = other.config.model_type
    with pytest.raises(ValueError, match=rf"config\.json must have model_type 'vit', got '{kind}'"):
        ViTForImageClassification.from_pretrained(directory)
    model = ours()
    before = helpers.copy(model)
    with pytest.raises(ValueError, match=rf"holds no weights of ViTModel: it looks like model_type '{kind}'"):
        checkpoints.load_weights(model, directory)
    assert helpers.same(model.state_dict(), before)


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification"])
def test_a_vit_is_no_vilt(helpers, make, name):
    _, directory = make(name)
    with pytest.raises(ValueError, match=r"config\.json must have model_type 'vilt', got 'vit'"):
        vilt_fast.ViltModel.from_pretrained(directory)
    model = helpers.make("ViltModel")
    before = helpers.copy(model)
    with pytest.raises(ValueError, match="holds no weights of ViltModel: it looks like model_type 'vit'"):
        checkpoints.load_weights(model, directory)
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match="looks like vit|does not fit ViltModel: .* missing"):
        checkpoints.load_weights(model, directory)
    assert helpers.same(model.state_dict(), before)


def test_a_bare_vilt_is_no_vit(helpers, tmp_path):
    """Many of its tensors have the names of a ViT's."""
    helpers.make("ViltModel").save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    model = ours()
    before = helpers.copy(model)
    with pytest.raises(ValueError, match=r"does not fit ViTModel|looks like"):
        checkpoints.load_weights(model, tmp_path)
    assert helpers.same(model.state_dict(), before)


@pytest.mark.parametrize("file, option", [("tf_model.h5", "from_tf"), ("flax_model.msgpack", "from_flax")])
def test_weights_of_other_frameworks(tmp_path, file, option):
    ViTConfig(**SIZES).save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(b"x")
    words = rf"no weights in .*; {file} is converted by transformers 4\.37: from_pretrained\(\.\.\., {option}=True\)"
    with pytest.raises(FileNotFoundError, match=words):
        ViTModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{option}.*transformers 4.37"):
        ViTModel.from_pretrained(tmp_path, **{option: True})


@pytest.mark.parametrize("fault", ["missing", "shape", "dtype", "nan", "unexpected"])
def test_nothing_is_half_loaded(helpers, make, fault):
    theirs, directory = make("ViTForImageClassification")
    state = load_file(directory / "model.safetensors")
    name = "vit.encoder.layer.0.attention.attention.query.weight"
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        name = "vit.encoder.layer.9.output.dense.bias"
        state[name] = torch.ones(16)
    else:
        value = state[name]
        state[name] = {"shape": value[:3], "dtype": value.to(torch.int64), "nan": value * float("nan")}[fault]
    save_file({key: value.contiguous() for key, value in state.items()}, directory / "model.safetensors")
    model = ViTForImageClassification(ViTConfig(**SIZES))
    before = helpers.copy(model)
    for load in (lambda: checkpoints.load_weights(model, directory), lambda: type(model).from_pretrained(directory)):
        with pytest.raises(ValueError, match=name):
            load()
    assert helpers.same(model.state_dict(), before)


@pytest.mark.parametrize("cls", [ViTForImageClassification, ViTForMaskedImageModeling], ids=lambda cls: cls.__name__)
def test_a_vit_with_a_gap_looks_like_no_other(helpers, tmp_path, cls):
    """Neither `vit.` nor `decoder.` are another architecture's here."""
    state = ours(cls).state_dict()
    del state["vit.layernorm.bias"]
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=rf"does not fit {cls.__name__}: 1 missing: vit\.layernorm\.bias"):
        checkpoints.load_weights(ours(cls), tmp_path / "weights.safetensors")


def test_no_log_without_a_reason(make, caplog):
    _, directory = make("ViTForImageClassification")
    with caplog.at_level(logging.INFO):
        ViTForImageClassification.from_pretrained(directory)
    assert not [record for record in caplog.records if record.name.startswith("vilt_fast")]
