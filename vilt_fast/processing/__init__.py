"""Images and words in, the model's tensors out."""

from .batch import BatchEncoding, BatchFeature
from .decoding import decode_rgb
from .processor import ViltProcessor
from .regions import Regions, read_regions
from .settings import resize_size
from .text import BertTokenizer, BertTokenizerFast
from .vilt import ViltFeatureExtractor, ViltImageProcessor
from .visual_bert import VisualBertProcessor
from .vit import ViTFeatureExtractor, ViTImageProcessor

__all__ = [
    "BatchEncoding",
    "BatchFeature",
    "BertTokenizer",
    "BertTokenizerFast",
    "Regions",
    "ViTFeatureExtractor",
    "ViTImageProcessor",
    "ViltFeatureExtractor",
    "ViltImageProcessor",
    "ViltProcessor",
    "VisualBertProcessor",
    "decode_rgb",
    "read_regions",
    "resize_size",
]
