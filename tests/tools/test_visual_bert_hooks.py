"""Hooks, forwards of one's own and other modules in a VisualBERT: what they do to transformers' they do to ours."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

PRE = "VisualBertForPreTraining"
CLASSES = (
    *("VisualBertModel", PRE, "VisualBertForQuestionAnswering", "VisualBertForMultipleChoice"),
    *("VisualBertForVisualReasoning", "VisualBertForRegionToPhraseAlignment"),
)


def backward(oracle, model, inputs, labels):
    """Gradients by name, of a loss that every class has."""
    model.zero_grad()
    oracle.objective(model(**inputs, **labels), inputs).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def check_gradients(oracle, got, wanted, tolerance=5e-5):
    """Names that both know; where transformers has zeros, there may be nothing here."""
    largest = max(value.abs().max() for value in wanted.values())
    for name, value in wanted.items():
        if name in got:  # what is zero in exact arithmetic is measured against the largest
            scale = max(value.abs().max(), largest / 100)
            assert (got[name] - value).abs().max() <= tolerance * scale, name
        else:
            assert not value.any(), name
    assert not got.keys() - wanted.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_module_tree(visual_built, name):
    """The names of transformers' modules and parameters, in their order, and the types that tools look for."""
    ours, theirs = visual_built(name)
    assert list(dict(ours.named_modules())) == list(dict(theirs.named_modules()))
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for path, module in theirs.named_modules():
        for kind in (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout, nn.ModuleList):
            assert isinstance(ours.get_submodule(path), kind) == isinstance(module, kind), path


@pytest.mark.parametrize("kind", ["forward_pre_hook", "forward_hook", "full_backward_hook"])
@pytest.mark.parametrize("name", CLASSES)
def test_what_fires_there_fires_here(visual_bert_oracle, visual_pair, visual_inputs, name, kind):
    """And the gradients beside all those hooks, every module called, are transformers'."""
    (inputs, labels), found = visual_inputs(name), []
    if "backward" in kind:  # transformers writes into what the table of positions gave, which such a hook forbids
        del inputs["image_text_alignment"]
    for model in visual_pair(name):
        fired = set()
        for path, module in model.named_modules():
            getattr(module, f"register_{kind}")(lambda *_, path=path, fired=fired: fired.add(path))
        found.append((fired, backward(visual_bert_oracle, model, inputs, labels)))
    (got, gradients), (wanted, wanted_gradients) = found
    assert not wanted - got, f"silent: {sorted(wanted - got)}"
    if "backward" not in kind:  # transformers' outputs hide their tensors from the backward hooks of whole models
        assert not got - wanted, f"silent in transformers: {sorted(got - wanted)}"
    check_gradients(visual_bert_oracle.oracle, gradients, wanted_gradients)


def shifted(value):
    """Every row moved by its feature alone, so that it does not matter how rows are laid out."""
    if isinstance(value, tuple):
        return (shifted(value[0]), *value[1:])
    if not torch.is_tensor(value):
        value.last_hidden_state = shifted(value.last_hidden_state)
        return value
    return value * 1.3 + torch.linspace(-0.3, 0.4, value.shape[-1])


HOOKED = (
    *("visual_bert.embeddings.word_embeddings", "visual_bert.embeddings.visual_projection"),
    *("visual_bert.embeddings.visual_token_type_embeddings", "visual_bert.embeddings.visual_position_embeddings"),
    *("visual_bert.embeddings.position_embeddings", "visual_bert.embeddings.LayerNorm", "visual_bert.embeddings"),
    *("visual_bert.encoder.layer.0.attention.self.query", "visual_bert.encoder.layer.0.attention.self"),
    *("visual_bert.encoder.layer.0.attention.output.dense", "visual_bert.encoder.layer.1.attention.output.LayerNorm"),
    *("visual_bert.encoder.layer.0.attention", "visual_bert.encoder.layer.1.intermediate"),
    *("visual_bert.encoder.layer.0.output.LayerNorm", "visual_bert.encoder.layer.1.output", "visual_bert.encoder"),
    *("visual_bert.encoder.layer.0", "visual_bert.pooler", "cls.predictions.transform.LayerNorm"),
    *("cls.predictions.decoder", "cls.predictions", "cls.seq_relationship"),
)


@torch.no_grad()
@pytest.mark.parametrize("way", ["hook", "forward", "subclass"])
@pytest.mark.parametrize("place", HOOKED)
def test_a_module_that_gives_something_else(visual_bert_oracle, visual_pair, visual_inputs, place, way):
    """By a hook, by a forward of its own, or by another class: what follows is transformers'."""
    (inputs, _), outputs = visual_inputs(PRE), []
    for model in visual_pair(PRE):
        module = model.get_submodule(place)
        if way == "hook":
            module.register_forward_hook(lambda module, args, output: shifted(output))
        elif way == "forward":
            module.forward = lambda *args, inner=module.forward, **kwargs: shifted(inner(*args, **kwargs))
        else:
            kind = type(module)
            changed = {"forward": lambda self, *args, kind=kind, **kwargs: shifted(kind.forward(self, *args, **kwargs))}
            module.__class__ = type(kind.__name__, (kind,), changed)
        outputs.append(model(**inputs))
    visual_bert_oracle.check_outputs(outputs[0], outputs[1], inputs, 1e-5)


REPLACED = {
    "visual_bert.embeddings.LayerNorm": lambda old: nn.Identity(),
    "visual_bert.embeddings.visual_projection": lambda old: nn.Sequential(old, nn.Tanh()),
    "visual_bert.embeddings.visual_position_embeddings": lambda old: nn.Sequential(old, nn.Tanh()),
    "visual_bert.encoder.layer.0.attention.output.LayerNorm": lambda old: nn.RMSNorm(24),
    "visual_bert.encoder.layer.1.output.dense": lambda old: nn.Sequential(old, nn.Tanh()),
    "cls.predictions.transform": lambda old: nn.Identity(),
}


@torch.no_grad()
@pytest.mark.parametrize("place", REPLACED)
def test_another_module_in_the_place_of_one(visual_bert_oracle, visual_pair, visual_inputs, place):
    (inputs, _), outputs = visual_inputs(PRE), []
    for model in visual_pair(PRE):
        model.set_submodule(place, REPLACED[place](model.get_submodule(place)))
        outputs.append(model(**inputs))
    visual_bert_oracle.check_outputs(outputs[0], outputs[1], inputs, 1e-5)
