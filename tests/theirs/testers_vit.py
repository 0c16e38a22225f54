"""The same as testers.py for ViT."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from . import configuration
from .mount import PACKAGE, SMALL

CLASSES = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")
_KEPT = ("_fp32_pad_left", "_fp32_pad_left_output_attentions")


def suites(importer: Callable[[str], ModuleType], classes: SimpleNamespace) -> dict[str, type[unittest.TestCase]]:
    """The test classes by name; `importer` imports one of transformers' test modules."""
    tester = ModelTester(classes)
    found = {
        "ViTModelling": _modelling(importer, classes),
        "ViTConfiguration": configuration.cases(importer, tester, classes.ViTConfig, has_text_modality=False),
    }
    for case in found.values():
        case.__module__ = f"{PACKAGE}.models.vit.{SMALL.format('vit')}"
    return found


class ModelTester:
    """The sizes of a small ViT and inputs for it, under the names that their mixin asks for."""

    batch_size, is_training, num_labels = 2, True, 3
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size = 32, 2, 4, 37
    image_size, patch_size, encoder_stride = 24, 8, 8
    seq_length = 1 + (image_size // patch_size) ** 2
    encoder_seq_length = key_length = seq_length
    mask_length = seq_length - 1
    num_masks = mask_length // 2

    def __init__(self, classes: SimpleNamespace) -> None:
        self.classes = classes

    def get_config(self) -> Any:
        names = "hidden_size num_hidden_layers num_attention_heads intermediate_size image_size patch_size"
        sizes = {name: getattr(self, name) for name in f"{names} encoder_stride num_labels".split()}
        # What looks into attentions needs the attention that keeps them.
        return self.classes.ViTConfig(attn_implementation="eager", **sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": torch.rand(shape)}

    def labels(self, name: str) -> dict[str, torch.Tensor]:
        """Of the class of that name."""
        if name == "ViTForMaskedImageModeling":
            return {"bool_masked_pos": torch.ones(self.batch_size, self.seq_length - 1, dtype=torch.bool)}
        return {} if name == "ViTModel" else {"labels": torch.zeros(self.batch_size, dtype=torch.long)}


def _modelling(importer: Callable[[str], ModuleType], classes: SimpleNamespace) -> type[unittest.TestCase]:
    common = importer("test_modeling_common")
    found = tuple(getattr(classes, name) for name in CLASSES)

    class Modelling(common.ModelTesterMixin, unittest.TestCase):
        all_model_classes = found
        test_resize_embeddings = False

        def setUp(self) -> None:
            self.model_tester = ModelTester(classes)

        def _prepare_for_class(self, inputs: Any, model_class: type, return_labels: bool = False) -> dict[str, Any]:
            labels = self.model_tester.labels(model_class.__name__) if return_labels else {}
            return {**super()._prepare_for_class(inputs, model_class), **labels}

        @unittest.skip("ViT does not use inputs_embeds")
        def test_inputs_embeds(self) -> None:
            pass

        def test_model_get_set_embeddings(self) -> None:
            """As its own test file has it: patches have a projection in the place of a table."""
            for model_class in self.all_model_classes:
                model = model_class(self.model_tester.get_config())
                self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
                self.assertIsNone(model.get_output_embeddings())

    for name in dir(common.ModelTesterMixin):
        # Two of 25 are enough where one attention is behind both names; the others cost eight seconds.
        if name.startswith("test_eager_matches_sdpa_inference_") and not name.endswith(_KEPT):
            setattr(Modelling, name, unittest.skip("there is one attention, whatever it is called")(lambda self: None))
    return Modelling
