"""The same as testers.py for VisualBERT."""

from __future__ import annotations

import copy
import unittest
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from . import configuration
from .mount import PACKAGE, SMALL

CLASSES = (
    "VisualBertModel",
    "VisualBertForMultipleChoice",
    "VisualBertForVisualReasoning",
    "VisualBertForRegionToPhraseAlignment",
    "VisualBertForQuestionAnswering",
    "VisualBertForPreTraining",
)


def suites(importer: Callable[[str], ModuleType], classes: SimpleNamespace) -> dict[str, type[unittest.TestCase]]:
    """The test classes by name; `importer` imports one of transformers' test modules."""
    settings = configuration.cases(importer, ModelTester(ModuleType(""), classes), classes.VisualBertConfig)
    found = {"VisualBertModelling": _modelling(importer, classes), "VisualBertConfiguration": settings}
    for case in found.values():
        case.__module__ = f"{PACKAGE}.models.visual_bert.{SMALL.format('visual_bert')}"
    return found


class ModelTester:
    """The sizes of a small VisualBERT and inputs for it, under the names that their mixin asks for."""

    batch_size, seq_length, regions, is_training = 2, 7, 5, True
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size = 32, 2, 4, 37
    vocab_size, type_vocab_size, num_labels, choices = 99, 3, 3, 2
    visual_embedding_dim, max_position_embeddings = 20, 40
    encoder_seq_length = key_length = seq_length + regions

    def __init__(self, common: ModuleType, classes: SimpleNamespace) -> None:
        self.common, self.classes = common, classes

    def get_config(self) -> Any:
        names = "hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size type_vocab_size"
        names += " visual_embedding_dim max_position_embeddings num_labels"
        return self.classes.VisualBertConfig(**{name: getattr(self, name) for name in names.split()})

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        words, regions = (self.batch_size, self.seq_length), (self.batch_size, self.regions)
        inputs = {
            "input_ids": self.common.ids_tensor(words, self.vocab_size),
            "attention_mask": torch.ones(words, dtype=torch.long),
            "token_type_ids": self.common.ids_tensor(words, self.type_vocab_size),
            "visual_embeds": self.common.floats_tensor((*regions, self.visual_embedding_dim)),
            "visual_attention_mask": torch.ones(regions, dtype=torch.long),
            "visual_token_type_ids": self.common.ids_tensor(regions, self.type_vocab_size),
        }
        return self.get_config(), inputs

    def for_class(self, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch as the class of that name takes it: texts with choices, or with places to compare."""
        inputs = copy.deepcopy(inputs)
        if name == "VisualBertForMultipleChoice":
            for key, value in inputs.items():
                if isinstance(value, torch.Tensor) and value.ndim > 1:
                    inputs[key] = value[:, None].repeat(1, self.choices, *[1] * (value.ndim - 1))
        if name == "VisualBertForRegionToPhraseAlignment":
            places = torch.arange(self.seq_length).repeat(self.batch_size, 1)
            inputs["region_to_phrase_position"] = places
        return inputs

    def labels(self, name: str) -> dict[str, torch.Tensor]:
        """Of the class of that name."""
        batch, one_each = self.batch_size, torch.zeros(self.batch_size, dtype=torch.long)
        if name == "VisualBertForPreTraining":
            words = torch.ones(batch, self.encoder_seq_length, dtype=torch.long)
            return {"labels": words, "sentence_image_labels": one_each}
        if name == "VisualBertForQuestionAnswering":
            return {"labels": torch.tensor([[0.3, 1.0, 0.0]]).repeat(batch, 1)}
        if name == "VisualBertForRegionToPhraseAlignment":
            return {"labels": torch.full((batch, self.seq_length, self.regions), 0.2)}
        return {} if name == "VisualBertModel" else {"labels": one_each}


def _modelling(importer: Callable[[str], ModuleType], classes: SimpleNamespace) -> type[unittest.TestCase]:
    common = importer("test_modeling_common")
    found = tuple(getattr(classes, name) for name in CLASSES)

    class Modelling(common.ModelTesterMixin, unittest.TestCase):
        all_model_classes = found
        # An answer's loss does not depend on the pooler, nor a region's on the values, in transformers' either.
        test_all_params_have_gradient = False

        def setUp(self) -> None:
            self.model_tester = ModelTester(common, classes)

        def _prepare_for_class(self, inputs: Any, model_class: type, return_labels: bool = False) -> dict[str, Any]:
            labels = self.model_tester.labels(model_class.__name__) if return_labels else {}
            return {**self.model_tester.for_class(model_class.__name__, inputs), **labels}

    return Modelling
