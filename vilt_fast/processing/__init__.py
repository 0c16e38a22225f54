"""Images and words in, the model's tensors out."""

from .batch import BatchEncoding, BatchFeature
from .decoding import decode_rgb
from .image import ViltFeatureExtractor, ViltImageProcessor
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
