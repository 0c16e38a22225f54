"""The padded VisualBERT of vilt_fast.reference.visual_bert: tiny cases worked by hand, then transformers."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import vilt_fast
from vilt_fast.reference import visual_bert as paper

# What is left is the order of sums: a missing term or a wrong epsilon is 1e-3 and more.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def tiny_state(prefix="visual_bert."):
    """hidden size 2, features of one number, three positions."""
    state = {
        "embeddings.word_embeddings.weight": [[3.0, 1.0], [0.0, 5.0]],
        "embeddings.position_embeddings.weight": [[1.0, 0.0], [0.0, 4.0], [9.0, 0.0]],
        "embeddings.token_type_embeddings.weight": [[0.0, 0.0], [7.0, 0.0]],
        "embeddings.visual_token_type_embeddings.weight": [[0.0, 0.5], [100.0, 0.0]],
        "embeddings.visual_position_embeddings.weight": [[0.25, 0.0], [88.0, 88.0], [88.0, 88.0]],
        "embeddings.visual_projection.weight": [[10.0], [-1.0]],
        "embeddings.visual_projection.bias": [0.0, 2.0],
        "embeddings.LayerNorm.weight": [2.0, 3.0],
        "embeddings.LayerNorm.bias": [0.5, 0.0],
        "pooler.dense.weight": [[1.0, 0.0], [0.0, 0.5]],
        "pooler.dense.bias": [0.0, 1.0],
    }
    return {prefix + name: double(value) for name, value in state.items()}


def tiny_config(**changes):
    values = dict(
        num_hidden_layers=0,
        num_attention_heads=1,
        hidden_size=2,
        hidden_act="relu",
        layer_norm_eps=1e-12,
        bypass_transformer=False,
    )
    return SimpleNamespace(**{**values, **changes})


def test_words_by_hand():
    ids = torch.tensor([[0, 1]])
    rows = paper.word_rows(tiny_state(""), ids)
    assert rows.tolist() == [[[4, 1], [0, 9]]]
    rows = paper.word_rows(tiny_state(""), ids, torch.tensor([[1, 0]]), torch.tensor([[2, 2]]))
    assert rows.tolist() == [[[19, 1], [9, 5]]]
    rows = paper.word_rows(tiny_state(""), None, inputs_embeds=double([[[1, 2]]]))
    assert rows.tolist() == [[[2, 2]]]


def test_regions_by_hand():
    """(10 x, 2 - x) + position (0.25, 0) + segment 1, or 0 where it is said; then the mean of two words' positions."""
    features = double([[[1.0], [2.0], [3.0]]])
    rows = paper.region_rows(tiny_state(""), features)
    assert rows.tolist() == [[[110.25, 1], [120.25, 0], [130.25, -1]]]
    types = torch.tensor([[0, 1, 0]])
    aligned = torch.tensor([[[0, 1], [2, -1], [-1, -1], [1, 1]]])  # the fourth region is none of these
    rows = paper.region_rows(tiny_state(""), features, types, aligned)
    assert rows.tolist() == [[[10.75, 3.5], [129.25, 0], [30.25, -0.5]]]


def test_whole_body_without_blocks_by_hand():
    """A LayerNorm of two values is +-1, then times (2, 3) plus (0.5, 0); what is masked is zero."""
    given = dict(
        input_ids=torch.tensor([[1, 0, 1], [0, 0, 0]]),
        attention_mask=torch.tensor([[1, 0, 1], [0, 1, 0]]),
        visual_embeds=double([[[1.0], [2.0]], [[2.0], [3.0]]]),
        visual_attention_mask=double([[0.0, 1.0], [0.0, 0.0]]),
    )
    out = paper.encode(tiny_state(), tiny_config(), **given)
    up, down, none = [2.5, -3.0], [-1.5, 3.0], [0.0, 0.0]
    torch.testing.assert_close(out.last_hidden_state, double([[down, none, up, none, up], [none, down, *[none] * 3]]))
    wanted = [math.tanh(-1.5), math.tanh(2.5)]
    torch.testing.assert_close(out.pooler_output, double([wanted, wanted]))
    assert out.mask.tolist() == [[True, False, True, False, True], [False, True, False, False, False]]
    assert out.attentions == () and len(out.hidden_states) == 1


def block_state(name="encoder.layer.0."):
    """Attention that adds (0, 1) to every row, and an MLP that takes relu(x_0) to ten times the second value."""
    one, zero = double([1.0, 1.0]), double([0.0, 0.0])
    state = {f"attention.self.{part}.weight": torch.zeros(2, 2).double() for part in ("query", "key", "value")}
    state |= {f"{part}LayerNorm.weight": one for part in ("attention.output.", "output.")}
    state |= {f"{part}LayerNorm.bias": zero for part in ("attention.output.", "output.")}
    state["attention.output.dense.weight"] = torch.zeros(2, 2).double()
    state["attention.output.dense.bias"] = double([0.0, 1.0])
    state["intermediate.dense.weight"] = double([[1.0, 0.0]])
    state["output.dense.weight"] = double([[0.0], [10.0]])
    return {name + key: value for key, value in state.items()}


def test_block_by_hand():
    """LN((6, 2) + (0, 1)) = (1, -1); + (0, 10) is (1, 9), normalised (-1, 1). LN((2, 6) + (0, 1)) = (-1, 1) stays."""
    z, real = double([[[6.0, 2.0], [2.0, 6.0], [0.0, 0.0]]]), torch.tensor([[True, True, False]])
    out, attention = paper.block(block_state(""), tiny_config(), z, real)
    torch.testing.assert_close(out, double([[[-1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]]]))
    torch.testing.assert_close(attention, double([[[[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]]]]))


def test_bypass_by_hand():
    """Words alone go through the encoder, then all rows through the additional layer; without regions, none does."""
    state = {**tiny_state(""), **block_state(), **block_state("additional_layer.")}
    config = tiny_config(num_hidden_layers=1, bypass_transformer=True)
    given = dict(input_ids=torch.tensor([[1, 0]]), visual_embeds=double([[[1.0], [2.0], [3.0]]]))
    out = paper.encode(state, config, prefix="", **given)
    assert [tuple(z.shape) for z in out.hidden_states] == [(1, 2, 2), (1, 2, 2), (1, 5, 2)]
    assert [tuple(a.shape) for a in out.attentions] == [(1, 1, 2, 2), (1, 1, 5, 5)]
    # Words (0, 9) and (4, 1) become (-1.5, 3) and (2.5, -3), and each block takes both to (-1, 1). Regions have not
    # seen the encoder: (2.5, -3) becomes (-1, 1) in the additional layer.
    torch.testing.assert_close(out.hidden_states[1], double([[[-1.0, 1.0], [-1.0, 1.0]]]))
    torch.testing.assert_close(out.last_hidden_state, double([[[-1.0, 1.0]] * 5]))
    alone = paper.encode(state, config, prefix="", input_ids=given["input_ids"])
    torch.testing.assert_close(alone.last_hidden_state, out.hidden_states[1])


def test_heads_by_hand():
    rows = double([[[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]], [[5.0, 0.0], [6.0, 0.0], [7.0, 0.0], [8.0, 0.0]]])
    state = {"cls.weight": double([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]), "cls.bias": double([0.0, 0.0, 9.0])}
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0]])
    assert paper.answer(state, rows, mask).tolist() == [[2, 4, 9], [5, 10, 9]]
    assert paper.classify(state, rows[:, 3]).tolist() == [[4, 8, 9], [8, 16, 9]]

    eye = torch.eye(2, dtype=torch.float64)
    state = {f"attention.{part}.weight": eye for part in ("query", "key")}
    real = torch.tensor([[True, True, True, False], [True] * 4])
    encoded = paper.Encoded(rows * real[..., None], None, (), (), real)
    scores = paper.align(state, tiny_config(num_attention_heads=2), encoded, torch.tensor([[1], [-1]]), 2)
    assert scores.tolist() == [[[6, torch.finfo(torch.float64).min]], [[35, 40]]]  # heads of one number: no division


@torch.no_grad()
@pytest.mark.parametrize("name", ["VisualBertModel", "VisualBertForPreTraining", "VisualBertForVisualReasoning"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("index", range(6))
def test_it_is_transformers(oracle, visual_bert_oracle, index, dtype, name):
    """Masks with holes, alignments, positions, embeddings instead of words."""
    model = visual_bert_oracle.build(name, visual_bert_oracle.config_kwargs(index), seed=index).to(dtype)
    inputs = visual_bert_oracle.inputs_for(name, model.config, index, holes=index > 2)
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    wanted = model(**inputs, output_hidden_states=True, output_attentions=True)
    prefix = "" if name == "VisualBertModel" else "visual_bert."
    got = paper.encode(model.state_dict(), model.config, prefix=prefix, **inputs)
    real = visual_bert_oracle.real_rows(inputs)
    assert torch.equal(got.mask, real)
    oracle.check_layers("hidden_states", got.hidden_states, wanted.hidden_states, real, TOLERANCE[dtype])
    oracle.check_layers("attentions", got.attentions, wanted.attentions, real, TOLERANCE[dtype])
    if name == "VisualBertModel":
        oracle.check_rows("states", got.last_hidden_state, wanted.last_hidden_state, real, TOLERANCE[dtype])
        oracle.check_close("pooler_output", got.pooler_output, wanted.pooler_output, TOLERANCE[dtype])
    elif name == "VisualBertForPreTraining":
        words, matches = paper.pretrain(model.state_dict(), model.config, got)
        oracle.check_rows("prediction_logits", words, wanted.prediction_logits, real, TOLERANCE[dtype])
        oracle.check_close("relationship", matches, wanted.seq_relationship_logits, TOLERANCE[dtype])
    else:
        logits = paper.classify(model.state_dict(), got.pooler_output)
        oracle.check_close("logits", logits, wanted.logits, TOLERANCE[dtype])


@torch.no_grad()
@pytest.mark.parametrize("index", range(4))
def test_heads_are_transformers(oracle, visual_bert_oracle, index):
    """Questions, choices, phrases, in fp64; and text without regions."""
    kwargs = visual_bert_oracle.config_kwargs(index)
    models = {name: visual_bert_oracle.build(name, kwargs, seed=index).double() for name in visual_bert_oracle.CLASSES}

    def given(name, **changes):
        inputs = oracle.to_double(visual_bert_oracle.inputs_for(name, models[name].config, index))
        return inputs, models[name].state_dict(), models[name].config, models[name](**inputs)

    inputs, state, config, wanted = given("VisualBertForQuestionAnswering")
    rows = paper.encode(state, config, **inputs).last_hidden_state
    logits = paper.answer(state, rows, inputs["attention_mask"])
    oracle.check_close("answers", logits, wanted.logits, TOLERANCE[torch.float64])

    inputs, state, config, wanted = given("VisualBertForMultipleChoice")
    if "image_text_alignment" in inputs:  # flat in transformers
        inputs["image_text_alignment"] = inputs["image_text_alignment"].unflatten(0, (2, 2))
    oracle.check_close("choices", paper.choose(state, config, inputs), wanted.logits, TOLERANCE[torch.float64])

    inputs, state, config, wanted = given("VisualBertForRegionToPhraseAlignment")
    phrases = inputs.pop("region_to_phrase_position")
    got = paper.align(state, config, paper.encode(state, config, **inputs), phrases, inputs["visual_embeds"].shape[1])
    visual_bert_oracle.check_scores(got, wanted.logits, inputs, TOLERANCE[torch.float64])

    text = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 0, 1]])}
    model = models["VisualBertModel"]
    got = paper.encode(model.state_dict(), model.config, prefix="", **text)
    oracle.check_close("text alone", got.pooler_output, model(**text).pooler_output, TOLERANCE[torch.float64])


@torch.no_grad()
def test_heads_that_are_off(visual_bert_oracle):
    """transformers 5 has no head_mask: a head that counts half is one whose values count half."""
    model = visual_bert_oracle.build("VisualBertModel", visual_bert_oracle.SMALL).double()
    inputs = visual_bert_oracle.oracle.to_double(visual_bert_oracle.batch(model.config))
    head_mask = double([[0.5, 1.0], [1.0, 0.0]])
    got = paper.encode(model.state_dict(), model.config, prefix="", head_mask=head_mask, **inputs)
    for layer, scale in zip(model.encoder.layer, head_mask, strict=True):
        value = layer.attention.self.value
        value.weight *= scale.repeat_interleave(12)[:, None]
        value.bias *= scale.repeat_interleave(12)
    wanted, real = model(**inputs).last_hidden_state, visual_bert_oracle.real_rows(inputs)
    visual_bert_oracle.oracle.check_rows("states", got.last_hidden_state, wanted, real, TOLERANCE[torch.float64])


@torch.no_grad()
def test_bypass_is_made_of_transformers_parts(visual_bert_oracle):
    """Its own forward crashes; its modules, called in the order that it says, do not."""
    model = visual_bert_oracle.build("VisualBertModel", {**visual_bert_oracle.SMALL, "bypass_transformer": True})
    inputs = visual_bert_oracle.oracle.to_double(visual_bert_oracle.batch(model.double().config))
    with pytest.raises(IndexError):
        model(**inputs)
    words, regions = (inputs.pop(name) for name in ("attention_mask", "visual_attention_mask"))
    z = model.embeddings(**inputs)
    low = torch.finfo(torch.float64).min
    additive = [(1 - mask.double())[:, None, None] * low for mask in (words, torch.cat([words, regions], 1))]
    encoded = model.encoder(z[:, : words.shape[1]], additive[0], output_hidden_states=True)
    joint = torch.cat([encoded.last_hidden_state, z[:, words.shape[1] :]], 1)
    wanted, attention = model.additional_layer(joint, additive[1], output_attentions=True)
    inputs |= {"attention_mask": words, "visual_attention_mask": regions}
    got = paper.encode(model.state_dict(), model.config, prefix="", **inputs)
    real, check = visual_bert_oracle.real_rows(inputs), visual_bert_oracle.oracle
    check.check_rows("states", got.last_hidden_state, wanted, real, TOLERANCE[torch.float64])
    check.check_close("pooler_output", got.pooler_output, model.pooler(wanted), TOLERANCE[torch.float64])
    states = got.hidden_states[:-1]
    check.check_layers("hidden_states", states, encoded.hidden_states, words != 0, TOLERANCE[torch.float64])
    check.check_attentions("attentions", got.attentions[-1], attention, real, TOLERANCE[torch.float64])


@torch.no_grad()
def test_losses_need_no_more_than_the_outputs(oracle, visual_bert_oracle):
    """The KL divergence of two heads is that of log-softmaxed logits; transformers then returns those."""
    model = visual_bert_oracle.build("VisualBertForQuestionAnswering", visual_bert_oracle.SMALL).double()
    inputs = oracle.to_double(visual_bert_oracle.inputs_for("VisualBertForQuestionAnswering", model.config))
    labels = visual_bert_oracle.labels_for("VisualBertForQuestionAnswering", model.config, inputs)["labels"].double()
    wanted = model(**inputs, labels=labels)
    rows = paper.encode(model.state_dict(), model.config, **inputs).last_hidden_state
    logits = paper.answer(model.state_dict(), rows, inputs["attention_mask"]).log_softmax(-1)
    oracle.check_close("logits", logits, wanted.logits, TOLERANCE[torch.float64])
    oracle.check_close("loss", F.kl_div(logits, labels, reduction="batchmean"), wanted.loss, TOLERANCE[torch.float64])


def test_the_packed_model_does_not_use_it():
    for folder in ("models", "layers"):
        for path in (Path(vilt_fast.__file__).parent / folder).glob("*.py"):
            assert not re.search(r"reference(\.| import )visual_bert\b", path.read_text()), path


def test_what_it_imports():
    lines = Path(paper.__file__).read_text().splitlines()
    modules = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert modules == {"collections.abc", "typing", "torch", "vilt_fast.reference.vilt"}
