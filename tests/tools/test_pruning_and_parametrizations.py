"""Pruning, weight norm, spectral norm and parametrizations: the weight that a module computes is the one that counts.

Each changes a module of both models in the same way; then weights are loaded, and both take the same steps.
"""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

PATHS = {
    "query": "vilt.encoder.layer.0.attention.attention.query",
    "value": "vilt.encoder.layer.1.attention.attention.value",
    "attention output": "vilt.encoder.layer.0.attention.output.dense",
    "up": "vilt.encoder.layer.1.intermediate.dense",
    "down": "vilt.encoder.layer.1.output.dense",
    "pooler": "vilt.pooler.dense",
    "head": "classifier.3",
    "norm": "vilt.encoder.layer.0.layernorm_before",
    "last norm": "vilt.layernorm",
    "norm of the head": "classifier.1",
    "words": "vilt.embeddings.text_embeddings.word_embeddings",
    "positions": "vilt.embeddings.text_embeddings.position_embeddings",
    "norm of the words": "vilt.embeddings.text_embeddings.LayerNorm",
    "modality": "vilt.embeddings.token_type_embeddings",
    "patches": "vilt.embeddings.patch_embeddings.projection",
}


class Softplus(nn.Module):
    """A parametrization of the user's."""

    def forward(self, weight):
        return nn.functional.softplus(weight) - 0.3


def pruned(module):
    prune.l1_unstructured(module, "weight", amount=0.4)


def pruned_rows(module):
    prune.ln_structured(module, "weight", amount=0.3, n=2, dim=0)


def weight_norm(module):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(module)


def spectral_norm(module):
    nn.utils.spectral_norm(module)


def new_weight_norm(module):
    parametrizations.weight_norm(module)


def new_spectral_norm(module):
    parametrizations.spectral_norm(module)


def orthogonal(module):
    parametrizations.orthogonal(module)


def own(module):
    parametrize.register_parametrization(module, "weight", Softplus())


ONE_OF_EACH = ("query", "down", "norm", "words", "patches")
CHANGES = [
    *((pruned, name) for name in PATHS),
    *((change, name) for change in (own, weight_norm, new_weight_norm) for name in ONE_OF_EACH),
    *((spectral_norm, name) for name in ("value", "words", "patches")),
    # Not of the patches: the new one iterates at each reading of the weight, and transformers reads its shape, too.
    *((new_spectral_norm, name) for name in ("value", "words")),
    *((change, name) for change in (pruned_rows, orthogonal) for name in ("up", "words")),
]


@pytest.mark.parametrize(("change", "name"), CHANGES, ids=[f"{change.__name__} {name}" for change, name in CHANGES])
def test_training_with_a_changed_weight(both, pair, change, name):
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        torch.manual_seed(0)  # spectral norm starts from a random vector
        change(model.get_submodule(PATHS[name]))
    with torch.no_grad():
        for parameter in theirs.get_submodule(PATHS[name]).parameters():
            parameter.mul_(1.2).add_(0.01)  # other weights than those that the change was made with
    ours.load_state_dict(theirs.state_dict())
    both.check_same_scores("scores after load_state_dict", (ours, theirs, inputs))
    both.check_same_training(change.__name__, (ours, theirs, inputs))
    for model in (ours, theirs):
        model.eval()
    both.check_same_scores("scores after training", (ours, theirs, inputs), 1e-4)


def test_the_whole_model_pruned(both, pair):
    """Globally, as tutorials do it; then made permanent."""
    ours, theirs, inputs = pair()
    plain = both.scores(theirs, inputs)
    for model in (ours, theirs):
        modules = [(m, "weight") for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding)]
        prune.global_unstructured(modules, pruning_method=prune.L1Unstructured, amount=0.3)
    wanted = both.check_same_scores("pruned", (ours, theirs, inputs))
    assert both.off(wanted, plain) > 1e-3
    both.check_same_training("pruned", (ours, theirs, inputs))
    for model in (ours, theirs):
        model.eval()
        for module in model.modules():
            if prune.is_pruned(module) and hasattr(module, "weight_orig"):
                prune.remove(module, "weight")
    both.check_same_scores("made permanent", (ours, theirs, inputs), 1e-4)
    assert sorted(ours.state_dict()) == sorted(theirs.state_dict())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_parametrization_that_is_removed(both, pair, name):
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        own(model.get_submodule(PATHS[name]))
    both.check_same_scores("parametrised", (ours, theirs, inputs))
    for model in (ours, theirs):
        parametrize.remove_parametrizations(model.get_submodule(PATHS[name]), "weight")
    both.check_same_scores("removed", (ours, theirs, inputs))


def test_a_parametrization_under_cached(both, pair):
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        for name in ONE_OF_EACH:
            own(model.get_submodule(PATHS[name]))
    with parametrize.cached():
        both.check_same_scores("scores", (ours, theirs, inputs))
        both.check_same_scores("scores, cached", (ours, theirs, inputs))


def test_pruned_heads(both, pair, tmp_path):
    """`prune_heads`, as BERT's tools call it: scores and steps are those of a model whose heads are masked."""
    ours, theirs, inputs = pair()
    plain = both.scores(theirs, inputs)
    ours.prune_heads({0: [1]})
    ours.prune_heads({0: [1]})  # a head that is gone already
    keep = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    dropout = theirs.vilt.encoder.layer[0].attention.attention.dropout
    dropout.register_forward_hook(lambda module, args, probabilities: probabilities * keep)
    attention = ours.vilt.encoder.layer[0].attention
    assert attention.attention.value.weight.shape == (12, 24) and attention.output.dense.weight.shape == (24, 12)
    wanted = both.check_same_scores("scores", (ours, theirs, inputs))
    assert both.off(wanted, plain) > 1e-3
    for model in (ours, theirs):
        both.train_steps(model.train(), inputs)
    both.check_same_scores("scores after training", (ours.eval(), theirs.eval(), inputs), 1e-4)
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    assert torch.equal(both.scores(again, inputs), both.scores(ours, inputs))
