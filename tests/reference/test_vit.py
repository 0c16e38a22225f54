"""The padded ViT of vilt_fast.reference.vit: tiny cases worked by hand, then transformers."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vilt_fast
from vilt_fast.reference import vit

# fp64 on both sides, so what is left is the order of sums: a missing term or a wrong epsilon is 1e-6 and more.
TOLERANCE = 1e-10


def tiny_state():
    """hidden size 2, one channel, patches of one pixel, a 2 x 2 position table."""
    state = {
        "embeddings.cls_token": [[[10.0, 20.0]]],
        "embeddings.mask_token": [[[-50.0, 50.0]]],
        "embeddings.position_embeddings": [[[1.0, 1.0], [0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [6.0, 0.0]]],
        "embeddings.patch_embeddings.projection.weight": [[[[1.0]]], [[[-1.0]]]],
        "embeddings.patch_embeddings.projection.bias": [0.0, 100.0],
    }
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()}


TINY = SimpleNamespace(patch_size=1, image_size=2)
PIXELS = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)


def test_embedding_by_hand():
    """(pixel, 100 - pixel) plus its position; the token in the place of the last patch; the first one dropped."""
    masked = torch.tensor([[[False, False], [False, True]]])
    rows, real = vit.embed(tiny_state(), TINY, PIXELS, masked, None, torch.tensor([[[False, True], [True, True]]]))
    assert rows[0].tolist() == [[11, 21], [4, 98], [7, 97], [-44, 50]]
    assert real.all()


def test_a_smaller_image_by_hand():
    """Of 1 x 1 pixels, its position is the middle of the table; of a 2 x 2 batch."""
    rows, real = vit.embed(tiny_state(), TINY, PIXELS, None, torch.tensor([[[1, 0], [0, 0]]]))
    torch.testing.assert_close(rows[0], torch.tensor([[11.0, 21.0], [4.0, 99.0]], dtype=torch.float64))
    assert real.tolist() == [[True, True]]


def keys(x):
    """Keys' cubic kernel with a = -3/4."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


@pytest.mark.parametrize("count", [3, 7, 11])
@pytest.mark.parametrize("rule, excess", [("size", 0.0), ("scale_factor", 0.1)])
def test_places_of_the_two_rules(rule, excess, count):
    """Cell c of C reads the table of N at (c + 1/2) N / (C + excess) - 1/2; beyond its ends the table goes on."""
    table = torch.randn(5, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = []
    for cell in range(count):
        place = (cell + 0.5) * 5 / (count + excess) - 0.5
        taps = range(math.floor(place) - 1, math.floor(place) + 3)
        wanted.append(sum(table[min(max(tap, 0), 4), 0, 0] * keys(place - tap) for tap in taps))
    fitted = vit.interpolate_positions(table.expand(5, 5, 1), count, count, rule)
    torch.testing.assert_close(fitted[:, count // 2, 0], torch.stack(wanted))
    assert vit.interpolate_positions(table, 5, 1, rule) is table


def test_a_reconstruction_and_its_loss_by_hand():
    """Two patches of 2 x 2 pixels from rows of two numbers, which become the first and the last pixel of a patch."""
    weight = torch.zeros(4, 2, 1, 1)
    weight[0, 0] = weight[3, 1] = 1
    state = {"decoder.0.weight": weight, "decoder.0.bias": torch.tensor([0.0, 0.5, 0.0, 0.0])}
    config = SimpleNamespace(encoder_stride=2, num_channels=1)
    rows = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]]])
    pixels = vit.reconstruct(state, config, rows, (1, 2))
    assert pixels.tolist() == [[[[1, 0.5, 3, 0.5], [0, 2, 0, 4]]]]
    loss = vit.reconstruction_loss(torch.zeros_like(pixels), pixels, torch.tensor([[[False, True]]]), 2)
    assert loss.item() == pytest.approx((3 + 0.5 + 4) / 4, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("index", range(6))
def test_it_is_transformers(oracle, vit_oracle, index):
    """Base model, heads and loss, at the configuration's size and at another."""
    kwargs = {**vit_oracle.config_kwargs(index), "num_labels": 4}
    shape = None if index % 2 or not isinstance(kwargs["image_size"], int) else (37, 50)
    model = vit_oracle.build("ViTModel", kwargs, seed=index, use_mask_token=True).double()
    pixels = vit_oracle.images(model.config, shape=shape).double()
    masked = vit_oracle.masked_positions(model.config, shape=shape)
    wanted = model(pixels, masked, interpolate_pos_encoding=shape is not None, output_hidden_states=True)
    patch = model.config.patch_size
    masked = masked.view(2, pixels.shape[2] // patch, pixels.shape[3] // patch)
    state = vit_oracle.names_of_437(model.state_dict())
    got = vit.encode(state, model.config, pixel_values=pixels, bool_masked_pos=masked, prefix="")
    oracle.check_close("last_hidden_state", got.last_hidden_state, wanted.last_hidden_state, TOLERANCE)
    oracle.check_close("pooler_output", got.pooler_output, wanted.pooler_output, TOLERANCE)
    for place, (mine, theirs) in enumerate(zip(got.hidden_states, wanted.hidden_states, strict=True)):
        oracle.check_close(f"hidden_states[{place}]", mine, theirs, TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViTForImageClassification", "ViTForMaskedImageModeling"])
def test_heads_are_transformers(oracle, vit_oracle, name):
    model = vit_oracle.build(name, vit_oracle.SMALL).double()
    pixels, state = vit_oracle.images(model.config).double(), vit_oracle.names_of_437(model.state_dict())
    if name == "ViTForImageClassification":
        rows = vit.encode(state, model.config, pixel_values=pixels).last_hidden_state
        oracle.check_close("logits", vit.classify(state, rows), model(pixels).logits, TOLERANCE)
        return
    flat = vit_oracle.masked_positions(model.config)
    wanted, masked = model(pixels, flat), flat.view(2, 4, 4)
    rows = vit.encode(state, model.config, pixel_values=pixels, bool_masked_pos=masked).last_hidden_state
    got = vit.reconstruct(state, model.config, rows, (4, 4))
    oracle.check_close("reconstruction", got, wanted.reconstruction, TOLERANCE)
    oracle.check_close("loss", vit.reconstruction_loss(pixels, got, masked, 8), wanted.loss, TOLERANCE)


def test_the_packed_model_does_not_use_it():
    for folder in ("models", "layers"):
        for path in (Path(vilt_fast.__file__).parent / folder).glob("*.py"):
            assert not re.search(r"reference(\.| import )vit\b", path.read_text()), path


def test_what_it_imports():
    lines = Path(vit.__file__).read_text().splitlines()
    modules = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert modules == {"typing", "torch", "torch.nn.functional", "vilt_fast.reference.vilt"}
