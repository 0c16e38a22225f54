"""ViLT (Vision-and-Language Transformer), ViT and VisualBERT on packed tokens, with Hugging Face's names and files.

    >>> from vilt_fast import ViltForQuestionAnswering, ViltProcessor

Names are imported when they are first used, so that `vilt-fast --help` need not wait for PyTorch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from vilt_fast.configs.vilt import ViltConfig
    from vilt_fast.configs.visual_bert import VisualBertConfig
    from vilt_fast.configs.vit import ViTConfig
    from vilt_fast.engine import Engine
    from vilt_fast.frozen import FrozenModel, freeze
    from vilt_fast.models.base import PreTrainedModel as ViltPreTrainedModel
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
    from vilt_fast.models.visual_bert import (
        VisualBertForMultipleChoice,
        VisualBertForQuestionAnswering,
        VisualBertForVisualReasoning,
        VisualBertModel,
    )
    from vilt_fast.models.visual_bert_base import VisualBertPreTrainedModel
    from vilt_fast.models.visual_bert_words import VisualBertForPreTraining, VisualBertForRegionToPhraseAlignment
    from vilt_fast.models.vit import (
        ViTForImageClassification,
        ViTForMaskedImageModeling,
        ViTModel,
        ViTPreTrainedModel,
    )
    from vilt_fast.ops import backend
    from vilt_fast.packing import Layout
    from vilt_fast.pixels import PackedPixels
    from vilt_fast.processing.processor import ViltProcessor
    from vilt_fast.processing.regions import Regions, read_regions
    from vilt_fast.processing.text import BertTokenizer, BertTokenizerFast
    from vilt_fast.processing.vilt import ViltFeatureExtractor, ViltImageProcessor
    from vilt_fast.processing.visual_bert import VisualBertProcessor
    from vilt_fast.processing.vit import ViTFeatureExtractor, ViTImageProcessor

__version__ = "0.1.0"

_HOMES = {
    "ViTConfig": "configs.vit",
    "ViltConfig": "configs.vilt",
    "TrainerMixin": "models.trainer",
    "ViltModel": "models.vilt",
    "ViltForImageAndTextRetrieval": "models.vilt",
    "ViltForImageTextMatching": "models.vilt",
    "ViltForImagesAndTextClassification": "models.vilt",
    "ViltForMaskedLM": "models.vilt",
    "ViltForQuestionAnswering": "models.vilt",
    "ViltForTokenClassification": "models.vilt",
    "ViltPreTrainedModel": "models.base",
    "ViTForImageClassification": "models.vit",
    "ViTForMaskedImageModeling": "models.vit",
    "ViTModel": "models.vit",
    "ViTPreTrainedModel": "models.vit",
    "VisualBertConfig": "configs.visual_bert",
    "VisualBertForMultipleChoice": "models.visual_bert",
    "VisualBertForQuestionAnswering": "models.visual_bert",
    "VisualBertForVisualReasoning": "models.visual_bert",
    "VisualBertModel": "models.visual_bert",
    "VisualBertPreTrainedModel": "models.visual_bert_base",
    "VisualBertForPreTraining": "models.visual_bert_words",
    "VisualBertForRegionToPhraseAlignment": "models.visual_bert_words",
    "Engine": "engine",
    "FrozenModel": "frozen",
    "freeze": "frozen",
    "backend": "ops",
    "Layout": "packing",
    "PackedPixels": "pixels",
    "ViltFeatureExtractor": "processing.vilt",
    "ViltImageProcessor": "processing.vilt",
    "ViTFeatureExtractor": "processing.vit",
    "ViTImageProcessor": "processing.vit",
    "ViltProcessor": "processing.processor",
    "Regions": "processing.regions",
    "read_regions": "processing.regions",
    "VisualBertProcessor": "processing.visual_bert",
    "BertTokenizer": "processing.text",
    "BertTokenizerFast": "processing.text",
}
_OWN_NAMES = {"ViltPreTrainedModel": "PreTrainedModel"}  # where a name's home has another for it
# What people look for under names that are not spelled alike, in lower case; and what there is instead.
_INSTEAD = {
    "viltforvqa": "ViltForQuestionAnswering",
    "viltforvisualquestionanswering": "ViltForQuestionAnswering",
    "viltformlm": "ViltForMaskedLM",
    "viltforpretraining": "ViltForMaskedLM or ViltForImageTextMatching",
    "viltfornlvr2": "ViltForImagesAndTextClassification",
    "viltforitm": "ViltForImageTextMatching",
    "viltforretrieval": "ViltForImageAndTextRetrieval",
    "viltlayer": "vilt_fast.layers.encoder.Layer",
    "viltencoder": "vilt_fast.layers.encoder.Encoder",
    "viltpooler": "vilt_fast.layers.heads.Pooler",
    "vilttokenizer": "BertTokenizer",
    "viltimageprocessorpil": "ViltImageProcessor, whose pixels are that class's",
    "viltimageprocessorfast": "ViltImageProcessor, or ViltProcessor(..., device='cuda'), which resizes on the GPU",
    "vitlayer": "vilt_fast.layers.encoder.Layer",
    "vitencoder": "vilt_fast.layers.encoder.Encoder",
    "vitpooler": "vilt_fast.layers.heads.Pooler",
    "vitembeddings": "vilt_fast.layers.embeddings.ViTEmbeddings",
    **{
        f"{framework}{name.lower()}": f"{name}, with weights that transformers 4.37 has converted: "
        f"{name}.from_pretrained(..., from_{framework}=True), then save_pretrained"
        for framework in ("tf", "flax")
        for name in ("ViTModel", "ViTForImageClassification", "ViTPreTrainedModel")
    },
    "visualbertlayer": "vilt_fast.layers.post_norm.PostNormLayer",
    "visualbertencoder": "vilt_fast.layers.encoder.Encoder",
    "visualbertpooler": "vilt_fast.layers.heads.Pooler",
    "visualbertembeddings": "vilt_fast.layers.embeddings.VisualBertEmbeddings",
    "visualbertforvqa": "VisualBertForQuestionAnswering",
    "visualbertforvcr": "VisualBertForMultipleChoice",
    "visualbertfornlvr2": "VisualBertForVisualReasoning",
    "visualbertfornlvr": "VisualBertForVisualReasoning",
    "visualbertforflickr": "VisualBertForRegionToPhraseAlignment",
    "visualbertformaskedlm": "VisualBertForPreTraining",
    "visualbertfeatureextractor": "VisualBertProcessor, which reads the features that a detector made",
    "visualbertimageprocessor": "VisualBertProcessor, which reads the features that a detector made",
    "vitimageprocessorpil": "ViTImageProcessor, whose pixels are that class's",
    "vitimageprocessorfast": "ViTImageProcessor, or its pack(..., device='cuda'), which resizes on the GPU",
    "deitimageprocessor": "ViTImageProcessor, which reads DeiT's files too",
    "deitfeatureextractor": "ViTImageProcessor, which reads DeiT's files too",
    "automodel": "a class by its name, such as ViltForQuestionAnswering",
    "autoprocessor": "ViltProcessor",
}
_ROOMS = (
    *("bench", "checkpoints", "configs", "demo", "engine", "export", "frozen", "kernels", "models", "ops", "packing"),
    *("pixels", "processing", "reference"),
)

__all__ = [
    "BertTokenizer",
    "BertTokenizerFast",
    "Engine",
    "FrozenModel",
    "Layout",
    "PackedPixels",
    "Regions",
    "TrainerMixin",
    "ViTConfig",
    "ViTFeatureExtractor",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTImageProcessor",
    "ViTModel",
    "ViTPreTrainedModel",
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
    "ViltPreTrainedModel",
    "ViltProcessor",
    "VisualBertConfig",
    "VisualBertForMultipleChoice",
    "VisualBertForPreTraining",
    "VisualBertForQuestionAnswering",
    "VisualBertForRegionToPhraseAlignment",
    "VisualBertForVisualReasoning",
    "VisualBertModel",
    "VisualBertPreTrainedModel",
    "VisualBertProcessor",
    "backend",
    "freeze",
    "read_regions",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = importlib.import_module(f"vilt_fast.{_HOMES[name]}")
        value = getattr(home, _OWN_NAMES.get(name, name))
        globals()[name] = value  # the next access finds it without this function
        return value
    if name in _ROOMS:
        return importlib.import_module(f"vilt_fast.{name}")
    meant = None if name.startswith("_") else _meant(name)
    hint = f"; did you mean {meant}?" if meant else ""
    # `from vilt_fast import X` would put its own text in place of an AttributeError's, and lose the hint.
    if meant and sys._getframe(1).f_globals.get("__name__") == "importlib._bootstrap":
        raise ImportError(f"cannot import name {name!r} from 'vilt_fast'{hint}", name="vilt_fast", path=__file__)
    raise AttributeError(f"module 'vilt_fast' has no attribute {name!r}{hint}", name=name, obj=None)


def _meant(name: str) -> str | None:
    """What there is for someone who asked for `name`; None where nothing is near."""
    from vilt_fast.configs.spelling import nearest

    return _INSTEAD.get(name.lower()) or nearest(name, [*_HOMES, *_ROOMS], cutoff=0.8)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
