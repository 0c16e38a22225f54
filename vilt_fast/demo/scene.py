"""Scenes of coloured shapes: what there is to draw, and to ask about."""

from __future__ import annotations

import dataclasses

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
NAMES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
GROUNDS = ("noise", "clouds", "stripes", "gradient", "checks", "dots")
ASPECTS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3))  # width : height
LARGEST = {1: 0.24, 2: 0.22, 3: 0.19, 4: 0.17, 5: 0.15}  # size of the largest thing by number of things
SMALLEST = 0.11
ALONE = (0.15, 0.35)  # sizes of a thing that is to be named, smallest and largest
MOST_THINGS = 5
MAX_TILT = {"circle": 0.0, "square": 0.25, "triangle": 0.25, "star": 0.3, "heart": 0.25}  # radians
OUTER_RADIUS = {"circle": 1.0, "square": 1.22, "triangle": 1.32, "star": 1.35, "heart": 1.25}  # in units of size


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape. Lengths are in units of the image's shorter side; x grows to the right and y downwards."""

    shape: str
    color: str
    x: float
    y: float
    size: float
    angle: float

    @property
    def name(self) -> str:
        """Its colour and its shape, one of NAMES."""
        return f"{self.color} {self.shape}"

    @property
    def reach(self) -> float:
        """Radius of the circle around (x, y) that holds the whole shape."""
        return self.size * OUTER_RADIUS[self.shape]


@dataclasses.dataclass(frozen=True)
class Scene:
    """What an image shows: its extent (shorter side 1), its things, its ground and the seed of its texture."""

    width: float
    height: float
    things: tuple[Thing, ...]
    ground: str
    texture_seed: int


def make_scene(rng: np.random.Generator, *, alone: bool = False) -> Scene:
    """A scene of 1 to 5 things that touch neither one another nor the image's edge; alone: of one, which is larger."""
    wide, high = ASPECTS[rng.integers(len(ASPECTS))]
    width, height = wide / min(wide, high), high / min(wide, high)
    number, sizes = 1, ALONE
    if not alone:
        number = int(rng.choice(MOST_THINGS, p=(0.08, 0.17, 0.23, 0.26, 0.26))) + 1
        sizes = SMALLEST, LARGEST[number]
    shapes, colors = _repeating(rng, SHAPES, number), _repeating(rng, COLORS, number)
    things = None
    while things is None:
        things = _place(rng, shapes, colors, sizes, width, height)
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    return Scene(width, height, things, ground, int(rng.integers(2**31)))


def _repeating(rng: np.random.Generator, names: tuple[str, ...], number: int) -> list[str]:
    """`number` names; often drawn from only one or two, so that high counts are not rare."""
    few = rng.random() < 0.4
    pool = rng.choice(len(names), size=int(rng.integers(1, 3)) if few else len(names), replace=False)
    return [names[i] for i in rng.choice(pool, size=number)]


def _place(
    rng: np.random.Generator,
    shapes: list[str],
    colors: list[str],
    sizes: tuple[float, float],
    width: float,
    height: float,
) -> tuple[Thing, ...] | None:
    """Things placed one after another, or None if there is no room for one."""
    things: list[Thing] = []
    for shape, color in zip(shapes, colors, strict=True):
        size = float(rng.uniform(*sizes))
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
