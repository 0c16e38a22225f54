"""transformers' test modules as a package, in which its classes are ours. Nothing on disk is changed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import huggingface_hub
import pytest
import transformers
import transformers.utils

import vilt_fast

PACKAGE = "transformers_tests"
FAMILIES = ("vilt", "vit", "visual_bert")
SMALL = "test_processing_{}"  # of a family: the name under which the testers of this folder go
_HEADS = ("ViltFor", "ViTFor", "VisualBertFor")
_MODELS = [name for name in vilt_fast.__all__ if name.startswith(_HEADS) and hasattr(transformers, name)]
NAMES = ["ViltConfig", "ViltModel", *_MODELS, "ViltImageProcessor", "ViltProcessor", "BertTokenizer"]
NAMES += ["ViTConfig", "ViTModel", "VisualBertConfig", "VisualBertModel"]
# What their tests read of their own base classes before they come to what they test, for a model that has no part of
# it: lent to our classes, where these lack it, while the tests run.
_GROUPS = ("text_kwargs", "images_kwargs")
LENT: dict[str, dict[str, Any]] = {
    "models.vit.ViTPreTrainedModel": {"_supports_sdpa": True},
    "models.base.PreTrainedModel": {
        "_can_set_attn_implementation": classmethod(lambda cls: False),
        "_can_set_experts_implementation": classmethod(lambda cls: False),
        "_from_config": classmethod(lambda cls, config, **kwargs: cls(config)),
        "_keep_in_fp32_modules": frozenset(),
        "_keep_in_fp32_modules_strict": frozenset(),
        "_keys_to_ignore_on_load_missing": None,
        "_supports_sdpa": False,
        "_tied_weights_keys": None,
    },
    "configs.base.PreTrainedConfig": {
        "__iter__": lambda self: iter(vars(self)),
        "base_model_tp_plan": None,
        "has_no_defaults_at_init": False,
        "sub_configs": {},
    },
    "processing.processor.ViltProcessor": {
        "_merge_kwargs": lambda self, *_, tokenizer_init_kwargs, **kwargs: dict.fromkeys(_GROUPS, kwargs),
        "chat_template": None,
        "get_attributes": classmethod(lambda cls: cls.attributes),
        "replace_image_token": transformers.ProcessorMixin.replace_image_token,
        "replace_video_token": transformers.ProcessorMixin.replace_video_token,
        "valid_processor_kwargs": {},
    },
}


def ours() -> SimpleNamespace:
    """This package's classes."""
    return SimpleNamespace(**{name: getattr(vilt_fast, name) for name in NAMES})


def originals() -> SimpleNamespace:
    """transformers' own, in whose image processor Pillow resizes (the other one needs torchvision)."""
    found = {name: getattr(transformers, name) for name in NAMES if name != "ViltImageProcessor"}
    return SimpleNamespace(**found, ViltImageProcessor=transformers.ViltImageProcessorPil)


@contextmanager
def mounted(tests: Path, classes: SimpleNamespace, source: Path | None = None) -> Iterator[Callable[[str], ModuleType]]:
    """A function that imports one of their test modules by name; all is as before when the block ends.

    Args:
        tests: folder of the common test modules.
        classes: what stands for transformers' classes.
        source: folder of the test files of one model, imported as `models.<family>.<file>`.
    """
    with ExitStack() as stack:
        added = {**_packages(tests, source), **_stand_ins()}
        stack.callback(_forget, added)
        stack.enter_context(mock.patch.object(sys, "path", [*sys.path]))  # their modules append to it
        stack.enter_context(mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(mock.patch.object(transformers.utils, "direct_transformers_import", lambda _: transformers))
        # Not the name above: some modules of transformers make `transformers` anew when they are first imported.
        imported = sys.modules["transformers"]
        for name, value in vars(classes).items():
            stack.enter_context(mock.patch.object(imported, name, value))
        if classes.ViltModel is vilt_fast.ViltModel:
            _lend(stack)
        stack.enter_context(mock.patch.object(pytest, "mark", _Marks()))  # ours are strict
        # Every machine runs the same tests; read when transformers.testing_utils is first imported.
        stack.enter_context(mock.patch.dict(os.environ, {"TRANSFORMERS_TEST_DEVICE": "cpu", "RUN_SLOW": "no"}))
        sys.modules.update(added)
        yield lambda name: _adapted(importlib.import_module(f"{PACKAGE}.{name}"), classes)


def _forget(added: Iterable[str]) -> None:
    """Their test modules only: what else was imported meanwhile, such as parts of transformers, stays."""
    for name in [name for name in sys.modules if name in added or name.startswith(f"{PACKAGE}.")]:
        del sys.modules[name]


def _lend(stack: ExitStack) -> None:
    for path, attributes in LENT.items():
        room, name = path.rsplit(".", 1)
        owner = getattr(importlib.import_module(f"vilt_fast.{room}"), name)
        for attribute, value in attributes.items():
            if getattr(owner, attribute, None) is None:
                stack.enter_context(mock.patch.object(owner, attribute, value, create=True))


def family_of(source: Path) -> str:
    """Whose test files a folder holds."""
    return next((family for family in FAMILIES if any(source.glob(f"test_*_{family}.py"))), FAMILIES[0])


def _packages(tests: Path, source: Path | None) -> dict[str, ModuleType]:
    """Empty packages over the folders."""
    paths = {"": [tests], ".models": []}
    paths |= {f".models.{family}": [source] if source and family_of(source) == family else [] for family in FAMILIES}
    packages = {}
    for name, folders in paths.items():
        packages[PACKAGE + name] = package = ModuleType(PACKAGE + name)
        package.__path__ = [str(folder) for folder in folders]
    return packages


def _stand_ins() -> dict[str, ModuleType]:
    """What their modules import, and the distribution or this environment lacks."""
    contents: dict[str, dict[str, Any]] = {
        f"{PACKAGE}.exporters": {},
        f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        f"{PACKAGE}.generation": {},
        f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        f"{PACKAGE}.test_pipeline_mixin": {"PipelineTesterMixin": type("PipelineTesterMixin", (), {})},
        f"{PACKAGE}.utils": {},
        f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": _common_settings()},
        # Their tests read the model's name off the path of the file that a test class stands in.
        **{
            f"{PACKAGE}.models.{family}.{SMALL.format(family)}": {
                "__file__": f"models/{family}/{SMALL.format(family)}.py"
            }
            for family in FAMILIES
        },
        "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
    }
    if importlib.util.find_spec("parameterized") is None:
        contents["parameterized"] = {"parameterized": SimpleNamespace(expand=_expand)}
    if importlib.util.find_spec("datasets") is None:
        contents["datasets"] = {"load_dataset": None}  # of tests that are slow, and skipped
    modules = {}
    for name, attributes in contents.items():
        modules[name] = ModuleType(name)
        modules[name].__dict__.update(attributes)
    return modules


def _common_settings() -> dict[str, Any]:
    """For each field that every configuration has, a value that is not its default."""
    labels = {0: "cat", 1: "dog", 2: "horse"}
    return {
        "architectures": ["ViltModel"],
        "chunk_size_feed_forward": 5,
        "dtype": "float16",
        "id2label": labels,
        "label2id": {label: i for i, label in labels.items()},
        "output_attentions": True,
        "output_hidden_states": True,
        "pad_token_id": 7,
        "problem_type": "regression",
        "return_dict": False,
    }


def _expand(cases: list[Any]) -> Callable[[Callable[..., None]], None]:
    """The part of `parameterized.expand` that they use: one method for each case, in the class being defined."""
    namespace = sys._getframe(1).f_locals

    def define(function: Callable[..., None]) -> None:
        for i, case in enumerate(cases):
            arguments = tuple(case) if isinstance(case, (tuple, list)) else (case,)

            def method(self: Any, arguments: tuple[Any, ...] = arguments) -> None:
                function(self, *arguments)

            suffix = f"_{arguments[0]}" if isinstance(arguments[0], str) else ""
            namespace[f"{function.__name__}_{i}{suffix}"] = method

    return define


class _Marks:
    """In the place of `pytest.mark`: every mark leaves a test as it is, given with arguments or without."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def mark(*arguments: Any, **_: Any) -> Any:
            return arguments[0] if arguments and callable(arguments[0]) else lambda test: test

        return mark


def _adapted(module: ModuleType, classes: SimpleNamespace) -> ModuleType:
    """Their registries, which know a class by its module in transformers, know the classes under test."""
    if classes.ViltModel is not vilt_fast.ViltModel:
        if hasattr(module, "IMAGE_PROCESSOR_MAPPING_NAMES"):
            module.IMAGE_PROCESSOR_MAPPING_NAMES = {"vilt": {"pil": "ViltImageProcessorPil"}}
        return module
    if hasattr(module, "IMAGE_PROCESSOR_MAPPING_NAMES"):
        module.IMAGE_PROCESSOR_MAPPING_NAMES = {"vilt": {"pil": "ViltImageProcessor"}}
        module.get_image_processor_class_from_name = lambda name: getattr(classes, name)
    if hasattr(module, "MODALITY_TO_AUTOPROCESSOR_MAPPING"):
        module.MODALITY_TO_AUTOPROCESSOR_MAPPING = {
            "image_processor": classes.ViltImageProcessor,
            "tokenizer": classes.BertTokenizer,
        }
    if hasattr(module, "GradientCheckpointingLayer"):
        # Of the blocks that gradient checkpointing runs twice.
        module.GradientCheckpointingLayer = importlib.import_module("vilt_fast.layers.encoder").Block
    return module
