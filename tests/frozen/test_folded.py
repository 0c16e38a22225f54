"""Frozen models whose norms are folded: as right as with norms, the same bits in any batch, decided once."""

import copy
import logging
import pickle
from collections import Counter

import pytest
import torch

import vilt_fast
from vilt_fast import ops
from vilt_fast.frozen.blocks import FoldedBlock, Rows
from vilt_fast.frozen.weights import _Taker

pytest.importorskip("triton", reason="the switches are those of the kernels, which need Triton")
from vilt_fast.kernels import launch, switches  # noqa: E402

# Whole groups of columns, and rows that descriptors can describe.
WIDTH = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 72, "num_labels": 8}
SHORT = [torch.bfloat16, torch.float16]
DESCRIPTOR = {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP_M": 8, "SUBTILES": 2, "FLATTEN": True}
DESCRIPTOR |= {"programs": 2, "num_warps": 4, "num_stages": 2}


def freeze(model, **options):
    with switches.forced(fold_norm=True):
        return vilt_fast.freeze(model, **options)


def errors(got, wanted):
    """Sum of the squared errors of every field, relative to the field's own squares."""
    pairs = {name: (got[name].double(), wanted[name]) for name in wanted}
    return Counter({name: ((one - right).norm() / right.norm()).item() ** 2 for name, (one, right) in pairs.items()})


@torch.no_grad()
def live64(model, inputs):
    wide = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    return copy.deepcopy(model).double()(**wide)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_as_right_as_with_norms(make_model, make_inputs, name, dtype):
    """On the reference; every head, qkv with a bias and without."""
    allowed, found = Counter(), Counter()
    for index in (0, 1):
        model = make_model(name, index, **WIDTH)
        inputs = make_inputs(model, seed=index, size=12)
        wanted = live64(model, inputs)
        plain, folded = vilt_fast.freeze(model, dtype), freeze(model, dtype=dtype)
        assert folded.weights.is_folded and not plain.weights.is_folded
        allowed += errors(plain(**inputs), wanted)
        found += errors(folded(**inputs), wanted)
    for field in allowed:
        assert 0 < found[field] <= 2**2 * allowed[field], (field, found, allowed)


def test_head_mask_and_samples(make_model, make_inputs):
    model = make_model("ViltModel", max_image_length=2, **WIDTH)
    inputs = make_inputs(model)
    extra = {"head_mask": torch.rand(2, 4), "seed": 5}
    with torch.no_grad():
        wanted = model(**inputs, **extra)
    found = errors(freeze(model, dtype=torch.bfloat16)(**inputs, **extra), {k: v.double() for k, v in wanted.items()})
    assert all(error < 2e-2**2 for error in found.values()), found


@pytest.mark.parametrize(
    ("side", "dtype", "d"),
    [("reference", torch.bfloat16, 4096), ("kernels", torch.bfloat16, 768), ("kernels", torch.float16, 768)],
    ids=str,
)
@pytest.mark.parametrize("mean", [0.0, 0.1])
def test_rows_far_from_zero(mean, side, dtype, d, device):
    """One element one step from all others, and weights with a mean: as right as a norm and a product, twice."""
    generator = torch.Generator().manual_seed(d)
    norm, affine = torch.nn.LayerNorm(d, eps=1e-12), torch.nn.Linear(d, 64)
    weights = (norm.weight, norm.bias, affine.weight, affine.bias)
    with torch.no_grad():
        for weight, (shift, scale) in zip(weights, [(1, 0.1), (0, 0.1), (mean, 0.02), (0, 0.1)], strict=True):
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale + shift)
    x = torch.full((8, d), 256.0)
    x[range(8), torch.randint(0, d, (8,), generator=generator)] = 254.0
    x = x.to(device, dtype)
    folded = _Taker(dtype, device).folded(norm, affine)
    with torch.no_grad(), vilt_fast.backend(side):
        got = folded(Rows(x, ops.row_moments(x))).cpu().double()

    @torch.no_grad()
    def plain(dtype):
        scale, shift, weight, bias = (tensor.to(dtype) for tensor in weights)
        normed = torch.nn.functional.layer_norm(x.cpu().to(dtype), (d,), scale, shift, 1e-12)
        return torch.nn.functional.linear(normed, weight, bias).double()

    right = plain(torch.float64)
    assert (got - right).norm() <= 2 * (plain(dtype) - right).norm()


# --- decided once -----------------------------------------------------------------------------------------------------


def test_decided_when_frozen(make_model, make_inputs):
    model = make_model("ViltForQuestionAnswering", **WIDTH)
    inputs, folded = make_inputs(model), freeze(model, dtype=torch.bfloat16)
    wanted = folded(**inputs).logits
    for form in (pickle.loads(pickle.dumps(folded)), copy.deepcopy(folded)):
        assert torch.equal(form(**inputs).logits, wanted) and not form.is_stale(model)
    with switches.forced(fold_norm=False):
        assert torch.equal(folded(**inputs).logits, wanted) and not folded.is_stale(model)
    plain = vilt_fast.freeze(model, torch.bfloat16)
    with switches.forced(fold_norm=True):
        assert not plain.is_stale(model) and not torch.equal(plain(**inputs).logits, wanted)
    with torch.no_grad():
        model.vilt.encoder.layer[1].layernorm_after.bias += 1
    assert folded.is_stale(model)


def test_by_the_environment(make_model, monkeypatch):
    model = make_model("ViltForQuestionAnswering", **WIDTH)
    monkeypatch.setenv(switches.VARIABLE, "fold_norm")
    assert ops.SWITCHES == switches.VARIABLE
    assert vilt_fast.freeze(model, torch.bfloat16).weights.is_folded
    monkeypatch.setenv(switches.VARIABLE, "bogus")
    for dtype in (torch.bfloat16, torch.float32):
        with pytest.raises(ValueError, match="got the switch 'bogus', wanted any of"):
            vilt_fast.freeze(model, dtype)


@pytest.mark.parametrize(
    ("dtype", "fields"),
    [(torch.float32, {}), (torch.float64, {}), (torch.bfloat16, {"hidden_size": 48}), (torch.float16, {"scale": 1e-7})],
    ids=["fp32", "fp64", "48 columns", "weights out of fp16"],
)
def test_not_folded(make_model, make_inputs, caplog, dtype, fields):
    """A stream of 32 bits, part of a group of columns, and weights whose product with the norm's is lost in fp16."""
    scale = fields.pop("scale", None)
    model = make_model("ViltForQuestionAnswering", **{**WIDTH, **fields})
    if scale is not None:
        with torch.no_grad():
            model.vilt.encoder.layer[1].layernorm_before.weight *= scale
    with caplog.at_level(logging.INFO, "vilt_fast"):
        frozen = freeze(model, dtype=dtype)
    assert not frozen.weights.is_folded and ("norms stay" in caplog.text) == (scale is not None)
    assert not any(isinstance(block, FoldedBlock) for block in frozen.weights.blocks)
    if scale is None:
        inputs = make_inputs(model)
        assert torch.equal(frozen(**inputs).logits, vilt_fast.freeze(model, dtype)(**inputs).logits)


# --- on the kernels ---------------------------------------------------------------------------------------------------


def _pairs(model):
    """Images as bytes, and questions of different lengths; `answer` takes some of them."""
    g = torch.Generator().manual_seed(0)
    sizes, lengths = [(16, 8), (8, 8), (8, 24), (40, 8)], [5, 2, 3, 4]
    images = [torch.randint(0, 256, (3 * height * width,), generator=g, dtype=torch.uint8) for height, width in sizes]
    ids = torch.randint(0, model.config.vocab_size, (4, 5), generator=g)

    def answer(form, *chosen):
        pixels = vilt_fast.PackedPixels(torch.cat([images[n] for n in chosen]), [sizes[n] for n in chosen])
        mask = torch.arange(5) < torch.tensor([lengths[n] for n in chosen])[:, None]
        return form(input_ids=ids[list(chosen)], attention_mask=mask, pixel_values=pixels).logits

    return answer


def _model(make_model, device, layers=1):
    fields = {**WIDTH, "num_hidden_layers": layers, "num_channels": 3}
    return make_model("ViltForQuestionAnswering", 0, **fields).to(device)


def test_same_pair_same_bits(make_model, device, monkeypatch):
    """Folded on the kernels, a pair's answer is the same alone, in any batch and at any place of it."""
    model = _model(make_model, device, layers=2)
    frozen, answer = freeze(model, dtype=torch.bfloat16, graphs=False), _pairs(model)
    if device.type == "cpu":
        monkeypatch.setitem(launch._forced, "linear_pointer", DESCRIPTOR)
    with vilt_fast.backend("kernels"):
        alone = torch.cat([answer(frozen, n) for n in (1, 2)])
        assert torch.equal(answer(frozen, 2, 0, 1, 2)[[0, 2, 3]], alone[[1, 0, 1]])


def test_five_launches_a_block(make_model, device, monkeypatch):
    model, launches = _model(make_model, device, layers=2), Counter()
    frozen, original = freeze(model, dtype=torch.bfloat16, graphs=False), launch.Program.__call__

    def count(program, *arguments):
        launches[program.kernel.__name__.strip("_")] += 1
        original(program, *arguments)

    monkeypatch.setattr(launch.Program, "__call__", count)
    if device.type == "cpu":
        monkeypatch.setitem(launch._forced, "linear_pointer", DESCRIPTOR)
    with vilt_fast.backend("kernels"):
        _pairs(model)(frozen, 0, 1)
    # On top: the first moments; and of the head two norms and four products.
    assert launches["attention_kernel"] == 2 and launches["row_moments_kernel"] == 1
    products = {name: count for name, count in launches.items() if name.startswith("linear")}
    assert launches["layer_norm_kernel"] == 2 and sum(products.values()) == 2 * 4 + 3


@pytest.fixture(scope="module")
def truth(make_model, device):
    """A model, its pairs, what fp64 says of them, and how far it is from that without any switch."""
    model = _model(make_model, device)
    answer = _pairs(model)
    with vilt_fast.backend("reference"):
        right = answer(vilt_fast.freeze(model, torch.float64), 1, 2).cpu()
    with vilt_fast.backend("kernels"):
        plain = answer(vilt_fast.freeze(model, torch.bfloat16), 1, 2).cpu()
    return model, answer, right, plain


@pytest.mark.parametrize("chosen", [*switches.SWITCHES, "all"])
def test_every_switch(truth, device, chosen):
    """Each alone and all together: exact ones change no bit, the others stay within the error of the kernels."""
    model, answer, right, plain = truth
    wanted = switches.SWITCHES if chosen == "all" else {chosen: switches.SWITCHES[chosen]}
    family = launch.family(launch.arch_of(right.to(device)))
    wanted = {name: switch for name, switch in wanted.items() if family in switch.families}
    if not wanted:
        pytest.skip(f"{chosen} is not for {family}")
    with switches.forced(**dict.fromkeys(wanted, True)), vilt_fast.backend("kernels"):
        got = answer(vilt_fast.freeze(model, torch.bfloat16), 1, 2).cpu()
    assert (got.double() - right).norm() <= 2 * (plain.double() - right).norm()
    if all(switch.is_exact for switch in wanted.values()):
        assert torch.equal(got, plain)
