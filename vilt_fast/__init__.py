"""ViLT (Vision-and-Language Transformer) on packed tokens, with Hugging Face's names and its checkpoints.

    >>> from vilt_fast import ViltForQuestionAnswering, ViltProcessor
"""

__version__ = "0.1.0"

from vilt_fast.config import ViltConfig
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
from vilt_fast.processing.image import ViltFeatureExtractor, ViltImageProcessor
from vilt_fast.processing.processor import ViltProcessor
from vilt_fast.processing.text import BertTokenizer, BertTokenizerFast

__all__ = [
    "BertTokenizer",
    "BertTokenizerFast",
    "Layout",
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
]
