"""The packed VisualBERT against transformers 5: the same directories, the same pairs, the same numbers."""

import functools
import tempfile

import pytest
import torch

import vilt_fast

NUM_CONFIGS = 12  # what visual_bert_oracle.config_kwargs needs to show every switch
CLASSES = (
    "VisualBertModel",
    "VisualBertForPreTraining",
    "VisualBertForQuestionAnswering",
    "VisualBertForMultipleChoice",
    "VisualBertForVisualReasoning",
    "VisualBertForRegionToPhraseAlignment",
)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Relative to the largest magnitude of the tensor; reasons as in test_vilt_vs_transformers.py.
OUTPUT = {torch.float32: 1e-5, torch.float64: 1e-10}
GRADIENT = {torch.float32: 1e-4, torch.float64: 1e-9}
FLOOR = {torch.float32: 1e-6, torch.float64: 1e-14}
STATES = {"output_hidden_states": True, "output_attentions": True}


@functools.lru_cache(maxsize=1)
def both_models(visual_bert_oracle, name, index):
    theirs = visual_bert_oracle.build(name, visual_bert_oracle.config_kwargs(index), seed=index)
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return theirs, getattr(vilt_fast, name).from_pretrained(directory)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("index", range(NUM_CONFIGS), ids=lambda index: f"config{index}")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_every_class(oracle, visual_bert_oracle, dtype, index, name):
    """Outputs, states, attentions, losses, and the gradient of every parameter."""
    theirs, ours = both_models(visual_bert_oracle, name, index)
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    holes = index > 6 and name != "VisualBertForQuestionAnswering"  # transformers counts words there
    inputs = visual_bert_oracle.inputs_for(name, theirs.config, index, holes=holes)
    labels = visual_bert_oracle.labels_for(name, theirs.config, inputs, index)
    if dtype == torch.float64:
        inputs, labels = oracle.to_double(inputs), oracle.to_double(labels)
    with torch.no_grad():
        wanted, got = theirs(**inputs, **STATES), ours(**inputs, **STATES)
        visual_bert_oracle.check_outputs(got, wanted, inputs, OUTPUT[dtype])
        short = ours(**inputs)  # where no states are asked for, heads read fewer rows
    plain = {field: wanted[field] for field in wanted if field not in ("hidden_states", "attentions")}
    visual_bert_oracle.check_outputs(short, plain, inputs, OUTPUT[dtype])
    losses = []
    for model in (theirs, ours):
        model.zero_grad()
        output = model(**inputs, **labels)
        losses.append(visual_bert_oracle.objective(output, inputs))
        losses[-1].backward()
    oracle.check_close("loss", losses[1], losses[0], OUTPUT[dtype])
    gradients = ({n: p.grad for n, p in model.named_parameters() if p.grad is not None} for model in (ours, theirs))
    check_gradients(*gradients, dtype)


def check_gradients(got, wanted, dtype):
    """The gradient of every parameter, by name, within GRADIENT and FLOOR; what has none in transformers has zero."""
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    assert wanted.keys() <= got.keys(), wanted.keys() - got.keys()
    for name, gradient in got.items():
        expected = wanted.get(name, torch.zeros_like(gradient))
        limit = GRADIENT[dtype] * expected.abs().max().item() + FLOOR[dtype] * largest
        difference = (gradient - expected).abs().max().item()
        assert difference <= limit, f"gradient of {name}: off by {difference:.3g}, {limit:.3g} allowed"


@pytest.mark.parametrize("name", CLASSES)
def test_the_defaults_of_the_configuration(visual_bert_oracle, tmp_path, name):
    ours, theirs = visual_bert_oracle.pair(name, tmp_path)
    inputs = visual_bert_oracle.inputs_for(name, theirs.config)
    with torch.no_grad():
        wanted = theirs(**inputs, **STATES)
        ours.config.output_attentions = ours.config.output_hidden_states = True
        visual_bert_oracle.check_outputs(ours(**inputs), wanted, inputs, OUTPUT[torch.float32])
        ours.config.return_dict = False
        assert isinstance(ours(**inputs), tuple)
        plain = ours(**inputs, output_attentions=False, output_hidden_states=False, return_dict=True)
    assert set(plain) == set(wanted) - {"attentions", "hidden_states"}


@pytest.mark.parametrize("states", [False, True], ids=["plain", "states"])
@pytest.mark.parametrize("name", CLASSES)
def test_tuples(visual_bert_oracle, tmp_path, name, states):
    """return_dict=False, with loss where there is one, and without."""
    ours, theirs = visual_bert_oracle.pair(name, tmp_path)
    inputs = visual_bert_oracle.inputs_for(name, theirs.config)
    asked = {"output_attentions": states, "output_hidden_states": states}
    for labels in ({}, visual_bert_oracle.labels_for(name, theirs.config, inputs)):
        with torch.no_grad():
            wanted = theirs(**inputs, **labels, **asked, return_dict=False)
            got = ours(**inputs, **labels, **asked, return_dict=False)
            fields = list(ours(**inputs, **labels, **asked))
        assert isinstance(got, tuple) and len(got) == len(wanted) == len(fields)
        for mine, other in zip(got, wanted, strict=True):
            assert type(mine) is type(other)
        if labels and name == "VisualBertForQuestionAnswering":  # logits that labels change are a defect there
            wanted = (wanted[0], theirs(**inputs).logits.detach(), *wanted[2:])
        named = [dict(zip(fields, output, strict=True)) for output in (got, wanted)]
        visual_bert_oracle.check_outputs(*named, inputs, OUTPUT[torch.float32])


@torch.no_grad()
def test_a_base_model_without_pooler(visual_bert_oracle, tmp_path):
    """transformers keeps the pooler's place in the tuple, with None."""
    ours, theirs = visual_bert_oracle.pair("VisualBertModel", tmp_path, add_pooling_layer=False)
    inputs = visual_bert_oracle.batch(theirs.config)
    visual_bert_oracle.check_outputs(ours(**inputs), theirs(**inputs), inputs, OUTPUT[torch.float32])


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_every_optional_argument(visual_bert_oracle, tmp_path, name):
    """Each left out by itself, where transformers can."""
    ours, theirs = visual_bert_oracle.pair(name, tmp_path, num_hidden_layers=1)
    inputs = visual_bert_oracle.inputs_for(name, theirs.config, 1)
    assert {"position_ids", "image_text_alignment"} <= inputs.keys()
    needed = {"input_ids", "visual_embeds", "region_to_phrase_position"}
    if name in ("VisualBertForQuestionAnswering", "VisualBertForRegionToPhraseAlignment"):
        needed |= {"attention_mask", "visual_attention_mask"}
    for left_out in inputs.keys() - needed:
        given = {key: value for key, value in inputs.items() if key != left_out}
        real = inputs
        if left_out.endswith("attention_mask"):
            real = inputs | {left_out: torch.ones_like(inputs[left_out])}
        visual_bert_oracle.check_outputs(ours(**given), theirs(**given), real, OUTPUT[torch.float32])


@torch.no_grad()
@pytest.mark.parametrize("name", ["VisualBertModel", "VisualBertForPreTraining", "VisualBertForVisualReasoning"])
def test_text_alone(visual_bert_oracle, tmp_path, name):
    """With a mask, without one, and with an alignment of regions that are not there."""
    ours, theirs = visual_bert_oracle.pair(name, tmp_path)
    inputs = visual_bert_oracle.batch(theirs.config)
    text = {key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    visual_bert_oracle.check_outputs(ours(**text), theirs(**text), text, OUTPUT[torch.float32])
    del text["attention_mask"]
    whole = {"attention_mask": torch.ones_like(text["input_ids"])}
    visual_bert_oracle.check_outputs(ours(**text), theirs(**text), whole, OUTPUT[torch.float32])


@pytest.mark.parametrize("name", ["VisualBertModel", "VisualBertForRegionToPhraseAlignment"])
def test_gradients_of_features_and_words(oracle, visual_bert_oracle, tmp_path, name):
    """Of visual_embeds and inputs_embeds; none reaches what is masked."""
    ours, theirs = visual_bert_oracle.pair(name, tmp_path)
    inputs = oracle.to_double(visual_bert_oracle.inputs_for(name, theirs.config, 2))
    given = ("visual_embeds", "inputs_embeds")
    found = []
    for model in (ours.double(), theirs.double()):
        leaves = {key: inputs[key].clone().requires_grad_() for key in given}
        visual_bert_oracle.objective(model(**{**inputs, **leaves}), inputs).backward()
        found.append({key: leaf.grad for key, leaf in leaves.items()})
    for key, mask in zip(given, ("visual_attention_mask", "attention_mask"), strict=True):
        oracle.check_close(f"gradient of {key}", found[0][key], found[1][key], GRADIENT[torch.float64])
        assert found[0][key][inputs[mask] == 0].eq(0).all()


@pytest.mark.parametrize("name", CLASSES)
def test_there_and_back(visual_bert_oracle, tmp_path, name):
    """What we write, transformers reads: the same tensors, and nothing missing or left over."""
    ours, theirs = visual_bert_oracle.pair(name, tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again, report = getattr(visual_bert_oracle.transformers, name).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    state = theirs.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    fields = again.config.to_dict()  # ours has more of its own
    wanted = {**theirs.config.to_dict(), "_name_or_path": fields["_name_or_path"]}
    assert {key: fields[key] for key in wanted} == wanted


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_bfloat16(visual_bert_oracle, tmp_path, name):
    """Two layers of sums rounded to 8 bits in other places. Features in float32 are cast to the weights' dtype."""
    ours, theirs = visual_bert_oracle.pair(name, tmp_path)
    inputs = visual_bert_oracle.inputs_for(name, theirs.config)
    wanted = theirs.bfloat16()(**inputs | {"visual_embeds": inputs["visual_embeds"].bfloat16()})
    got = ours.bfloat16()(**inputs)
    visual_bert_oracle.check_outputs(got, wanted, inputs, 0.06)
    assert got[0].dtype == torch.bfloat16


@torch.no_grad()
def test_the_example_of_the_documentation(visual_bert_oracle, tmp_path):
    """`inputs.update(...)`, float masks, int64 types, in the order in which it gives them."""
    ours, theirs = visual_bert_oracle.pair("VisualBertModel", tmp_path)
    visual_embeds = torch.randn(1, 4, theirs.config.visual_embedding_dim)
    inputs = {"input_ids": torch.tensor([[2, 9, 4, 3]])}
    inputs |= {"token_type_ids": torch.zeros(1, 4, dtype=torch.long), "attention_mask": torch.ones(1, 4).long()}
    inputs.update(
        {
            "visual_embeds": visual_embeds,
            "visual_token_type_ids": torch.ones(visual_embeds.shape[:-1], dtype=torch.long),
            "visual_attention_mask": torch.ones(visual_embeds.shape[:-1], dtype=torch.float),
        }
    )
    visual_bert_oracle.check_outputs(ours(**inputs), theirs(**inputs), inputs, OUTPUT[torch.float32])
