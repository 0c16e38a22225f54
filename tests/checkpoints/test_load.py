"""What transformers wrote loads bit for bit: every class, sharded, .bin, old names, tied and untied decoders."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vilt_fast
from vilt_fast import checkpoints

HEADS = (
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForImagesAndTextClassification",
    "ViltForImageAndTextRetrieval",
    "ViltForTokenClassification",
)
BIAS, DECODER = "mlm_score.bias", "mlm_score.decoder.weight"
WORDS = "vilt.embeddings.text_embeddings.word_embeddings.weight"


@pytest.fixture
def save(tmp_path, helpers):
    """Writes a state dict with a config.json of the class, as one file."""

    def write(model, state, *, binary=False, **fields):
        model.config.save_pretrained(tmp_path / "saved")
        config = json.loads((tmp_path / "saved/config.json").read_text())
        (tmp_path / "saved/config.json").write_text(json.dumps({**config, **fields}))
        if binary:
            torch.save(state, tmp_path / "saved/pytorch_model.bin")
        else:
            tensors = {name: tensor.detach().clone() for name, tensor in state.items()}
            save_file(tensors, tmp_path / "saved/model.safetensors", metadata={"format": "pt"})
        return tmp_path / "saved"

    return write


@pytest.mark.parametrize("name", ["ViltModel", *HEADS])
@pytest.mark.parametrize("how", ["one", "shards", "bin", "sharded bin", "file"])
def test_directories_of_transformers(helpers, tmp_path, name, how):
    theirs = helpers.theirs(name)
    if how in ("one", "shards", "file"):
        theirs.save_pretrained(tmp_path, **({"max_shard_size": "6KB"} if how == "shards" else {}))
    else:
        theirs.config.save_pretrained(tmp_path)
        _save_bin(theirs.state_dict(), tmp_path, 3 if how == "sharded bin" else 1)
    assert (how == "shards") == (tmp_path / "model.safetensors.index.json").exists()
    path = tmp_path / "model.safetensors" if how == "file" else tmp_path
    ours = getattr(vilt_fast, name).from_pretrained(path)
    assert helpers.same(ours.state_dict(), theirs.state_dict())


def _save_bin(state, directory, shards):
    """As transformers 4.37 names them; 5.x no longer writes .bin."""
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin")
        return
    names = {f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin": list(state)[i::shards] for i in range(shards)}
    for file, held in names.items():
        torch.save({name: state[name] for name in held}, directory / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in names.items() for name in held}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_the_formats_are_preferred_in_the_order_of_transformers(helpers, tmp_path):
    models = [helpers.make("ViltModel", seed) for seed in range(4)]
    _save_bin(models[0].state_dict(), tmp_path, 2)
    for seed, write in enumerate(
        (
            lambda: _save_bin(models[1].state_dict(), tmp_path, 1),
            lambda: models[2].save_pretrained(tmp_path / "shards", max_shard_size="6KB"),
            lambda: models[3].save_pretrained(tmp_path / "one"),
        )
    ):
        loaded = helpers.make("ViltModel", 9)
        checkpoints.load_weights(loaded, tmp_path)
        assert helpers.same(loaded.state_dict(), models[seed].state_dict())
        write()
        for path in [*tmp_path.glob("shards/*"), *tmp_path.glob("one/*")]:
            path.replace(tmp_path / path.name)
    checkpoints.load_weights(loaded, tmp_path)
    assert helpers.same(loaded.state_dict(), models[3].state_dict())


# --- a base model and a model with a head --------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_a_base_model_from_a_checkpoint_with_a_head(helpers, tmp_path, name, caplog):
    theirs = helpers.theirs(name)
    theirs.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        ours = vilt_fast.ViltModel.from_pretrained(tmp_path, strict=name != "ViltForTokenClassification")
    wanted = {n.removeprefix("vilt."): t for n, t in theirs.state_dict().items() if n.startswith("vilt.")}
    if name == "ViltForTokenClassification":  # it has no pooler
        assert "missing" in caplog.text and "pooler.dense.weight" in caplog.text
        wanted |= {n: t for n, t in ours.state_dict().items() if n.startswith("pooler.")}
    assert helpers.same(ours.state_dict(), wanted)
    for tensor in load_file(tmp_path / "model.safetensors"):
        assert (tensor in caplog.text) == (not tensor.startswith("vilt."))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_on_a_base_checkpoint(helpers, tmp_path, name, caplog):
    theirs = helpers.theirs("ViltModel", modality_type_vocab_size=3)
    theirs.save_pretrained(tmp_path)
    cls, options = getattr(vilt_fast, name), {"num_images": 2, "tie_word_embeddings": False}
    with pytest.raises(ValueError, match=rf"does not fit {name}: \d missing: .*(classifier|mlm_score|rank_output)"):
        cls.from_pretrained(tmp_path, **options)
    with caplog.at_level(logging.WARNING):
        torch.manual_seed(0)
        ours = cls.from_pretrained(tmp_path, strict=False, **options)
    state = ours.state_dict()
    for tensor, value in theirs.state_dict().items():
        if not (name == "ViltForTokenClassification" and tensor.startswith("pooler.")):
            assert torch.equal(state[f"vilt.{tensor}"], value)
    for tensor in state:
        assert (f" {tensor}" in caplog.text) == (not tensor.startswith("vilt."))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("other", HEADS)
def test_a_head_on_the_checkpoint_of_another_head(helpers, tmp_path, name, other):
    """An error that names what is missing; strict=False loads the encoder. Only equal heads load."""
    model = helpers.make(other, **_common(name, other))
    model.save_pretrained(tmp_path)
    cls = getattr(vilt_fast, name)
    if name == other:
        assert helpers.same(cls.from_pretrained(tmp_path).state_dict(), model.state_dict())
        return
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=f"does not fit {name}"):
        cls.from_pretrained(tmp_path)
    torch.random.set_rng_state(before)
    loaded = cls.from_pretrained(tmp_path, strict=False).state_dict()
    torch.random.set_rng_state(before)
    fresh = cls(loaded_config := vilt_fast.ViltConfig.from_pretrained(tmp_path)).state_dict()
    assert loaded_config.num_labels == model.config.num_labels
    stored = model.state_dict()
    for tensor, value in loaded.items():
        fits = tensor in stored and stored[tensor].shape == value.shape
        assert torch.equal(value, stored[tensor] if fits else fresh[tensor]), tensor


def _common(*names):
    """Fields that both classes can be made with."""
    images = "ViltForImagesAndTextClassification" in names
    return {"num_images": 2, "modality_type_vocab_size": 3} if images else {}


# --- names of other days -------------------------------------------------------------------------------------------


def test_gamma_and_beta_and_saved_constants(helpers, save):
    model = helpers.make("ViltForQuestionAnswering")
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in model.state_dict().items()
    }
    assert any(name.endswith(".gamma") for name in state) and any(name.endswith(".beta") for name in state)
    state["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(10)[None]
    state["vilt.embeddings.text_embeddings.token_type_ids"] = torch.zeros(1, 10, dtype=torch.long)
    for binary in (False, True):
        loaded = vilt_fast.ViltForQuestionAnswering.from_pretrained(save(model, state, binary=binary))
        assert helpers.same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("names", [(BIAS,), ("mlm_score.decoder.bias",), (BIAS, "mlm_score.decoder.bias")])
def test_both_names_of_the_decoder_bias(helpers, save, names):
    model = helpers.make("ViltForMaskedLM")
    state = model.state_dict()
    bias = state.pop("mlm_score.decoder.bias")
    # Where a file holds both and they differ, transformers takes the decoder's.
    stale = {BIAS: bias + 1} if len(names) == 2 else {}
    loaded = vilt_fast.ViltForMaskedLM.from_pretrained(save(model, {**state, **dict.fromkeys(names, bias), **stale}))
    assert helpers.same(loaded.state_dict(), model.state_dict())


# --- the decoder and the word table --------------------------------------------------------------------------------


@pytest.mark.parametrize("config_ties", [True, False])
@pytest.mark.parametrize("stored", ["absent", "equal", "different"])
def test_when_the_decoder_shares_the_word_table(helpers, save, config_ties, stored):
    model = helpers.make("ViltForMaskedLM")
    state = model.state_dict()
    if stored == "absent":
        del state[DECODER]
    elif stored == "equal":
        state[DECODER] = state[WORDS].clone()
    loaded = vilt_fast.ViltForMaskedLM.from_pretrained(save(model, state, tie_word_embeddings=config_ties))
    tied = loaded.mlm_score.decoder.weight is loaded.vilt.embeddings.text_embeddings.word_embeddings.weight
    assert tied == (stored == "absent" or (stored == "equal" and config_ties))
    assert loaded.config.tie_word_embeddings == tied
    assert torch.equal(loaded.mlm_score.decoder.weight, state.get(DECODER, state[WORDS]))
    assert torch.equal(loaded.state_dict()[WORDS], state[WORDS])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_error_leaves_the_tie_as_it_was(helpers, save, tied):
    model = helpers.make("ViltForMaskedLM", tie_word_embeddings=tied)
    state = helpers.make("ViltForMaskedLM", 1, tie_word_embeddings=False).state_dict()
    if not tied:
        del state[DECODER]
    del state["vilt.layernorm.weight"]
    before = helpers.copy(model)
    with pytest.raises(ValueError, match="1 missing: vilt.layernorm.weight"):
        checkpoints.load_weights(model, save(model, state))
    assert helpers.same(model.state_dict(), before)
    assert (model.mlm_score.decoder.weight is model.vilt.get_input_embeddings().weight) == tied
    assert model.config.tie_word_embeddings == tied


# --- dtypes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_values_are_cast_to_the_dtype_of_the_model(helpers, save, stored, wanted, binary):
    model = helpers.make("ViltForQuestionAnswering")
    state = {name: tensor.to(stored) for name, tensor in model.state_dict().items()}
    path = save(model, state, binary=binary)
    loaded = vilt_fast.ViltForQuestionAnswering.from_pretrained(path, dtype=wanted)
    assert helpers.same(loaded.state_dict(), {name: tensor.to(wanted) for name, tensor in state.items()})
    assert checkpoints.stored_dtype(path) == stored
    assert vilt_fast.ViltForQuestionAnswering.from_pretrained(path, dtype="auto").dtype == stored


def test_a_model_keeps_its_parameters_and_needs_no_gradient_to_load(helpers, save):
    """An optimiser holds the parameters: loading must fill them, not replace them."""
    model, other = helpers.make("ViltForQuestionAnswering", 1), helpers.make("ViltForQuestionAnswering", 2)
    parameters = list(model.parameters())
    checkpoints.load_weights(model, save(other, other.state_dict()))
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)
    assert helpers.same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_the_file_can_be_deleted_after_loading(helpers, save, binary):
    """No parameter is a view of the mapped file."""
    other = helpers.make("ViltModel", 2)
    path = save(other, other.state_dict(), binary=binary)
    model = vilt_fast.ViltModel.from_pretrained(path)
    for file in Path(path).iterdir():
        file.write_bytes(b"\xff" * file.stat().st_size)
        file.unlink()
    assert helpers.same(model.state_dict(), other.state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_model_on_the_gpu(helpers, save, tmp_path):
    other = helpers.make("ViltForMaskedLM", 2)
    model = helpers.make("ViltForMaskedLM", 1).cuda()
    checkpoints.load_weights(model, save(other, other.state_dict()))
    assert all(parameter.is_cuda for parameter in model.parameters())
    assert helpers.same({n: t.cpu() for n, t in model.state_dict().items()}, other.state_dict())
    checkpoints.save_weights(model, tmp_path / "again")
    assert helpers.same(load_file(tmp_path / "again/model.safetensors"), other.state_dict())


@pytest.mark.parametrize("name", ["load_weights", "stored_dtype"])
def test_a_wrong_argument_names_the_function_that_was_called(helpers, name):
    model = [helpers.make("ViltModel")] if name == "load_weights" else []
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'cache'"):
        getattr(checkpoints, name)(*model, "somewhere", cache="x")
