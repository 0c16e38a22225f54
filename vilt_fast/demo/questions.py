"""Questions of six kinds about a scene. A question is asked only if its answer is beyond doubt."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from .scene import COLORS, SHAPES, Scene, Thing

KINDS = ("color", "shape", "count", "position", "existence", "comparison")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIDES = ("left", "right", "above", "below")
ANSWERS = ("yes", "no", *map(str, range(6)), *COLORS, *SHAPES, *CORNERS, "center", *SIDES)
CLEAR_STEP = 0.16  # from this distance on, two things are clearly left and right, or above and below; in shorter sides
CLEAR_RATIO = 1.35  # from this ratio of sizes on, one thing is clearly bigger
NOUNS = ("shape", "object", "thing")
# The words, the answer, and the things that the first and the second name refer to.
_Asked = tuple[str, str, Sequence[Thing], Sequence[Thing]]


@dataclasses.dataclass(frozen=True)
class Question:
    """One question: its kind, its words, its answer, and the things that its words refer to.

    first, second: the things that the first and the second name in the question refer to; either may be empty.
    """

    kind: str
    text: str
    answer: str
    first: tuple[Thing, ...] = ()
    second: tuple[Thing, ...] = ()


class _NoneFits(Exception):
    """The scene has nothing that this question could be about."""


def ask(scene: Scene, rng: np.random.Generator, kind: str) -> Question | None:
    """A random question of one kind, or None if the scene allows none. ValueError for an unknown kind."""
    if kind not in _ASKERS:
        raise ValueError(f"kind: got {kind!r}, wanted one of {KINDS}")
    askers = _ASKERS[kind]
    for index in rng.permutation(len(askers)):
        with contextlib.suppress(_NoneFits):
            text, answer, first, second = askers[index](scene, rng)
            if rng.random() < 0.1:
                text = text.removesuffix("?")
            return Question(kind, text, answer, tuple(first), tuple(second))
    return None


def _pick(rng: np.random.Generator, options):
    if not options:
        raise _NoneFits
    return options[int(rng.integers(len(options)))]


def _unique(scene: Scene, *fields: str) -> list[Thing]:
    """Things that differ from every other thing in at least one of the fields."""
    keys = [tuple(getattr(thing, field) for field in fields) for thing in scene.things]
    return [thing for thing, key in zip(scene.things, keys, strict=True) if keys.count(key) == 1]


def _named(scene: Scene, rng: np.random.Generator) -> list[tuple[str, Thing]]:
    """Things that words can single out, with the words: 'the circle', or 'the red circle'."""
    by_shape, by_both = _unique(scene, "shape"), _unique(scene, "shape", "color")
    return [
        (f"the {t.shape}" if t in by_shape and rng.random() < 0.5 else f"the {t.color} {t.shape}", t) for t in by_both
    ]


_COLOR_TEXTS = (
    "what {w} is the {s}?",
    "what is the {w} of the {s}?",
    "which {w} is the {s}?",
    "what {w} does the {s} have?",
    "the {s} is what {w}?",
)


def _ask_color(scene: Scene, rng: np.random.Generator) -> _Asked:
    thing = _pick(rng, _unique(scene, "shape"))
    word = "colour" if rng.random() < 0.15 else "color"
    return _pick(rng, _COLOR_TEXTS).format(w=word, s=thing.shape), thing.color, [thing], []


_SHAPE_TEXTS = (
    "what shape is {c}?",
    "which shape is {c}?",
    "what is the {c} {n}?",
    "what shape is the {c} {n}?",
    "what is the shape of the {c} {n}?",
)


def _ask_shape(scene: Scene, rng: np.random.Generator) -> _Asked:
    thing = _pick(rng, _unique(scene, "color"))
    return _pick(rng, _SHAPE_TEXTS).format(c=thing.color, n=_pick(rng, NOUNS[1:])), thing.shape, [thing], []


# Plural words for a set of things, with the test of membership.
_SHAPE_SETS = [(f"{s}s", lambda t, s=s: t.shape == s) for s in SHAPES]
_COLOR_SETS = [(f"{c} {{n}}s", lambda t, c=c: t.color == c) for c in COLORS]
_COUNT_TEXTS = (
    "how many {x} are there?",
    "how many {x} do you see?",
    "how many {x} can you see?",
    "how many {x} are in the picture?",
    "what is the number of {x}?",
    "count the {x}.",
)
_COUNT_WEIGHTS = np.array([0.6, 0.8, 1.2, 1.5, 1.5, 1.5])


def _ask_count(scene: Scene, rng: np.random.Generator) -> _Asked:
    by_count: dict[int, list[tuple[str, list[Thing]]]] = {}
    for words, holds in (*_SHAPE_SETS, *_COLOR_SETS, ("{n}s", lambda _: True)):
        counted = [thing for thing in scene.things if holds(thing)]
        by_count.setdefault(len(counted), []).append((words, counted))
    counts = sorted(by_count)
    weights = _COUNT_WEIGHTS[counts]
    count = counts[int(rng.choice(len(counts), p=weights / weights.sum()))]
    words, counted = _pick(rng, by_count[count])
    text = _pick(rng, _COUNT_TEXTS)
    return text.format(x=words.format(n=_pick(rng, NOUNS))), str(count), counted, []


def _clear_sides(a: Thing, b: Thing) -> list[str]:
    """Where a stands as seen from b: the SIDES that are beyond doubt."""
    sides = []
    if abs(a.x - b.x) >= CLEAR_STEP:
        sides.append("left" if a.x < b.x else "right")
    if abs(a.y - b.y) >= CLEAR_STEP:
        sides.append("above" if a.y < b.y else "below")
    return sides


_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_SIDE_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}


def _ask_where(scene: Scene, rng: np.random.Generator) -> _Asked:
    places = []
    for words, thing in _named(scene, rng):
        dx, dy = thing.x / scene.width - 0.5, thing.y / scene.height - 0.5
        if max(abs(dx), abs(dy)) < 0.11:
            places += [(words, "center", thing)] * 3  # the middle is rarer than the corners
        elif min(abs(dx), abs(dy)) > 0.13:
            places.append((words, f"{'top' if dy < 0 else 'bottom'} {'left' if dx < 0 else 'right'}", thing))
    words, place, thing = _pick(rng, places)
    text = _pick(rng, ("where is {x}?", "in which part of the picture is {x}?"))
    return text.format(x=words), place, [thing], []


def _pairs(scene: Scene, rng: np.random.Generator) -> list[tuple[tuple[str, Thing], tuple[str, Thing]]]:
    return list(itertools.permutations(_named(scene, rng), 2))


def _pick_clear_pair(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str, Thing, Thing]:
    """Names of two things, where the first clearly stands as seen from the second, and the things."""
    pairs = _pairs(scene, rng)
    return _pick(rng, [(a, b, side, s, t) for (a, s), (b, t) in pairs for side in _clear_sides(s, t)])


def _ask_beside(scene: Scene, rng: np.random.Generator) -> _Asked:
    a, b, side, s, t = _pick_clear_pair(scene, rng)
    answer = _pick(rng, ("yes", "no"))
    asked_side = side if answer == "yes" else _OPPOSITE[side]
    return f"is {a} {_pick(rng, _SIDE_WORDS[asked_side])} {b}?", answer, [s], [t]


def _ask_which_side(scene: Scene, rng: np.random.Generator) -> _Asked:
    a, b, side, s, t = _pick_clear_pair(scene, rng)
    text = "is {a} above or below {b}?"
    if side in ("left", "right"):
        text = _pick(rng, ("is {a} left or right of {b}?", "is {a} to the left or to the right of {b}?"))
    return text.format(a=a, b=b), side, [s], [t]


def _ask_existence(scene: Scene, rng: np.random.Generator) -> _Asked:
    shapes, colors = {t.shape for t in scene.things}, {t.color for t in scene.things}
    both = {(t.color, t.shape) for t in scene.things}
    answer, what = _pick(rng, ("yes", "no")), _pick(rng, ("shape", "color", "both", "both"))
    if what == "shape":
        options = [("", s) for s in SHAPES if (s in shapes) == (answer == "yes")]
    elif what == "color":
        options = [(c, _pick(rng, NOUNS)) for c in COLORS if (c in colors) == (answer == "yes")]
    elif answer == "yes":
        options = sorted(both)
    else:
        options = _absent_pairs(shapes, colors, both)
    color, shape = _pick(rng, options)  # none if every shape is there
    words = f"{color} {shape}".strip()
    found = [t for t in scene.things if color in ("", t.color) and shape in (*NOUNS, t.shape)]
    article = "an" if words[0] in "aeiou" else "a"
    text = _pick(rng, ("is there {x}?", "do you see {x}?", "can you see {x}?", "is there {x} in the picture?"))
    return text.format(x=f"{article} {words}"), answer, found, []


def _absent_pairs(shapes: set[str], colors: set[str], both: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Absent (color, shape) pairs; near misses, whose colour or shape is there, are listed more often."""
    absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in both]
    near = [(c, s) for c, s in absent if c in colors and s in shapes]
    half = [(c, s) for c, s in absent if (c in colors) != (s in shapes)]
    return near * 6 + half * 2 + absent


def _ask_more(scene: Scene, rng: np.random.Generator) -> _Asked:
    group = _SHAPE_SETS if rng.random() < 0.6 else _COLOR_SETS
    counted = [(words, [t for t in scene.things if holds(t)]) for words, holds in group]
    word, sign = _pick(rng, (("more", 1), ("fewer", -1)))
    answer = _pick(rng, ("yes", "no"))
    pairs = [
        (a, b, m, n)
        for (a, m), (b, n) in itertools.permutations(counted, 2)
        if (m or n) and ((len(m) - len(n)) * sign > 0) == (answer == "yes")
    ]
    both_there = [pair for pair in pairs if pair[2] and pair[3]]
    if both_there and rng.random() < 0.7:  # otherwise most questions would be on things that are not there
        pairs = both_there
    a, b, m, n = _pick(rng, pairs)  # none if there are five shapes, one of each
    noun = _pick(rng, NOUNS)
    text = _pick(rng, ("are there {m} {a} than {b}?", "do you see {m} {a} than {b}?"))
    return text.format(m=word, a=a.format(n=noun), b=b.format(n=noun)), answer, m, n


def _ask_bigger(scene: Scene, rng: np.random.Generator) -> _Asked:
    pairs = [
        (a, b, s, t)
        for (a, s), (b, t) in _pairs(scene, rng)
        if max(s.size, t.size) >= CLEAR_RATIO * min(s.size, t.size)
    ]
    a, b, s, t = _pick(rng, pairs)
    bigger = s.size > t.size
    if s.shape != t.shape and rng.random() < 0.5:
        word = _pick(rng, ("bigger", "smaller"))
        winner = s if bigger == (word == "bigger") else t
        return f"which is {word}, {a} or {b}?", winner.shape, [s], [t]
    word = _pick(rng, ("bigger", "larger", "smaller"))
    answer = "yes" if bigger == (word != "smaller") else "no"
    return f"is {a} {word} than {b}?", answer, [s], [t]


# Of several, the first that the scene allows is asked, in random order.
_ASKERS: dict[str, tuple[Callable[[Scene, np.random.Generator], _Asked], ...]] = {
    "color": (_ask_color,),
    "shape": (_ask_shape,),
    "count": (_ask_count,),
    "position": (_ask_where, _ask_beside, _ask_beside, _ask_which_side),
    "existence": (_ask_existence,),
    "comparison": (_ask_more, _ask_more, _ask_bigger),
}
