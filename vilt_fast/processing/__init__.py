"""Pictures and words in, the model's tensors out."""

from .batch import BatchEncoding, BatchFeature
from .image import ViltFeatureExtractor, ViltImageProcessor, resize_size
from .pictures import decode_rgb
from .processor import ViltProcessor
from .text import BertTokenizer, BertTokenizerFast

__all__ = [
    "BatchEncoding",
    "BatchFeature",
    "BertTokenizer",
    "BertTokenizerFast",
    "ViltFeatureExtractor",
    "ViltImageProcessor",
    "ViltProcessor",
    "decode_rgb",
    "resize_size",
]
