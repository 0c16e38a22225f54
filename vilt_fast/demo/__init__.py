"""The small model that ships with the package: coloured shapes on a textured ground, and questions about them.

    >>> from vilt_fast import demo
    >>> model, processor = demo.load()
    >>> image, question = demo.examples()[0]

`data` makes images and questions, `train` trains the model again, `evaluate` measures it; MODEL_CARD.md says how
good it is and what it cannot do.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from vilt_fast.models.vilt import ViltForQuestionAnswering
from vilt_fast.processing.processor import ViltProcessor

WEIGHTS = Path(__file__).parent / "weights"
PICTURES = Path(__file__).parent / "pictures"


def load() -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """The trained model, in evaluation mode on the CPU, and its processor."""
    return ViltForQuestionAnswering.from_pretrained(WEIGHTS), ViltProcessor.from_pretrained(WEIGHTS)


def examples() -> list[tuple[Image.Image, str]]:
    """The bundled images, each with a question."""
    pairs = []
    for entry in json.loads((PICTURES / "examples.json").read_text(encoding="utf-8")):
        with Image.open(PICTURES / entry["picture"]) as image:
            pairs.append((image.convert("RGB"), entry["question"]))
    return pairs
