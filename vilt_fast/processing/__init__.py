"""Images and words in, the model's tensors out."""

from .batch import BatchEncoding, BatchFeature
from .decoding import decode_rgb
from .processor import ViltProcessor
from .settings import resize_size
from .text import BertTokenizer, BertTokenizerFast
from .vilt import ViltFeatureExtractor, ViltImageProcessor
from .vit import ViTFeatureExtractor, ViTImageProcessor

__all__ = [
    "BatchEncoding",
    "BatchFeature",
    "BertTokenizer",
    "BertTokenizerFast",
    "ViTFeatureExtractor",
    "ViTImageProcessor",
    "ViltFeatureExtractor",
    "ViltImageProcessor",
    "ViltProcessor",
    "decode_rgb",
    "resize_size",
]
