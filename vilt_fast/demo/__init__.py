"""The small models that ship with the package, a ViLT and a ViT: coloured shapes on a textured ground.

    >>> from vilt_fast import demo
    >>> model, processor = demo.load()  # answers questions about several shapes
    >>> image, question = demo.examples()[0]
    >>> model, processor = demo.load_vit()  # names one shape
    >>> image, label = demo.examples_vit()[0]

`data` makes images, questions and labels, `train` and `train_vit` train the models again, `evaluate` measures them;
MODEL_CARD.md says how good they are and what they cannot do.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from vilt_fast.models.vilt import ViltForQuestionAnswering
from vilt_fast.models.vit import ViTForImageClassification
from vilt_fast.processing.processor import ViltProcessor
from vilt_fast.processing.vit import ViTImageProcessor

from .data import make_labelled

WEIGHTS = Path(__file__).parent / "weights"
WEIGHTS_VIT = Path(__file__).parent / "weights_vit"
PICTURES = Path(__file__).parent / "pictures"
_CHOSEN = (9, 7, 14, 8, 19, 1)  # of the split of examples: every shape, six colours


def load() -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """The trained ViLT, in evaluation mode on the CPU, and its processor."""
    return ViltForQuestionAnswering.from_pretrained(WEIGHTS), ViltProcessor.from_pretrained(WEIGHTS)


def examples() -> list[tuple[Image.Image, str]]:
    """The bundled images, each with a question."""
    pairs = []
    for entry in json.loads((PICTURES / "examples.json").read_text(encoding="utf-8")):
        with Image.open(PICTURES / entry["picture"]) as image:
            pairs.append((image.convert("RGB"), entry["question"]))
    return pairs


def load_vit() -> tuple[ViTForImageClassification, ViTImageProcessor]:
    """The trained ViT, in evaluation mode on the CPU, and its processor."""
    return ViTForImageClassification.from_pretrained(WEIGHTS_VIT), ViTImageProcessor.from_pretrained(WEIGHTS_VIT)


def examples_vit() -> list[tuple[Image.Image, str]]:
    """Images of one shape each with its name, drawn as they are asked for, from a split that is never trained on."""
    made = [make_labelled("example", 0, index, short_side=240) for index in _CHOSEN]
    return [(one.image, one.label) for one in made]
