"""The bundled images: chosen for variety from the generator's split of examples, which is never trained on."""

from __future__ import annotations

import json
from functools import partial

from vilt_fast.checkpoints.files import write_atomically

from . import PICTURES
from .data import Sample, make_sample

# Index of an image in the split and of one of its six questions: all kinds, sizes and grounds.
CHOSEN = ((9, 2), (30, 1), (35, 2), (27, 1), (7, 5), (25, 5), (28, 3), (34, 2))
SHORT_SIDE = 240


def make_examples() -> list[tuple[str, Sample, int]]:
    """(file name, sample, which of its questions is asked) of every bundled image."""
    return [
        (f"shapes-{index}.png", make_sample("example", 0, index, questions=6, short_side=SHORT_SIDE), asked)
        for index, asked in CHOSEN
    ]


def write_examples() -> None:
    """Write the bundled images and examples.json, which has the question and the right answer for each."""
    entries = []
    for name, sample, asked in make_examples():
        image, question = sample.image, sample.questions[asked]
        write_atomically(PICTURES / name, partial(image.save, format="PNG", optimize=True))
        entries.append({"picture": name, "question": question.text, "answer": question.answer, "kind": question.kind})
    write_atomically(PICTURES / "examples.json", json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    write_examples()
