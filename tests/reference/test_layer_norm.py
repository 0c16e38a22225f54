"""reference.layer_norm on cases worked by hand."""

import torch

from vilt_fast.reference.layer_norm import layer_norm


def test_a_row_worked_by_hand() -> None:
    # mean 3, biased variance ((-2)^2 + 0 + 2^2) / 3 = 8/3
    row = torch.tensor([[1.0, 3.0, 5.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    bias = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    scaled = 2 / (8 / 3) ** 0.5
    expected = torch.tensor([[10 - scaled, 20.0, 30 + 3 * scaled]], dtype=torch.float64)
    torch.testing.assert_close(layer_norm(row, weight, bias, 0.0), expected, rtol=1e-14, atol=0)


def test_eps_stands_under_the_root_and_a_constant_row_gives_the_bias() -> None:
    one, zero = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    row = torch.tensor([[1.0, 3.0, 5.0]], dtype=torch.float64)
    # variance 8/3 + eps 4/3 = 4, so the row is (x - 3) / 2
    expected = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(layer_norm(row, one, zero, 4 / 3), expected, rtol=1e-14, atol=1e-15)
    assert layer_norm(7 * one[None], one, zero + 2, 1e-12).tolist() == [[2.0, 2.0, 2.0]]
