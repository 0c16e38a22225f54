"""The activations that config.json can name: as transformers computes them, as modules, and fused into a product."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vilt_fast.layers.activations import ACTIVATIONS, FUSED, Activation, activation, fused_name
from vilt_fast.reference.linear import linear

HAVE_PARAMETERS = ("prelu", "xielu")
# transformers writes these out as formulas, with a rounding at each step; ours is PyTorch's one call.
ONE_CALL = ("gelu_python", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def draw(dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """(400,): around zero, far from it, and zero itself."""
    x = torch.randn(400, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
    x[:3] = torch.tensor([0.0, 14.0, -14.0])
    return x.to(dtype)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(oracle, name):
    """All names that a configuration may hold mean what they mean in transformers."""
    act = activation(name)
    fused = fused_name(act)
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)[:, None]
    got = linear(x, torch.ones(1, 1, dtype=torch.float64), activation=fused)
    got = got if fused is not None else act(got)
    expected = oracle.transformers.activations.ACT2FN[name](x)
    # gelu_fast spells sqrt(2 / pi) with ten digits.
    oracle.check_close(name, got, expected, 1e-10)


def test_every_name_of_transformers_is_known_or_refused(oracle) -> None:
    for name in oracle.transformers.activations.ACT2CLS:
        if name in HAVE_PARAMETERS:
            with pytest.raises(ValueError, match=f"hidden_act='{name}' has parameters"):
                activation(name)
        else:
            assert not activation(name).state_dict(), name
    with pytest.raises(ValueError, match="hidden_act must be .* got 'geglu'"):
        activation("geglu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_module_computes_what_theirs_computes(oracle, name, dtype) -> None:
    x = draw(dtype)
    got, expected = activation(name)(x), oracle.transformers.activations.ACT2FN[name](x)
    if name in ONE_CALL:
        # Their 1 + tanh (or erf) near zero, times an x of 14 at most; gelu_fast spells sqrt(2 / pi) with ten digits.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(got, expected, rtol=4 * eps + 1e-10, atol=16 * eps + 1e-11)
    else:
        oracle.check_equal(name, got, expected)


@pytest.mark.parametrize("name", FUSED)
def test_called_or_fused_the_bits_are_the_same(oracle, name) -> None:
    """So that a hook on an activation changes no number."""
    x, weight = torch.randn(7, 5), torch.randn(6, 5)
    module = activation(name)
    fused = fused_name(module)
    oracle.check_equal(name, module(linear(x, weight)), linear(x, weight, activation=fused))


def test_which_modules_a_product_can_apply() -> None:
    assert {name: fused_name(activation(name)) for name in ACTIVATIONS} == {n: FUSED.get(n) for n in ACTIVATIONS}
    assert fused_name(nn.GELU()) == "gelu" and fused_name(nn.GELU(approximate="tanh")) == "gelu_tanh"
    assert fused_name(nn.ReLU()) == "relu" and fused_name(nn.Tanh()) == "tanh"
    assert fused_name(nn.LeakyReLU()) is None

    class Mine(Activation):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    assert fused_name(Mine("gelu")) is None
    patched = activation("gelu")
    patched.forward = torch.relu
    assert fused_name(patched) is None


def test_what_is_no_name() -> None:
    x = draw(torch.float32)
    mine = nn.PReLU()
    assert activation(mine) is mine
    first, second = activation(nn.PReLU), activation(nn.PReLU)
    assert type(first) is nn.PReLU and first is not second
    wrapped = activation(F.softsign)
    assert isinstance(wrapped, nn.Module) and torch.equal(wrapped(x), F.softsign(x)) and "softsign" in repr(wrapped)
    assert fused_name(wrapped) is None and fused_name(mine) is None


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_module_can_be_copied_saved_compiled_and_trained_through(oracle, name) -> None:
    module, x = activation(name), draw().requires_grad_()
    expected = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.name == name and torch.equal(other(x), expected)
    theirs = oracle.transformers.activations.ACT2FN[name](x)
    got, wanted = (torch.autograd.grad(y.sum(), x)[0] for y in (expected, theirs))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)
    assert name in repr(module)


def test_modules_compile_without_a_break() -> None:
    modules = [activation(name) for name in ACTIVATIONS]
    compiled = torch.compile(lambda x: [m(x) for m in modules], fullgraph=True, backend="eager")
    x = draw()
    for name, got, module in zip(ACTIVATIONS, compiled(x), modules, strict=True):
        assert torch.equal(got, module(x)), name
