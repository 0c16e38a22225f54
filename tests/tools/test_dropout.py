"""Dropout modules: their p, their mode and their class decide, as in transformers; also one at a time in evaluation."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

LAYERS = ("attention.attention.dropout", "attention.output.dropout", "output.dropout")
PLACES = (
    *("vilt.embeddings.text_embeddings.dropout", "vilt.embeddings.dropout"),
    *(f"vilt.encoder.layer.{layer}.{place}" for layer in (0, 1) for place in LAYERS),
    "dropout",
)
WORDS = "ViltForTokenClassification"  # the class with dropout in its head


def dropping(model, path, p):
    """Only this module drops; the model stays in evaluation mode. Gives the module."""
    module = model.get_submodule(path)
    module.p = p
    return module.train()


def test_every_dropout_of_transformers_is_here(built):
    ours, theirs, _ = built(WORDS)
    for model in (ours, theirs):
        assert {n for n, m in model.named_modules() if isinstance(m, nn.Dropout)} == set(PLACES)


def test_a_configuration_sets_p(both, pair):
    ours, theirs, _ = pair(WORDS, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    assert {n: ours.get_submodule(n).p for n in PLACES} == {n: theirs.get_submodule(n).p for n in PLACES}


@pytest.mark.parametrize("path", PLACES)
def test_dropping_everything(both, pair, path):
    """p = 1 leaves zeros, on both sides: the place is right, not only its effect."""
    ours, theirs, inputs = pair(WORDS)
    plain = both.scores(theirs, inputs)
    for model in (ours, theirs):
        dropping(model, path, 1.0)
    wanted = both.check_same_scores("scores", (ours, theirs, inputs))
    assert both.off(wanted, plain) > 1e-3


@pytest.mark.parametrize("path", PLACES)
def test_monte_carlo_dropout(both, pair, path):
    """One module in training mode: scores vary, and the generator's state decides them."""
    ours, _, inputs = pair(WORDS)
    plain = both.scores(ours, inputs)
    module = dropping(ours, path, 0.5)
    torch.manual_seed(1)
    first, second = both.scores(ours, inputs), both.scores(ours, inputs)
    torch.manual_seed(1)
    assert torch.equal(both.scores(ours, inputs), first)
    assert both.off(first, plain) > 1e-3 and both.off(second, first) > 1e-3
    module.eval()
    assert torch.equal(both.scores(ours, inputs), plain)


def test_p_set_in_training(both, pair):
    """As schedules do: `module.p = ...` on every Dropout of a model that trains."""
    ours, _, inputs = pair(WORDS)
    plain = both.scores(ours, inputs)
    ours.train()
    for p, same in ((0.0, True), (0.4, False), (0.0, True)):
        for path in PLACES:
            ours.get_submodule(path).p = p
        assert (both.off(both.scores(ours, inputs), plain) <= both.TOLERANCE) == same, p


def test_a_model_in_evaluation_within_training(both, pair):
    """`m.train()` and then `m.vilt.eval()`, as with a frozen trunk: only the head's dropout is left."""
    ours, theirs, inputs = pair(WORDS, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    for model in (ours, theirs):
        model.train()
        model.vilt.eval()
        model.dropout.p = 0.0
    both.check_same_scores("scores", (ours, theirs, inputs))


def test_the_module_on_its_own(built):
    """Keep rate and scale; functional and in place, it is torch's Dropout."""
    module = built(WORDS)[0].get_submodule(PLACES[0])
    x = torch.ones(400, 500)
    p, module.p = module.p, 0.3
    try:
        assert torch.equal(module.eval()(x), x)
        torch.manual_seed(0)
        dropped = module.train()(x)
        assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
        assert dropped.ne(0).double().mean().item() == pytest.approx(0.7, abs=0.005)  # ten standard deviations: 0.010
        assert not torch.equal(module(x), dropped)
    finally:
        module.p = p
        module.eval()


def identity_head(model):
    """A head that shows the rows it reads."""
    model.classifier.weight.data = torch.eye(24)
    model.classifier.bias.data.zero_()


def test_keep_rate_and_scale_in_the_model(both, pair):
    """Each value of the head's rows is zero, or itself / (1 - p)."""
    ours, _, inputs = pair(WORDS, num_labels=24)
    identity_head(ours)
    plain = both.scores(ours, inputs)
    dropping(ours, "dropout", 0.25)
    torch.manual_seed(0)
    ratios = torch.stack([both.scores(ours, inputs) / plain for _ in range(20)])
    kept = ratios != 0
    torch.testing.assert_close(ratios[kept], torch.full_like(ratios[kept], 1 / 0.75))
    # 24 x about 20 words x 20 draws: the standard deviation of the rate is 0.0045.
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.025)


@pytest.mark.parametrize("path", PLACES)
def test_a_foreign_module_in_its_place(both, pair, path):
    """It is called as it is: torch's own Dropout, an Identity, or a module of the user's."""

    class Half(nn.Module):
        def forward(self, x):
            return x * 0.5

    ours, theirs, inputs = pair(WORDS)
    plain = both.scores(theirs, inputs)
    for module, moves in ((Half(), True), (nn.Identity(), False), (nn.Dropout(1.0).train(), True)):
        for model in (ours, theirs):
            model.set_submodule(path, module)
        wanted = both.check_same_scores(type(module).__name__, (ours, theirs, inputs))
        assert (both.off(wanted, plain) > 1e-3) == moves


def test_alpha_dropout_in_its_place(both, pair):
    """Another random module: its own randomness is used, and reproducible."""
    ours, _, inputs = pair(WORDS)
    plain = both.scores(ours, inputs)
    ours.set_submodule(PLACES[2], nn.AlphaDropout(0.5).train())
    torch.manual_seed(2)
    first = both.scores(ours, inputs)
    torch.manual_seed(2)
    assert torch.equal(both.scores(ours, inputs), first) and both.off(first, plain) > 1e-3


@pytest.mark.parametrize("place", ["everywhere", *PLACES])
def test_gradients_are_those_of_what_was_dropped(both, pair, place):
    """Against finite differences in fp64, the same values dropped in every evaluation."""
    ours, _, inputs = pair(WORDS)
    ours.double().requires_grad_(False)
    for path in PLACES if place == "everywhere" else [place]:
        dropping(ours, path, 0.3)
    inputs = inputs.but(pixel_values=inputs["pixel_values"].double())
    bias = ours.vilt.embeddings.text_embeddings.LayerNorm.bias  # every place but the image's lies behind it
    if place == "vilt.embeddings.dropout":
        bias = ours.vilt.embeddings.patch_embeddings.projection.bias
    step = 1e-5 * torch.randn(bias.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(moved):
        torch.manual_seed(4)
        bias.data.add_(moved)
        try:
            return both.loss_of(both.call(ours, inputs), inputs)
        finally:
            bias.data.sub_(moved)

    numeric = (loss(step) - loss(-step)) / 2
    bias.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(torch.zeros_like(step)), bias)
    both.check("derivative", (gradient * step).sum(), numeric, 1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_recomputed_activations_drop_the_same(both, pair, use_reentrant):
    """Gradient checkpointing keeps the generator's state for each layer, whatever each Dropout is set to."""
    ours, _, inputs = pair(WORDS)
    for p, path in enumerate(PLACES, start=1):
        dropping(ours, path, p / 20)
    ours.vilt.encoder.train()  # a model in evaluation recomputes nothing
    results = []
    for recompute in (False, True):
        if recompute:
            ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        ours.zero_grad()
        torch.manual_seed(3)
        loss = both.backward(ours, inputs)
        results.append({"loss": loss, "generator": torch.rand(3), **both.gradients(ours)})
        results[-1] = {name: value.clone() for name, value in results[-1].items()}
    kept, recomputed = results
    assert len(kept) > 30
    differ = [name for name in kept if not torch.equal(kept[name], recomputed[name])]
    assert kept.keys() == recomputed.keys() and not differ, differ
