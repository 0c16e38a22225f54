"""What we do where transformers 4.37 and 5.x differ; and nothing is lost on the way through transformers and back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.models import vilt as packed
from vilt_fast.reference import vilt as paper

DECODER = "mlm_score.decoder.weight"
WORDS = "vilt.embeddings.text_embeddings.word_embeddings.weight"


def small(oracle, **changes):
    return {**oracle.config_kwargs(0), "num_hidden_layers": 1, **changes}


def rewrite(directory, change_weights=None, **fields):
    """Edit a saved directory in place: the state dict by a function, fields of config.json, None removes one."""
    path = directory / "model.safetensors"
    if change_weights is not None:
        state = load_file(path)
        change_weights(state)
        save_file({name: value.clone() for name, value in state.items()}, path, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config.update(fields)
    config = {name: value for name, value in config.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))


def as_4_37(directory, decoder=None, **fields):
    """The masked-word directory that 4.37 writes: mlm_score.bias, and a separate decoder unless tied."""

    def change(state):
        state["mlm_score.bias"] = state.pop("mlm_score.decoder.bias")
        if decoder is not None:
            state[DECODER] = decoder

    rewrite(directory, change, dtype=None, torch_dtype="float32", transformers_version="4.37.2", **fields)


def same_state(ours, theirs):
    """Names, dtypes and bits, tied or not."""
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype, f"{name}: {value.dtype}, {b[name].dtype}"
        assert torch.equal(value, b[name]), f"{name}: the values differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_there_and_back_is_lossless(oracle, tmp_path, name, safe, dtype):
    """Ours -> save -> transformers -> save -> ours: every weight bit for bit, every field of the configuration."""
    config = ViltConfig(**{**oracle.config_kwargs(5), "max_image_length": 7, "tie_word_embeddings": True})
    first = oracle.randomise(getattr(packed, name)(config), seed=2).to(dtype)
    first.save_pretrained(tmp_path / "ours", safe_serialization=safe)
    theirs, report = getattr(oracle.transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    same_state(first, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    second = getattr(packed, name).from_pretrained(tmp_path / "theirs", dtype="auto")
    same_state(second, first)
    for field in config.to_diff_dict():
        assert getattr(second.config, field) == getattr(first.config, field), field
        if hasattr(theirs.config, field):
            assert getattr(theirs.config, field) == getattr(first.config, field), field


def test_back_and_there_is_lossless(oracle, tmp_path, name):
    """transformers -> save -> ours -> save -> transformers: the same, from the other end."""
    first = oracle.build(name, oracle.config_kwargs(4), seed=4)
    first.save_pretrained(tmp_path / "theirs")
    ours = getattr(packed, name).from_pretrained(tmp_path / "theirs")
    same_state(ours, first)
    ours.save_pretrained(tmp_path / "ours")
    second = getattr(oracle.transformers, name).from_pretrained(tmp_path / "ours")
    same_state(second, first)
    skip = {"transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype", "vilt_fast_version"}
    before, after = first.config.to_dict(), second.config.to_dict()
    assert {k: v for k, v in before.items() if k not in skip} == {k: after[k] for k in before if k not in skip}


def test_names_of_labels_survive(oracle, tmp_path):
    labels = {0: "no", 1: "yes", 2: "größer"}
    kwargs = {k: v for k, v in small(oracle).items() if k != "num_labels"}
    config = ViltConfig(**kwargs, id2label=labels, label2id={v: k for k, v in labels.items()})
    packed.ViltForQuestionAnswering(config).save_pretrained(tmp_path / "ours")
    theirs = oracle.transformers.ViltForQuestionAnswering.from_pretrained(tmp_path / "ours")
    assert theirs.config.id2label == labels and theirs.config.num_labels == 3
    theirs.save_pretrained(tmp_path / "theirs")
    ours = packed.ViltForQuestionAnswering.from_pretrained(tmp_path / "theirs")
    assert ours.config.id2label == labels and ours.config.label2id == config.label2id


def test_5_ties_the_decoder_and_leaves_it_out(oracle, tmp_path):
    theirs = oracle.build("ViltForMaskedLM", small(oracle))
    theirs.save_pretrained(tmp_path)
    assert DECODER not in load_file(tmp_path / "model.safetensors")
    ours = packed.ViltForMaskedLM.from_pretrained(tmp_path)
    assert ours.mlm_score.decoder.weight is ours.vilt.get_input_embeddings().weight
    assert ours.config.tie_word_embeddings
    assert sum("decoder.weight" in name for name, _ in ours.named_parameters()) == 0


def test_4_37_does_not_tie_and_calls_the_bias_mlm_score_bias(oracle, tmp_path):
    theirs = oracle.build("ViltForMaskedLM", small(oracle))
    theirs.save_pretrained(tmp_path)
    decoder = torch.randn(theirs.mlm_score.decoder.weight.shape, generator=torch.Generator().manual_seed(1))
    as_4_37(tmp_path, decoder, tie_word_embeddings=False)
    ours = packed.ViltForMaskedLM.from_pretrained(tmp_path)
    oracle.check_equal("decoder", ours.mlm_score.decoder.weight, decoder)
    table = theirs.vilt.get_input_embeddings().weight
    oracle.check_equal("word embeddings", ours.vilt.get_input_embeddings().weight, table)
    oracle.check_equal("bias of the decoder", ours.mlm_score.decoder.bias, theirs.mlm_score.decoder.bias)
    assert not ours.config.tie_word_embeddings

    inputs = oracle.inputs_for("ViltForMaskedLM", ours.config, size=2)
    with torch.no_grad():
        got = ours(**inputs)
        encoded = paper.encode(ours.state_dict(), ours.config, **{k: v for k, v in inputs.items() if k != "labels"})
        text = encoded.last_hidden_state[:, : inputs["input_ids"].shape[1]]
        expected = paper.masked_lm(load_file(tmp_path / "model.safetensors"), ours.config, text)
    words = inputs["attention_mask"] != 0
    oracle.check_close("logits of real words", got.logits[words], expected[words], 1e-5)


@pytest.mark.parametrize("tied", [False, None], ids=["tie_word_embeddings=False", "no tie_word_embeddings"])
def test_an_untied_decoder_goes_through_transformers_5(oracle, tmp_path, tied):
    """5.x ties by default but keeps a decoder that differs; its config.json says tied, its weights say not."""
    theirs = oracle.build("ViltForMaskedLM", small(oracle))
    theirs.save_pretrained(tmp_path / "old")
    decoder = torch.randn(theirs.mlm_score.decoder.weight.shape, generator=torch.Generator().manual_seed(1))
    as_4_37(tmp_path / "old", decoder, tie_word_embeddings=tied)
    ours = packed.ViltForMaskedLM.from_pretrained(tmp_path / "old")
    ours.save_pretrained(tmp_path / "ours")
    through = oracle.transformers.ViltForMaskedLM.from_pretrained(tmp_path / "ours")
    same_state(through, ours)
    through.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["tie_word_embeddings"] is True
    again = packed.ViltForMaskedLM.from_pretrained(tmp_path / "theirs")
    same_state(again, ours)
    assert again.mlm_score.decoder.weight is not again.vilt.get_input_embeddings().weight
    assert not again.config.tie_word_embeddings


def test_an_equal_decoder_is_tied_only_where_the_config_says_so(oracle, tmp_path):
    """A .bin holds both names of one tensor; 4.37 may also hold two tensors that happen to be equal."""
    theirs = oracle.build("ViltForMaskedLM", small(oracle))
    theirs.save_pretrained(tmp_path)
    words = theirs.vilt.get_input_embeddings().weight.detach()
    as_4_37(tmp_path, words, tie_word_embeddings=False)
    ours = packed.ViltForMaskedLM.from_pretrained(tmp_path)
    assert ours.mlm_score.decoder.weight is not ours.vilt.get_input_embeddings().weight
    rewrite(tmp_path, tie_word_embeddings=True)
    ours = packed.ViltForMaskedLM.from_pretrained(tmp_path)
    assert ours.mlm_score.decoder.weight is ours.vilt.get_input_embeddings().weight


def test_buffers_of_old_versions_are_left_out(oracle, tmp_path):
    """Before 4.31 position_ids were saved; they are constants."""
    theirs = oracle.build("ViltModel", small(oracle))
    theirs.save_pretrained(tmp_path)

    def add(state):
        state["embeddings.text_embeddings.position_ids"] = torch.arange(theirs.config.max_position_embeddings)[None]
        state["embeddings.text_embeddings.token_type_ids"] = torch.zeros(1, 12, dtype=torch.long)

    rewrite(tmp_path, add)
    ours = packed.ViltModel.from_pretrained(tmp_path)
    same_state(ours, theirs)
    assert not any("position_ids" in name or "token_type_ids" in name for name in ours.state_dict())
    assert not list(ours.buffers())


def test_dtype_is_float32_unless_asked(oracle, tmp_path):
    """4.37 loads in float32, 5.x in the dtype stored. Ours does as 4.37 does."""
    oracle.build("ViltModel", small(oracle), dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert packed.ViltModel.from_pretrained(tmp_path).dtype == torch.float32
    assert packed.ViltModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert packed.ViltModel.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16
    assert packed.ViltModel.from_pretrained(tmp_path, torch_dtype="float64").dtype == torch.float64


def test_config_fields_of_both_versions(oracle, tmp_path):
    """torch_dtype (4.37) and dtype (5.x) both go; unknown keys are kept and written back; ours reads in both."""
    old = {
        "architectures": ["ViltForQuestionAnswering"],
        "model_type": "vilt",
        "torch_dtype": "float32",
        "transformers_version": "4.37.2",
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "label2id": {"a": 0, "b": 1, "c": 2},
        "somebody_elses": {"key": [1, 2]},
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = ViltConfig.from_pretrained(tmp_path)
    assert config.num_labels == 3 and config.id2label == {0: "a", 1: "b", 2: "c"} and not config.tie_word_embeddings
    assert config.vocab_size == 30522 and config.max_image_length == -1 and config.pad_token_id is None
    config.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["somebody_elses"] == {"key": [1, 2]} and written["model_type"] == "vilt"
    theirs = oracle.transformers.ViltConfig.from_pretrained(tmp_path / "again")
    for field in oracle.transformers.ViltConfig().to_dict():
        if field not in ("transformers_version", "architectures", "dtype", "tie_word_embeddings"):
            assert getattr(theirs, field) == getattr(config, field, getattr(theirs, field)), field
    assert ViltConfig.from_pretrained(tmp_path / "again") == config


def test_default_config_is_theirs(oracle):
    ours, theirs = ViltConfig(), oracle.transformers.ViltConfig()
    for field, value in theirs.to_dict().items():
        if hasattr(ours, field) and field != "tie_word_embeddings":  # False in 4.37, forced to True in 5.x
            assert getattr(ours, field) == value, field
    documented = set(oracle.transformers.ViltConfig.__dataclass_fields__) & set(theirs.to_dict())
    model_fields = {f for f in documented if f in oracle.transformers.ViltConfig.__annotations__}
    assert len(model_fields) >= 20 and model_fields <= set(ours.__dict__)


def test_retrieval_loss(oracle, tmp_path):
    """transformers refuses labels; ours is the mean of max(0, 0.2 - match + non-match) over all such pairs."""
    theirs = oracle.build("ViltForImageAndTextRetrieval", small(oracle, max_image_length=-1), dtype=torch.float64)
    theirs.save_pretrained(tmp_path)
    model = packed.ViltForImageAndTextRetrieval.from_pretrained(tmp_path, dtype=torch.float64)
    inputs = oracle.to_double(oracle.batch(model.config, seed=1, size=5))
    labels = torch.tensor([1, 0, 1, 0, 0])
    with pytest.raises(NotImplementedError):
        theirs(**inputs, labels=labels)
    output = model(**inputs, labels=labels)
    score = output.logits.detach()[:, 0].tolist()
    pairs = [max(0.0, 0.2 - score[i] + score[j]) for i in (0, 2) for j in (1, 3, 4)]
    assert any(pairs) and output.loss.item() == pytest.approx(sum(pairs) / 6, abs=1e-12)
    assert output.logits.shape == (5, 1)
    output.loss.backward()
    # The score is rank_output of the pooled row: its bias moves matches and non-matches alike.
    assert model.rank_output.bias.grad.abs().max() < 1e-12 and model.rank_output.weight.grad.abs().max() > 0


def test_image_text_matching(oracle):
    """The original's second head; in transformers it does not exist."""
    config = ViltConfig(**small(oracle, max_image_length=-1))
    model = oracle.randomise(packed.ViltForImageTextMatching(config), seed=1).double().eval()
    inputs = oracle.to_double(oracle.batch(config, seed=1, size=4))
    labels = torch.tensor([1, 0, 1, 1])
    with torch.no_grad():
        output = model(**inputs, labels=labels)
        encoded = paper.encode(model.state_dict(), config, **inputs)
    expected = paper.match(model.state_dict(), encoded.pooler_output)
    assert output.logits.shape == (4, 2)
    oracle.check_close("logits", output.logits, expected, 1e-10)
    chosen = expected.log_softmax(-1)[torch.arange(4), labels]
    assert output.loss.item() == pytest.approx(-chosen.mean().item(), abs=1e-10)


@pytest.mark.parametrize("name", ["ViltForMaskedLM", "ViltForTokenClassification"])
def test_labels_at_masked_words_do_not_count(oracle, tmp_path, name):
    """transformers would average its values at padding into the loss."""
    theirs = oracle.build(name, small(oracle, max_image_length=-1))
    theirs.save_pretrained(tmp_path)
    model = getattr(packed, name).from_pretrained(tmp_path)
    inputs = oracle.inputs_for(name, model.config, seed=2)
    masked = inputs["attention_mask"] == 0
    assert masked.any()
    with torch.no_grad():
        expected = model(**inputs).loss
        inputs["labels"] = inputs["labels"].masked_fill(masked, 1)
        oracle.check_equal("loss", model(**inputs).loss, expected)


def test_the_pooler_reads_the_first_word_that_is_attended_to(oracle):
    """With padding on the left transformers would pool a padded row."""
    model = oracle.randomise(packed.ViltModel(ViltConfig(**small(oracle, max_image_length=-1)))).eval()
    inputs = oracle.batch(model.config, seed=3, size=2)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    inputs["attention_mask"][1, :2] = 0
    with torch.no_grad():
        out = model(**inputs)
    first = out.last_hidden_state[1, 2]
    expected = torch.tanh(torch.nn.functional.linear(first, model.pooler.dense.weight, model.pooler.dense.bias))
    oracle.check_close("pooler_output", out.pooler_output[1], expected, 1e-6)
