"""From decoded pictures in host memory and questions as strings to logits: preparation counts."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vilt_fast
from vilt_fast.bench import ours, peers, verify, workloads
from vilt_fast.bench.case import Case, full_precision, padded_logits
from vilt_fast.bench.contestant import Calls, Contestant, Unavailable
from vilt_fast.bench.flops import Cost
from vilt_fast.processing import BertTokenizer, ViltImageProcessor, ViltProcessor

# The vocabulary that ships: what the words are does not matter to a clock.
VOCABULARY = Path(vilt_fast.__file__).parent / "demo" / "weights" / "vocab.txt"
SCOPE = "pictures"


@dataclass
class PictureCase:
    """vqa-mix before its pictures are resized.

    Args:
        model_case: whose weights and batch size count.
        quick: pictures a quarter as large.
    """

    model_case: Case
    quick: bool = False

    is_sampled = False
    bounds = verify.BOUNDS

    def __post_init__(self) -> None:
        self.device, self.compiles, self.config = (
            self.model_case.device,
            self.model_case.compiles,
            self.model_case.config,
        )
        batch = self.model_case.workload.batch
        generator = np.random.default_rng(7)
        share = np.array(list(workloads.COCO_SIZES.values())) / 100
        sizes = [list(workloads.COCO_SIZES)[i] for i in generator.choice(len(share), batch, p=share)]
        self.pictures = [_picture(generator, *(side // 4 if self.quick else side for side in size)) for size in sizes]
        words = [w for w in VOCABULARY.read_text(encoding="utf-8").split() if w.isalpha()]
        self.questions = [" ".join(generator.choice(words, 7)) + "?" for _ in range(batch)]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Of every picture processor."""
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
        made = self.processor()(self.pictures, self.questions, padding=True, return_tensors="pt")
        wanted = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
        return {name: made[name].to(self.device) for name in wanted}

    @cached_property
    def wanted(self) -> Tensor:
        """Logits of those by the padded reference in fp64."""
        with full_precision(), torch.inference_mode():
            state = self.model_case.model(torch.float64).state_dict()
            return padded_logits(state, self.config, self.padded, torch.float64)

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


def _picture(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: smooth colours with some noise, as photographs are."""
    y, x = np.mgrid[0:height, 0:width]
    waves = generator.uniform(0.005, 0.05, (3, 2))
    smooth = [128 + 90 * np.sin(a * y + b * x) for a, b in waves]
    noise = generator.normal(0, 12, (height, width, 3))
    return np.clip(np.stack(smooth, -1) + noise, 0, 255).astype(np.uint8)


def padded_way(case: PictureCase, dtype: torch.dtype, backend: str) -> Calls:
    """Our processor as Hugging Face calls it, Pillow on the host, then our model."""
    ours.need_kernels(case.model_case, backend)
    model, processor = case.model_case.model(dtype), case.processor()

    def call() -> Tensor:
        made = processor(case.pictures, case.questions, padding=True, return_tensors="pt")
        inputs = {name: value.to(case.device) for name, value in made.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        with vilt_fast.backend(backend):
            return model(**inputs).logits

    return [call]


def packed_way(case: PictureCase, dtype: torch.dtype, backend: str) -> Calls:
    """Our processor with a device: pictures stay uint8 and unpadded, and are resized where the model runs."""
    ours.need_kernels(case.model_case, backend)
    model, processor = case.model_case.model(dtype), case.processor(case.device)

    def call() -> Tensor:
        with vilt_fast.backend(backend):
            inputs = processor(case.pictures, case.questions, padding=True, return_tensors="pt")
            return model(**inputs).logits

    return [call]


def engine_way(case: PictureCase, dtype: torch.dtype, repeats: int) -> Calls:
    """`vilt_fast.engine.Engine`, with graphs where there is a GPU; every picture an object of its own."""
    from vilt_fast.engine import Engine

    engine = Engine(case.model_case.model(dtype), case.processor())
    pictures = [picture.copy() for _ in range(repeats) for picture in case.pictures]
    questions = case.questions * repeats

    def call() -> Tensor:
        return torch.stack(engine.logits(pictures, questions, progress=False))

    weakref.finalize(call, engine.close)  # its threads end when nobody can call it any more
    return [call]


def transformers_way(case: PictureCase, dtype: torch.dtype, kind: str) -> Calls:
    """transformers' picture processor `kind` with its tokenizer and model."""
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
        pictures = image_processor(case.pictures, return_tensors="pt", **options)
        inputs = {name: value.to(case.device) for name, value in {**texts, **pictures}.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        return model(**inputs).logits

    return [call]


def contestants(dtype: torch.dtype, repeats: int) -> list[Contestant]:
    """Theirs, then ours; the engine answers `repeats` batches a call."""
    makes: dict[str, tuple[Callable[..., Calls], dict[str, str], bool]] = {
        "transformers, PIL processor": (transformers_way, {"kind": "ViltImageProcessorPil"}, False),
        "transformers, torchvision processor": (transformers_way, {"kind": "ViltImageProcessor"}, False),
        "vilt_fast reference, Pillow, padded": (padded_way, {"backend": "reference"}, True),
        "vilt_fast reference, packed uint8": (packed_way, {"backend": "reference"}, True),
        "vilt_fast kernels, Pillow, padded": (padded_way, {"backend": "kernels"}, True),
        "vilt_fast kernels, packed uint8": (packed_way, {"backend": "kernels"}, True),
    }
    engine = partial(engine_way, dtype=dtype, repeats=repeats)
    found = [
        Contestant(name, dtype, partial(make, dtype=dtype, **options), SCOPE, is_ours=is_ours)
        for name, (make, options, is_ours) in makes.items()
    ]
    return [*found, Contestant("vilt_fast Engine", dtype, engine, SCOPE, is_ours=True, repeats=repeats)]
