"""Random ViTs of transformers and ours with the same weights, images of one size or of many, and 5.x's names.

transformers' eager attention takes its softmax in fp32, so what is compared in fp64 runs under SDPA.
"""

import importlib.util
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vilt_fast

transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

_spec = importlib.util.spec_from_file_location("vilt_oracle", Path(__file__).parent / "oracle.py")
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)

SMALL = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=40,
    image_size=32,
    patch_size=8,
    encoder_stride=8,
    num_labels=5,
)
_FIVE = {
    r"layers\.(\d+)\.": r"encoder.layer.\1.",
    r"attention\.q_proj\.": "attention.attention.query.",
    r"attention\.k_proj\.": "attention.attention.key.",
    r"attention\.v_proj\.": "attention.attention.value.",
    r"attention\.o_proj\.": "attention.output.dense.",
    r"mlp\.fc1\.": "intermediate.dense.",
    r"mlp\.fc2\.": "output.dense.",
}


def config_kwargs(index: int) -> dict[str, Any]:
    """Configuration number `index`: odd sizes, every switch within any 12 of them."""
    draw = random.Random(2000 + index)
    heads, head_dim = ((2, 12), (3, 16), (3, 9), (2, 7), (5, 4), (1, 24))[index % 6]
    patch = (4, 8, 16)[index % 3]
    rows, columns = draw.choice((2, 3, 4)), draw.choice((1, 3, 5))
    ragged = draw.choice((0, 3)) if index % 3 == 1 else 0  # pixels that make no whole patch
    image_size = (patch * rows, patch * columns) if index % 4 == 3 else patch * rows + ragged
    return dict(
        hidden_size=heads * head_dim,
        num_hidden_layers=1 + index // 2 % 2,
        num_attention_heads=heads,
        intermediate_size=draw.choice((30, 56, 41)),
        hidden_act=("gelu", "relu", "gelu_new", "selu")[index // 3 % 4],
        layer_norm_eps=draw.choice((1e-12, 1e-5)),
        image_size=image_size,
        patch_size=patch,
        encoder_stride=patch,
        num_channels=draw.choice((3, 3, 1)),
        qkv_bias=index % 4 != 1,
        num_labels=(4, 1, 0, 7)[index % 4],
        pooler_output_size=(None, 10, 33)[index % 3],
        pooler_act=("tanh", "gelu", "relu")[index // 2 % 3],
    )


def build(name: str, kwargs: dict[str, Any], *, seed: int = 0, attention: str = "sdpa", **options: Any) -> Any:
    """transformers' model `name`, every parameter random so that a missing term shows."""
    config = transformers.ViTConfig(**kwargs)
    config._attn_implementation = attention
    return oracle.randomise(getattr(transformers, name)(config, **options), seed).eval()


def pair(name: str, directory: Path, *, seed: int = 0, attention: str = "sdpa", **changes: Any) -> tuple[Any, Any]:
    """(ours, theirs) with the small sizes, through a directory that transformers writes."""
    options = {key: changes.pop(key) for key in ("use_mask_token", "add_pooling_layer") if key in changes}
    theirs = build(name, {**SMALL, **changes}, seed=seed, attention=attention, **options)
    theirs.save_pretrained(directory)
    return getattr(vilt_fast, name).from_pretrained(directory, **options), theirs


def names_of_437(tensors: dict[str, Any]) -> dict[str, Any]:
    """The values of transformers 5.x's modules under the names that files have."""
    renamed = {}
    for name, value in tensors.items():
        for new, old in _FIVE.items():
            name = re.sub(new, old, name)
        renamed[name] = value
    return renamed


def images(config: Any, size: int = 2, *, shape: tuple[int, int] | None = None, seed: int = 0) -> Tensor:
    """(size, C, H, W) normal pixels, of the configuration's size unless `shape` is given."""
    height, width = shape or shape_of(config)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, config.num_channels, height, width, generator=generator)


def shape_of(config: Any) -> tuple[int, int]:
    """(height, width) that the configuration's images have."""
    side = config.image_size
    return (side, side) if isinstance(side, int) else tuple(side)


def masked_positions(config: Any, size: int = 2, *, shape: tuple[int, int] | None = None, seed: int = 0) -> Tensor:
    """(size, patches) bool, about half of them True."""
    height, width = shape or shape_of(config)
    count = (height // config.patch_size) * (width // config.patch_size)
    mask = torch.rand(size, count, generator=torch.Generator().manual_seed(50 + seed)) < 0.5
    mask[:, 0] = True
    return mask


def tensors(output: Any) -> dict[str, Tensor]:
    """Every tensor of an output by name, hidden states and attentions one by one."""
    found = {}
    for name, value in output.items():
        many = enumerate(value) if isinstance(value, (tuple, list)) else [(None, value)]
        found |= {name if place is None else f"{name}[{place}]": tensor for place, tensor in many}
    return found


def check_outputs(got: Any, wanted: Any, tolerance: float) -> None:
    """The same fields, and the same values to `tolerance` of the largest of each."""
    assert list(got) == list(wanted)
    got, wanted = tensors(got), tensors(wanted)
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        oracle.check_close(name, got[name], value, tolerance)


def objective(output: Any) -> Tensor:
    """A scalar in which every value of the output has a weight of its own."""
    parts = [value for name, value in output.items() if torch.is_tensor(value)]
    return sum((part * torch.linspace(-1, 1.5, part.numel()).to(part).view(part.shape)).sum() for part in parts)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter, under the names that files have; zeros where nothing flowed."""
    found = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in model.named_parameters()}
    return names_of_437(found)
