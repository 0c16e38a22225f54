"""Scenes of coloured shapes on textured ground: several with questions about them, or one with its name.

Everything is a function of (split, seed, index): the same three numbers give the same image and the same questions on
every machine. The splits never share a random stream, so nothing is tested that was trained on.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from .drawing import render
from .questions import KINDS, Question, ask
from .scene import Scene, make_scene

SPLITS = {"train": 0, "test": 1, "example": 2}
SHORT_SIDES = (96, 150)  # pixels, so that the longer side reaches 225


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image with its scene and its questions."""

    image: Image.Image
    scene: Scene
    questions: tuple[Question, ...]


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """An image of one thing, with its scene and its label, one of scene.NAMES."""

    image: Image.Image
    scene: Scene
    label: str


def stream(split: str, seed: int, index: int) -> np.random.Generator:
    """The random stream of one image. Raises ValueError for an unknown split or a negative number."""
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, wanted one of {sorted(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index: got {seed} and {index}, wanted integers >= 0")
    return np.random.default_rng((SPLITS[split], seed, index))


def make_sample(split: str, seed: int, index: int, *, questions: int = 6, short_side: int | None = None) -> Sample:
    """Image `index` of a split with `questions` questions, whose kinds take turns.

    short_side: pixels of the shorter side; None draws one from SHORT_SIDES.
    """
    rng = stream(split, seed, index)
    scene = make_scene(rng)
    drawn_side = _draw_side(rng)
    start = int(rng.integers(len(KINDS)))
    asked = tuple(_ask_some_kind(scene, rng, start + i) for i in range(questions))
    return Sample(render(scene, short_side or drawn_side), scene, asked)


def make_labelled(split: str, seed: int, index: int, *, short_side: int | None = None) -> LabelledImage:
    """Image `index` of a split, of one thing; short_side as in `make_sample`."""
    rng = stream(split, seed, index)
    scene = make_scene(rng, alone=True)
    return LabelledImage(render(scene, short_side or _draw_side(rng)), scene, scene.things[0].name)


def _draw_side(rng: np.random.Generator) -> int:
    return int(rng.integers(SHORT_SIDES[0], SHORT_SIDES[1] + 1))


def _ask_some_kind(scene: Scene, rng: np.random.Generator, turn: int) -> Question:
    """A question of the kind whose turn it is, or of the next that the scene allows (existence always is)."""
    questions = (ask(scene, rng, KINDS[(turn + step) % len(KINDS)]) for step in range(len(KINDS)))
    return next(question for question in questions if question is not None)
