"""Holes in texts and missing regions cost no row, and what a pair gets does not depend on the batch it stands in."""

import pytest
import torch
import torch.nn.functional as F

import vilt_fast
from vilt_fast import VisualBertConfig, ops
from vilt_fast.reference import visual_bert as paper

CONFIG = dict(
    vocab_size=37,
    hidden_size=24,
    visual_embedding_dim=14,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=40,
    max_position_embeddings=12,
    num_labels=5,
)
CLASSES = (
    "VisualBertModel",
    "VisualBertForPreTraining",
    "VisualBertForQuestionAnswering",
    "VisualBertForMultipleChoice",
    "VisualBertForVisualReasoning",
    "VisualBertForRegionToPhraseAlignment",
)
PER_LAYER = 7  # query_key_value, attention, output, layer_norm, up, down, layer_norm
# fp64: the same formula in another order.
CLOSE = dict(rtol=1e-10, atol=1e-11)


@pytest.fixture(params=CLASSES)
def name(request) -> str:
    return request.param


@pytest.fixture
def make(oracle):
    """A random model of a class, in fp64."""

    def of(name: str, **changes):
        model = getattr(vilt_fast, name)(VisualBertConfig(**{**CONFIG, **changes}))
        return oracle.randomise(model, 5).double().eval()

    return of


@pytest.fixture
def make_inputs(oracle, visual_bert_oracle):
    """Pairs with holes in both masks, for a class."""
    return lambda name, config, seed=1: oracle.to_double(visual_bert_oracle.inputs_for(name, config, seed, holes=True))


def prefix_of(name):
    return "" if name == "VisualBertModel" else "visual_bert."


def by_the_paper(name, state, config, inputs):
    """The first field of the output, of the padded reference."""
    inputs = dict(inputs)
    phrases = inputs.pop("region_to_phrase_position", None)
    if name == "VisualBertForMultipleChoice":
        if "image_text_alignment" in inputs:
            inputs["image_text_alignment"] = inputs["image_text_alignment"].unflatten(0, (2, 2))
        return paper.choose(state, config, inputs)
    encoded = paper.encode(state, config, prefix=prefix_of(name), **inputs)
    if name == "VisualBertForPreTraining":
        return paper.pretrain(state, config, encoded)[0]
    if name == "VisualBertForQuestionAnswering":
        words = encoded.mask[:, : encoded.mask.shape[1] - inputs["visual_embeds"].shape[1]]
        return paper.answer(state, encoded.last_hidden_state, words)
    if name == "VisualBertForVisualReasoning":
        return paper.classify(state, encoded.pooler_output)
    if name == "VisualBertForRegionToPhraseAlignment":
        return paper.align(state, config, encoded, phrases, inputs["visual_embeds"].shape[1])
    return encoded.last_hidden_state


@pytest.mark.parametrize("bypass", [False, True], ids=["", "bypass"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_class_is_the_reference(make, make_inputs, name, seed, bypass):
    """Outputs and the gradient of every parameter, with holes, where transformers counts words or crashes too."""
    model = make(name, bypass_transformer=bypass, hidden_act="gelu_new" if seed == 1 else "gelu")
    inputs = make_inputs(name, model.config, seed)
    if bypass and seed == 2:
        assert "inputs_embeds" in inputs  # transformers reads the length of input_ids there
    state = {key: value.detach().clone().requires_grad_() for key, value in model.state_dict(keep_vars=True).items()}
    if name in ("VisualBertForPreTraining", "VisualBertForRegionToPhraseAlignment"):  # what is tied there
        state["cls.predictions.decoder.weight"] = state["visual_bert.embeddings.word_embeddings.weight"]
    wanted = by_the_paper(name, state, model.config, inputs)
    got = model(**inputs)[0]
    torch.testing.assert_close(got, wanted, **CLOSE)
    weights = torch.linspace(-1, 1.5, got.numel(), dtype=got.dtype).view(got.shape)
    weights = weights.masked_fill(wanted == torch.finfo(torch.float64).min, 0)
    (got * weights).sum().backward()
    (wanted * weights).sum().backward()
    for key, parameter in model.named_parameters():
        both = [torch.zeros(()).expand(parameter.shape) if g is None else g for g in (parameter.grad, state[key].grad)]
        if key.endswith("word_embeddings.weight"):  # the row of padding learns nothing
            both[1] = both[1].index_fill(0, torch.tensor(model.config.pad_token_id), 0)
            both[0] = both[0].index_fill(0, torch.tensor(model.config.pad_token_id), 0)
        torch.testing.assert_close(*both, rtol=1e-9, atol=1e-10, check_dtype=False, msg=lambda m, k=key: f"{k}: {m}")


def record_rows(monkeypatch):
    """The operation and the rows of its first argument, of every call, in order."""
    calls = []
    for operation in ("linear", "layer_norm", "attention", "text_embed"):
        inner = getattr(ops, operation)

        def wrapped(first, *args, inner=inner, operation=operation, **kwargs):
            calls.append((operation, first.shape[0]))
            return inner(first, *args, **kwargs)

        monkeypatch.setattr(ops, operation, wrapped)
    return calls


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 3])
def test_what_is_masked_costs_no_row(make, visual_bert_oracle, monkeypatch, padding):
    """Regions are projected, and words and regions encoded, where they are attended to; however much padding."""
    model = make("VisualBertModel")
    inputs = visual_bert_oracle.oracle.to_double(visual_bert_oracle.batch(model.config, 4, 5, holes=True))
    for key, value in inputs.items():
        size = (0, 0, 0, padding) if key == "visual_embeds" else (0, padding if "visual" in key else 0)
        inputs[key] = F.pad(value, size)
    real, kept = visual_bert_oracle.real_rows(inputs), int(inputs["visual_attention_mask"].sum())
    rows = int(real.sum())
    assert rows < 0.8 * real.numel() and kept < rows
    calls = record_rows(monkeypatch)
    model(**inputs)
    assert [count for operation, count in calls if operation == "text_embed"] == [rows, rows]
    calls = [(operation, count) for operation, count in calls if operation != "text_embed"]
    assert calls[0] == ("linear", kept)
    layers = calls[1 : 1 + PER_LAYER * model.config.num_hidden_layers]
    assert {count for _, count in layers} == {rows}
    block = ["linear", "attention", "linear", "layer_norm", "linear", "linear", "layer_norm"]
    assert [operation for operation, _ in layers] == block * model.config.num_hidden_layers
    assert calls[1 + len(layers) :] == [("linear", 5)]  # the pooler


@torch.no_grad()
@pytest.mark.parametrize("name", ["VisualBertForQuestionAnswering", "VisualBertForVisualReasoning"])
def test_a_head_that_reads_one_row_per_pair_costs_less_in_the_last_block(make, make_inputs, monkeypatch, name):
    model = make(name)
    inputs = make_inputs(name, model.config)
    calls = record_rows(monkeypatch)
    model(**inputs)
    last = max(place for place, (operation, _) in enumerate(calls) if operation == "attention")
    assert {count for _, count in calls[last + 1 :]} == {3}


@torch.no_grad()
def test_bypass_reads_words_alone(make, visual_bert_oracle, monkeypatch):
    model = make("VisualBertModel", bypass_transformer=True)
    inputs = visual_bert_oracle.oracle.to_double(visual_bert_oracle.batch(model.config, 4, 5, holes=True))
    words, rows = int(inputs["attention_mask"].sum()), int(visual_bert_oracle.real_rows(inputs).sum())
    calls = record_rows(monkeypatch)
    model(**inputs)
    assert [count for operation, count in calls if operation == "attention"] == [words, words, rows]


def cut(inputs, b):
    """Pair b of a batch, without what is masked; words keep their positions."""
    words, regions = inputs["attention_mask"][b] != 0, inputs["visual_attention_mask"][b] != 0
    found = {}
    for key, value in inputs.items():
        if key == "region_to_phrase_position":  # places among the words that stay
            found[key] = (words.cumsum(0)[value[b].clamp(min=0)] - 1)[None]
        elif key == "image_text_alignment":
            found[key] = value[b, : len(regions)][regions][None]
        elif value.shape[1] == len(words) and "visual" not in key:
            found[key] = value[b][words][None]
        else:
            found[key] = value[b][regions][None]
    places = inputs.get("position_ids", torch.arange(len(words)).expand(len(inputs["attention_mask"]), -1))
    return {**found, "position_ids": places[b][words][None]}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", [name for name in CLASSES if "Choice" not in name])  # see the test that follows
def test_a_pair_alone_is_as_in_a_batch(make, make_inputs, name, dtype, seed):
    tolerance = {torch.float32: dict(rtol=1e-5, atol=1e-5), torch.float64: CLOSE}[dtype]
    model = make(name).to(dtype)
    inputs = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in make_inputs(name, model.config, seed).items()
    }
    real = inputs["attention_mask"] != 0, inputs["visual_attention_mask"] != 0
    together = model(**inputs)
    for b in range(3):
        alone = model(**cut(inputs, b))
        for field, value in alone.items():
            got = together[field][b]
            if name == "VisualBertForRegionToPhraseAlignment":
                got = got[:, real[1][b]]
            elif value.dim() == 3:
                got = got[torch.cat([mask[b] for mask in real])]
            torch.testing.assert_close(got, value[0], **tolerance, msg=lambda m, f=field: f"{f}: {m}")


@torch.no_grad()
def test_choices_are_pairs(make, make_inputs):
    """A choice scores what it scores as the only one."""
    name = "VisualBertForMultipleChoice"
    model = make(name)
    inputs = make_inputs(name, model.config, 0)
    logits = model(**inputs).logits
    for place in range(2):
        one = model(**{key: value[:, place : place + 1] for key, value in inputs.items()}).logits
        torch.testing.assert_close(one[:, 0], logits[:, place], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("states", [False, True], ids=["packed", "states"])
def test_questions_without_a_mask(make, visual_bert_oracle, states):
    """transformers crashes; and logits are logits also with labels, which it returns log-softmaxed."""
    model = make("VisualBertForQuestionAnswering")
    inputs = visual_bert_oracle.oracle.to_double(visual_bert_oracle.batch(model.config, 3))
    del inputs["attention_mask"]
    labels = torch.rand(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = by_the_paper("VisualBertForQuestionAnswering", model.state_dict(), model.config, inputs)
    got = model(**inputs, labels=labels, output_hidden_states=states)
    torch.testing.assert_close(got.logits, wanted, **CLOSE)
    torch.testing.assert_close(model(**inputs, output_hidden_states=states).logits, wanted, **CLOSE)
    loss = F.kl_div(wanted.log_softmax(-1), labels, reduction="batchmean")
    torch.testing.assert_close(got.loss, loss, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("states", [False, True], ids=["packed", "states"])
def test_phrases_without_masks(make, visual_bert_oracle, states):
    """transformers crashes."""
    name = "VisualBertForRegionToPhraseAlignment"
    model = make(name)
    inputs = visual_bert_oracle.oracle.to_double(visual_bert_oracle.inputs_for(name, model.config, 3))
    del inputs["attention_mask"], inputs["visual_attention_mask"]
    wanted = by_the_paper(name, model.state_dict(), model.config, inputs)
    torch.testing.assert_close(model(**inputs, output_hidden_states=states).logits, wanted, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("states", [False, True], ids=["packed", "states"])
def test_labels_at_masked_places_do_not_count(make, make_inputs, visual_bert_oracle, states):
    name = "VisualBertForPreTraining"
    model = make(name)
    inputs = make_inputs(name, model.config)
    labels = visual_bert_oracle.labels_for(name, model.config, inputs, 1)
    real = visual_bert_oracle.real_rows(inputs)
    more = {**labels, "labels": labels["labels"].masked_fill(~real, 5)}
    asked = {"output_hidden_states": states}
    wanted = model(**inputs, **labels, **asked).loss
    assert not real.all() and wanted > 0
    assert torch.equal(model(**inputs, **more, **asked).loss, wanted)

    name = "VisualBertForRegionToPhraseAlignment"
    model = make(name)
    inputs = make_inputs(name, model.config)
    labels = visual_bert_oracle.labels_for(name, model.config, inputs)["labels"].double()
    masked = inputs["visual_attention_mask"][:, None].expand_as(labels) == 0
    wanted = model(**inputs, labels=labels, **asked).loss
    assert masked.any() and wanted.isfinite()
    assert torch.equal(model(**inputs, labels=labels.masked_fill(masked, 0.5), **asked).loss, wanted)


@torch.no_grad()
@pytest.mark.parametrize("states", [False, True], ids=["packed", "states"])
def test_labels_of_the_sentence_alone(make, make_inputs, states):
    """Give a loss, as labels of words do and both together; transformers gives none."""
    model = make("VisualBertForPreTraining")
    inputs = make_inputs("VisualBertForPreTraining", model.config)
    total = inputs["attention_mask"].shape[1] + inputs["visual_embeds"].shape[1]
    words, match = torch.full((3, total), -100), torch.tensor([1, 0, 1])
    words[:, 0] = torch.tensor([3, 4, 5])
    asked = {"output_hidden_states": states}
    output = model(**inputs, sentence_image_labels=match, **asked)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.seq_relationship_logits, match), **CLOSE)
    alone = model(**inputs, labels=words, **asked).loss
    torch.testing.assert_close(alone, F.cross_entropy(output.prediction_logits[:, 0], words[:, 0]), **CLOSE)
    both = model(**inputs, labels=words, sentence_image_labels=match[:, None], **asked).loss
    torch.testing.assert_close(both, output.loss + alone, **CLOSE)


def test_types_of_the_classes(name):
    cls = getattr(vilt_fast, name)
    assert issubclass(cls, vilt_fast.VisualBertPreTrainedModel)
    assert cls.base_model_prefix == "visual_bert" and cls.config_class is VisualBertConfig


@torch.no_grad()
@pytest.mark.parametrize("bypass", [False, True], ids=["", "bypass"])
def test_pruned_heads(make, make_inputs, tmp_path, bypass):
    """Are heads that a head_mask of zero turns off; live, frozen, and read back from a file."""
    model = make("VisualBertForVisualReasoning", bypass_transformer=bypass)
    inputs = make_inputs("VisualBertForVisualReasoning", model.config)
    wanted = model(**inputs, head_mask=torch.tensor([[1.0, 0.0], [1.0, 1.0]])).logits
    model.prune_heads({0: [1]})
    assert model.visual_bert.encoder.layer[0].attention.self.query.weight.shape == (12, 24)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    for form in (model, vilt_fast.freeze(model), again):
        torch.testing.assert_close(form(**inputs).logits, wanted, **CLOSE)


@torch.no_grad()
def test_texts_that_are_padded_on_the_left(make, visual_bert_oracle):
    """The pooler reads the first word that is attended to, questions the word before the last; positions as given."""
    for name in ("VisualBertForVisualReasoning", "VisualBertForQuestionAnswering"):
        model = make(name)
        inputs = visual_bert_oracle.oracle.to_double(visual_bert_oracle.batch(model.config, 3))
        length, counts = inputs["input_ids"].shape[1], inputs["attention_mask"].sum(1).tolist()
        inputs["position_ids"] = torch.arange(length).expand(3, -1)
        left = dict(inputs)
        for key in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
            rows = zip(inputs[key], counts, strict=True)
            left[key] = torch.stack([row.roll(length - count) for row, count in rows])
        assert not left["attention_mask"][:, 0].all()
        torch.testing.assert_close(model(**left).logits, model(**inputs).logits, **CLOSE)
