"""What the commands share: the model, the processor and the images that a command line names, and what is printed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import vilt_fast
from vilt_fast.checkpoints.files import brief, read_json
from vilt_fast.checkpoints.hub import find_file
from vilt_fast.commands.given import REGION_FILES
from vilt_fast.engine.base import default_tokens
from vilt_fast.engine.visual_bert import VisualBertStages, too_many
from vilt_fast.engine.vit import describe_size, fixed_size
from vilt_fast.frozen.model import freeze
from vilt_fast.processing.decoding import load_image
from vilt_fast.processing.regions import Regions

DTYPES = {
    **dict.fromkeys(("float32", "fp32"), torch.float32),
    **dict.fromkeys(("float64", "fp64"), torch.float64),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float16", "fp16"), torch.float16),
}
# Word tables are padded to a multiple of 64 or 128 rows for the GPU's sake, so some at the end have no word.
_PADDED_ROWS = 128
# The command that can use the weights of a class.
COMMANDS = {
    "ViltForQuestionAnswering": "ask",
    "ViltForMaskedLM": "fill",
    "ViltForImageAndTextRetrieval": "match",
    "ViltForImageTextMatching": "match",
    "ViltForImagesAndTextClassification": "nlvr",
    "ViTForImageClassification": "classify",
    "VisualBertForQuestionAnswering": "ask",
    "VisualBertForVisualReasoning": "ask",
}
# What uses the weights of a class, where another command was given them.
_ADVICE = {
    **{name: f"use `vilt-fast {command}`" for name, command in COMMANDS.items()},
    **dict.fromkeys(
        ("VisualBertForQuestionAnswering", "VisualBertForVisualReasoning"), "use `vilt-fast ask --regions`"
    ),
    "VisualBertForPreTraining": "no command uses it, but in Python Engine.fill",
    # A configuration may name no class.
    "visual_bert": "use `vilt-fast ask --regions`",
    "vit": "use `vilt-fast classify`",
}
# By the model_type of a configuration.
PROCESSORS = {"vilt": "ViltProcessor", "vit": "ViTImageProcessor", "visual_bert": "VisualBertProcessor"}


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model, ready to answer, and its processor, as --model, --processor, --device and --dtype say.

    Raises:
        ValueError: an unknown device or dtype, or weights for another command.
        FileNotFoundError: no such model.
    """
    device = parse_device(arguments.device)
    if arguments.dtype not in DTYPES:
        raise ValueError(f"--dtype: got {arguments.dtype!r}, wanted one of {', '.join(DTYPES)}")
    dtype = DTYPES[arguments.dtype]
    _check_backend(arguments.backend, device)
    if arguments.model is None:
        if arguments.processor is not None:
            raise ValueError(f"--processor: got {arguments.processor!r} without --model, wanted both or neither")
        if getattr(arguments, "regions", None) is not None:
            raise ValueError("--model: got none, wanted a VisualBERT: the model that ships reads images, not regions")
        from vilt_fast import demo

        model, processor = getattr(demo, "load_vit" if arguments.command == "classify" else "load")()
        return model.to(device=device, dtype=dtype).eval(), processor
    # The processor first: it is quick to load, so that a mistyped name is reported at once.
    family = getattr(vilt_fast, model_class(arguments.model, arguments.command))
    _check_source(arguments, family)
    kind = getattr(vilt_fast, PROCESSORS[family.config_class.model_type])
    processor = kind.from_pretrained(arguments.processor or folder_of(arguments.model))
    model = family.from_pretrained(arguments.model, dtype=dtype, device=device)
    if arguments.command != "classify":
        _check_vocabulary(processor.tokenizer.get_vocab(), model.config.vocab_size)
    elif not model.config.num_labels:
        raise ValueError(f"--model {arguments.model}: has no labels (config.num_labels is 0), wanted some")
    return model.eval(), processor


def _check_source(arguments: argparse.Namespace, family: Any) -> None:
    """Refuse images for a model that reads regions, and the other way round; a file of questions may name either."""
    reads_regions = family.config_class.model_type == "visual_bert"
    has_regions = getattr(arguments, "regions", None) is not None
    has_images = getattr(arguments, "image", None) is not None or getattr(arguments, "folder", None) is not None
    if reads_regions and has_images:
        raise ValueError(
            f"--model {arguments.model}: got {family.__name__}, which reads regions that a detector has found in an "
            "image, not the image: vilt-fast ask --regions FILE.npz QUESTION"
        )
    if has_regions and not reads_regions:
        raise ValueError(f"--regions: got them for {family.__name__}, which reads images: vilt-fast ask IMAGE QUESTION")


def _check_vocabulary(vocabulary: dict[str, int], rows: int) -> None:
    """Refuse the vocabulary of another model, which would turn words into "unknown" in silence.

    A word beyond the table is refused where a text has it: tokens that were added and never used do no harm.
    """
    words = max(vocabulary.values(), default=-1) + 1
    if rows - words >= _PADDED_ROWS:
        raise ValueError(
            f"--processor: got a vocabulary of {words} words, wanted that of the model, which has {rows}: is vocab.txt "
            "(or tokenizer.json) whole, and the model's own?"
        )


def note_size(config: Any, processor: Any) -> None:
    """Say that a processor's images are of another size than the model's: meant, or the processor of another model."""
    size, patch = fixed_size(processor), config.patch_shape[0]
    if size is not None and (size[0] // patch, size[1] // patch) != config.table_size:
        print(f"note: {describe_size(size, config)}", file=sys.stderr)


def _check_backend(backend: str | None, device: torch.device) -> None:
    if backend != "kernels":
        return
    if importlib.util.find_spec("triton") is None:
        raise ValueError("--backend: kernels need Triton, which is not installed: pip install triton")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"--backend: kernels need a GPU, got --device {device}, wanted cuda, or --backend reference")


def model_class(name_or_path: str, command: str) -> str:
    """Name of the class for these weights: the one in config.json that fits the command, or the command's first.

    Raises:
        ValueError: the weights are for another command, or for none.
    """
    fitting = [name for name, its_command in COMMANDS.items() if its_command == command]
    named, kind = described(name_or_path)
    of_kind = [name for name in fitting if getattr(vilt_fast, name).config_class.model_type == kind]
    if not named and not of_kind and kind in _ADVICE:
        named = [kind]
    for name in named or of_kind or fitting:
        if name in fitting:
            return name
    advice = next((_ADVICE[name] for name in named if name in _ADVICE), "no command uses it")
    raise ValueError(f"--model {name_or_path}: got {', '.join(named)}, wanted {' or '.join(fitting)}; {advice}")


def described(name_or_path: str) -> tuple[list[str], Any]:
    """The "architectures" and the "model_type" of config.json; none for an original .ckpt, which has no such file."""
    if Path(name_or_path).suffix == ".ckpt":
        return [], None
    path = find_file(folder_of(name_or_path), "config.json")
    assert path is not None  # it is required
    content = read_json(path)
    named = content.get("architectures")
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return classes, content.get("model_type")


def folder_of(name_or_path: str) -> str:
    """Where the other files are: beside a single weights file, or in the directory or repository itself."""
    return str(Path(name_or_path).parent) if Path(name_or_path).is_file() else name_or_path


def parse_device(name: str) -> torch.device:
    """An available device. ValueError for an unknown one, and for one that this machine lacks."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device: got {name!r}, wanted cpu, cuda, cuda:N or mps")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"--device: got {name!r}, but PyTorch {torch.__version__} sees {count} CUDA devices here")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device: got {name!r}, but PyTorch {torch.__version__} sees no MPS device here")
    return device


def open_and_load(
    arguments: argparse.Namespace, *paths: str, frozen: bool = True
) -> tuple[list[Image.Image], Any, Any]:
    """The images as RGB, the model and its processor; the images first, so that a bad file is reported at once.

    Args:
        frozen: the model in its frozen form, without graphs: it answers a few times. The live one returns attentions.

    Raises:
        FileNotFoundError: no such file. ValueError: not an image, or a damaged one. And whatever `load` raises.
    """
    images = [open_image(path) for path in paths]
    model, processor = load(arguments)
    return images, freeze(model, graphs=False) if frozen else model, processor


def open_image(path: str) -> Image.Image:
    """An image as RGB, which knows its file for errors; raises as `open_and_load`."""
    if Path(path).suffix.lower() in REGION_FILES:
        raise ValueError(
            f"IMAGE: got {brief(path)}, a file of regions: vilt-fast ask --regions FILE QUESTION, or, to fill masked "
            "words, Engine.fill in Python"
        )
    image: Any = load_image(path, name="IMAGE")
    image.filename = path
    return image


def prepare_images(processor: Any, model: Any, images: list[Image.Image], **texts: Any) -> dict[str, torch.Tensor]:
    """The model's inputs for images, with the processor's arguments `texts`, on its device and in its dtype."""
    try:
        encoded = processor(images=images, return_tensors="pt", **texts)
    except ValueError as error:
        raise ValueError(_name_images(str(error), images)) from error
    return dict(encoded.to(model.device, model.dtype))


def prepare(processor: Any, model: Any, images: list[Image.Image], text: str | list[str]) -> dict[str, torch.Tensor]:
    """The model's inputs for images and texts, on its device and in its dtype."""
    encoded = prepare_images(processor, model, images, text=text, padding=True)
    _check_length(encoded, model)
    return encoded


def prepare_regions(processor: Any, model: Any, regions: Regions, text: str, where: str) -> dict[str, torch.Tensor]:
    """The model's inputs for the regions of an image and a text, on its device and in its dtype.

    Args:
        where: what errors call the regions.

    Raises:
        ValueError: more words, or words and regions, than an Engine takes, or features that the dtype does not hold.
    """
    encoded = dict(processor(text, regions, return_tensors="pt").to(model.device, model.dtype))
    _check_length(encoded, model)
    tokens = encoded["input_ids"].shape[1] + len(regions)
    most = max(default_tokens(model.device), VisualBertStages.longest(model.config, processor))
    if tokens > most:
        raise ValueError(too_many(where, tokens, most))
    if not encoded["visual_embeds"].isfinite().all():  # as float32 they are
        raise ValueError(f"--dtype: the features overflow in {model.dtype}, wanted a wider one, as is float32")
    return encoded


def _check_length(encoded: dict[str, torch.Tensor], model: Any) -> None:
    got, longest = encoded["input_ids"].shape[1], model.config.max_position_embeddings
    if got > longest:
        raise ValueError(f"the text has {got} tokens, wanted at most {longest} with this model: use fewer words")


def _name_images(message: str, images: list[Image.Image]) -> str:
    """The message with the file's name for "images[0]"."""

    def name(match: re.Match[str]) -> str:
        path = getattr(images[int(match[1])], "filename", None)
        return f"IMAGE: {path!r}" if path else match[0]

    return re.sub(r"^images\[(\d+)\]", name, message)


def finite(scored: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Texts with their scores, as they came.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    found = list(scored)
    if not all(math.isfinite(score) for _, score in found):
        raise ValueError("--model: its answers are not finite numbers: the weights, or the dtype, overflow")
    return found


def print_ranked(ranked: Iterable[tuple[str, float]], score_format: str = "6.1%") -> None:
    """One line for each text, its score in front."""
    for text, score in ranked:
        print(f"  {score:{score_format}}  {printable(text)}")


def as_dicts(ranked: Iterable[tuple[str, float]], text: str, score: str = "probability") -> list[dict[str, Any]]:
    """The same for JSON, under these names."""
    return [{text: one, score: value} for one, value in ranked]


def print_json(arguments: argparse.Namespace, **answer: Any) -> None:
    """Print the request and the answer as one JSON object."""
    seen = "image" if getattr(arguments, "regions", None) is None else "regions"
    asked = ("model", seen, "images", "question", "text")
    given = {name: getattr(arguments, name) for name in asked if hasattr(arguments, name)}
    text = json.dumps({**given, **answer}, indent=2, ensure_ascii=False, allow_nan=False)
    # What a terminal would obey, and what is no Unicode, can only be inside strings, and has an escape there.
    print("\n".join(_escaped(line, lambda character: json.dumps(character)[1:-1]) for line in text.split("\n")))


def printable(text: str) -> str:
    r"""The text with what a terminal would obey (ESC, ...) and what is no Unicode as Python's escapes: \x1b, \udcff."""
    return _escaped(text, lambda character: character.encode("unicode_escape").decode())


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    joiners = "\u200c\u200d"  # invisible, and part of words in some scripts and of emoji
    return "".join(c if c.isprintable() or c in joiners else escape(c) for c in text)


def note_shipped_model(arguments: argparse.Namespace) -> None:
    """Say beside an answer what the model knows that answers when no other is named."""
    if arguments.model is None:
        large = "google/vit-base-patch16-224" if arguments.command == "classify" else "dandelin/vilt-b32-finetuned-vqa"
        print(
            "note: answered by the small model that ships with the package, which knows drawn shapes only; for "
            f"photographs: --model {large}",
            file=sys.stderr,
        )
