"""torch.func, copies and files of whole models, torch.compile with hooks, dtypes, and layers taken out."""

import copy
import io
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import vilt_fast

pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

QA, MLM, WORDS = "ViltForQuestionAnswering", "ViltForMaskedLM", "ViltForTokenClassification"
CLASSES = ("ViltModel", QA, MLM, WORDS, "ViltForImagesAndTextClassification")


def other_parameters(model, seed=0):
    """Values that the model does not hold."""
    generator = torch.Generator().manual_seed(seed)
    return {name: p.detach() + 0.1 * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


@pytest.fixture
def function(both):
    """function(model, inputs): what torch.func differentiates, from parameters and pixels to scores."""

    def make(model, inputs, with_loss=False):
        def run(parameters, pixels):
            given = dict(inputs.but(pixel_values=pixels))
            with both.oracle.raster_order():
                output = functional_call(model, parameters, args=(), kwargs=given)
            return both.loss_of(output, inputs) if with_loss else both.values(output, inputs)

        return run

    return make


@pytest.mark.parametrize("name", CLASSES)
def test_functional_call(both, built, function, name):
    ours, theirs, inputs = built(name)
    parameters = other_parameters(theirs)
    got, wanted = (function(model, inputs)(parameters, inputs["pixel_values"]) for model in (ours, theirs))
    both.check("values", got, wanted)
    assert both.off(wanted, both.scores(theirs, inputs)) > 1e-3


def test_stateless(both, built):
    """The older name of functional_call."""
    ours, theirs, inputs = built()
    parameters = other_parameters(theirs)
    outputs = []
    for model in (ours, theirs):
        with warnings.catch_warnings(), both.oracle.raster_order():
            warnings.simplefilter("ignore", FutureWarning)
            outputs.append(torch.nn.utils.stateless.functional_call(model, parameters, (), dict(inputs)).logits)
    both.check("logits", *outputs)


@pytest.mark.parametrize("name", CLASSES)
def test_vmap_over_stacked_models(both, pair, name):
    """An ensemble of three in one call: each member's scores are those it gives alone."""
    ours, _, inputs = pair(name, tie_word_embeddings=False)  # on the meta device PyTorch itself loses the tie
    members = [copy.deepcopy(ours) for _ in range(3)]
    for seed, member in enumerate(members):
        member.load_state_dict(other_parameters(member, seed), strict=False)
    wanted = torch.stack([both.scores(member, inputs) for member in members])
    skeleton = copy.deepcopy(ours)  # not on "meta", which would untie the decoder of the words

    def one(parameters, buffers):
        return both.values(functional_call(skeleton, (parameters, buffers), (), dict(inputs)), inputs)

    state = stack_module_state(members)
    with torch.no_grad():
        both.check("scores", vmap(one)(*state), wanted)


def test_gradients_of_stacked_models(both, pair):
    """vmap(grad(...)): an ensemble that trains at once."""
    ours, _, inputs = pair()
    members = [copy.deepcopy(ours) for _ in range(2)]
    members[1].load_state_dict(other_parameters(ours), strict=False)

    def loss(parameters):
        return both.loss_of(functional_call(ours, parameters, (), dict(inputs)), inputs)

    gradients = vmap(grad(loss))(stack_module_state(members)[0])
    for index, member in enumerate(members):
        both.backward(member, inputs)
        both.check_tensors(f"member {index}", {n: g[index] for n, g in gradients.items()}, both.gradients(member), 5e-5)


def test_vmap_over_pixels(both, built, function):
    """Several images of one size for the same words, as noise tunnels and counterfactuals have them."""
    ours, theirs, inputs = built()
    pixels = inputs["pixel_values"] * torch.tensor([1.0, 0.5, -1.0, 0.0]).view(4, 1, 1, 1, 1)
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        got = vmap(function(ours, inputs), in_dims=(None, 0))(parameters, pixels)
        wanted = torch.stack([function(theirs, inputs)(parameters, image) for image in pixels])
    both.check("scores", got, wanted)


@pytest.mark.parametrize("name", [QA, WORDS])
def test_grad(both, built, function, name):
    ours, theirs, inputs = built(name)
    parameters = other_parameters(theirs)
    found = []
    for model in (ours, theirs):
        gradients, pixels = grad(function(model, inputs, True), argnums=(0, 1))(parameters, inputs["pixel_values"])
        found.append({**gradients, "pixel_values": pixels})
    both.check_tensors("gradients", *found, 5e-5)


@pytest.mark.parametrize("name", [QA, MLM])
def test_jvp(both, built, function, name):
    """Forward mode, along a direction of parameters and pixels."""
    ours, theirs, inputs = built(name)
    parameters = {n: p.detach() for n, p in theirs.named_parameters()}
    direction = {n: value - parameters[n] for n, value in other_parameters(theirs).items()}
    pixels = inputs["pixel_values"]
    values, tangents = zip(
        *(jvp(function(m, inputs), (parameters, pixels), (direction, pixels.flip(-1))) for m in (ours, theirs)),
        strict=True,
    )
    both.check("values", *values)
    both.check("tangents", *tangents, 5e-5)
    assert tangents[1].abs().max() > 1e-3


def test_forward_ad(both, built):
    """torch.autograd.forward_ad: a dual tensor goes in, a tangent comes out."""
    ours, theirs, inputs = built()
    tangents = []
    for model in (ours, theirs):
        with forward_ad.dual_level(), torch.no_grad():
            pixels = forward_ad.make_dual(inputs["pixel_values"], inputs["pixel_values"].flip(-1))
            logits = both.call(model, inputs.but(pixel_values=pixels)).logits
            tangents.append(forward_ad.unpack_dual(logits).tangent)
    assert tangents[0] is not None, "no tangent"
    both.check("tangent", *tangents, 5e-5)


# transformers draws which rows pad, and torch.func wants to know how.
@pytest.mark.parametrize("jacobian", [jacrev, partial(jacfwd, randomness="same")], ids=["jacrev", "jacfwd"])
def test_jacobians(both, built, function, jacobian):
    """Of the logits by one LayerNorm's weight; transformers' forward draws random rows, which jacfwd does not allow."""
    ours, theirs, inputs = built()
    path = "vilt.encoder.layer.0.layernorm_before.weight"
    parameters = {n: p.detach() for n, p in theirs.named_parameters()}

    def scores(model):
        return lambda weight: function(model, inputs)({**parameters, path: weight}, inputs["pixel_values"])

    wanted = jacrev(scores(theirs))(parameters[path])
    assert wanted.shape == (12, 24)
    both.check("Jacobian", jacobian(scores(ours))(parameters[path]), wanted, 5e-5)


def test_hessian_times_vector(both, built, function):
    """Forward over reverse, as in influence functions."""
    ours, theirs, inputs = built()
    parameters = {n: p.detach() for n, p in theirs.named_parameters()}
    direction = {n: value - parameters[n] for n, value in other_parameters(theirs).items()}
    found = []
    for model in (ours, theirs):
        run = function(model, inputs, True)
        gradient = grad(lambda p, run=run: run(p, inputs["pixel_values"]))
        found.append(jvp(gradient, (parameters,), (direction,))[1])
    both.check_tensors("products", *found, 2e-4)


def test_second_derivatives(both, pair):
    """torch.autograd.grad of a gradient, as penalties on it need."""
    ours, theirs, inputs = pair()
    found = []
    for model in (ours, theirs):
        pixels = inputs["pixel_values"].clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no second derivative
            loss = both.loss_of(both.call(model, inputs.but(pixel_values=pixels)), inputs)
        (gradient,) = torch.autograd.grad(loss, pixels, create_graph=True)
        gradient.square().sum().backward()
        found.append(both.gradients(model))
    both.check_tensors("gradients of the penalty", *found, 2e-4)


def test_compile_of_a_hooked_model(both, pair):
    """Hooks that were there before compilation count in the compiled encoder, too."""
    ours, theirs, inputs = pair(num_hidden_layers=1)
    for model in (ours, theirs):
        layer = model.vilt.encoder.layer[0]
        layer.output.dense.register_forward_hook(lambda module, args, output: output * 1.5)
        layer.layernorm_after.register_forward_pre_hook(lambda module, args: (args[0] + 0.2,))
    torch._dynamo.reset()
    ours.vilt.encoder.compile(backend="eager")
    both.check("logits", both.scores(ours, inputs), both.scores(theirs, inputs))
    torch._dynamo.reset()


def deep_copied(model):
    return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(model):
    """As weight averaging makes it."""
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    return average.module


@pytest.mark.parametrize("copied", [deep_copied, pickled, saved_whole, averaged], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [QA, MLM])
def test_copies(both, pair, name, copied):
    """A copy gives the same, shares nothing, and trains as the model does; a tied decoder stays tied."""
    ours, theirs, inputs = pair(name)
    twin = copied(ours).eval()
    assert torch.equal(both.scores(twin, inputs), both.scores(ours, inputs))
    storages = [{p.untyped_storage().data_ptr() for p in m.parameters()} for m in (ours, twin)]
    assert not storages[0] & storages[1]
    assert len(list(twin.parameters())) == len(list(theirs.parameters()))
    both.check_same_training("copy", (twin, theirs, inputs))


def test_no_two_parameters_share_memory(built):
    """Tools that write one tensor at a time (safetensors, sharding, offloading) count on it."""
    for name in CLASSES:
        ours = built(name)[0]
        storages = [p.untyped_storage() for p in ours.parameters()]
        assert len({s.data_ptr() for s in storages}) == len(storages)
        assert all(s.nbytes() == p.numel() * 4 for s, p in zip(storages, ours.parameters(), strict=True))


@pytest.mark.parametrize("name", [QA, MLM])
def test_safetensors(both, pair, tmp_path, name):
    """safetensors.torch.save_model and load_model, between ours and transformers', both ways."""
    safetensors = pytest.importorskip("safetensors.torch", reason="this test needs safetensors")
    ours, theirs, inputs = pair(name)
    wanted = both.scores(theirs, inputs)
    for index, (source, target) in enumerate(((ours, theirs), (theirs, ours), (ours, ours))):
        file = tmp_path / f"{index}.safetensors"
        safetensors.save_model(source, str(file))
        with torch.no_grad():
            for parameter in target.parameters():
                parameter.add_(1.0)
        safetensors.load_model(target, str(file))
        both.check("scores", both.scores(target, inputs), wanted)


@pytest.mark.parametrize("name", CLASSES)
def test_assigned_weights(both, pair, name):
    """load_state_dict(assign=True) onto a model made on the meta device; then it trains."""
    _, theirs, inputs = pair(name)
    with torch.device("meta"):
        ours = getattr(vilt_fast, name)(vilt_fast.ViltConfig(**theirs.config.to_dict()))
    weights = {key: value.clone() for key, value in theirs.state_dict().items()}
    ours.load_state_dict(weights, assign=True)
    if name == MLM:
        ours.tie_weights()
    both.check_same_scores("scores", (ours.eval(), theirs, inputs))
    both.check_same_training("training", (ours, theirs, inputs))


def test_apply(both, pair):
    """Module.apply reaches every module once."""
    ours, theirs, inputs = pair()

    def halve(module):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            module.weight.data.mul_(0.5)

    assert ours.apply(halve) is ours
    theirs.apply(halve)
    both.check_same_scores("scores", (ours, theirs, inputs))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # In 16 bits both round in other places: eps is 2 ** -10 and 2 ** -7.
    [(torch.float64, 1e-12), (torch.float16, 0.01), (torch.bfloat16, 0.1)],
    ids=["double", "half", "bfloat16"],
)
def test_dtypes(both, pair, dtype, tolerance):
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        {torch.float64: model.double, torch.float16: model.half, torch.bfloat16: model.bfloat16}[dtype]()
    given = inputs.but(pixel_values=inputs["pixel_values"].to(dtype), labels=inputs["labels"].to(dtype))
    got, wanted = both.scores(ours, given), both.scores(theirs, given)
    assert got.dtype == wanted.dtype == dtype
    both.check("logits", got, wanted, tolerance)


LAYERS = {
    "the first alone": lambda layers: layers[:1],
    "the last alone": lambda layers: layers[1:],
    "turned round": lambda layers: nn.ModuleList(reversed(layers)),
    "one twice": lambda layers: nn.ModuleList([layers[0], layers[0], layers[1]]),
    "none": lambda layers: layers[:0],
}


@pytest.mark.parametrize("which", LAYERS)
@pytest.mark.parametrize("name", [QA, WORDS])
def test_other_layers(both, pair, name, which):
    """`m.vilt.encoder.layer = m.vilt.encoder.layer[:1]`: the list decides, not the configuration."""
    ours, theirs, inputs = pair(name)
    for model in (ours, theirs):
        model.vilt.encoder.layer = LAYERS[which](model.vilt.encoder.layer)
    both.check_same_scores("scores", (ours, theirs, inputs))
    with torch.no_grad():
        states = both.call(ours, inputs, output_hidden_states=True).hidden_states
    assert len(states) == 1 + len(theirs.vilt.encoder.layer)


@pytest.mark.parametrize("part", ["key", "query.weight", "vilt.embeddings", "layernorm", "bias"])
def test_partly_frozen(both, pair, part):
    """requires_grad_(False) on some parameters: the others take transformers' steps, these stay."""
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(part not in path)
    both.check_same_training("training", (ours, theirs, inputs))
    assert all(p.grad is None for path, p in ours.named_parameters() if part in path)


@pytest.mark.parametrize("name", CLASSES)
def test_jit_trace_is_refused(built, name):
    """A trace would keep the lengths of the batch that it was made with."""
    ours, _, inputs = built(name)
    given = {key: value for key, value in inputs.items() if key != "labels"}
    with pytest.raises((ValueError, RuntimeError, NotImplementedError), match=r"torch\.jit\.trace"):
        torch.jit.trace(ours, example_kwarg_inputs=given, strict=False)
    with pytest.raises((ValueError, RuntimeError, NotImplementedError), match=r"torch\.jit\.trace"):
        torch.jit.trace(ours, tuple(given.values()), strict=False, check_trace=False)
