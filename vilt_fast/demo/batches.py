"""Training images, a round at a time: made, resized, tokenised, and cut into batches of images of one size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilt_fast.processing.processor import ViltProcessor

from .data import make_sample
from .questions import ANSWERS
from .scene import COLORS, SHAPES, Scene, Thing

THING_CLASSES = 1 + len(SHAPES) * len(COLORS)  # 0: no thing's middle lies in this patch
MENTION_CLASSES = 3  # not named by the question, named first, named second
CHUNK = 100  # images that a worker makes at a time


def normalized(pixels: Tensor) -> Tensor:
    """What the processors make of 8-bit pixels: floats in -1..1."""
    return pixels.float().div_(127.5).sub_(1)


class Batch(NamedTuple):
    """Questions about images of one size."""

    input_ids: Tensor  # (B, L) int64, 0 is padding
    pixel_values: Tensor  # (B, 3, H, W) float32
    answer: Tensor  # (B,) int64
    things: Tensor  # (B, patches) int64, which thing has its middle in the patch
    mentions: Tensor  # (B, patches) int64, which of them the question means


class Group(NamedTuple):
    """All images of one size, with their questions."""

    pixels: Tensor  # (images, 3, H, W) uint8
    things: Tensor  # (images, patches) uint8
    picture: Tensor  # (questions,) int64, which of them a question is about
    input_ids: Tensor  # (questions, longest) int64, 0 is padding
    answer: Tensor  # (questions,) int64
    mentions: Tensor  # (questions, patches) uint8

    def take(self, chosen: Tensor) -> Batch:
        """A batch of some questions."""
        input_ids, picture = self.input_ids[chosen], self.picture[chosen]
        longest = int((input_ids != 0).sum(1).max())
        return Batch(
            input_ids=input_ids[:, :longest],
            pixel_values=normalized(self.pixels[picture]),
            answer=self.answer[chosen],
            things=self.things[picture].long(),
            mentions=self.mentions[chosen].long(),
        )


class _Picture(NamedTuple):
    pixels: np.ndarray  # (3, H, W) uint8
    things: np.ndarray  # (patches,) uint8
    texts: list[str]
    answers: list[int]
    mentions: np.ndarray  # (questions, patches) uint8


def make_round(
    processor: ViltProcessor, seed: int, start: int, stop: int, questions: int, executor: Executor | None = None
) -> list[Group]:
    """Images start..stop-1 of the training split with their questions, grouped by size.

    executor: makes the images; None makes them here. The result is the same.
    """
    make = partial(_make_picture, processor.image_processor, seed, questions)
    indices = range(start, stop)
    by_size: dict[tuple[int, ...], list[_Picture]] = defaultdict(list)
    for picture in executor.map(make, indices, chunksize=CHUNK) if executor else map(make, indices):
        by_size[picture.pixels.shape].append(picture)
    return [_group(processor, by_size[size]) for size in sorted(by_size)]


def _group(processor: ViltProcessor, pictures: list[_Picture]) -> Group:
    pixels, things, texts, answers, mentions = zip(*pictures, strict=True)
    return Group(
        pixels=torch.from_numpy(np.stack(pixels)),
        things=torch.from_numpy(np.stack(things)),
        picture=torch.arange(len(pictures)).repeat_interleave(len(texts[0])),
        input_ids=processor.tokenizer([text for some in texts for text in some], padding=True, return_tensors="pt")[
            "input_ids"
        ],
        answer=torch.tensor(answers).flatten(),
        mentions=torch.from_numpy(np.concatenate(mentions)),
    )


def _make_picture(image_processor, seed: int, questions: int, index: int) -> _Picture:
    sample = make_sample("train", seed, index, questions=questions)
    pixels = image_processor(sample.image, do_rescale=False, do_normalize=False, do_pad=False)["pixel_values"][0]
    pixels = np.asarray(pixels).astype(np.uint8)
    patch = image_processor.size_divisor
    grid = pixels.shape[1] // patch, pixels.shape[2] // patch
    things = np.zeros(grid[0] * grid[1], np.uint8)
    for thing in sample.scene.things:
        kind = SHAPES.index(thing.shape) * len(COLORS) + COLORS.index(thing.color)
        things[_cell(sample.scene, thing, grid)] = 1 + kind
    mentions = np.zeros((questions, things.size), np.uint8)
    for row, question in zip(mentions, sample.questions, strict=True):
        row[[_cell(sample.scene, thing, grid) for thing in question.first]] = 1
        row[[_cell(sample.scene, thing, grid) for thing in question.second]] = 2
    answers = [ANSWERS.index(question.answer) for question in sample.questions]
    return _Picture(pixels, things, [question.text for question in sample.questions], answers, mentions)


def _cell(scene: Scene, thing: Thing, grid: tuple[int, int]) -> int:
    """The patch that holds the middle of a thing."""
    row, column = int(thing.y / scene.height * grid[0]), int(thing.x / scene.width * grid[1])
    return min(row, grid[0] - 1) * grid[1] + min(column, grid[1] - 1)


def batches(groups: Sequence[Any], batch_size: int, generator: torch.Generator, skip: int = 0) -> Iterator[Any]:
    """Every example of a round once, in random order, `batch_size` of images of one size at a time.

    groups: have `answer` and `take(chosen)`, as Group has. skip: batches to leave out at the start, for resuming.
    """
    plan: list[tuple[Any, Tensor]] = []
    for group in groups:
        order = torch.randperm(len(group.answer), generator=generator)
        plan += [(group, chosen) for chosen in order.split(batch_size)]
    for position in torch.randperm(len(plan), generator=generator).tolist()[skip:]:
        group, chosen = plan[position]
        yield group.take(chosen)
