"""VisualBERT's weights in and out: formats, what is tied, heads on other checkpoints, BERT, and what is refused."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import vilt_fast
from vilt_fast import VisualBertConfig, VisualBertForPreTraining, VisualBertModel, checkpoints

SIZES = dict(
    vocab_size=30,
    hidden_size=16,
    visual_embedding_dim=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    max_position_embeddings=10,
)
HEADS = {
    "VisualBertForPreTraining": {},
    "VisualBertForQuestionAnswering": {"num_labels": 5},
    "VisualBertForMultipleChoice": {},
    "VisualBertForVisualReasoning": {"num_labels": 3},
    "VisualBertForRegionToPhraseAlignment": {},
}
CLASSES = {"VisualBertModel": {}, **HEADS}
WORDS, DECODER = "visual_bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
BIAS, DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
VISUAL = ("visual_token_type_embeddings.weight", "visual_position_embeddings.weight", "visual_projection.weight")
# fp32: the same products, summed in another order; the values are about one.
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle")


@pytest.fixture
def make(helpers):
    """Our random model of a class."""
    return lambda name, seed=0, **fields: helpers.randomise(
        getattr(vilt_fast, name)(VisualBertConfig(**{**SIZES, **CLASSES[name], **fields})), seed
    ).eval()


@pytest.fixture
def make_theirs(helpers, transformers):
    """transformers' random model of a class."""
    return lambda name, seed=0, **fields: helpers.randomise(
        getattr(transformers, name)(transformers.VisualBertConfig(**{**SIZES, **CLASSES[name], **fields})), seed
    ).eval()


def save_bin(state, directory, shards):
    """As transformers 4.37 names them; 5.x no longer writes .bin."""
    names = {f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin": list(state)[i::shards] for i in range(shards)}
    for file, held in names.items():
        torch.save({name: state[name] for name in held}, directory / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in names.items() for name in held}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


# --- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("how", ["one", "shards", "bin", "sharded bin", "file"])
def test_directories_of_transformers(helpers, make_theirs, tmp_path, name, how):
    theirs = make_theirs(name)
    if how in ("one", "shards", "file"):
        theirs.save_pretrained(tmp_path, **({"max_shard_size": "6KB"} if how == "shards" else {}))
    else:
        theirs.config.save_pretrained(tmp_path)
        state = theirs.state_dict()
        save_bin(state, tmp_path, 3) if how == "sharded bin" else torch.save(state, tmp_path / "pytorch_model.bin")
    assert (how == "shards") == (tmp_path / "model.safetensors.index.json").exists()
    path = tmp_path / "model.safetensors" if how == "file" else tmp_path
    ours = getattr(vilt_fast, name).from_pretrained(path)
    assert helpers.same(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "6KB"}], ids=["one", "shards"])
@pytest.mark.parametrize("fields", [{}, {"bypass_transformer": True}], ids=["", "bypass"])
def test_transformers_reads_what_we_write(helpers, make, transformers, tmp_path, name, options, fields):
    ours = make(name, **fields)
    ours.save_pretrained(tmp_path, **options)
    theirs, report = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert helpers.same(theirs.state_dict(), ours.state_dict())
    again = getattr(vilt_fast, name).from_pretrained(tmp_path)
    assert helpers.same(again.state_dict(), ours.state_dict())


# --- what is tied --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["VisualBertForPreTraining", "VisualBertForRegionToPhraseAlignment"])
def test_a_tied_decoder(helpers, make, tmp_path, name):
    """One parameter in memory and in the file, which the table's new size reaches too."""
    model = make(name)
    model.save_pretrained(tmp_path)
    held = set(load_file(tmp_path / "model.safetensors"))
    assert WORDS in held and BIAS in held and DECODER not in held
    again = getattr(vilt_fast, name).from_pretrained(tmp_path)
    for one in (model, again):
        decoder = one.cls.predictions.decoder
        assert decoder.weight is one.get_input_embeddings().weight and decoder.bias is one.cls.predictions.bias
    again.resize_token_embeddings(33)
    assert again.cls.predictions.decoder.weight is again.get_input_embeddings().weight
    assert again.cls.predictions.bias is again.cls.predictions.decoder.bias and len(again.cls.predictions.bias) == 33
    again.save_pretrained(tmp_path / "grown")
    grown = getattr(vilt_fast, name).from_pretrained(tmp_path / "grown")
    assert grown.config.vocab_size == 33 and helpers.same(grown.state_dict(), again.state_dict())


@torch.no_grad()
def test_an_untied_decoder(helpers, make_theirs, transformers, tmp_path):
    """Then transformers 5 reads the decoder's own bias alone, and leaves the head's in the file: the former is ours."""
    theirs = make_theirs("VisualBertForPreTraining", tie_word_embeddings=False)
    assert not torch.equal(theirs.cls.predictions.bias, theirs.cls.predictions.decoder.bias)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = VisualBertForPreTraining.from_pretrained(tmp_path / "theirs").eval()
    predictions = ours.cls.predictions
    assert predictions.decoder.weight is not ours.get_input_embeddings().weight
    assert predictions.bias is predictions.decoder.bias
    assert torch.equal(predictions.bias, theirs.cls.predictions.decoder.bias)
    ours.save_pretrained(tmp_path / "ours")
    held = load_file(tmp_path / "ours" / "model.safetensors")
    assert {DECODER, BIAS, DECODER_BIAS} <= held.keys(), "4.37 reads one of the biases, 5.x the other"
    again = transformers.VisualBertForPreTraining.from_pretrained(tmp_path / "ours").eval()
    ids = torch.tensor([[2, 5, 7]])
    wanted = theirs(ids).prediction_logits
    for model in (ours, again):
        torch.testing.assert_close(model(ids).prediction_logits, wanted, **CLOSE)


@pytest.mark.parametrize("held", [{BIAS}, {DECODER_BIAS}, {BIAS, DECODER_BIAS}], ids=["head's", "decoder's", "both"])
def test_a_bias_under_either_name(helpers, make, tmp_path, held):
    model = make("VisualBertForPreTraining")
    state = {k: v.clone() for k, v in model.state_dict().items() if k not in {BIAS, DECODER_BIAS} - held}
    model.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    again, report = VisualBertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert helpers.same(again.state_dict(), model.state_dict()) and not any(report.values())
    del state[held.pop()]
    save_file({k: v for k, v in state.items() if "bias" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: .*cls\.predictions\.bias"):
        VisualBertForPreTraining.from_pretrained(tmp_path)


# --- a base model and a model with a head --------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_a_base_model_from_a_checkpoint_with_a_head(helpers, make_theirs, tmp_path, name, caplog):
    theirs = make_theirs(name)
    theirs.save_pretrained(tmp_path)
    ours, report = VisualBertModel.from_pretrained(tmp_path, output_loading_info=True)
    wanted = {n.removeprefix("visual_bert."): t for n, t in theirs.state_dict().items() if n.startswith("visual_bert.")}
    assert helpers.same(ours.state_dict(), wanted) and not report["missing_keys"]
    heads = {tensor for tensor in load_file(tmp_path / "model.safetensors") if not tensor.startswith("visual_bert.")}
    assert report["unexpected_keys"] == heads
    assert all(caplog.text.count(f" {tensor}") == 1 for tensor in heads if tensor != "cls.bias")


@pytest.mark.parametrize("name", HEADS)
def test_a_head_on_a_base_checkpoint(helpers, make_theirs, tmp_path, name, caplog):
    theirs = make_theirs("VisualBertModel")
    theirs.save_pretrained(tmp_path)
    cls = getattr(vilt_fast, name)
    with pytest.raises(ValueError, match=rf"does not fit {name}: \d+ missing: .*cls\."):
        cls.from_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        ours, report = cls.from_pretrained(tmp_path, strict=False, output_loading_info=True)
    state = ours.state_dict()
    for tensor, value in theirs.state_dict().items():
        assert torch.equal(state[f"visual_bert.{tensor}"], value)
    assert report["missing_keys"] == {key for key in state if not key.startswith("visual_bert.")}
    assert "cls." in caplog.text and not any(report["unexpected_keys"])


@pytest.mark.parametrize("has_layer", [False, True], ids=["a plain file", "a file with the layer"])
def test_the_additional_layer(make_theirs, tmp_path, has_layer, caplog):
    """Which a model without `bypass_transformer` leaves out, and one with it needs."""
    make_theirs("VisualBertForVisualReasoning", bypass_transformer=has_layer).save_pretrained(tmp_path)
    cls = vilt_fast.VisualBertForVisualReasoning
    if has_layer:
        model = cls.from_pretrained(tmp_path, bypass_transformer=False)
        assert not hasattr(model.visual_bert, "additional_layer")
        assert "skipped" in caplog.text and "additional_layer" in caplog.text
    else:
        with pytest.raises(ValueError, match=r"missing: visual_bert\.additional_layer"):
            cls.from_pretrained(tmp_path, bypass_transformer=True)


# --- BERT ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BertModel", "BertForPreTraining"])
def test_a_bert_says_what_it_lacks(helpers, transformers, tmp_path, name, caplog):
    """The weights of regions; with strict=False they are fresh, or copies of those of words, and the rest is BERT's."""
    sizes = {key: value for key, value in SIZES.items() if key != "visual_embedding_dim"}
    bert = helpers.randomise(getattr(transformers, name)(transformers.BertConfig(**sizes)), 4)
    bert.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="4 missing: .*" + ".*".join(VISUAL)):
        VisualBertModel.from_pretrained(tmp_path, visual_embedding_dim=6)
    model = VisualBertModel.from_pretrained(tmp_path, visual_embedding_dim=6, strict=False)
    assert all(tensor in caplog.text for tensor in VISUAL)
    state, theirs = model.state_dict(), getattr(bert, "bert", bert).state_dict()
    assert theirs.keys() <= state.keys() and all(torch.equal(state[key], value) for key, value in theirs.items())
    assert {key for key in state.keys() - theirs.keys()} == {
        f"embeddings.{key}" for key in (*VISUAL, VISUAL[2][:-6] + "bias")
    }
    for table in ("token_type", "position"):
        visual, text = (state[f"embeddings.{pre}{table}_embeddings.weight"] for pre in ("visual_", ""))
        assert torch.equal(visual, text)
        fresh = VisualBertModel.from_pretrained(
            tmp_path, visual_embedding_dim=6, strict=False, special_visual_initialize=False
        )
        assert not torch.equal(fresh.state_dict()[f"embeddings.visual_{table}_embeddings.weight"], text)
    model.save_pretrained(tmp_path / "visual")
    fields = json.loads((tmp_path / "visual" / "config.json").read_text())
    assert fields["model_type"] == "visual_bert" and fields["visual_embedding_dim"] == 6
    if name == "BertForPreTraining":  # its two heads are VisualBERT's
        report = VisualBertForPreTraining.from_pretrained(
            tmp_path, visual_embedding_dim=6, strict=False, output_loading_info=True
        )[1]
        assert {key.split(".")[2] for key in report["missing_keys"]} == {key.split(".")[0] for key in VISUAL}
        assert not report["unexpected_keys"]


@pytest.mark.parametrize("old", [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")])
def test_old_names(helpers, make, tmp_path, old):
    """Of BERT's first releases, and the table of positions that they saved."""
    model = make("VisualBertForQuestionAnswering")
    state = {key.replace(*old): value for key, value in model.state_dict().items()}
    state["visual_bert.embeddings.position_ids"] = torch.arange(10)[None]
    model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert helpers.same(again.state_dict(), model.state_dict()) and not any(report.values())


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ViltModel", "ViTModel", "RobertaModel", "CLIPVisionModel"])
def test_another_architecture(helpers, transformers, make, tmp_path, kind):
    fields = {key: value for key, value in SIZES.items() if "vocab" not in key and "max_pos" not in key}
    config = getattr(transformers, kind.replace("Model", "Config"))(**fields)
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    kind = config.model_type
    with pytest.raises(ValueError, match=rf"config\.json must have model_type 'visual_bert', got '{kind}'"):
        VisualBertModel.from_pretrained(tmp_path)
    model = make("VisualBertModel")
    before = helpers.copy(model)
    with pytest.raises(ValueError, match=rf"holds no weights of VisualBertModel: it looks like model_type '{kind}'"):
        checkpoints.load_weights(model, tmp_path)
    assert helpers.same(model.state_dict(), before)


@pytest.mark.parametrize("cls", [vilt_fast.ViltModel, vilt_fast.ViTModel], ids=lambda cls: cls.__name__)
def test_a_visual_bert_is_no_other(make, tmp_path, cls):
    make("VisualBertForPreTraining").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"must have model_type '{cls.config_class.model_type}', got 'visual_bert'"):
        cls.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=f"holds no weights of {cls.__name__}: it looks like VisualBERT"):
        checkpoints.load_weights(cls(cls.config_class(hidden_size=16, num_attention_heads=2)), tmp_path)


@pytest.mark.parametrize("fault", ["missing", "shape", "dtype", "nan", "unexpected"])
def test_nothing_is_half_loaded(helpers, make, tmp_path, fault):
    model = make("VisualBertForPreTraining", 1)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "visual_bert.embeddings.visual_projection.weight"
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        name = "visual_bert.encoder.layer.9.output.dense.bias"
        state[name] = torch.ones(16)
    else:
        value = state[name]
        state[name] = {"shape": value[:3], "dtype": value.to(torch.int64), "nan": value * float("nan")}[fault]
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    fresh = make("VisualBertForPreTraining", 2)
    before = helpers.copy(fresh)
    for load in (lambda: checkpoints.load_weights(fresh, tmp_path), lambda: type(fresh).from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=name):
            load()
    assert helpers.same(fresh.state_dict(), before)


def test_features_of_another_detector(make, tmp_path):
    """A configuration whose width is not the file's."""
    make("VisualBertModel").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"visual_projection\.weight \(got \(16, 6\), wanted \(16, 7\)\)"):
        VisualBertModel.from_pretrained(tmp_path, visual_embedding_dim=7)
    model, report = VisualBertModel.from_pretrained(
        tmp_path, visual_embedding_dim=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.embeddings.visual_projection.weight.shape == (16, 7)
    assert [key for key, *_ in report["mismatched_keys"]] == ["embeddings.visual_projection.weight"]


@pytest.mark.parametrize("special", [True, False])
def test_fresh_tables_of_regions(special):
    """Copies of the words' where the configuration says so, as in transformers."""
    embeddings = VisualBertModel(VisualBertConfig(**SIZES, special_visual_initialize=special)).embeddings
    for table in ("token_type", "position"):
        tables = [getattr(embeddings, f"{start}{table}_embeddings").weight for start in ("", "visual_")]
        assert torch.equal(*tables) == special and tables[0] is not tables[1]


def test_no_log_without_a_reason(make, tmp_path, caplog):
    make("VisualBertForPreTraining").save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        VisualBertForPreTraining.from_pretrained(tmp_path)
    assert not caplog.records
