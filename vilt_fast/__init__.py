"""ViLT (Vision-and-Language Transformer) on packed tokens, with Hugging Face's names and its checkpoints.

    >>> from vilt_fast import ViltForQuestionAnswering, ViltProcessor

Names are imported when they are first used, so that `vilt-fast --help` need not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from vilt_fast.configs.vilt import ViltConfig
    from vilt_fast.engine import Engine
    from vilt_fast.frozen import FrozenModel, freeze
    from vilt_fast.models.trainer import TrainerMixin
    from vilt_fast.models.vilt import (
        ViltForImageAndTextRetrieval,
        ViltForImagesAndTextClassification,
        ViltForImageTextMatching,
        ViltForMaskedLM,
        ViltForQuestionAnswering,
        ViltForTokenClassification,
        ViltModel,
    )
    from vilt_fast.ops import backend
    from vilt_fast.packing import Layout
    from vilt_fast.pixels import PackedPixels
    from vilt_fast.processing.image import ViltFeatureExtractor, ViltImageProcessor
    from vilt_fast.processing.processor import ViltProcessor
    from vilt_fast.processing.text import BertTokenizer, BertTokenizerFast

__version__ = "0.1.0"

_HOMES = {
    "ViltConfig": "configs.vilt",
    "TrainerMixin": "models.trainer",
    "ViltModel": "models.vilt",
    "ViltForImageAndTextRetrieval": "models.vilt",
    "ViltForImageTextMatching": "models.vilt",
    "ViltForImagesAndTextClassification": "models.vilt",
    "ViltForMaskedLM": "models.vilt",
    "ViltForQuestionAnswering": "models.vilt",
    "ViltForTokenClassification": "models.vilt",
    "Engine": "engine",
    "FrozenModel": "frozen",
    "freeze": "frozen",
    "backend": "ops",
    "Layout": "packing",
    "PackedPixels": "pixels",
    "ViltFeatureExtractor": "processing.image",
    "ViltImageProcessor": "processing.image",
    "ViltProcessor": "processing.processor",
    "BertTokenizer": "processing.text",
    "BertTokenizerFast": "processing.text",
}
_ROOMS = (
    *("bench", "checkpoints", "configs", "demo", "engine", "frozen", "kernels", "models", "ops", "packing", "pixels"),
    *("processing", "reference"),
)

__all__ = [
    "BertTokenizer",
    "BertTokenizerFast",
    "Engine",
    "FrozenModel",
    "Layout",
    "PackedPixels",
    "TrainerMixin",
    "ViltConfig",
    "ViltFeatureExtractor",
    "ViltForImageAndTextRetrieval",
    "ViltForImageTextMatching",
    "ViltForImagesAndTextClassification",
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForTokenClassification",
    "ViltImageProcessor",
    "ViltModel",
    "ViltProcessor",
    "backend",
    "freeze",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"vilt_fast.{_HOMES[name]}"), name)
        globals()[name] = value  # the next access finds it without this function
        return value
    if name in _ROOMS:
        return importlib.import_module(f"vilt_fast.{name}")
    raise AttributeError(f"module 'vilt_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
