"""The activations that config.json can name."""

import pytest
import torch

from vilt_fast.layers.activations import ACTIVATIONS, resolve
from vilt_fast.reference.linear import linear


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(oracle, name):
    """All names that a configuration may hold mean what they mean in transformers."""
    fused, after = resolve(name)
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)[:, None]
    got = linear(x, torch.ones(1, 1, dtype=torch.float64), activation=fused)
    got = got if after is None else after(got)
    expected = oracle.transformers.activations.ACT2FN[name](x)
    # gelu_fast spells sqrt(2 / pi) with ten digits.
    oracle.check_close(name, got, expected, 1e-10)
