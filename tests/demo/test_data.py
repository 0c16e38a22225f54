"""The generator: same numbers, same picture; every answer follows from the scene, every scene from the pixels."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vilt_fast.demo.data import SPLITS, make_sample, stream
from vilt_fast.demo.drawing import RGB, outline, render
from vilt_fast.demo.questions import ANSWERS, KINDS, ask
from vilt_fast.demo.scene import ASPECTS, COLORS, SHAPES, make_scene
from vilt_fast.demo.vocabulary import SPECIAL, vocabulary

COLOR, SHAPE = "|".join(COLORS), "|".join(SHAPES)
PLURAL = rf"(?:({COLOR}) )?({SHAPE}|shape|object|thing)s?"


def named(scene, words):
    """The one thing that 'the red circle' or 'the circle' means."""
    color, shape = re.fullmatch(rf"the (?:({COLOR}) )?({SHAPE})", words).groups()
    found = [t for t in scene.things if t.shape == shape and color in (None, t.color)]
    assert len(found) == 1, f"{words!r} means {len(found)} things"
    return found[0]


def described(scene, words):
    """The things that 'red shapes', 'circles' or 'a green star' may mean."""
    color, shape = re.fullmatch(PLURAL, words).groups()
    return [t for t in scene.things if color in (None, t.color) and shape in ("shape", "object", "thing", t.shape)]


def colored(scene, color):
    found = [t for t in scene.things if t.color == color]
    assert len(found) == 1, f"{len(found)} things are {color}"
    return found[0]


def side(a, b, axis):
    """Where a stands of b on one axis; the distance must be clear to the eye."""
    distance = getattr(a, axis) - getattr(b, axis)
    assert abs(distance) > 0.15
    return {"x": ("left", "right"), "y": ("above", "below")}[axis][distance > 0]


def place(scene, thing):
    x, y = thing.x / scene.width, thing.y / scene.height
    if abs(x - 0.5) < 0.12 and abs(y - 0.5) < 0.12:
        return "center"
    assert abs(x - 0.5) > 0.12 and abs(y - 0.5) > 0.12
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def area(thing):
    """Of the outline that is drawn, by the shoelace formula."""
    x, y = outline(thing).T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def bigger(a, b):
    assert max(area(a), area(b)) > 1.15 * min(area(a), area(b)), "not clear to the eye"
    return area(a) > area(b)


def yes(condition):
    return "yes" if condition else "no"


TEXTS = {
    "color": (
        r"(?:what|which) colou?r is (the .+)",
        r"what is the colou?r of (the .+)",
        r"what colou?r does (the .+) have",
        r"(the .+) is what colou?r",
    ),
    "shape": (
        rf"(?:what|which) shape is ({COLOR})",
        rf"what is the ({COLOR}) \w+",
        rf"what shape is the ({COLOR}) \w+",
        rf"what is the shape of the ({COLOR}) \w+",
    ),
    "count": (
        r"how many (.+?) (?:are there|do you see|can you see|are in the picture)",
        r"what is the number of (.+)",
        r"count the (.+)",
    ),
}
SOLVED = {
    "color": lambda scene, words: named(scene, words).color,
    "shape": lambda scene, words: colored(scene, words).shape,
    "count": lambda scene, words: str(len(described(scene, words))),
}


def solve(scene, text):
    """(kind, answer) from the words alone, written without the generator's code."""
    text = text.removesuffix("?").removesuffix(".")

    def match(pattern):
        return re.fullmatch(pattern, text)

    for kind, patterns in TEXTS.items():
        for pattern in patterns:
            if m := match(pattern):
                return kind, SOLVED[kind](scene, m[1])
    if m := match(r"(?:where|in which part of the picture) is (the .+)"):
        return "position", place(scene, named(scene, m[1]))
    if m := match(r"is (the .+?) (?:left or right of|to the left or to the right of) (the .+)"):
        return "position", side(named(scene, m[1]), named(scene, m[2]), "x")
    if m := match(r"is (the .+?) above or below (the .+)"):
        return "position", side(named(scene, m[1]), named(scene, m[2]), "y")
    if m := match(r"is (the .+?) (?:to the )?(left of|right of|above|below|under) (the .+)"):
        where = m[2].removesuffix(" of").replace("under", "below")
        axis = "x" if where in ("left", "right") else "y"
        return "position", yes(side(named(scene, m[1]), named(scene, m[3]), axis) == where)
    if m := match(r"(?:is there|do you see|can you see) an? (.+?)(?: in the picture)?"):
        return "existence", yes(described(scene, m[1]))
    if m := match(r"(?:are there|do you see) (more|fewer) (.+) than (.+)"):
        difference = len(described(scene, m[2])) - len(described(scene, m[3]))
        return "comparison", yes(difference > 0 if m[1] == "more" else difference < 0)
    if m := match(r"which is (bigger|smaller), (the .+) or (the .+)"):
        a, b = named(scene, m[2]), named(scene, m[3])
        return "comparison", (a if bigger(a, b) == (m[1] == "bigger") else b).shape
    m = match(r"is (the .+) (bigger|larger|smaller) than (the .+)")
    assert m, f"no rule for {text!r}"
    return "comparison", yes(bigger(named(scene, m[1]), named(scene, m[3])) == (m[2] != "smaller"))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SPLITS)), st.integers(0, 2**32), st.integers(0, 2**40))
def test_answers_follow_from_the_scene(split, seed, index):
    sample = make_sample(split, seed, index, questions=8, short_side=16)
    for question in sample.questions:
        assert question.answer in ANSWERS
        assert (question.kind, question.answer) == solve(sample.scene, question.text), question.text


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40))
def test_scene_is_what_the_picture_shows(index):
    scene = make_scene(stream("test", 7, index))
    picture = np.asarray(render(scene, 120)).astype(int)
    assert picture.shape[:2] == (round(scene.height * 120), round(scene.width * 120))
    for i, thing in enumerate(scene.things):
        reach = np.hypot(*outline(thing).T).max()
        assert reach <= thing.x <= scene.width - reach and reach <= thing.y <= scene.height - reach
        for other in scene.things[:i]:
            gap = np.hypot(thing.x - other.x, thing.y - other.y) - reach - np.hypot(*outline(other).T).max()
            assert gap > 0, "two things touch"
        middle = picture[int(thing.y * 120), int(thing.x * 120)]
        nearest = min(RGB, key=lambda name: np.abs(middle - RGB[name]).sum())
        assert nearest == thing.color, thing


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_same_numbers_same_sample(split):
    first, second = (make_sample(split, 5, 11, questions=7) for _ in range(2))
    assert first.scene == second.scene and first.questions == second.questions
    assert first.image.tobytes() == second.image.tobytes()


def test_splits_seeds_and_indices_have_their_own_streams():
    scenes = {make_scene(stream(split, seed, index)) for split in SPLITS for seed in range(5) for index in range(40)}
    assert len(scenes) == len(SPLITS) * 5 * 40


def test_one_scene_at_every_scale():
    sample = make_sample("test", 0, 3, questions=1, short_side=240)
    small = make_sample("test", 0, 3, questions=1, short_side=60)
    assert small.scene == sample.scene and small.questions == sample.questions
    reduced = np.asarray(sample.image.reduce(4)).astype(float)
    # Grain and edges differ between the scales; the picture as a whole must not.
    assert np.abs(reduced - np.asarray(small.image)).mean() < 12


def test_sizes_kinds_and_answers_are_mixed():
    drawn = [make_sample("test", 1, i, questions=6) for i in range(400)]
    sizes = [s.image.size for s in drawn]
    assert min(map(min, sizes)) >= 96 and max(map(max, sizes)) <= 225
    assert len({(w > h) - (w < h) for w, h in sizes}) == 3 and len(ASPECTS) >= 5
    questions = [q for s in drawn for q in s.questions]
    share = Counter(q.kind for q in questions)
    assert set(share) == set(KINDS) and min(share.values()) > 0.07 * len(questions)
    for kind in ("existence", "comparison", "position"):
        answers = Counter(q.answer for q in questions if q.kind == kind)
        assert 0.7 < answers["yes"] / answers["no"] < 1.4, kind
    counts = Counter(q.answer for q in questions if q.kind == "count")
    assert set(counts) == set("012345") and max(counts.values()) < 0.35 * sum(counts.values())
    assert {q.answer for q in questions} == set(ANSWERS)


def test_vocabulary_holds_every_word_and_spells_the_rest():
    pieces = vocabulary()
    assert len(set(pieces)) == len(pieces) and tuple(pieces[:5]) == SPECIAL
    for i in range(200):
        for question in make_sample("test", 2, i, short_side=16).questions:
            assert set(re.findall(r"[a-z]+|[^a-z ]", question.text)) <= set(pieces)
    for letter in "abcdefghijklmnopqrstuvwxyz0123456789":
        assert letter in pieces and f"##{letter}" in pieces, letter


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="split: got 'valid'"):
        stream("valid", 0, 0)
    with pytest.raises(ValueError, match="seed and index"):
        stream("test", -1, 0)
    scene = make_scene(stream("test", 0, 0))
    with pytest.raises(ValueError, match="short_side: got 3"):
        render(scene, 3)
    with pytest.raises(ValueError, match="kind: got 'taste'"):
        ask(scene, np.random.default_rng(0), "taste")
