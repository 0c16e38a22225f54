"""Scenes of coloured shapes on textured ground, and questions about them with one right answer.

Everything is a function of (split, seed, index): the same three numbers give the same picture and the same questions on
every machine. The splits never share a random stream, so nothing that is tested was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image

from .drawing import GROUNDS, OUTER_RADIUS, draw
from .questions import KINDS, Question, ask

SHAPES = ("circle", "square", "triangle", "star", "heart")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SPLITS = {"train": 0, "test": 1, "example": 2}
ASPECTS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3))  # width : height
SHORT_SIDES = (96, 150)  # pixels, so that the longer side reaches 225
LARGEST = {1: 0.24, 2: 0.22, 3: 0.19, 4: 0.17, 5: 0.15}  # size of the largest thing by number of things
SMALLEST = 0.11
MOST_THINGS = 5
MAX_TILT = {"circle": 0.0, "square": 0.25, "triangle": 0.25, "star": 0.3, "heart": 0.25}  # radians


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape. Lengths are in units of the picture's shorter side; x grows to the right and y downwards."""

    shape: str
    color: str
    x: float
    y: float
    size: float
    angle: float

    @property
    def reach(self) -> float:
        """Radius of the circle around (x, y) that holds the whole shape."""
        return self.size * OUTER_RADIUS[self.shape]


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a picture shows: its extent (shorter side 1), its things, its ground and the seed of its texture."""

    width: float
    height: float
    things: tuple[Thing, ...]
    ground: str
    texture_seed: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture with its scene and its questions."""

    image: Image.Image
    scene: Scene
    questions: tuple[Question, ...]


def stream(split: str, seed: int, index: int) -> np.random.Generator:
    """The random stream of one picture. Raises ValueError for an unknown split or a negative number."""
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, wanted one of {sorted(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index: got {seed} and {index}, wanted integers >= 0")
    return np.random.default_rng((SPLITS[split], seed, index))


def make_scene(rng: np.random.Generator) -> Scene:
    """A scene of 1 to 5 things that neither touch one another nor the picture's edge."""
    wide, high = ASPECTS[rng.integers(len(ASPECTS))]
    width, height = wide / min(wide, high), high / min(wide, high)
    number = int(rng.choice(MOST_THINGS, p=(0.08, 0.17, 0.23, 0.26, 0.26))) + 1
    shapes, colors = _repeating(rng, SHAPES, number), _repeating(rng, COLORS, number)
    things = None
    while things is None:
        things = _place(rng, shapes, colors, width, height)
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    return Scene(width, height, things, ground, int(rng.integers(2**31)))


def _repeating(rng: np.random.Generator, names: tuple[str, ...], number: int) -> list[str]:
    """`number` names; often drawn from one or two only, so that high counts are not rare."""
    few = rng.random() < 0.4
    pool = rng.choice(len(names), size=int(rng.integers(1, 3)) if few else len(names), replace=False)
    return [names[i] for i in rng.choice(pool, size=number)]


def _place(
    rng: np.random.Generator, shapes: list[str], colors: list[str], width: float, height: float
) -> tuple[Thing, ...] | None:
    """Things put down one after another, or None when one finds no room."""
    things: list[Thing] = []
    for shape, color in zip(shapes, colors, strict=True):
        size = float(rng.uniform(SMALLEST, LARGEST[len(shapes)]))
        angle = float(rng.uniform(-1, 1)) * MAX_TILT[shape]
        reach = size * OUTER_RADIUS[shape]
        for _ in range(30):
            x, y = float(rng.uniform(reach, width - reach)), float(rng.uniform(reach, height - reach))
            if all(np.hypot(x - t.x, y - t.y) > reach + t.reach + 0.01 for t in things):
                things.append(Thing(shape, color, x, y, size, angle))
                break
        else:
            return None
    return tuple(things)


def render(scene: Scene, short_side: int) -> Image.Image:
    """The scene as an RGB picture whose shorter side has `short_side` pixels."""
    if short_side < 16:
        raise ValueError(f"short_side: got {short_side}, wanted at least 16 pixels")
    return draw(scene, short_side)


def make_sample(split: str, seed: int, index: int, *, questions: int = 6, short_side: int | None = None) -> Sample:
    """Picture `index` of a split with `questions` questions, whose kinds take turns.

    short_side: pixels of the shorter side; None draws one from SHORT_SIDES.
    """
    rng = stream(split, seed, index)
    scene = make_scene(rng)
    drawn_side = int(rng.integers(SHORT_SIDES[0], SHORT_SIDES[1] + 1))
    start = int(rng.integers(len(KINDS)))
    asked = tuple(_ask_some_kind(scene, rng, start + i) for i in range(questions))
    return Sample(render(scene, short_side or drawn_side), scene, asked)


def _ask_some_kind(scene: Scene, rng: np.random.Generator, turn: int) -> Question:
    """A question of the kind whose turn it is, or of the next that the scene allows (existence always is)."""
    for step in range(len(KINDS)):
        question = ask(scene, rng, KINDS[(turn + step) % len(KINDS)])
        if question is not None:
            return question
    raise AssertionError("a scene with things in it always allows a question on existence")


def samples(split: str, seed: int, start: int, stop: int, *, questions: int = 6) -> Iterator[Sample]:
    """Pictures start..stop-1 of a split."""
    return (make_sample(split, seed, index, questions=questions) for index in range(start, stop))
