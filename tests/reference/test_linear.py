"""reference.linear on cases worked by hand; everything else is measured against this function."""

import pytest
import torch

from vilt_fast.reference.linear import linear

X = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
W = torch.tensor([[1.0, 1.0], [2.0, -1.0], [0.0, 3.0]], dtype=torch.float64)
B = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
XW = torch.tensor([[3.5, -1.0, 6.0], [-0.5, 0.0, -3.0]], dtype=torch.float64)  # X W^T + B


def test_affine_map() -> None:
    torch.testing.assert_close(linear(X, W, B), XW, rtol=0, atol=0)
    torch.testing.assert_close(linear(X, W), XW - B, rtol=0, atol=0)


def test_residual_is_added_after_the_activation() -> None:
    residual = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    expected = torch.tensor([[4.5, 1.0, 7.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(linear(X, W, B, activation="relu", residual=residual), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("gelu", lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("gelu_tanh", lambda x: x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))),
        ("tanh", lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1)),
    ],
)
def test_activations_are_their_formulas(activation: str, formula) -> None:
    # fp64: a few units in the last place between two ways of writing the same function.
    torch.testing.assert_close(linear(X, W, B, activation=activation), formula(XW), rtol=1e-12, atol=1e-12)


def test_unknown_activation() -> None:
    with pytest.raises(KeyError):
        linear(X, W, activation="swish")
