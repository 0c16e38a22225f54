"""Small testers of ours for transformers' common test classes: what their per-model test files would say."""

from __future__ import annotations

import tempfile
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import configuration, testers_visual_bert, testers_vit
from .mount import PACKAGE, SMALL, family_of

Importer = Callable[[str], ModuleType]
HEADS = (
    "ViltModel",
    "ViltForQuestionAnswering",
    "ViltForImageAndTextRetrieval",
    "ViltForMaskedLM",
    "ViltForTokenClassification",
)
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] low lower new newer up upper old older long longer string ##er ##s a b"


def suites(importer: Importer, classes: SimpleNamespace) -> dict[str, type[unittest.TestCase]]:
    """The test classes by name; `importer` imports one of transformers' test modules."""
    found: dict[str, type[unittest.TestCase]] = {
        "Modelling": _modelling(importer, classes, HEADS, num_images=-1),
        "ModellingOfTwoImages": _modelling(importer, classes, ("ViltForImagesAndTextClassification",), num_images=2),
        "Configuration": configuration.cases(importer, ModelTester(ModuleType(""), classes, -1), classes.ViltConfig),
        "ImageProcessing": _image_processing(importer, classes),
        "Processing": _processing(importer, classes),
    }
    for case in found.values():
        case.__module__ = f"{PACKAGE}.models.vilt.{SMALL.format('vilt')}"
    return found | testers_vit.suites(importer, classes) | testers_visual_bert.suites(importer, classes)


class ModelTester:
    """The sizes of a small ViLT and inputs for it, under the names that their mixin asks for."""

    batch_size, seq_length, is_training = 2, 7, True
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size = 32, 2, 4, 37
    vocab_size, type_vocab_size, num_labels = 99, 3, 3
    image_size, patch_size = 24, 8
    encoder_seq_length = seq_length + 1 + (image_size // patch_size) ** 2
    key_length = encoder_seq_length

    def __init__(self, common: ModuleType, classes: SimpleNamespace, num_images: int) -> None:
        self.common, self.classes, self.num_images = common, classes, num_images

    def get_config(self) -> Any:
        names = "hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size type_vocab_size"
        sizes = {name: getattr(self, name) for name in f"{names} image_size patch_size num_images num_labels".split()}
        return self.classes.ViltConfig(modality_type_vocab_size=3, **sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        words = (self.batch_size, self.seq_length)
        images = (self.num_images,) if self.num_images > 0 else ()
        inputs = {
            "input_ids": self.common.ids_tensor(words, self.vocab_size),
            "token_type_ids": self.common.ids_tensor(words, self.type_vocab_size),
            "attention_mask": self.common.random_attention_mask(words),
            "pixel_values": self.common.floats_tensor((self.batch_size, *images, 3, self.image_size, self.image_size)),
        }
        return self.get_config(), inputs

    def labels(self, name: str) -> dict[str, torch.Tensor]:
        """Of the class of that name."""
        shape: tuple[int, ...] = (self.batch_size,)
        if name in ("ViltForMaskedLM", "ViltForTokenClassification"):
            shape = (self.batch_size, self.seq_length)
        if name == "ViltForQuestionAnswering":
            return {"labels": torch.tensor([[0.3, 1.0, 0.0]]).repeat(self.batch_size, 1)}
        if name == "ViltForImageAndTextRetrieval":  # a match, and what is none
            return {"labels": torch.tensor([1, 0])}
        return {} if name == "ViltModel" else {"labels": torch.zeros(shape, dtype=torch.long)}


def _modelling(importer: Importer, classes: SimpleNamespace, names: tuple[str, ...], num_images: int) -> type:
    common = importer("test_modeling_common")
    found = tuple(getattr(classes, name) for name in names)

    class Modelling(common.ModelTesterMixin, unittest.TestCase):
        all_model_classes = found
        # The loss of masked words does not depend on the pooler, in transformers' ViLT either.
        test_all_params_have_gradient = False

        def setUp(self) -> None:
            self.model_tester = ModelTester(common, classes, num_images)

        def _prepare_for_class(self, inputs: Any, model_class: type, return_labels: bool = False) -> dict[str, Any]:
            labels = self.model_tester.labels(model_class.__name__) if return_labels else {}
            return {**super()._prepare_for_class(inputs, model_class), **labels}

    return Modelling


def _image_processing(importer: Importer, classes: SimpleNamespace) -> type:
    common = importer("test_image_processing_common")

    class Tester(common.ImageProcessingTester):
        batch_size, num_channels, min_resolution, max_resolution = 3, 3, 30, 90
        settings = {
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "do_normalize": True,
            "do_resize": True,
            "size": {"shortest_edge": 30},
            "size_divisor": 2,
        }

        def prepare_image_processor_dict(self) -> dict[str, Any]:
            return self.settings

        def expected_output_image_shape(self, images: list[Any]) -> tuple[int, int, int]:
            sizes = [_resized(*_height_and_width(image)) for image in images]
            return self.num_channels, max(height for height, _ in sizes), max(width for _, width in sizes)

    class ImageProcessing(common.ImageProcessingTestMixin, unittest.TestCase):
        test_cast_dtype = True

        def setUp(self) -> None:
            names = common.IMAGE_PROCESSOR_MAPPING_NAMES["vilt"]
            self.image_processing_classes = {
                backend: common.get_image_processor_class_from_name(name)
                for backend, name in names.items()
                if backend == "pil"
            }
            self.image_processor_tester = Tester()
            self.image_processor_dict = self.image_processor_tester.prepare_image_processor_dict()

    return ImageProcessing


def _height_and_width(image: Any) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.height, image.width
    return image.shape[:2] if isinstance(image, np.ndarray) else tuple(image.shape[1:])


def _resized(height: int, width: int, shortest: int = 30, divisor: int = 2) -> tuple[int, int]:
    """The rule of the paper's code: the shorter side, the longer side's limit, rounded, then down to the divisor."""
    scale = shortest / min(height, width)
    new = [scale * height, scale * width]
    if max(new) > int(1333 / 800 * shortest):
        new = [side * int(1333 / 800 * shortest) / max(new) for side in new]
    return tuple(int(side + 0.5) // divisor * divisor for side in new)


def _processing(importer: Importer, classes: SimpleNamespace) -> type:
    common = importer("test_processing_common")

    class Processing(common.ProcessorTesterMixin, unittest.TestCase):
        processor_class = classes.ViltProcessor

        @classmethod
        def _setup_tokenizer(cls) -> Any:
            with vocabulary_file() as path:
                return classes.BertTokenizer(path)

        @classmethod
        def _setup_image_processor(cls) -> Any:
            return classes.ViltImageProcessor()

    return Processing


class vocabulary_file:
    """A vocab.txt of a few words, for the time of a `with` block."""

    def __enter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "vocab.txt"
        path.write_text("\n".join(WORDS.split()) + "\n")
        return str(path)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def per_model(importer: Importer, source: Path) -> Iterator[tuple[str, type[unittest.TestCase]]]:
    """The test classes of the files test_*.py in `source`."""
    for path in sorted(source.glob("test_*.py")):
        module = importer(f"models.{family_of(source)}.{path.stem}")
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, unittest.TestCase) and value.__module__ == module.__name__:
                yield name, value
