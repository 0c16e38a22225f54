"""From decoded images in host memory and questions as strings to logits: preparation counts."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vilt_fast
from vilt_fast.bench import ours, peers, verify, workloads
from vilt_fast.bench.case import Case
from vilt_fast.bench.contestant import Calls, Contestant, Unavailable
from vilt_fast.bench.flops import Cost
from vilt_fast.processing import BertTokenizer, ViltImageProcessor, ViltProcessor

# The vocabulary that ships: what the words are does not matter to a clock.
VOCABULARY = Path(vilt_fast.__file__).parent / "demo" / "weights" / "vocab.txt"
SCOPE = "pictures"


@dataclass
class ImageCase:
    """vqa-mix before its images are resized.

    Args:
        model_case: whose weights and batch size count.
        quick: images a quarter as large.
    """

    model_case: Case
    quick: bool = False

    is_sampled = False
    bounds = verify.BOUNDS

    def __post_init__(self) -> None:
        case = self.model_case
        self.device, self.compiles, self.config, batch = case.device, case.compiles, case.config, case.workload.batch
        generator = np.random.default_rng(7)
        sizes = workloads.coco_sizes(generator, batch)
        self.images = [_photo(generator, *(side // 4 if self.quick else side for side in size)) for size in sizes]
        words = [w for w in VOCABULARY.read_text(encoding="utf-8").split() if w.isalpha()]
        self.questions = [" ".join(generator.choice(words, 7)) + "?" for _ in range(batch)]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Of every image processor."""
        if not self.quick:
            return {}
        patch = self.config.patch_shape[0]
        return {"size": {"shortest_edge": 12 * patch}, "size_divisor": patch}

    def processor(self, device: torch.device | None = None) -> ViltProcessor:
        """Ours."""
        tokenizer = BertTokenizer(VOCABULARY)
        return ViltProcessor(ViltImageProcessor(**self.settings), tokenizer, device=device)

    @cached_property
    def padded(self) -> dict[str, Tensor]:
        """The inputs by Pillow's arithmetic."""
        made = self.processor()(self.images, self.questions, padding=True, return_tensors="pt")
        wanted = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
        return {name: made[name].to(self.device) for name in wanted}

    @cached_property
    def wanted(self) -> Tensor:
        """Logits of those by the padded reference in fp64."""
        return self.model_case.right_logits(self.padded)

    @cached_property
    def as_run(self) -> Case:
        """A case of the same sizes, for formulas."""
        sizes = tuple((int(m[:, 0].sum()), int(m[0].sum())) for m in self.padded["pixel_mask"])
        lengths = tuple(int(n) for n in self.padded["attention_mask"].sum(1))
        return Case(workloads.Workload("vqa-mix", sizes, lengths), self.config, self.device)

    def cost(self, scope: str, dtype: torch.dtype) -> Cost:
        """Of the model alone: preparation has no formula here."""
        return self.as_run.cost("model", dtype)

    def describe(self) -> dict[str, Any]:
        """Columns of a row."""
        return {**self.as_run.describe(), "workload": "vqa-mix pictures"}


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
    ours.need_kernels(case.model_case, backend)
    model, processor = case.model_case.model(dtype), case.processor(case.device if is_packed else None)

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


def engine_way(case: ImageCase, dtype: torch.dtype, repeats: int) -> Calls:
    """`vilt_fast.engine.Engine`, with graphs where there is a GPU; every image an object of its own."""
    from vilt_fast.engine import Engine

    engine = Engine(case.model_case.model(dtype), case.processor())
    images = [image.copy() for _ in range(repeats) for image in case.images]
    questions = case.questions * repeats

    def call() -> Tensor:
        return torch.stack(engine.logits(images, questions, progress=False))

    weakref.finalize(call, engine.close)  # its threads end when nobody can call it any more
    return [call]


def transformers_way(case: ImageCase, dtype: torch.dtype, kind: str) -> Calls:
    """transformers' image processor `kind` with its tokenizer and model."""
    model = peers.transformers_model(case.model_case, dtype)
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
