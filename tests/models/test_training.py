"""Training: dropout, recomputed activations, mixed precision, and weights that change under the model."""

import copy

import pytest
import torch

from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.models.vilt import ViltForQuestionAnswering

KEY = "vilt.encoder.layer.0.attention.attention.key.weight"


def fresh(oracle, index=2, **changes):
    """A model with random weights in evaluation mode, and a labelled batch."""
    config = ViltConfig(**{**oracle.config_kwargs(index), "max_image_length": -1, **changes})
    model = oracle.randomise(ViltForQuestionAnswering(config), seed=1).eval()
    return model, oracle.inputs_for("ViltForQuestionAnswering", config, seed=8)


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_training_is_random_only_through_dropout(oracle, field):
    model, inputs = fresh(oracle)
    dropping, _ = fresh(oracle, **{field: 0.5})
    with torch.no_grad():
        expected = model(**inputs).logits
        oracle.check_equal("logits in training, no dropout", model.train()(**inputs).logits, expected)
        oracle.check_equal("logits in evaluation", dropping(**inputs).logits, expected)
        dropping.train()
        torch.manual_seed(0)
        first, second = dropping(**inputs).logits, dropping(**inputs).logits
        assert not torch.equal(first, second), "nothing is dropped"
        torch.manual_seed(0)
        oracle.check_equal("logits in training, same generator state", dropping(**inputs).logits, first)


def close(name, got, wanted, **tolerance):
    torch.testing.assert_close(got, wanted, msg=lambda text: f"{name}: {text}", **tolerance)


def embedded(model, inputs, rows, row):
    """Real embeddings (n, d) of some rows before modality row `row` is added, and where they stand."""
    out = model.vilt(**inputs, output_hidden_states=True).hidden_states[0][:, rows]
    return out - model.vilt.embeddings.token_type_embeddings.weight[row]


@pytest.mark.parametrize("modality", [0, 1], ids=["words", "patches"])
def test_dropout_of_embeddings(oracle, modality):
    """It comes after the words' LayerNorm and the patches' positions, before the modality row: 0 or twice the value."""
    model, inputs = fresh(oracle, num_hidden_layers=0)
    dropping, _ = fresh(oracle, num_hidden_layers=0, hidden_dropout_prob=0.5)
    del inputs["labels"]
    length = inputs["input_ids"].shape[1]
    rows = (slice(0, length), slice(length, None))[modality]
    with torch.no_grad():
        before = embedded(model, inputs, rows, modality)
        after = embedded(dropping.train(), inputs, rows, modality)
        real = model.vilt(**inputs).last_hidden_state[:, rows].ne(0).any(-1)
    before, after = before[real], after[real]
    zero = after.abs() < 1e-6
    close("embeddings that are kept", after[~zero], 2 * before[~zero], rtol=1e-4, atol=1e-5)
    assert 0.4 < zero.double().mean() < 0.6


def test_given_image_embeddings_are_not_dropped(oracle):
    """As in transformers, where the dropout belongs to making them."""
    dropping, inputs = fresh(oracle, num_hidden_layers=0, hidden_dropout_prob=0.5)
    length = inputs["input_ids"].shape[1]
    image = torch.randn(3, 4, dropping.config.hidden_size, generator=torch.Generator().manual_seed(0))
    given = {"input_ids": inputs["input_ids"], "image_embeds": image}
    with torch.no_grad():
        rows = embedded(dropping.train(), given, slice(length, None), 1)
    close("image_embeds", rows, image, rtol=1e-5, atol=1e-5)


def test_recomputing_activations_changes_nothing(oracle):
    """gradient_checkpointing_enable: the same loss, the same gradients, with dropout too."""
    model, inputs = fresh(oracle, 4, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    model.train()
    results = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        model.zero_grad()
        torch.manual_seed(3)
        loss = model(**inputs, seed=1).loss
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append({"loss": loss.detach(), **gradients})
    kept, recomputed = results
    assert len(kept) > 20 and kept.keys() == recomputed.keys()
    for name, value in kept.items():
        oracle.check_equal(name if name == "loss" else f"gradient of {name}", recomputed[name], value)


def test_training_under_autocast(oracle):
    """Mixed precision as transformers runs it: bf16 products, fp32 residual stream, fp32 gradients."""
    theirs = oracle.build("ViltForQuestionAnswering", {**oracle.config_kwargs(2), "max_image_length": -1}, seed=1)
    ours, inputs = fresh(oracle)
    losses = []
    for model in (theirs, ours):
        with torch.autocast("cpu", dtype=torch.bfloat16), oracle.raster_order():
            loss = model(**inputs).loss
        loss.backward()
        losses.append(loss.item())
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), f"gradient of {name}"
    # Both round to bf16 (eps = 2 ** -8) in other places; the exact loss is the same.
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_change_of_weights_is_seen_with_and_without_gradients(oracle):
    """Query, key and value lie in one block of memory; an update, a copy or a replacement of them must show."""
    model, inputs = fresh(oracle, 4)

    def both():
        with torch.no_grad():
            plain = model(**inputs).logits
        oracle.check_close("logits with gradients", model(**inputs).logits.detach(), plain, 1e-6)
        return plain

    before = both()
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model(**inputs).loss.backward()
    optimizer.step()
    assert oracle.relative(both(), before) > 1e-4, "a step of the optimizer changes nothing"
    model.load_state_dict(saved, assign=True)
    oracle.check_close("logits with the weights restored", both(), before, 1e-6)
    model.vilt.encoder.layer[0].attention.attention.key.weight.data = torch.zeros_like(saved[KEY])
    assert oracle.relative(both(), before) > 1e-4, "a replaced key weight changes nothing"
    twin = copy.deepcopy(model)
    with torch.no_grad():
        oracle.check_equal("logits of a deep copy", twin(**inputs).logits, both())


def test_a_model_learns_its_batch(oracle):
    """Sixty steps of Adam on eight pairs: the loss falls by more than nine tenths."""
    config = ViltConfig(**{**oracle.config_kwargs(0), "initializer_range": 0.1})
    torch.manual_seed(0)
    model = ViltForQuestionAnswering(config).train()
    inputs = oracle.batch(config, seed=4, size=8)
    inputs["labels"] = torch.nn.functional.one_hot(torch.arange(8) % config.num_labels, config.num_labels).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0], (losses[0], losses[-1])
