"""What a file says of itself, so that a process without this package can prepare inputs and read answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import vilt_fast
from vilt_fast.export.axes import Axis, input_axes
from vilt_fast.models.base import PreTrainedModel
from vilt_fast.processing.vilt import ViltImageProcessor
from vilt_fast.processing.vit import ViTImageProcessor

# The entry of a file's metadata that has it all, as JSON; a file with such an entry is one of ours.
KEY = "vilt_fast"
_IMAGE_PROCESSORS: dict[str, Any] = {"vilt": ViltImageProcessor, "vit": ViTImageProcessor}  # by model_type
_LIBRARIES = {"torch": ("torch",), "onnx": ("torch", "onnx", "onnxscript"), "aoti": ("torch",)}


def describe(model: PreTrainedModel, axes: Mapping[str, Axis], format: str, processor: Any = None) -> dict[str, Any]:
    """The metadata of a model's file, plain values that JSON holds.

    Args:
        axes: of the inputs.
        processor: an image processor, a tokenizer, or one that has both; None: the file says nothing of them.

    Raises:
        ValueError: `processor` is nothing of the kind.
    """
    image_processor = getattr(processor, "image_processor", processor if hasattr(processor, "preprocess") else None)
    tokenizer = getattr(processor, "tokenizer", processor if hasattr(processor, "batch_decode") else None)
    if processor is not None and image_processor is None and tokenizer is None:
        raise ValueError(
            f"processor: got a {type(processor).__name__}, wanted a processor, an image processor or a tokenizer"
        )
    wanted = _IMAGE_PROCESSORS.get(model.config.model_type)
    if image_processor is not None and not (wanted and isinstance(image_processor, wanted)):
        raise ValueError(
            f"processor: got a {type(image_processor).__name__} for a {type(model).__name__}, wanted "
            f"{wanted.__name__ if wanted else 'one without images'}"
        )
    return {
        "model_class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "inputs": {name: list(axes) for name, axes in input_axes(model).items()},
        "axes": {
            name: {key: value for key, value in asdict(axis).items() if key != "name"} for name, axis in axes.items()
        },
        "id2label": {str(index): label for index, label in model.config.id2label.items()},
        "image_processor": None if image_processor is None else image_processor.to_dict(),
        "tokenizer": None if tokenizer is None else tokenizer.files_to_save()["tokenizer.json"],
        "versions": {"vilt_fast": vilt_fast.__version__, **_versions(format)},
    }


def to_text(about: Mapping[str, Any]) -> str:
    """JSON of one line; raises ValueError for what JSON cannot hold."""
    try:
        return json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"config.id2label, or a setting of the processor, cannot be written as JSON: {error}"
        ) from error


def _versions(format: str) -> dict[str, str]:
    found = {}
    for name in _LIBRARIES[format]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a build without its metadata
            continue
    return found
