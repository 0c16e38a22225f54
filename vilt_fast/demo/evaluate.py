"""Accuracy of the demo models on fresh images, by kind, beside that of the best constant answer."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from tqdm import trange

from vilt_fast.engine import Engine
from vilt_fast.models.vilt import ViltForQuestionAnswering
from vilt_fast.models.vit import ViTForImageClassification
from vilt_fast.processing.processor import ViltProcessor
from vilt_fast.processing.vit import ViTImageProcessor

from .data import make_labelled, make_sample
from .questions import KINDS

BATCH = 50  # images that ViT names at once


class Score(NamedTuple):
    """The score on one kind of question, or on all."""

    questions: int  # of ViT: images
    accuracy: float
    majority: float  # accuracy of always giving the kind's most frequent answer


def evaluate(
    model: ViltForQuestionAnswering,
    processor: ViltProcessor,
    n: int = 2000,
    seed: int = 0,
    *,
    questions: int = 6,
    progress: bool = False,
) -> dict[str, Score]:
    """Score by kind, and under "all", on `n` images of the test split with `questions` questions each.

    No image of the test split is ever trained on, whatever the seeds: the splits have separate random streams.
    Under "all", the majority answers are those of the kinds: a constant answer to each kind of question.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, wanted at least 1 image")
    asked = []
    with Engine(model, processor) as engine:
        for index in trange(n, disable=not progress, unit="image", desc="evaluating"):
            sample = make_sample("test", seed, index, questions=questions)
            asked += [(question, engine.submit(sample.image, question.text)) for question in sample.questions]
    return _scores([(question.kind, question.answer, future.result().answer) for question, future in asked])


def evaluate_vit(
    model: ViTForImageClassification,
    processor: ViTImageProcessor,
    n: int = 2000,
    seed: int = 0,
    *,
    progress: bool = False,
) -> dict[str, Score]:
    """Score on the "color", on the "shape" and on "all", which is both, on `n` images of the test split."""
    if n < 1:
        raise ValueError(f"n: got {n}, wanted at least 1 image")
    wanted: list[str] = []
    got: list[str] = []
    for start in trange(0, n, BATCH, disable=not progress, unit="batch", desc="evaluating"):
        made = [make_labelled("test", seed, index) for index in range(start, min(start + BATCH, n))]
        with torch.no_grad():
            logits = model(**processor([one.image for one in made], return_tensors="pt")).logits
        wanted += [one.label for one in made]
        got += [model.config.id2label[label] for label in logits.argmax(-1).tolist()]
    pairs = {"color": 0, "shape": 1}
    scores = {
        name: _score([word.split()[part] for word in wanted], [word.split()[part] for word in got])
        for name, part in pairs.items()
    }
    return {**scores, "all": _score(wanted, got)}


def _score(wanted: list[str], got: list[str]) -> Score:
    right = sum(one == other for one, other in zip(wanted, got, strict=True))
    return Score(len(wanted), right / len(wanted), Counter(wanted).most_common(1)[0][1] / len(wanted))


def _scores(given: list[tuple[str, str, str]]) -> dict[str, Score]:
    counts: dict[str, list[int]] = {}  # questions, right answers, the most frequent answer
    for kind in KINDS:
        pairs = [(wanted, got) for its_kind, wanted, got in given if its_kind == kind]
        if pairs:
            frequent = Counter(wanted for wanted, _ in pairs).most_common(1)[0][1]
            counts[kind] = [len(pairs), sum(wanted == got for wanted, got in pairs), frequent]
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    return {kind: Score(asked, right / asked, frequent / asked) for kind, (asked, right, frequent) in counts.items()}
