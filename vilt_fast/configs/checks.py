"""What a field of a configuration may be: each check names the field, what came and what is wanted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

# Sizes are 32-bit in the kernels; the other two keep a slip of the pen from taking all memory.
LARGEST_SIZE, MOST_LAYERS, MOST_LABELS = 2**31 - 1, 10_000, 1_000_000


def is_integer(value: Any, low: int, high: int = LARGEST_SIZE) -> bool:
    """Whether it is an integer in [low, high], and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def check_integer(name: str, value: Any, low: int, high: int = LARGEST_SIZE) -> None:
    """Raise ValueError for anything but an integer in [low, high]."""
    if not is_integer(value, low, high):
        kind = "a positive integer" if low == 1 else f"an integer >= {low}"
        raise ValueError(f"{name} must be {kind} up to {high}, got {shown(value)}")


def check_number(name: str, value: Any, wanted: str, low: float, high: float, *, above: bool = False) -> None:
    """Raise ValueError for anything but a number in [low, high]; `above`: in (low, high]."""
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        if not above or value > low:
            return
    raise ValueError(f"{name} must be {wanted}, got {shown(value)}")


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError for anything but a truth value."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")


def shown(value: Any) -> str:
    """A value in a message: an integer may have thousands of digits, and a list thousands of entries."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"an integer of about 10**{int(math.log10(abs(value)))}"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_labels(id2label: Any, label2id: Any, num_labels: Any) -> tuple[dict[int, str], dict[str, int]]:
    """The two tables of labels, from what was given of them.

    Raises:
        ValueError: they are not the names of 0, 1, ..., or not as many as `num_labels`.
    """
    if num_labels is not None and not is_integer(num_labels, 0, MOST_LABELS):
        raise ValueError(f"num_labels must be an integer >= 0 up to {MOST_LABELS}, got {shown(num_labels)}")
    if id2label is None:
        id2label = {i: f"LABEL_{i}" for i in range(2 if num_labels is None else num_labels)}
    by_id = _by_id(id2label)
    if num_labels is not None and len(by_id) != num_labels:
        raise ValueError(f"num_labels is {num_labels}, but id2label names {len(by_id)} labels")
    if label2id is None or (isinstance(label2id, Mapping) and not label2id):
        return by_id, {label: i for i, label in by_id.items()}
    return by_id, _checked_ids(label2id, by_id)


def _checked_ids(label2id: Any, by_id: dict[int, str]) -> dict[str, int]:
    """Label -> id as it is given; a warning where id2label has another label there. Raises ValueError."""
    try:
        # transformers writes some ids as texts, and keeps them.
        ids = {label: int(index) for label, index in label2id.items() if isinstance(label, str)}
        if len(ids) < len(label2id) or any(isinstance(index, float | bool) for index in label2id.values()):
            raise TypeError
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"label2id must map labels to integers, got {shown(label2id)}") from error
    wrong = next((label for label, index in ids.items() if by_id.get(index) != label), None)
    if wrong is not None:
        there = shown(by_id.get(ids[wrong]))
        warnings.warn(
            f"label2id gives {wrong!r} the id {ids[wrong]}, where id2label has {there}; answers follow id2label",
            stacklevel=4,
        )
    return dict(label2id)


def _by_id(id2label: Any) -> dict[int, str]:
    """Id -> label, in order: a model answers with the ids 0, 1, ..., and each needs its label."""
    try:
        named = [(int(index), label) for index, label in id2label.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"id2label must map integers to labels, got {shown(id2label)}") from error
    by_id = dict(sorted(named, key=lambda pair: pair[0]))
    others = [label for label in by_id.values() if not isinstance(label, str)]
    if others:
        raise ValueError(f"id2label must map integers to labels, got the label {shown(others[0])}")
    absent = next((index for index in range(len(named)) if index not in by_id), None)
    if absent is not None:
        raise ValueError(
            f"id2label must name 0 to {len(named) - 1} without a gap, but {absent} is not among its {len(named)} ids"
        )
    return by_id


def check_pruned_heads(value: Any) -> dict[int, list[int]]:
    """Layer -> heads, from a config.json's `pruned_heads`.

    Raises:
        ValueError: it does not map layers to lists of heads.
    """
    try:
        pruned = {int(layer): list(heads) for layer, heads in (value or {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"pruned_heads must map layers to lists of heads, got {shown(value)}") from error
    if not all(is_integer(head, 0) for heads in pruned.values() for head in heads) or any(i < 0 for i in pruned):
        raise ValueError(f"pruned_heads must map layers to lists of heads, got {shown(value)}")
    return pruned
