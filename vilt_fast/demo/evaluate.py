"""Accuracy of the demo model on fresh images, by kind of question, beside that of the best constant answer."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from tqdm import trange

from vilt_fast.engine import Engine
from vilt_fast.models.vilt import ViltForQuestionAnswering
from vilt_fast.processing.processor import ViltProcessor

from .data import make_sample
from .questions import KINDS


class Score(NamedTuple):
    """The score on one kind of question, or on all."""

    questions: int
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


def _scores(given: list[tuple[str, str, str]]) -> dict[str, Score]:
    counts: dict[str, list[int]] = {}  # questions, right answers, the most frequent answer
    for kind in KINDS:
        pairs = [(wanted, got) for its_kind, wanted, got in given if its_kind == kind]
        if pairs:
            frequent = Counter(wanted for wanted, _ in pairs).most_common(1)[0][1]
            counts[kind] = [len(pairs), sum(wanted == got for wanted, got in pairs), frequent]
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    return {kind: Score(asked, right / asked, frequent / asked) for kind, (asked, right, frequent) in counts.items()}
