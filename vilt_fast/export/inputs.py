"""Random inputs of given sizes: the example that a model is exported with, and batches to check a file on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vilt_fast.export.axes import Axis, input_axes
from vilt_fast.models.base import PreTrainedModel

# Of dynamic axes, in patches where they are multiples of one. A size of 1 would stay in the graph for good, and so
# might one that two axes share.
_EXAMPLE = {"batch": 2, "words": 5, "height": 3, "width": 4, "regions": 6, "choices": 7, "phrases": 8}
_MOST_NUMBERS = 2**28  # of one input: a gigabyte of float32


def example_sizes(axes: Mapping[str, Axis]) -> dict[str, int]:
    """The size of each axis of the example."""
    return pick(axes, _EXAMPLE)


def pick(axes: Mapping[str, Axis], wanted: Mapping[str, int]) -> dict[str, int]:
    """The wanted sizes, in patches where an axis has multiples, moved to the nearest that each axis takes."""
    sizes = {}
    for name, axis in axes.items():
        size = max(wanted[name] * axis.multiple, axis.least)
        sizes[name] = size if axis.most is None else min(size, axis.most)
    return sizes


def make_batch(model: PreTrainedModel, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Inputs by name: normal values and random ids; masks are ragged, and leave everything of the first pair.

    Args:
        sizes: axis -> its size.
        seed: of all values.
    """
    config, generator = model.config, torch.Generator().manual_seed(seed)
    _refuse_giant(model, sizes)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    images, channels = getattr(model, "slots", None), getattr(config, "num_channels", None)
    unnamed: dict[str, list[Any]] = {
        "pixel_values": [channels] if images is None else [images, channels],
        "pixel_mask": [images],
        "visual_embeds": [getattr(config, "visual_embedding_dim", None)],
    }
    batch = {}
    for name, axes in input_axes(model).items():
        rest = iter(unnamed.get(name, ()))
        shape = [next(rest) if axis is None else sizes[axis] for axis in axes]
        if name in ("pixel_values", "visual_embeds"):
            batch[name] = torch.randn(shape, generator=generator).to(model.dtype)
        elif name == "pixel_mask":
            batch[name] = _rectangles(shape, config.patch_shape, generator)
        elif name.endswith("_mask"):
            batch[name] = _ragged(shape, 2 if name == "attention_mask" else 1, generator)
        elif name == "input_ids":
            batch[name] = integers(0, config.vocab_size, *shape)
        elif name == "token_type_ids":
            batch[name] = integers(0, config.type_vocab_size, *shape)
        else:
            batch[name] = integers(-1, sizes["words"] + sizes["regions"], *shape)
    return {name: value.to(model.device) for name, value in batch.items()}


def _refuse_giant(model: PreTrainedModel, sizes: Mapping[str, int]) -> None:
    """Raise ValueError for sizes of which no batch can be made."""
    config = model.config
    unnamed = max(getattr(config, "visual_embedding_dim", 1), getattr(config, "num_channels", 1))
    numbers = max(
        math.prod(unnamed if axis is None else sizes[axis] for axis in axes) for axes in input_axes(model).values()
    )
    if numbers > _MOST_NUMBERS:
        shown = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(f"sizes: a batch of {shown} has {numbers:.1e} numbers, wanted at most {_MOST_NUMBERS:.1e}")


def _ragged(shape: list[int], least: int, generator: torch.Generator) -> Tensor:
    """(..., n) of 0 and 1: any `least` to n places of each row, all of the first."""
    count = torch.randint(min(least, shape[-1]), shape[-1] + 1, (*shape[:-1], 1), generator=generator)
    count.view(-1)[0] = shape[-1]
    rank = torch.rand(shape, generator=generator).argsort(-1).argsort(-1)
    return (rank < count).long()


def _rectangles(shape: list[int], patch: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(..., H, W) of 0 and 1: any number of rows and columns of patches at the top left, all of the first image."""
    inside = torch.ones(shape, dtype=torch.bool)
    for dim, side in ((-2, patch[0]), (-1, patch[1])):
        length = shape[dim]
        count = torch.randint(1, length // side + 1, (*shape[:-2], 1, 1), generator=generator) * side
        count.view(-1)[0] = length
        place = torch.arange(length)
        inside &= (place[:, None] if dim == -2 else place) < count
    return inside.long()
