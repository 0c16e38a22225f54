"""reference.dropout: random numbers as published, their statistics, gradients, and what traces and transforms it."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import jvp, vmap

from vilt_fast.reference.dropout import dropout, keep_mask
from vilt_fast.reference.philox import philox4x32

# Random123's known answers for philox4x32-10: counter, key, words.
ONES = "ffffffff"
KNOWN = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (f"{ONES} " * 4, f"{ONES} " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[Tensor]:
    return [torch.tensor([int(word, 16)]) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_equals_the_published_vectors(counter: str, key: str, words: str) -> None:
    assert list(philox4x32(_words(counter), _words(key))) == _words(words)


def test_an_element_follows_its_word() -> None:
    """Written out for one element after the other: word i % 4 of counter i // 4, whatever the shape and the strides."""
    seed, p, input = 5 | 3 << 32, 0.3, torch.randn(3, 7).t()
    out = dropout(input, p, torch.tensor(seed)).flatten()
    for i, x in enumerate(input.flatten()):
        word = philox4x32((torch.tensor(i // 4), 0, 0, 0), (5, 3))[i % 4]
        assert out[i] == (x * (1 / (1 - p)) if word >= round(p * 2**32) else 0)


def test_0_keeps_all_and_1_keeps_nothing() -> None:
    input, seed = torch.randn(50, requires_grad=True), torch.tensor(1)
    assert dropout(input, 0.0, seed) is input
    out = dropout(input, 1, seed)
    assert torch.equal(out, torch.zeros(50))
    assert torch.equal(*torch.autograd.grad(out.sum(), input), torch.zeros(50))


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_a_bad_probability(p: float) -> None:
    with pytest.raises(ValueError, match=rf"dropout: p: got {p}, wanted 0 <= p <= 1"):
        dropout(torch.ones(3), p, torch.tensor(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_rounding(dtype: torch.dtype) -> None:
    input, seed, p = torch.randn(1000).to(dtype), torch.tensor(8), 0.3
    kept = keep_mask(input.shape, p, seed)
    out, exact = dropout(input, p, seed), (input.double() * kept / (1 - p))
    # The scale and the product are rounded in fp32 or fp64, and then a 16-bit dtype rounds once.
    bound = torch.finfo(dtype).eps / 2 + (2.0**-52 if dtype == torch.float64 else 2.0**-23)
    assert out.dtype == dtype and ((out.double() - exact).abs() <= bound * exact.abs()).all()
    assert torch.equal(out != 0, kept)


# --- statistics -------------------------------------------------------------------------------------------------------

COUNT = 40_000


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_share_of_what_is_kept(seed: int, p: float) -> None:
    """Within five deviations of the binomial."""
    kept = int(keep_mask(torch.Size([COUNT]), p, torch.tensor(seed)).sum())
    assert abs(kept - COUNT * (1 - p)) <= 5 * math.sqrt(COUNT * p * (1 - p))


def _correlations(signs: Tensor) -> Tensor:
    """Between rows of numbers that are 1 or -1, in deviations of independent ones; the diagonal is left out."""
    return (signs @ signs.t() / math.sqrt(signs.shape[1])).fill_diagonal_(0)


def _signs(seed: int) -> Tensor:
    return keep_mask(torch.Size([COUNT]), 0.5, torch.tensor(seed)).float() * 2 - 1


def test_neighbours_are_independent() -> None:
    signs = _signs(3)
    lanes = signs.view(-1, 4).t()
    assert _correlations(lanes).abs().max() < 5
    shifted = torch.stack([signs[lag : COUNT - 768 + lag] for lag in (0, 1, 2, 3, 4, 5, 8, 16, 768)])
    assert _correlations(shifted).abs().max() < 5


def test_seeds_are_independent() -> None:
    """Those that differ in a bit of either half."""
    signs = torch.stack([_signs(seed) for seed in (0, 1, 2, 3, 1 << 31, 1 << 32, 1 << 33, 1 << 62)])
    assert _correlations(signs).abs().max() < 5
    assert torch.equal(_signs(1), _signs(1))


# --- gradients and transforms -----------------------------------------------------------------------------------------


def test_gradients() -> None:
    seed, p = torch.tensor(11), 0.4
    input = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dropout(x, p, seed), input)
    assert torch.autograd.gradgradcheck(lambda x: dropout(x, p, seed), input)
    kept = keep_mask(input.shape, p, seed)
    assert torch.equal(*torch.autograd.grad(dropout(input, p, seed).sum(), input), kept.double() * (1 / (1 - p)))


def test_what_is_dropped_is_0_whatever_it_was() -> None:
    seed, kept = torch.tensor(2), keep_mask(torch.Size([64]), 0.5, torch.tensor(2))
    for bad in (math.nan, math.inf, -math.inf):
        input = torch.full((64,), bad, requires_grad=True)
        out = dropout(input, 0.5, seed)
        torch.testing.assert_close(out, torch.where(kept, bad, 0.0), equal_nan=True, rtol=0, atol=0)
        (gradient,) = torch.autograd.grad(out, input, torch.full((64,), bad))
        torch.testing.assert_close(gradient, torch.where(kept, bad, 0.0), equal_nan=True, rtol=0, atol=0)


def test_transforms() -> None:
    seed, input = torch.tensor(4), torch.randn(5, 13)
    one = dropout(input[0], 0.4, seed) != 0
    assert torch.equal(vmap(lambda x: dropout(x, 0.4, seed))(input) != 0, one.expand(5, 13))
    seeds = torch.arange(5)
    apart = torch.stack([dropout(x, 0.4, s) for x, s in zip(input, seeds, strict=True)])
    assert torch.equal(vmap(lambda x, s: dropout(x, 0.4, s))(input, seeds), apart)
    value, tangent = jvp(lambda x: dropout(x, 0.4, seed), (input,), (torch.ones_like(input),))
    assert torch.equal(value != 0, tangent != 0)


def test_meta() -> None:
    input = torch.empty(3, 5, dtype=torch.bfloat16, device="meta")
    out = dropout(input, 0.1, torch.empty((), dtype=torch.int64, device="meta"))
    assert (out.shape, out.dtype, out.device) == (input.shape, input.dtype, input.device)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(backend: str) -> None:
    """With one probability after another: Inductor would go on with the threshold of an earlier one."""
    torch._dynamo.reset()
    compiled = torch.compile(dropout, fullgraph=True, backend=backend)
    for seed, (rows, p) in enumerate(((3, 0.1), (4, 0.2), (4, 0.75), (4, 0.0))):
        input = torch.randn(rows, 130)
        assert torch.equal(compiled(input, p, torch.tensor(seed)), dropout(input, p, torch.tensor(seed))), p
