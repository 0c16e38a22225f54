"""Pictures and words in, the model's tensors out."""

from .batch import BatchEncoding, BatchFeature
from .image import ViltFeatureExtractor, ViltImageProcessor
from .pictures import decode_rgb
from .processor import ViltProcessor
from .settings import resize_size
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
