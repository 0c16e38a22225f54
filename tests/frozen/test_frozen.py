"""The frozen form gives what the live form gives, for every class, and says what it does not do."""

import copy
import pickle
import threading
import time

import pytest
import torch
import torch.nn.utils.parametrize
import torch.nn.utils.prune
from torch import nn

import vilt_fast

# The same operations of the reference in the same order, from weights that are copies: nothing may differ but the
# rounding of a product whose weight lies elsewhere in memory.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


def check_equal(got, wanted, **tolerance):
    assert type(got) is type(wanted)
    assert list(got) == list(wanted)
    for field in wanted:
        torch.testing.assert_close(got[field], wanted[field], msg=lambda text, f=field: f"{f}: {text}", **tolerance)


@torch.no_grad()
def live(model, inputs, **options):
    return model(**inputs, **options)


@pytest.mark.parametrize("index", range(6))
def test_equals_live(make_model, make_inputs, name, index):
    model = make_model(name, index)
    inputs = make_inputs(model, seed=index, size=1 + index)
    check_equal(vilt_fast.freeze(model)(**inputs), live(model, inputs), **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_equals_live_in(make_model, make_inputs, name, dtype):
    """The same roundings in the same places: a cast before freezing, or by it."""
    model = make_model(name, 2)
    inputs = make_inputs(model)
    wanted = live(copy.deepcopy(model).to(dtype), make_inputs(model.to(dtype)))
    frozen = vilt_fast.freeze(make_model(name, 2), dtype=dtype)
    assert frozen.dtype == dtype and wanted[0].dtype == dtype
    check_equal(frozen(**inputs), wanted, rtol=0, atol=0)


def test_return_dict_false(make_model, make_inputs, name):
    model = make_model(name, 1)
    inputs = make_inputs(model)
    got, wanted = vilt_fast.freeze(model)(**inputs, return_dict=False), live(model, inputs, return_dict=False)
    assert isinstance(got, tuple) and len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one is other is None or torch.equal(one, other)


def test_arguments_by_place(make_model, make_inputs):
    model = make_model("ViltForQuestionAnswering")
    inputs = make_inputs(model)
    assert torch.equal(vilt_fast.freeze(model)(*inputs.values()).logits, live(model, inputs).logits)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_mask": None, "token_type_ids": None, "pixel_mask": None},
        {"input_ids": torch.int32},
        {"attention_mask": torch.bool, "pixel_mask": torch.bool},
        {"attention_mask": torch.float32, "pixel_mask": torch.bfloat16},
        {"pixel_values": torch.float64},
    ],
    ids=lambda change: ",".join(change),
)
def test_other_forms_of_the_inputs(make_model, make_inputs, change):
    model = make_model("ViltForQuestionAnswering")
    inputs = make_inputs(model)
    for key, value in change.items():
        inputs[key] = None if value is None else inputs[key].to(value)
    assert torch.equal(vilt_fast.freeze(model)(**inputs).logits, live(model, inputs).logits)


def test_unusual_arguments(make_model, make_inputs, oracle):
    """What is planned as the live form plans it: embeddings, head and patch masks, seeds."""
    model = make_model("ViltModel", max_image_length=2)
    inputs, width = make_inputs(model), model.config.hidden_size
    frozen = vilt_fast.freeze(model)
    batch, words = inputs["input_ids"].shape
    cells = [side // model.config.patch_size for side in inputs["pixel_values"].shape[2:]]
    patch_mask = torch.rand(batch, *cells) < 0.7
    for extra in (
        {"head_mask": torch.rand(model.config.num_attention_heads)},
        {"patch_mask": patch_mask},
        {"seed": 5},
        {"image_index": torch.tensor([4, 4, 1])},
        {"image_token_type_idx": 0},
    ):
        check_equal(frozen(**inputs, **extra), live(model, inputs, **extra), **TOLERANCE)
    embeds = {"inputs_embeds": torch.randn(batch, words, width), "attention_mask": inputs["attention_mask"]}
    embeds |= {
        "image_embeds": torch.randn(batch, 5, width),
        "pixel_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2] + [[1] * 5]),
    }
    check_equal(frozen(**embeds), live(model, embeds), **TOLERANCE)


@pytest.mark.parametrize("limit", [-1, 3])
@pytest.mark.parametrize("picture", [None, (0, 0, 1, 0)])
def test_packed_pixels(make_model, name, picture, limit):
    model = make_model(name, 3, num_images=2, modality_type_vocab_size=3, num_channels=3, max_image_length=limit)
    patch = model.config.patch_size
    sizes = [(patch, 3 * patch), (2 * patch, 2 * patch), (4 * patch, patch), (patch, patch)][
        : 4 if picture is None else 2
    ]
    data = torch.randint(0, 256, (sum(3 * h * w for h, w in sizes),), dtype=torch.uint8)
    pixels = vilt_fast.PackedPixels(data, sizes, picture=picture)
    texts = 2 if name == "ViltForImagesAndTextClassification" else 4
    ids = torch.randint(0, model.config.vocab_size, (texts, 6))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.arange(6) < torch.tensor([6, 2, 3, 5])[:texts, None],
        "pixel_values": pixels,
    }
    check_equal(vilt_fast.freeze(model)(**inputs), live(model, inputs), **TOLERANCE)


def test_frozen_is_a_snapshot(make_model, make_inputs, name):
    model = make_model(name)
    inputs = make_inputs(model)
    frozen = vilt_fast.freeze(model)
    wanted = live(model, inputs)
    assert not frozen.is_stale(model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
        model.config.num_hidden_layers = 0
    check_equal(frozen(**inputs), wanted, **TOLERANCE)
    assert frozen.is_stale(model) and not isinstance(frozen, nn.Module)


@pytest.mark.parametrize("parameter", [0, 7, -1])
def test_any_parameter_makes_it_stale(make_model, name, parameter):
    model = make_model(name)
    frozen = vilt_fast.freeze(model)
    with torch.no_grad():
        list(model.parameters())[parameter].mul_(1.5)
    assert frozen.is_stale(model)


def test_training_mode_is_evaluation(make_model, make_inputs):
    model = make_model("ViltForQuestionAnswering", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    inputs = make_inputs(model)
    wanted = live(model, inputs).logits
    assert torch.equal(vilt_fast.freeze(model.train())(**inputs).logits, wanted)
    assert model.training


@pytest.mark.parametrize("act", ["gelu", "linear", "quick_gelu"])
def test_copies_and_pickles(make_model, make_inputs, name, act):
    model = make_model(name, hidden_act=act)
    inputs = make_inputs(model)
    frozen = vilt_fast.freeze(model)
    wanted = frozen(**inputs)
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        check_equal(other(**inputs), wanted, rtol=0, atol=0)


def test_results_belong_to_the_caller(make_model, make_inputs):
    frozen = vilt_fast.freeze(make_model("ViltModel"))
    inputs = make_inputs(make_model("ViltModel"))
    first = frozen(**inputs).last_hidden_state
    kept = first.clone()
    first_again = frozen(**inputs).last_hidden_state.zero_()
    assert torch.equal(first, kept) and not first_again.any() and not first.requires_grad
    (first * torch.ones(1, requires_grad=True)).sum().backward()  # no inference tensor: a probe can be trained on it


def test_stats_and_warmup(make_model, make_inputs):
    model = make_model("ViltForQuestionAnswering")
    frozen = vilt_fast.freeze(model)
    assert 0 < frozen.warmup() < 60 and frozen.stats() == vilt_fast.frozen.Stats()
    frozen(**make_inputs(model, size=4))
    stats = frozen.stats()
    assert (stats.calls, stats.pairs, stats.replayed, stats.too_large) == (1, 4, 0, 0) and stats.tokens > 8
    assert frozen.device == model.device and frozen.config is not model.config


# --- what is refused --------------------------------------------------------------------------------------------------


def hooked(model):
    model.vilt.encoder.layer[1].output.dense.register_forward_hook(lambda *_: None)
    return "vilt.encoder.layer.1.output.dense has forward hooks"


def pre_hooked(model):
    model.vilt.register_forward_pre_hook(lambda *_: None)
    return "vilt has forward pre hooks"


def backward_hooked(model):
    model.classifier.register_full_backward_hook(lambda *_: None)
    return "classifier has backward hooks"


def adapted(model):
    dense = model.vilt.encoder.layer[0].attention.output.dense
    model.vilt.encoder.layer[0].attention.output.dense = nn.Sequential(dense)
    return r"vilt.encoder.layer.0.attention.output.dense is a torch.nn.modules.container.Sequential, not a Linear"


def replaced_norm(model):
    model.vilt.layernorm = nn.Identity()
    return "vilt.layernorm is a torch.nn.modules.linear.Identity, not a LayerNorm"


def replaced_activation(model):
    model.classifier[2] = nn.ReLU()
    return r"classifier.2 is a torch.nn.modules.activation.ReLU, not a GELU"


def own_forward(model):
    linear = model.vilt.pooler.dense
    linear.forward = lambda x: x
    return "vilt.pooler.dense has a forward of its own"


def parametrised(model):
    torch.nn.utils.parametrize.register_parametrization(model.vilt.pooler.dense, "weight", nn.Identity())
    return "vilt.pooler.dense is a .*ParametrizedLinear, not a Linear"


def pruned(model):
    torch.nn.utils.prune.random_unstructured(model.vilt.pooler.dense, "weight", 0.5)
    return "vilt.pooler.dense has forward pre hooks"


def added(model):
    model.vilt.extra = nn.Linear(2, 2)
    return "vilt.extra is a Linear that ViltForQuestionAnswering does not have"


def subclassed(model):
    class Quantised(nn.Parameter):
        pass

    model.vilt.pooler.dense.weight = Quantised(model.vilt.pooler.dense.weight.data)
    return "vilt.pooler.dense.weight is a Quantised, not a plain tensor"


def on_meta(model):
    model.to("meta")
    return "is on the meta device"


def unweighted_norm(model):
    model.vilt.layernorm = nn.LayerNorm(model.config.hidden_size, bias=False)
    return "vilt.layernorm.bias is missing"


def own_parameter(model):
    model.temperature = nn.Parameter(torch.ones(1))
    return "temperature is a parameter of your own"


def reconfigured(model):
    model.config.patch_size = 4
    return "has the shape .* not .* as the configuration says"


class OwnForward(vilt_fast.ViltForQuestionAnswering):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def own_class(model):
    model.__class__ = OwnForward
    return "OwnForward has a forward of its own"


class OwnScore(vilt_fast.ViltForQuestionAnswering):
    def score(self, rows):
        return 2 * super().score(rows)


def own_method(model):
    model.__class__ = OwnScore
    return "OwnScore has a score of its own"


CHANGES = (hooked, pre_hooked, backward_hooked, adapted, replaced_norm, replaced_activation, own_forward, parametrised)
CHANGES += (pruned, added, subclassed, on_meta, unweighted_norm, own_parameter, reconfigured, own_class, own_method)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_is_refused_by_name(make_model, change):
    model = make_model("ViltForQuestionAnswering", 2)
    frozen = vilt_fast.freeze(model)
    message = change(model)
    with pytest.raises(ValueError, match=message):
        vilt_fast.freeze(model)
    assert frozen.is_stale(model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("parameter", ["vilt.embeddings.cls_token", "classifier.3.weight"])
def test_weights_that_are_not_finite(make_model, bad, parameter):
    model = make_model("ViltForQuestionAnswering")
    with torch.no_grad():
        model.get_parameter(parameter).flatten()[-1] = bad
    with pytest.raises(ValueError, match=f"freeze: 1 weights are NaN or infinite in float32: {parameter}"):
        vilt_fast.freeze(model)


def test_weights_that_are_not_finite_in_another_dtype(make_model):
    model = make_model("ViltForQuestionAnswering")
    with torch.no_grad():
        model.classifier[0].bias[0] = 7e4
        model.vilt.pooler.dense.weight.fill_(3e38)  # whose sum is infinite, and no matter
    assert vilt_fast.freeze(model, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"2 weights are .* in float16: vilt.pooler.dense.weight, classifier.0.bias"):
        vilt_fast.freeze(model, dtype=torch.float16)


@pytest.mark.parametrize(("field", "value"), [("num_hidden_layers", 10**9), ("hidden_size", 10**30)])
def test_a_configuration_that_was_changed_is_not_built(make_model, field, value):
    model = make_model("ViltForQuestionAnswering")
    setattr(model.config, field, value)
    start = time.monotonic()
    with pytest.raises(ValueError, match="freeze: .*config"):
        vilt_fast.freeze(model)
    assert time.monotonic() - start < 5


class Named(vilt_fast.ViltForQuestionAnswering):
    """A user's class that computes nothing else."""

    def describe(self):
        return "mine"


def test_a_class_that_changes_nothing(make_model, make_inputs):
    model = make_model("ViltForQuestionAnswering")
    inputs = make_inputs(model)
    wanted = live(model, inputs).logits
    model.__class__ = Named
    frozen = vilt_fast.freeze(model)
    assert torch.equal(frozen(**inputs).logits, wanted) and not frozen.is_stale(model)
    assert "ViltForQuestionAnswering, torch.float32, cpu" in repr(frozen) and frozen.eval() is frozen


def test_what_was_built_counts_not_what_the_configuration_says_now(make_model, make_inputs):
    model = make_model("ViltForQuestionAnswering", 2)
    inputs = make_inputs(model)
    wanted = live(model, inputs).logits
    frozen = vilt_fast.freeze(model)
    model.config.num_attention_heads = 2
    assert torch.equal(vilt_fast.freeze(model)(**inputs).logits, wanted) and not frozen.is_stale(model)
    model.vilt.layernorm.eps = 0.5
    assert frozen.is_stale(model)


def test_stale_is_a_question_about_models(make_model):
    model = make_model("ViltForQuestionAnswering")
    frozen = vilt_fast.freeze(model)
    assert not frozen.is_stale(model) and frozen.is_stale(make_model("ViltModel"))
    with torch.no_grad():
        model.classifier[3].bias[0] = float("nan")
    assert frozen.is_stale(model)  # and would be refused
    with pytest.raises(TypeError, match="is_stale: model: got NoneType"):
        frozen.is_stale(None)


def test_shared_blocks(make_model, make_inputs):
    model = make_model("ViltForQuestionAnswering", 2)
    layers = model.vilt.encoder.layer
    layers[1] = layers[0]
    inputs = make_inputs(model)
    assert torch.equal(vilt_fast.freeze(model)(**inputs).logits, live(model, inputs).logits)


def test_compiled_around_it(make_model, make_inputs):
    frozen = vilt_fast.freeze(make_model("ViltForQuestionAnswering"))
    inputs = make_inputs(make_model("ViltForQuestionAnswering"))
    wanted = frozen(**inputs).logits
    compiled = torch.compile(lambda **given: frozen(**given).logits * 2, backend="eager")
    torch.testing.assert_close(compiled(**inputs), 2 * wanted)


@pytest.mark.parametrize("argument", ["output_attentions", "output_hidden_states"])
def test_what_is_not_kept(make_model, make_inputs, argument):
    model = make_model("ViltForQuestionAnswering")
    inputs = make_inputs(model)
    with pytest.raises(ValueError, match=f"{argument}: the frozen form keeps none"):
        vilt_fast.freeze(model)(**inputs, **{argument: True})
    vilt_fast.freeze(model)(**inputs, **{argument: False})
    setattr(model.config, argument, True)
    with pytest.raises(ValueError, match=argument):
        vilt_fast.freeze(model)(**inputs)


def test_no_loss_no_gradient_no_stranger(make_model, make_inputs):
    model = make_model("ViltForQuestionAnswering")
    frozen, inputs = vilt_fast.freeze(model), make_inputs(model)
    with pytest.raises(ValueError, match="labels: the frozen form computes no loss"):
        frozen(**inputs, labels=torch.zeros(3, model.config.num_labels))
    inputs["pixel_values"].requires_grad_()
    with pytest.raises(ValueError, match="pixel_values requires a gradient"):
        frozen(**inputs)
    with torch.no_grad():
        frozen(**inputs)
    with pytest.raises(TypeError, match="unexpected argument 'images'"):
        frozen(images=1)
    with pytest.raises(TypeError, match="multiple values for argument 'input_ids'"):
        frozen(inputs["input_ids"], input_ids=inputs["input_ids"])


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": None},
        {"input_ids": torch.tensor([[99999]])},
        {"attention_mask": torch.zeros(3, 4)},
        {"pixel_values": torch.zeros(3, 2, 3, 32, 32)},
        {"pixel_mask": torch.zeros(3, 5, 5)},
        {"token_type_ids": torch.full((3, 4), -1)},
        {"pixel_values": torch.zeros(3, 3, 32, 32, dtype=torch.uint8)},
    ],
    ids=lambda change: f"{next(iter(change))} {getattr(next(iter(change.values())), 'shape', None)}",
)
def test_errors_are_those_of_the_live_form(make_model, make_inputs, change):
    model = make_model("ViltForQuestionAnswering")
    inputs = make_inputs(model) | change
    with pytest.raises(ValueError) as wanted:
        live(model, inputs)
    with pytest.raises(ValueError) as got:
        vilt_fast.freeze(model)(**inputs)
    assert str(got.value) == str(wanted.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(model=nn.Linear(2, 2)), "model: got Linear"),
        (dict(dtype=torch.int8), "dtype: got torch.int8"),
        (dict(dtype="bfloat16"), "dtype: got 'bfloat16'"),
        (dict(max_tokens=0), "max_tokens: got 0"),
        (dict(max_seqlen=2.5), "max_seqlen: got 2.5"),
        (dict(dtype=torch.float8_e4m3fn), "dtype: got torch.float8_e4m3fn"),
        (dict(device="meta"), "device: got meta"),
        (dict(device="toaster"), "device: got 'toaster', wanted a device that is there"),
        (dict(device="cuda:99"), "device: got 'cuda:99', wanted a device that is there"),
        (dict(device=-1), "device: got -1, wanted a device that is there"),
        (dict(device=[]), r"device: got \[\], wanted a device that is there"),
        (dict(graphs="no"), "graphs: got 'no'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        vilt_fast.freeze(**{"model": make_model("ViltModel"), **arguments})


def test_a_model_without_weights(make_model):
    with pytest.raises(ValueError, match="model: it is on the meta device, which holds no weights: load them first"):
        vilt_fast.freeze(make_model("ViltModel").to("meta"))


# --- buckets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(3))
def test_buckets_change_nothing(make_model, make_inputs, name, repeater, index):
    """Batch after batch in the same memory, which holds NaN wherever nothing was written."""
    model = make_model(name, index, dtype=torch.float64)
    frozen = vilt_fast.freeze(model, max_tokens=3000, max_seqlen=1000)
    frozen.use_buckets(repeater)
    frozen._buckets._tokens.fill_(float("nan"))
    for seed in range(5):
        inputs = make_inputs(model, seed=seed, size=1 + 3 * seed % 7)
        check_equal(frozen(**inputs), live(model, inputs), rtol=1e-6, atol=1e-7)
    assert repeater.replays == 5 == frozen.stats().replayed


def test_frozen_inside_inference_mode(make_model, make_inputs, repeater):
    """And called outside, and the other way round."""
    model = make_model("ViltForQuestionAnswering")
    inputs = make_inputs(model)
    with torch.inference_mode():
        frozen = vilt_fast.freeze(model, max_seqlen=1000)
        frozen.use_buckets(repeater)
    wanted = live(model, inputs).logits
    torch.testing.assert_close(frozen(**inputs).logits, wanted, **TOLERANCE)
    with torch.inference_mode():
        torch.testing.assert_close(frozen(**inputs).logits, wanted, **TOLERANCE)
    torch.testing.assert_close(frozen(**inputs).logits, wanted, **TOLERANCE)
    assert repeater.replays == 3


def test_beyond_the_largest_bucket(make_model, make_inputs, repeater):
    model = make_model("ViltForQuestionAnswering")
    frozen = vilt_fast.freeze(model, max_tokens=20)
    frozen.use_buckets(repeater)
    inputs = make_inputs(model, size=4)
    assert torch.equal(frozen(**inputs).logits, live(model, inputs).logits)
    assert repeater.replays == 0 and (frozen.stats().too_large, frozen.stats().replayed) == (1, 0)


def test_head_masks_take_no_graph(make_model, make_inputs, repeater):
    model = make_model("ViltForQuestionAnswering")
    frozen = vilt_fast.freeze(model, max_seqlen=1000)
    frozen.use_buckets(repeater)
    inputs = make_inputs(model) | {"head_mask": torch.rand(model.config.num_attention_heads)}
    torch.testing.assert_close(frozen(**inputs).logits, live(model, inputs).logits, **TOLERANCE)
    assert repeater.replays == 0


def test_the_reference_takes_no_graph(make_model, make_inputs, repeater):
    """What is recorded are kernels; whoever switches an operation gets what was asked for."""
    model = make_model("ViltForQuestionAnswering")
    frozen = vilt_fast.freeze(model, max_seqlen=1000)
    frozen.use_buckets(repeater)
    with vilt_fast.backend(attention="reference"):
        frozen(**make_inputs(model))
    assert repeater.replays == 0 and frozen.stats().calls == 1
    frozen(**make_inputs(model))
    assert repeater.replays == 1


def test_several_threads(make_model, make_inputs, repeater):
    model = make_model("ViltForQuestionAnswering", dtype=torch.float64)
    frozen = vilt_fast.freeze(model, max_seqlen=1000)
    frozen.use_buckets(repeater)
    batches = [make_inputs(model, seed=seed, size=1 + seed) for seed in range(6)]
    wanted = [live(model, inputs).logits for inputs in batches]
    wrong = []

    def ask(number):
        for _ in range(10):
            if not torch.allclose(frozen(**batches[number]).logits, wanted[number], rtol=1e-6, atol=1e-7):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and frozen.stats().calls == 60


# Sharing an image changes which rows are copied, in any dtype.
@pytest.mark.parametrize(
    ("shared", "dtype"),
    [(False, torch.float32), (False, torch.bfloat16), (False, torch.float16), (True, torch.float32)],
)
def test_on_the_kernels(make_model, name, shared, dtype, repeater, device):
    """Through Triton's interpreter, or on a GPU: frozen and live launch the same kernels on the same rows."""
    model = make_model(name, 0, dtype, num_images=2, modality_type_vocab_size=3, num_channels=3).to(device)
    frozen = vilt_fast.freeze(model, max_tokens=200)
    if device.type == "cpu":
        frozen.use_buckets(repeater)
    sizes = [(16, 8), (8, 8)] if shared else [(16, 8), (8, 8), (8, 24), (16, 16)]
    data = torch.randint(0, 256, (sum(3 * h * w for h, w in sizes),), dtype=torch.uint8)
    pixels = vilt_fast.PackedPixels(data, sizes, picture=(0, 1, 1, 0) if shared else None)
    texts = 2 if name == "ViltForImagesAndTextClassification" else 4
    ids = torch.randint(0, model.config.vocab_size, (texts, 5))
    mask = torch.arange(5) < torch.tensor([5, 2, 3, 1])[:texts, None]
    with vilt_fast.backend("kernels"):
        got = frozen(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        on_device = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "pixel_values": pixels.to(device)}
        wanted = live(model, on_device)
    check_equal(got, wanted, rtol=0, atol=0)


# A bucket of 256 rows in bf16, which the interpreter emulates, takes as long as all the others.
@pytest.mark.parametrize(
    ("max_tokens", "dtype"),
    [(64, torch.float32), (64, torch.bfloat16), (5000, torch.float32)]
    + [pytest.param(5000, torch.bfloat16, marks=pytest.mark.slow)],
)
def test_same_pair_same_bits(make_model, repeater, device, max_tokens, dtype):
    """On the kernels a pair's answer is bit for bit the same alone, in any batch, at any place of it, in any bucket."""
    model = make_model("ViltForQuestionAnswering", 0, dtype, num_channels=3).to(device)
    frozen = vilt_fast.freeze(model, max_tokens=max_tokens, max_seqlen=500)
    if device.type == "cpu":
        frozen.use_buckets(repeater)
    sizes, lengths = [(16, 8), (8, 8), (8, 24), (16, 16), (40, 8)], [5, 2, 3, 1, 4]
    images = [torch.randint(0, 256, (3 * height * width,), dtype=torch.uint8) for height, width in sizes]
    ids = torch.randint(0, model.config.vocab_size, (5, 5))

    def answer(*chosen):
        pixels = vilt_fast.PackedPixels(torch.cat([images[n] for n in chosen]), [sizes[n] for n in chosen])
        mask = torch.arange(5) < torch.tensor([lengths[n] for n in chosen])[:, None]
        with vilt_fast.backend("kernels"):
            return frozen(input_ids=ids[list(chosen)], attention_mask=mask, pixel_values=pixels).logits

    alone = torch.cat([answer(n) for n in range(5)])
    assert torch.isfinite(alone).all() and frozen.stats().replayed > 0
    for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 2, 0), (3, 0, 1, 4, 4, 2, 1, 3, 0)):
        assert torch.equal(answer(*order), alone[list(order)])


# --- on a GPU ---------------------------------------------------------------------------------------------------------

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graphs_are_the_launches(make_model, make_inputs, name, dtype):
    """Bit for bit: live, frozen without graphs, and replayed, from the host and from the device, at any bucket."""
    model = make_model(name, 0, dtype=dtype).cuda()
    eager = vilt_fast.freeze(model, graphs=False)
    small, large = (vilt_fast.freeze(model, max_tokens=size, max_seqlen=500) for size in (3000, 20_000))
    for seed in range(6):
        host = make_inputs(model, seed=seed, size=1 + seed)
        device = {key: value.cuda() for key, value in host.items()}
        wanted = live(model, device)
        for form in (eager, small, large):
            check_equal(form(**host), wanted, rtol=0, atol=0)
            check_equal(form(**device), wanted, rtol=0, atol=0)
    assert small.stats().replayed == 12 and eager.stats().replayed == 0


@pytest.mark.gpu
@GPU
def test_warmup_records_everything(make_model, make_inputs):
    model = make_model("ViltForQuestionAnswering", dtype=torch.bfloat16).cuda()
    frozen = vilt_fast.freeze(model, max_tokens=2000, max_seqlen=500)
    assert frozen.warmup() > 0
    found = frozen.stats().bytes_of_bucket
    assert set(found) == set(frozen._buckets.sizes)
    # Recorded from the largest down, the others share its memory.
    assert sum(found.values()) <= 2 * max(found.values())
    before = torch.cuda.memory_reserved()
    for seed in range(8):
        frozen(**make_inputs(model, seed=seed, size=1 + seed))
    assert torch.cuda.memory_reserved() <= before + 2**22


@pytest.mark.gpu
@GPU
def test_threads_on_streams_of_their_own(make_model, make_inputs):
    model = make_model("ViltForQuestionAnswering", dtype=torch.bfloat16).cuda()
    frozen = vilt_fast.freeze(model, max_tokens=3000, max_seqlen=500)
    batches = [make_inputs(model, seed=seed, size=1 + seed) for seed in range(4)]
    wanted = [frozen(**inputs).logits for inputs in batches]
    torch.cuda.synchronize()
    wrong = []

    def ask(number):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                if not torch.equal(frozen(**batches[number]).logits, wanted[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.gpu
@GPU
def test_nothing_waits_for_the_device(make_model, make_inputs):
    """From inputs on the host."""
    model = make_model("ViltForQuestionAnswering", dtype=torch.bfloat16).cuda()
    frozen, inputs = vilt_fast.freeze(model, max_tokens=3000, max_seqlen=500), make_inputs(model)
    inputs["pixel_values"] = inputs["pixel_values"].pin_memory()
    wanted = frozen(**inputs).logits
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = frozen(**inputs).logits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(logits, wanted)
