"""The model, the processor and the pictures that a command line names."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import vilt_fast
from vilt_fast.checkpoints.hub import find_file
from vilt_fast.processing.pictures import load_picture

DTYPES = {
    **dict.fromkeys(("float32", "fp32"), torch.float32),
    **dict.fromkeys(("float64", "fp64"), torch.float64),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float16", "fp16"), torch.float16),
}
# The class of the weights names the command that can use them.
COMMANDS = {
    "ViltForQuestionAnswering": "ask",
    "ViltForMaskedLM": "fill",
    "ViltForImageAndTextRetrieval": "match",
    "ViltForImageTextMatching": "match",
    "ViltForImagesAndTextClassification": "nlvr",
}


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model, ready to answer, and its processor, as --model, --processor, --device and --dtype say.

    Raises:
        ValueError: an unknown device or dtype, or weights that are for another command.
        FileNotFoundError: no such model.
    """
    device, dtype = parse_device(arguments.device), parse_dtype(arguments.dtype)
    if arguments.model is None:
        if arguments.processor is not None:
            raise ValueError(f"--processor: got {arguments.processor!r} without --model, wanted both or neither")
        from vilt_fast import demo

        model, processor = demo.load()
        return model.to(device=device, dtype=dtype).eval(), processor
    # The processor first: it is quick to load, and a mistyped name shows at once.
    name = model_class(arguments.model, arguments.command)
    processor = vilt_fast.ViltProcessor.from_pretrained(arguments.processor or _folder(arguments.model))
    model = getattr(vilt_fast, name).from_pretrained(arguments.model, dtype=dtype, device=device)
    return model.eval(), processor


def model_class(name_or_path: str, command: str) -> str:
    """Name of the class for these weights, which config.json says; without a word from it, the command's first.

    Raises:
        ValueError: the weights are for another command, or for none.
    """
    fitting = [name for name, its_command in COMMANDS.items() if its_command == command]
    named = _architectures(name_or_path)
    for name in named:
        if name in fitting:
            return name
    if not named:
        return fitting[0]
    usable = next((COMMANDS[name] for name in named if name in COMMANDS), None)
    advice = f"use `vilt-fast {usable}`" if usable else "no command uses it"
    raise ValueError(f"--model {name_or_path}: got {', '.join(named)}, wanted {' or '.join(fitting)}; {advice}")


def _architectures(name_or_path: str) -> list[str]:
    """The "architectures" of config.json; none for an original .ckpt, which has no such file."""
    if Path(name_or_path).suffix == ".ckpt":
        return []
    path = find_file(_folder(name_or_path), "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    named = config.get("architectures") if isinstance(config, dict) else None
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _folder(name_or_path: str) -> str:
    """Where the other files are: beside a single file of weights, or in the directory or repository itself."""
    return str(Path(name_or_path).parent) if Path(name_or_path).is_file() else name_or_path


def parse_dtype(name: str) -> torch.dtype:
    """A floating dtype by its name. ValueError for any other word."""
    if name not in DTYPES:
        raise ValueError(f"--dtype: got {name!r}, wanted one of {', '.join(DTYPES)}")
    return DTYPES[name]


def parse_device(name: str) -> torch.device:
    """A device that is there. ValueError for an unknown one, and for one that this machine lacks."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: got {name!r}, wanted cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"--device: got {name!r}, but PyTorch {torch.__version__} sees {count} CUDA devices here")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(f"--device: got {name!r}, but PyTorch {torch.__version__} sees no MPS device here")
    elif device.type != "cpu":
        raise ValueError(f"--device: got {name!r}, wanted cpu, cuda, cuda:N or mps")
    return device


def open_picture(path: str) -> Image.Image:
    """The picture as RGB; before the weights are read, so that a bad file shows at once.

    Raises:
        FileNotFoundError: no such file. ValueError: it is no picture, or a damaged one.
    """
    return load_picture(path, name="IMAGE")


def check_folder(path: str) -> None:
    """Find out that a picture cannot be written before it is made. OSError says why."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"--out: {path!r} is a directory, wanted the name of a PNG file")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"--out: the directory of {path!r} does not exist")


def prepare(processor: Any, model: Any, images: list[Image.Image], text: str | list[str]) -> dict[str, torch.Tensor]:
    """The model's inputs for pictures and texts, on its device and in its dtype."""
    encoded = processor(images=images, text=text, padding=True, return_tensors="pt")
    like = next(model.parameters())
    return {
        name: value.to(device=like.device, dtype=like.dtype if value.is_floating_point() else None)
        for name, value in encoded.items()
    }


def print_json(arguments: argparse.Namespace, **answer: Any) -> None:
    """Print what was asked and what came out, as one JSON object."""
    asked = ("model", "image", "images", "question", "text")
    given = {name: getattr(arguments, name) for name in asked if hasattr(arguments, name)}
    print(json.dumps({**given, **answer}, indent=2, ensure_ascii=False))
