"""From decoded images in host memory and questions as strings to logits: preparation counts."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vilt_fast
from vilt_fast.bench import ours, peers, workloads
from vilt_fast.bench.case import Case
from vilt_fast.bench.contestant import Calls, Contestant, Unavailable
from vilt_fast.processing import BertTokenizer, ViltImageProcessor, ViltProcessor

# The vocabulary that ships: what the words are does not matter to a clock.
VOCABULARY = Path(vilt_fast.__file__).parent / "demo" / "weights" / "vocab.txt"
SCOPE = "pictures"


class ImageCase(Case):
    """vqa-mix before its images are resized; as a case, what becomes of it by Pillow's arithmetic.

    Args:
        like: whose model, device and batch size count.
        quick: images a quarter as large.
    """

    def __init__(self, like: Case, quick: bool = False) -> None:
        generator, batch, patch = np.random.default_rng(7), like.workload.batch, like.config.patch_shape[0]
        sizes = workloads.coco_sizes(generator, batch)
        self.images = [_photo(generator, *(side // 4 if quick else side for side in size)) for size in sizes]
        words = [w for w in VOCABULARY.read_text(encoding="utf-8").split() if w.isalpha()]
        self.questions = [" ".join(generator.choice(words, 7)) + "?" for _ in range(batch)]
        # Of every image processor.
        self.settings: dict[str, Any] = {"size": {"shortest_edge": 12 * patch}, "size_divisor": patch} if quick else {}
        made = self.processor()(self.images, self.questions, padding=True, return_tensors="pt")
        wanted = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
        self.inputs = [{name: made[name].to(like.device) for name in wanted}]
        resized = tuple((int(mask[:, 0].sum()), int(mask[0].sum())) for mask in made["pixel_mask"])
        lengths = tuple(made["attention_mask"].sum(1).tolist())
        workload = workloads.Workload("vqa-mix pictures", resized, lengths)
        super().__init__(workload, like.config, like.device, compiles=like.compiles)

    def processor(self, device: torch.device | None = None) -> ViltProcessor:
        """Ours."""
        tokenizer = BertTokenizer(VOCABULARY)
        return ViltProcessor(ViltImageProcessor(**self.settings), tokenizer, device=device)


def _photo(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: smooth colours with some noise, as photographs are."""
    y, x = np.mgrid[0:height, 0:width]
    waves = generator.uniform(0.005, 0.05, (3, 2))
    smooth = [128 + 90 * np.sin(a * y + b * x) for a, b in waves]
    noise = generator.normal(0, 12, (height, width, 3))
    return np.clip(np.stack(smooth, -1) + noise, 0, 255).astype(np.uint8)


def model_way(case: ImageCase, dtype: torch.dtype, backend: str, is_packed: bool) -> Calls:
    """Our processor and our model.

    Padded, as Hugging Face calls it, with Pillow on the host; or packed, where images stay uint8 and are resized where
    the model runs.
    """
    ours.need_kernels(case, backend)
    model, processor = case.model(dtype), case.processor(case.device if is_packed else None)

    def call() -> Tensor:
        with vilt_fast.backend(backend if is_packed else None):
            inputs = processor(case.images, case.questions, padding=True, return_tensors="pt")
        with vilt_fast.backend(backend):
            return model(**(inputs if is_packed else _moved(inputs, case.device, dtype))).logits

    return [call]


def _moved(inputs: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Padded inputs on the device, their pixels in `dtype`."""
    moved = {name: value.to(device) for name, value in inputs.items()}
    return {**moved, "pixel_values": moved["pixel_values"].to(dtype)}


def engine_way(case: ImageCase, dtype: torch.dtype, repeats: int, **options: Any) -> Calls:
    """`vilt_fast.engine.Engine` with such options; every image an object of its own."""
    from vilt_fast.engine import Engine

    engine = Engine(case.model(dtype), case.processor(), **options)
    images = [image.copy() for _ in range(repeats) for image in case.images]
    questions = case.questions * repeats

    def call() -> Tensor:
        return torch.stack(engine.logits(images, questions, progress=False))

    weakref.finalize(call, engine.close)  # its threads end when nobody can call it any more
    return [call]


def transformers_way(case: ImageCase, dtype: torch.dtype, kind: str) -> Calls:
    """transformers' image processor `kind` with its tokenizer and model."""
    model = peers.transformers_model(case, dtype)
    import transformers

    if kind == "ViltImageProcessor" and not transformers.utils.is_torchvision_available():
        raise Unavailable("torchvision is not installed")
    image_processor = getattr(transformers, kind)(**case.settings)
    words = VOCABULARY.read_text(encoding="utf-8").splitlines()
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    options = {"device": case.device} if kind == "ViltImageProcessor" else {}

    def call() -> Tensor:
        texts = tokenizer(case.questions, padding=True, return_tensors="pt")
        images = image_processor(case.images, return_tensors="pt", **options)
        return model(**_moved({**texts, **images}, case.device, dtype)).logits

    return [call]


def contestants(dtype: torch.dtype, repeats: int) -> list[Contestant]:
    """Theirs, then ours; the engine answers `repeats` batches per call."""
    theirs = {"PIL": "ViltImageProcessorPil", "torchvision": "ViltImageProcessor"}
    found = [
        Contestant(f"transformers, {name} processor", dtype, partial(transformers_way, dtype=dtype, kind=kind), SCOPE)
        for name, kind in theirs.items()
    ]
    for backend in ("reference", "kernels"):
        for form, is_packed in (("Pillow, padded", False), ("packed uint8", True)):
            make = partial(model_way, dtype=dtype, backend=backend, is_packed=is_packed)
            found.append(Contestant(f"vilt_fast {backend}, {form}", dtype, make, SCOPE, is_ours=True))
    engine = partial(engine_way, dtype=dtype, repeats=repeats)
    return [*found, Contestant("vilt_fast Engine", dtype, engine, SCOPE, is_ours=True, repeats=repeats)]
