"""Gradients of attention maps, hidden states and inputs, which methods of explanation read."""

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

ALL = dict(output_attentions=True, output_hidden_states=True)
QA, MLM, WORDS, NLVR = (
    *("ViltForQuestionAnswering", "ViltForMaskedLM", "ViltForTokenClassification"),
    "ViltForImagesAndTextClassification",
)
CLASSES = ("ViltModel", QA, MLM, WORDS)


def real_only(tensor, real):
    """Values of (B, S, d) at real rows, or of (B, heads, S, S) at real queries and keys."""
    if tensor.dim() == 3:
        return tensor[real]
    pairs = real[:, None, :, None] & real[:, None, None, :]
    return tensor[pairs.expand_as(tensor)]


@pytest.mark.parametrize("field", ["attentions", "hidden_states"])
@pytest.mark.parametrize("name", CLASSES)
def test_torch_autograd_grad(both, built, name, field):
    ours, theirs, inputs = built(name)
    got, wanted = {}, {}
    for model, found in ((ours, got), (theirs, wanted)):
        output = both.call(model, inputs, **ALL)
        gradients = torch.autograd.grad(both.loss_of(output, inputs), output[field])
        found.update((f"{field}[{i}]", real_only(grad, inputs.real)) for i, grad in enumerate(gradients))
    assert len(wanted) == (2 if field == "attentions" else 3)
    both.check_tensors("gradients", got, wanted, 5e-5)


def test_one_at_a_time(both, built):
    """`torch.autograd.grad(loss, o.attentions[i])`, and several calls on one graph."""
    ours, theirs, inputs = built()
    for index in (1, 0):
        for field in ("attentions", "hidden_states"):
            gradients = []
            for model in (ours, theirs):
                output = both.call(model, inputs, **ALL)
                (grad,) = torch.autograd.grad(output.logits[:, 1].sum(), output[field][index], retain_graph=True)
                (again,) = torch.autograd.grad(output.logits[:, 1].sum(), output[field][index])
                assert torch.equal(grad, again)
                gradients.append(real_only(grad, inputs.real))
            both.check(f"gradient of {field}[{index}]", *gradients, 5e-5)


@pytest.mark.parametrize("asked", [{"output_attentions": True}, {"output_hidden_states": True}], ids=lambda a: [*a][0])
def test_retain_grad(both, pair, asked):
    """As Chefer, Gur and Wolf (2021) do: attention times its gradient. The parameters' gradients are as ever."""
    ours, theirs, inputs = pair()
    field = next(iter(asked)).removeprefix("output_")
    got, wanted = {}, {}
    for model, found in ((ours, got), (theirs, wanted)):
        output = both.call(model, inputs, **asked)
        for tensor in output[field]:
            tensor.retain_grad()
        both.loss_of(output, inputs).backward()
        for i, tensor in enumerate(output[field]):
            found[f"relevance {i}"] = real_only(tensor.detach() * tensor.grad, inputs.real)
        found.update(both.gradients(model))
    both.check_tensors("gradients", got, wanted, 5e-5)


def test_of_several_images(both, built):
    """One tuple per image, as in transformers, whose images run one after the other."""
    ours, theirs, inputs = built(NLVR)
    gradients = []
    for model in (ours, theirs):
        output = both.call(model, inputs, **ALL)
        loss = both.loss_of(output, inputs)
        gradients.append(torch.autograd.grad(loss, [output.attentions[0][1], output.hidden_states[0][1]]))
    for field, got, wanted in zip(("attentions", "hidden_states"), *gradients, strict=True):
        both.check(field, real_only(got, inputs.real), real_only(wanted, inputs.real), 5e-5)


@pytest.mark.parametrize("name", ["ViltModel", QA, WORDS])
def test_values_are_the_same_with_and_without_gradients(both, built, name):
    ours, theirs, inputs = built(name)
    with torch.no_grad():
        plain = both.call(ours, inputs, **ALL)
        expected = both.call(theirs, inputs, **ALL)
    output = both.call(ours, inputs, **ALL)
    both.check("values", both.values(output, inputs), both.values(plain, inputs), 1e-6)
    for field in ("attentions", "hidden_states"):
        for layer, (got, without, wanted) in enumerate(zip(output[field], plain[field], expected[field], strict=True)):
            both.check(f"{field}[{layer}]", got, without, 2e-6)
            both.check(f"{field}[{layer}]", real_only(got, inputs.real), real_only(wanted, inputs.real))


def test_padding_stays_zero_with_gradients(both, built):
    ours, _, inputs = built()
    output = both.call(ours, inputs, **ALL)
    for states in output.hidden_states:
        assert states[~inputs.real].eq(0).all()
    for maps in output.attentions:
        assert maps.transpose(1, 2)[~inputs.real].eq(0).all() and maps.permute(0, 3, 1, 2)[~inputs.real].eq(0).all()


def test_asking_changes_no_gradient(both, pair):
    """Of any parameter, whether states and attentions are asked for or not."""
    ours, _, inputs = pair()
    found = []
    for asked in ({}, ALL):
        ours.zero_grad()
        both.backward(ours, inputs, **asked)
        found.append({name: grad.clone() for name, grad in both.gradients(ours).items()})
    both.check_tensors("gradients", *found, 5e-5)


def test_attentions_with_dropout(both, pair):
    """As in transformers, the map is what multiplied the values: dropped and scaled."""
    ours, _, inputs = pair()
    with torch.no_grad():
        plain = both.call(ours, inputs, **ALL).attentions[0]
    for layer in ours.vilt.encoder.layer:
        layer.attention.attention.dropout.p = 0.5
        layer.attention.attention.dropout.train()
    torch.manual_seed(0)
    output = both.call(ours, inputs, **ALL)
    first = output.attentions[0]
    kept = first != 0
    torch.testing.assert_close(first[kept], 2 * plain[kept])
    real = real_only(kept, inputs.real).double().mean().item()
    assert real == pytest.approx(0.5, abs=0.1)
    (gradient,) = torch.autograd.grad(both.loss_of(output, inputs), first)
    assert real_only(gradient, inputs.real).ne(0).double().mean() > 0.9


def test_attentions_with_head_mask(both, pair):
    """transformers 5 has no head_mask: there a hook multiplies the probabilities."""
    ours, theirs, inputs = pair()
    mask = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    for layer, scale in zip(theirs.vilt.encoder.layer, mask, strict=True):
        scale = scale[:, None, None]
        layer.attention.attention.dropout.register_forward_hook(lambda m, a, out, scale=scale: out * scale)
    outputs = [both.call(theirs, inputs, **ALL), both.call(ours, inputs, head_mask=mask, **ALL)]
    wanted, got = [
        {f"attentions[{i}]": g for i, g in enumerate(torch.autograd.grad(both.loss_of(o, inputs), o.attentions))}
        for o in outputs
    ]
    for layer in (0, 1):
        values = [real_only(output.attentions[layer], inputs.real) for output in outputs]
        both.check(f"attentions[{layer}]", values[1], values[0])
    real = [{name: real_only(grad, inputs.real) for name, grad in found.items()} for found in (got, wanted)]
    both.check_tensors("gradients", *real, 5e-5)


def test_gradient_of_a_head_mask(both, built):
    """Michel, Levy and Neubig (2019) rank heads by it; a single mask (heads,) counts for all layers."""
    ours, _, inputs = built()
    ones = torch.ones(2, 2, requires_grad=True)
    (got,) = torch.autograd.grad(both.loss_of(both.call(ours, inputs, head_mask=ones), inputs), ones)
    output = both.call(ours, inputs, output_attentions=True)
    maps = output.attentions
    gradients = torch.autograd.grad(both.loss_of(output, inputs), maps)
    wanted = [(grad * probs).sum((0, 2, 3)).detach() for grad, probs in zip(gradients, maps, strict=True)]
    both.check("gradient of head_mask", got, torch.stack(wanted), 5e-5)


def test_gradient_checkpointing_with_attentions(both, pair):
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients = []
    for model in (ours, theirs):
        output = both.call(model, inputs, **ALL)
        gradients.append(torch.autograd.grad(both.loss_of(output, inputs), output.attentions))
    for layer, (got, wanted) in enumerate(zip(*gradients, strict=True)):
        both.check(f"attentions[{layer}]", real_only(got, inputs.real), real_only(wanted, inputs.real), 5e-5)


@pytest.mark.parametrize("name", [QA, WORDS])
def test_gradients_of_inputs(both, built, name):
    """Saliency and integrated gradients: of the words' embeddings and of the pixels."""
    ours, theirs, inputs = built(name)
    table = theirs.vilt.get_input_embeddings()
    found = []
    for model in (ours, theirs):
        embeds = table(inputs["input_ids"]).detach().requires_grad_()
        pixels = inputs["pixel_values"].clone().requires_grad_()
        given = inputs.but(input_ids=None, inputs_embeds=embeds, pixel_values=pixels)
        loss = both.loss_of(both.call(model, given), inputs)
        words, image = torch.autograd.grad(loss, [embeds, pixels])
        found.append({"inputs_embeds": words[inputs.words], "pixel_values": image})
    both.check_tensors("gradients", *found, 5e-5)
