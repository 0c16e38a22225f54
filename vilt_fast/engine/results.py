"""From logits to what a user reads: answers, labels, match scores, filled words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """The most probable answer to a question, its probability, and the runners-up.

    From a ViLT, each answer has its own probability; they do not sum to 1, since a question may have several right
    answers. From a VisualBERT, which is trained on shares of them, the probabilities of all answers sum to 1.
    """

    answer: str
    score: float
    top: list[tuple[str, float]]  # (answer, probability), best first; the first is `answer`


@dataclass(frozen=True)
class Classified:
    """The most probable label of an image, its score, and the runners-up.

    Scores are those of transformers' image-classification pipeline: probabilities that sum to 1 over all labels; of a
    multi-label model, and of one with a single label, each label's own sigmoid.
    """

    label: str
    score: float
    top: list[tuple[str, float]]  # (label, score), best first; the first is `label`


@dataclass(frozen=True)
class Filled:
    """A text without its masks, and the words that went there, in the order in which they were filled."""

    text: str
    words: list[tuple[str, float]]  # (word, probability when it was chosen)


def answer_chances(logits: Tensor, top: int, *, is_exclusive: bool = False) -> tuple[Tensor, Tensor]:
    """(B, answers) logits -> the `top` largest probabilities (B, top), float32, and their labels.

    is_exclusive: whether they sum to 1 over all answers; else each answer has its own.
    """
    logits = logits.float()
    return (logits.softmax(-1) if is_exclusive else logits.sigmoid()).topk(min(top, logits.shape[1]))


def make_answer(labels: Mapping[int, str], chances: list[float], chosen: list[int]) -> Answer:
    """One row of `answer_chances`, with words from `config.id2label`."""
    top = [(labels[label], chance) for label, chance in zip(chosen, chances, strict=True)]
    return Answer(top[0][0], top[0][1], top)


def label_scores(logits: Tensor, problem_type: str | None) -> tuple[Tensor, Tensor]:
    """(B, labels) logits -> scores of all labels, float32, the highest first, and the labels; of equals the first."""
    logits = logits.float()
    is_each_its_own = problem_type == "multi_label_classification" or logits.shape[1] == 1
    scores = logits.sigmoid() if is_each_its_own else logits.softmax(-1)
    return scores.sort(stable=True, descending=True)


def make_classified(labels: Mapping[int, str], scores: list[float], chosen: list[int]) -> Classified:
    """The first of a row of `label_scores`, as many as there are scores, with words from `config.id2label`."""
    top = [(labels[label], score) for label, score in zip(chosen, scores, strict=False)]
    return Classified(top[0][0], top[0][1], top)


def match_scores(logits: Tensor) -> Tensor:
    """How well text and image match, (B,) float32.

    (B, 1) of the ranking head: the logit. (B, 2) of the matching head: the probability of class 1, "they match".
    """
    logits = logits.float()
    return logits[:, 0] if logits.shape[1] == 1 else logits.softmax(-1)[:, 1]


def word_chances(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(..., vocabulary) logits -> the largest probability at each place, float32, and its word."""
    return logits.float().softmax(-1).max(-1)


def fill_surest(ids: Tensor | list[int], open_places: Tensor, chances: Tensor, words: Tensor) -> tuple[int, float]:
    """Fill the open place with the most probable word, and close it; return the word and its probability.

    All are (L,); `ids` and `open_places` (bool, at least one True) are changed in place.
    """
    place = int(chances.masked_fill(~open_places, -1.0).argmax())
    ids[place] = int(words[place])
    open_places[place] = False
    return int(words[place]), float(chances[place])


def fill_masks(model: Any, inputs: dict[str, Tensor], mask_token_id: int) -> list[tuple[int, float]]:
    """Replace every mask token of inputs["input_ids"] (1, L) in place, the most probable first.

    Each step runs the model again, so that a filled word informs the rest: the procedure of the example in Hugging
    Face's documentation of ViltForMaskedLM.

    Returns:
        (token id, probability) of each word in the order of filling.

    Raises:
        ValueError: no word is masked.
    """
    ids = inputs["input_ids"][0]  # (L,)
    open_places = ids == mask_token_id
    if not open_places.any():
        raise ValueError("TEXT: got no masked word, wanted at least one [MASK]")
    steps = []
    while open_places.any():
        steps.append(fill_surest(ids, open_places, *word_chances(model(**inputs).logits[0])))
    return steps
