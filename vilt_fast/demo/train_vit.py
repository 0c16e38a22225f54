"""Trains the small ViT that ships with the package: `vilt-fast train-demo --family vit`.

Every round makes fresh images of one thing each, and shows every image and its mirror image twice (all the shapes are
symmetric). The loss is the cross entropy of the thing's name.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast.configs.vit import ViTConfig
from vilt_fast.models.vit import ViTForImageClassification
from vilt_fast.processing.vit import ViTImageProcessor

from . import loop
from .batches import CHUNK, normalized
from .data import make_labelled
from .scene import NAMES


@dataclasses.dataclass(frozen=True)
class ViTRecipe(loop.BaseRecipe):
    """Everything but the seed that the trained weights depend on.

    passes: times that an image and its mirror image are shown.
    """

    steps: int = 3000
    passes: int = 2
    warmup_steps: int = 100
    pictures_per_round: int = 1600
    hidden_size: int = 96
    num_hidden_layers: int = 4
    num_attention_heads: int = 3


class Batch(NamedTuple):
    """Images with the number of the name of what they show."""

    pixel_values: Tensor  # (B, 3, H, W) float32
    answer: Tensor  # (B,) int64


class Group(NamedTuple):
    """All images of a round, and their mirror images."""

    pixels: Tensor  # (images, 3, H, W) uint8
    answer: Tensor  # (images,) int64

    def take(self, chosen: Tensor) -> Batch:
        """A batch of some images."""
        return Batch(normalized(self.pixels[chosen]), self.answer[chosen])


def make_processor(recipe: ViTRecipe = ViTRecipe()) -> ViTImageProcessor:
    """The processor of the demo's ViT."""
    return ViTImageProcessor(size=recipe.image_size)


def make_model(recipe: ViTRecipe = ViTRecipe()) -> ViTForImageClassification:
    """The demo's ViT with fresh weights from PyTorch's generator."""
    config = ViTConfig(**recipe.sizes(), encoder_stride=recipe.patch_size, id2label=dict(enumerate(NAMES)))
    model = ViTForImageClassification(config)
    loop.prepare_patches(model.vit.embeddings, config)
    return model


def make_round(
    processor: ViTImageProcessor, seed: int, start: int, stop: int, executor: Executor | None = None
) -> list[Group]:
    """Images start..stop-1 of the training split and their mirror images.

    executor: makes the images; None makes them here. The result is the same.
    """
    make, indices = partial(_make_picture, processor, seed), range(start, stop)
    made = executor.map(make, indices, chunksize=CHUNK) if executor else map(make, indices)
    arrays, answers = zip(*made, strict=True)
    pixels, answer = torch.from_numpy(np.stack(arrays)), torch.tensor(answers)
    return [Group(torch.cat((pixels, pixels.flip(-1))), torch.cat((answer, answer)))]


def _make_picture(processor: ViTImageProcessor, seed: int, index: int) -> tuple[np.ndarray, int]:
    made = make_labelled("train", seed, index)
    pixels = processor(made.image, do_rescale=False, do_normalize=False)["pixel_values"][0]
    return np.asarray(pixels).astype(np.uint8), NAMES.index(made.label)


class _Classification(loop.Task):
    """Naming the one thing in an image."""

    recipe: ViTRecipe

    def make_model(self) -> ViTForImageClassification:
        return make_model(self.recipe)

    def make_round(self, seed: int, start: int, stop: int, executor: Executor | None) -> list[Group]:
        return self.recipe.passes * make_round(self.processor, seed, start, stop, executor)

    def learn(self, model: ViTForImageClassification, helpers: nn.ModuleDict, batch: Batch) -> loop.Outcome:
        logits = model(batch.pixel_values).logits.float()
        loss = F.cross_entropy(logits, batch.answer)
        return loop.Outcome(loss, logits, {"answer": loss})


def train(
    output_dir: str | Path, *, recipe: ViTRecipe | None = None, **options: Any
) -> tuple[ViTForImageClassification, ViTImageProcessor]:
    """Train the demo's ViT and save it in Hugging Face's format; options and errors are those of `loop.train`."""

    def make_task(recipe: ViTRecipe, directory: Path) -> loop.Task:
        return _Classification(recipe, make_processor(recipe))

    return loop.train(make_task, recipe or ViTRecipe(), output_dir, **options)
