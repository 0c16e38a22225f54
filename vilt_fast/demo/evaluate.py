"""Accuracy of the demo model on fresh images, by kind of question, beside that of the best constant answer."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from tqdm import tqdm

from vilt_fast.models.vilt import ViltForQuestionAnswering
from vilt_fast.processing.processor import ViltProcessor

from .data import make_sample
from .questions import KINDS


class Score(NamedTuple):
    """The score on one kind of question, or on all."""

    questions: int
    accuracy: float
    majority: float  # accuracy of always giving the kind's most frequent answer


@torch.no_grad()
def evaluate(
    model: ViltForQuestionAnswering,
    processor: ViltProcessor,
    n: int = 2000,
    seed: int = 0,
    *,
    questions: int = 6,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, Score]:
    """Score by kind, and under "all", on `n` images of the test split with `questions` questions each.

    No image of the test split is ever trained on, whatever the seeds: the splits have separate random streams.
    Under "all", the majority answers are those of the kinds: a constant answer to each kind of question.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, wanted at least 1 picture")
    was_training = model.training
    model.eval()
    given: list[tuple[str, str, str]] = []  # kind, right answer, model's answer
    for start in tqdm(range(0, n, batch_size), disable=not progress, unit="batch", desc="evaluating"):
        pictures = [make_sample("test", seed, i, questions=questions) for i in range(start, min(start + batch_size, n))]
        given += _answer(model, processor, pictures)
    model.train(was_training)
    return _scores(given)


def _answer(model, processor, pictures) -> list[tuple[str, str, str]]:
    device = next(model.parameters()).device
    pairs = [(picture.image, question) for picture in pictures for question in picture.questions]
    inputs = processor([image for image, _ in pairs], [q.text for _, q in pairs], padding=True, return_tensors="pt")
    logits = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
    labels = [model.config.id2label[i] for i in logits.argmax(-1).tolist()]
    return [(q.kind, q.answer, label) for (_, q), label in zip(pairs, labels, strict=True)]


def _scores(given: list[tuple[str, str, str]]) -> dict[str, Score]:
    scores, right_all, majority_all = {}, 0, 0
    for kind in KINDS:
        pairs = [(wanted, got) for its_kind, wanted, got in given if its_kind == kind]
        if not pairs:
            continue
        right = sum(wanted == got for wanted, got in pairs)
        majority = Counter(wanted for wanted, _ in pairs).most_common(1)[0][1]
        scores[kind] = Score(len(pairs), right / len(pairs), majority / len(pairs))
        right_all, majority_all = right_all + right, majority_all + majority
    scores["all"] = Score(len(given), right_all / len(given), majority_all / len(given))
    return scores
