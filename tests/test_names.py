"""Names that are not there: what was meant is said, and Python's own ways to ask still work."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import vilt_fast

MEANT = {
    "ViLTModel": "ViltModel",
    "VILTConfig": "ViltConfig",
    "ViltForVQA": "ViltForQuestionAnswering",
    "ViltForQuestionAnswer": "ViltForQuestionAnswering",
    "ViLTForMaskedLM": "ViltForMaskedLM",
    "ViltForImageTextRetrieval": "ViltForImageAndTextRetrieval",
    "ViltForNLVR2": "ViltForImagesAndTextClassification",
    "VilTProcessor": "ViltProcessor",
    "ViltImageProcessorFast": "ViltImageProcessor",
    "ViltTokenizer": "BertTokenizer",
    "BertTokeniser": "BertTokenizer",
    "kernel": "kernels",
    "ViTModell": "ViTModel",
    "ViTForMaskedImageModelling": "ViTForMaskedImageModeling",
    "ViTLayer": "vilt_fast.layers.encoder.Layer",
    "VisualBERTModel": "VisualBertModel",
    "VisualBertForVQA": "VisualBertForQuestionAnswering",
    "VisualBertForVCR": "VisualBertForMultipleChoice",
    "VisualBertForNLVR2": "VisualBertForVisualReasoning",
    "VisualBertForFlickr": "VisualBertForRegionToPhraseAlignment",
    "VisualBertForPretraining": "VisualBertForPreTraining",
    "VisualBertTokenizer": "BertTokenizer",
    "VisualBertFeatureExtractor": "VisualBertProcessor, which reads the features",
    "VisualBertLayer": "vilt_fast.layers.post_norm.PostNormLayer",
    "TFViTModel": "ViTModel, with weights that transformers 4.37 has converted: .*from_tf=True",
    "TFViTForImageClassification": "ViTForImageClassification, with weights .*from_tf=True",
    "FlaxViTModel": "ViTModel, with weights that transformers 4.37 has converted: .*from_flax=True",
    "FlaxVitModel": "ViTModel, with weights",
    "FlaxViTForImageClassification": "ViTForImageClassification, with weights .*from_flax=True",
}


@pytest.mark.parametrize("name", MEANT)
def test_a_near_name_is_said(name) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; did you mean {MEANT[name]}") as raised:
        getattr(vilt_fast, name)
    assert raised.value.name == name and not hasattr(vilt_fast, name) and getattr(vilt_fast, name, 3) == 3
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'vilt_fast'; did you mean {MEANT[name]}"):
        exec(f"from vilt_fast import {name}")


@pytest.mark.parametrize("name", ["nonsense", "ViltForNothingAtAll", "_private", "__wrapped__"])
def test_a_name_like_no_other(name) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'$"):
        getattr(vilt_fast, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from vilt_fast import {name}")


def test_what_is_meant_exists() -> None:
    for meant in vilt_fast._INSTEAD.values():
        for word in meant.replace(",", " ").replace("(", " ").split():
            if word.startswith("vilt_fast."):
                home, _, name = word.rpartition(".")
                assert hasattr(importlib.import_module(home), name), meant
            elif word.startswith(("Vilt", "ViT", "Bert", "VisualBert")):
                assert hasattr(vilt_fast, word.partition(".")[0]), meant


def test_modules_import_whatever_they_are_called() -> None:
    """In a process where none is imported yet."""
    names = [module.name for module in pkgutil.iter_modules(vilt_fast.__path__)]
    done = subprocess.run([sys.executable, "-c", f"from vilt_fast import {', '.join(names)}"], capture_output=True)
    assert len(names) > 8 and done.returncode == 0, done.stderr


def test_the_base_of_all_models() -> None:
    assert issubclass(vilt_fast.ViltForMaskedLM, vilt_fast.ViltPreTrainedModel)
    assert issubclass(vilt_fast.VisualBertForPreTraining, vilt_fast.VisualBertPreTrainedModel)
    assert issubclass(vilt_fast.VisualBertPreTrainedModel, vilt_fast.ViltPreTrainedModel)
    assert vilt_fast.ViltPreTrainedModel is importlib.import_module("vilt_fast.models.base").PreTrainedModel
