"""Settings, weights and methods changed after a model was made: as in transformers, or refused, never passed over."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import vilt_fast
from vilt_fast.pixels import PackedPixels

pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

LAYER = "vilt.encoder.layer.0"
CONV = "vilt.embeddings.patch_embeddings.projection"
WORDS = "vilt.embeddings.text_embeddings"


@pytest.fixture
def pair(pair):
    """Both models without labels, which the frozen form refuses."""

    def make(*args, **fields):
        ours, theirs, inputs = pair(*args, **fields)
        return ours, theirs, inputs.but(labels=None)

    return make


def drop(model, parts):
    for part in parts:
        model.get_submodule(f"{LAYER}.attention.attention.{part}").bias = None


@pytest.mark.parametrize("parts", ["query", "key", "value", "query key", "query value", "key value", "query key value"])
def test_biases_taken_out(both, pair, parts):
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        drop(model, parts.split())
    both.check_same_scores("scores", (ours, theirs, inputs))
    both.check_same_training("training", (ours, theirs, inputs))


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("classifier.2", "approximate", "tanh"),
        (f"{WORDS}.word_embeddings", "max_norm", 0.3),
        ("vilt.layernorm", "eps", 0.1),
    ],
)
def test_settings(both, pair, path, name, value):
    """The live form follows; the frozen form follows or refuses."""
    ours, theirs, inputs = pair()
    frozen = vilt_fast.freeze(ours)
    for model in (ours, theirs):
        setattr(model.get_submodule(path), name, value)
    wanted = both.check_same_scores("scores", (ours, theirs, inputs))
    try:
        again = vilt_fast.freeze(ours)
    except ValueError as error:
        assert path in str(error) and frozen.is_stale(ours)
    else:
        both.check("frozen", both.values(again(**inputs), inputs), wanted)


@pytest.mark.parametrize(("name", "value"), [("stride", (4, 4)), ("padding", (1, 1))])
def test_a_projection_that_reaches_over_its_patch(pair, name, value):
    ours, _, inputs = pair()
    setattr(ours.get_submodule(CONV), name, value)
    with pytest.raises(ValueError, match="projection must not reach over its patch"):
        ours(**inputs)
    with pytest.raises(ValueError, match=f"freeze: {CONV} is a Conv2d"):
        vilt_fast.freeze(ours)


def test_a_larger_table_of_positions(both, pair):
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        table = model.vilt.embeddings.position_embeddings
        grown = F.interpolate(table[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), (6, 6)).flatten(2).transpose(1, 2)
        model.vilt.embeddings.position_embeddings = nn.Parameter(torch.cat((table[:, :1], grown), 1).detach())
    with pytest.raises(ValueError, match=r"position_embeddings has 37 rows, config.image_size .* 4 x 4 \+ 1"):
        ours(**inputs)
    for model in (ours, theirs):
        model.config.image_size = 48
    wanted = both.check_same_scores("scores", (ours, theirs, inputs))
    both.check("frozen", both.values(vilt_fast.freeze(ours)(**inputs), inputs), wanted)


def test_positions_of_words(pair):
    ours, theirs, _ = pair()
    text = ours.vilt.embeddings.text_embeddings
    assert torch.equal(text.position_ids, theirs.vilt.embeddings.text_embeddings.position_ids)
    with pytest.raises(ValueError, match="position_ids cannot be set"):
        text.position_ids = text.position_ids.flip(1)


@pytest.mark.parametrize("owner", [nn.Module, nn.Linear], ids=["Module", "Linear"])
def test_a_patched_call(both, pair, monkeypatch, owner):
    """What tracers and profilers do."""
    ours, theirs, inputs = pair()
    original, seen = nn.Module.__call__, []

    def call(self, *args, **kwargs):
        seen[-1] += isinstance(self, nn.Linear)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, "__call__", call, raising=False)
    for model in (ours, theirs):
        seen.append(0)
        both.scores(model, inputs)
    assert seen[0] == seen[1] > 0
    with pytest.raises(ValueError, match="has a forward of its own"):
        vilt_fast.freeze(ours)


def test_dropout_patched_for_all(both, pair, monkeypatch):
    """Monte-Carlo dropout, as many write it."""
    ours, theirs, inputs = pair()
    plain = both.scores(ours, inputs)
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x * 1.5)
    wanted = both.check_same_scores("scores", (ours, theirs, inputs))
    assert both.off(wanted, plain) > 1e-3


def test_hooks_of_all_modules_and_freeze(pair):
    ours, _, _ = pair()
    handle = register_module_forward_hook(lambda module, args, output: None)
    try:
        with pytest.raises(ValueError, match="freeze: a hook of all modules is registered"):
            vilt_fast.freeze(ours)
    finally:
        handle.remove()
    ours.score = lambda rows: rows
    with pytest.raises(ValueError, match="freeze: the model has a score of its own"):
        vilt_fast.freeze(ours)


@pytest.mark.parametrize("made", [nn.PReLU, "silu", torch.sin, nn.SiLU()], ids=["PReLU", "silu", "sin", "one SiLU"])
def test_a_snapshot_of_activations(both, pair, made):
    ours, _, inputs = pair(hidden_act="gelu")
    config = vilt_fast.ViltConfig(**{**ours.config.to_dict(), "hidden_act": made})
    model = vilt_fast.ViltForQuestionAnswering(config).eval()
    frozen = vilt_fast.freeze(model)
    wanted = both.values(frozen(**inputs), inputs)
    both.check("frozen", wanted, both.scores(model, inputs))
    assert not frozen.is_stale(model)
    act = model.get_submodule(f"{LAYER}.intermediate.intermediate_act_fn")
    if made is nn.PReLU:
        nn.init.constant_(act.weight, -1.0)
    elif made == "silu":
        act.name = "relu6"
    elif made is torch.sin:
        act.function = torch.cos
    else:
        return
    assert frozen.is_stale(model)
    assert torch.equal(both.values(frozen(**inputs), inputs), wanted)


def test_the_limit_of_patches_is_read_at_each_call(pair):
    ours, _, _ = pair()
    frozen = vilt_fast.freeze(ours)
    ours.config.max_image_length = 2
    assert frozen.is_stale(ours)


@pytest.mark.parametrize("when", ["added", "removed", "of all modules"])
def test_hooks_that_come_or_go_before_the_backward_pass(both, pair, when):
    """The second run of a recomputed block takes the path of the first."""
    ours, _, inputs = pair()
    wanted = copy.deepcopy(ours).train()
    both.backward(wanted, inputs)
    ours.train().gradient_checkpointing_enable()
    dense = ours.get_submodule(f"{LAYER}.intermediate.dense")
    watch = functools.partial(register_module_forward_hook if when == "of all modules" else dense.register_forward_hook)
    handle = None if when == "added" else watch(lambda *_: None)
    loss = both.loss_of(both.call(ours, inputs), inputs)
    if handle is None:
        watch(lambda *_: None)
    else:
        handle.remove()
    loss.backward()
    both.check_tensors("gradients", both.gradients(ours), both.gradients(wanted), 5e-5)


def test_gradients_of_a_head_mask_over_frozen_weights(pair):
    ours, _, inputs = pair()
    ours.requires_grad_(False)
    mask = torch.ones(2, 2, requires_grad=True)
    output = ours(**inputs, head_mask=mask, output_attentions=True)
    for maps in torch.autograd.grad(output.logits.sum(), output.attentions):
        assert maps.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_loss_of_a_model_of_16_bits(both, pair, dtype):
    """32 bits, as the labels: two losses of 16 bits would often be equal."""
    ours, theirs, inputs = (item.to(dtype) if isinstance(item, nn.Module) else item for item in pair())
    inputs = inputs.but(pixel_values=inputs["pixel_values"].to(dtype))
    inputs = inputs.but(labels=torch.rand(3, ours.config.num_labels, generator=torch.Generator().manual_seed(0)))
    got, wanted = both.call(ours, inputs).loss, both.call(theirs, inputs).loss
    assert got.dtype == wanted.dtype == torch.float32
    assert abs(got - wanted) <= 0.02 * abs(wanted)  # the logits differ by a few of their units in the last place


@pytest.mark.parametrize("norm", [nn.Linear(24, 24), nn.Tanh()], ids=["Linear", "Tanh"])
def test_another_kind_in_the_place_of_the_last_norm(both, pair, norm):
    ours, theirs, inputs = pair()
    ours.vilt.layernorm = theirs.vilt.layernorm = norm
    both.check_same_scores("scores", (ours, theirs, inputs))


@pytest.mark.parametrize("heads", [[1], torch.tensor([1]), np.array([1]), {1}], ids=["list", "tensor", "array", "set"])
def test_heads_of_other_integers(both, pair, heads, tmp_path):
    ours = pair()[0]
    ours.prune_heads({np.int64(0): heads})
    assert ours.config.pruned_heads == {0: [1]} and ours.vilt.config is ours.config
    ours.save_pretrained(tmp_path)
    assert type(ours).from_pretrained(tmp_path).config.pruned_heads == {0: [1]}


@pytest.mark.parametrize(
    "asked", [None, [1], {0: 1}, {0.0: [1]}, {True: [1]}, {0: [True]}, {5: [0]}, {0: [7]}, {0: [0, 1]}]
)
def test_heads_that_cannot_be_pruned(pair, asked):
    ours = pair()[0]
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match="heads_to_prune"):
        ours.prune_heads(asked)
    assert not ours.config.pruned_heads and ours.state_dict().keys() == before.keys()


def test_pruning_is_of_one_model(both, pair):
    """Not of another that was made with the same configuration, and not of weights that two modules share."""
    config = pair()[0].config
    first, second = (vilt_fast.ViltForQuestionAnswering(config) for _ in range(2))
    first.prune_heads({0: [1]})
    first.resize_token_embeddings(50)
    assert second.config.pruned_heads == {} and second.config.vocab_size == 100 and first.config.vocab_size == 50
    attention = second.vilt.encoder.layer[0].attention.attention
    attention.key = attention.query
    with pytest.raises(ValueError, match="modules of their own weights"):
        second.prune_heads({0: [1]})
    assert attention.value.weight.shape == (24, 24) and second.config.pruned_heads == {}


def test_fewer_words_than_the_padding_has(pair, tmp_path):
    config = vilt_fast.ViltConfig(**{**pair()[0].config.to_dict(), "pad_token_id": 40})
    model = vilt_fast.ViltForQuestionAnswering(config)
    model.resize_token_embeddings(20)
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.pad_token_id is None


def test_a_name_of_ones_own_in_an_output(pair):
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        with torch.no_grad():
            output = model(**inputs)
        output["extra"] = output.logits + 1
        assert list(output) == ["logits", "extra"] and output[1] is output["extra"] is output.extra
        again = type(output)({**output})
        assert list(again) == ["logits", "extra"]


def test_what_accelerate_leaves_behind(pair):
    """A model is frozen after training in mixed precision, and after offloading."""
    accelerate = pytest.importorskip("accelerate", reason="tests what accelerate leaves")
    ours, _, inputs = pair()
    wanted = vilt_fast.freeze(ours)(**inputs).logits
    trained = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare(ours)
    assert torch.equal(vilt_fast.freeze(trained)(**inputs).logits, wanted)
    accelerate.utils.extract_model_from_parallel(trained, keep_fp32_wrapper=False)
    accelerate.cpu_offload(ours, execution_device="cpu")
    accelerate.hooks.remove_hook_from_submodules(ours)
    assert torch.equal(vilt_fast.freeze(ours)(**inputs).logits, wanted)


def test_a_replica_without_parameters(both, pair):
    """nn.DataParallel runs copies whose weights are plain attributes."""
    ours, _, inputs = pair()
    wanted = both.scores(ours, inputs)

    modules = list(ours.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module in modules:
        for name, child in module._modules.items():
            setattr(copies[module], name, copies[child])
        for name, parameter in module._parameters.items():
            setattr(copies[module], name, parameter.detach().clone())
    assert not list(copies[ours].parameters())
    both.check("replica", both.scores(copies[ours], inputs), wanted)


def test_a_class_of_python_3_13(pair):
    ours = pair()[0]
    kind = type("Mine", (type(ours),), {"__firstlineno__": 3, "__static_attributes__": ()})
    ours.__class__ = kind
    assert vilt_fast.freeze(ours).model_class is kind.__mro__[1]


def test_pictures_that_are_no_numbers():
    with pytest.raises(ValueError, match="picture: got 'x', wanted integers"):
        PackedPixels(torch.zeros(3, dtype=torch.uint8), ((1, 1),), picture="x")
