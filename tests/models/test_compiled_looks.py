"""The look at untouched modules under torch.compile and torch.export: what it finds, and that it is traced."""

import pytest
import torch
from torch import nn

from vilt_fast.layers.encoder import Encoder
from vilt_fast.layers.projection import call_linear
from vilt_fast.layers.untouched import is_untouched, remembered, stands_alone
from vilt_fast.models.vilt import ViltModel


class Looks(nn.Module):
    """1 for an untouched block, 2 for one inside a recomputed step, 4 for an encoder that stands alone, 8 a norm."""

    def __init__(self, config):
        super().__init__()
        self.model = ViltModel(config)

    def forward(self, x):
        block = self.model.encoder.layer[0]
        found = int(block.is_untouched())
        with remembered([]):
            found += 2 * int(block.is_untouched())
        found += 4 * int(stands_alone(self.model.encoder, Encoder))
        return x + found + 8 * int(is_untouched(self.model.layernorm, nn.LayerNorm))


def compiled(looks, x):
    torch.compiler.reset()
    return torch.compile(looks, backend="eager", fullgraph=True)(x)


def exported(looks, x):
    return torch.export.export(looks, (x,), strict=True).module()(x)


@pytest.mark.parametrize("trace", [compiled, exported])
def test_what_it_finds(small_config, trace):
    looks, x = Looks(small_config()), torch.zeros(())
    assert trace(looks, x) == looks(x) == 15
    handle = looks.model.encoder.layer[0].attention.attention.query.register_forward_hook(lambda *_: None)
    assert trace(looks, x) == looks(x) == 12
    handle.remove()
    looks.model.layernorm.forward = lambda rows: rows
    assert trace(looks, x) == looks(x) == 7


def test_autocast_is_seen(small_config):
    looks, x = Looks(small_config()), torch.zeros(())
    with torch.autocast("cpu"):
        assert compiled(looks, x) == looks(x) == 0


def test_a_module_in_the_place_of_a_child(small_config):
    """By name in the instance's own dictionary, where it hides the child."""
    looks, x = Looks(small_config()), torch.zeros(())
    query = looks.model.encoder.layer[0].attention.attention.query
    looks.model.encoder.layer[0].attention.attention.__dict__["query"] = lambda rows: call_linear(query, rows)
    assert compiled(looks, x) == looks(x) == 12
