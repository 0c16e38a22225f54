"""One batch to run contestants on: a model with telling weights, inputs on the device, and the right answer in fp64."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vilt_fast.bench import flops, verify, workloads
from vilt_fast.bench.workloads import Workload
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.models.inputs import Inputs
from vilt_fast.models.vilt import ViltForImagesAndTextClassification, ViltForQuestionAnswering
from vilt_fast.packing import Layout
from vilt_fast.pixels import PackedPixels
from vilt_fast.reference import vilt as reference
from vilt_fast.reference.patch_sample import patch_sample

REFERENCE_CHUNK = 16  # pairs that the padded fp64 reference takes at once; it keeps every attention matrix


def full_config(workload: Workload, **fields: Any) -> ViltConfig:
    """ViLT-B/32 with the head of the workload's task: 3129 answers, or NLVR2's two.

    Args:
        fields: in place of its own.
    """
    several = workload.pictures > 1
    task = {
        "num_labels": 2 if several else 3129,
        "num_images": workload.pictures if several else -1,
        "modality_type_vocab_size": workload.pictures + 1 if several else 2,
        "max_image_length": workload.max_image_length,
    }
    return ViltConfig(**{**task, **fields})


def tiny_config(workload: Workload, **fields: Any) -> ViltConfig:
    """A model for checks: two blocks of 48 with patches of 8.

    Args:
        fields: in place of its own.
    """
    sizes = {
        "vocab_size": 200,
        "num_labels": 7,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "patch_size": 8,
        "image_size": 96,
        "max_position_embeddings": 40,
    }
    return full_config(workload, **{**sizes, **fields})


@torch.no_grad()
def telling_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights under which every term of the model moves the logits, so that a wrong mask or position shows.

    Matrices have deviation 1 / sqrt(fan in), norms are near one, the rest has deviation 0.3. With the usual initial
    deviation of 0.02 attention would be nearly uniform, and a contestant that gets it wrong would pass.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() or "classifier.1." in name:
            value = 0.2 * value + float(name.endswith("weight"))
        elif name.endswith("weight") and "embeddings.weight" not in name:
            value = value / parameter[0].numel() ** 0.5
        else:
            value = 0.3 * value
        parameter.copy_(value)
    return model


_MODELS: dict[str, Any] = {}
_MOST_MODELS = 12  # of a gigabyte at most


def _shared(key: str, make: Callable[[], Any]) -> Any:
    if key not in _MODELS:
        while len(_MODELS) >= _MOST_MODELS:  # the oldest goes
            _MODELS.pop(next(iter(_MODELS)))
        _MODELS[key] = make()
    return _MODELS[key]


@dataclass
class Case:
    """A workload with its model and its inputs.

    Args:
        workload, config: what and how large.
        device: where contestants run.
        sets: how many batches with the same shapes and other values take turns.
        compiles: whether contestants that compile for minutes take part.
    """

    workload: Workload
    config: Any  # the family's
    device: torch.device
    sets: int = 2
    compiles: bool = False

    bounds = verify.BOUNDS

    @classmethod
    def of(cls, workload: Workload, device: torch.device, sets: int, compiles: bool, *, quick: bool) -> Case:
        """With the full-size model; or shrunk, with the tiny one."""
        small = workloads.shrunk(workload, 8, side=192) if quick else workload
        return cls(small, (tiny_config if quick else full_config)(small), device, sets, compiles)

    @cached_property
    def key(self) -> str:
        """Names the weights: cases with the same key share models."""
        return json.dumps([self.workload.pictures, self.config.to_dict()], sort_keys=True, default=str)

    @property
    def master(self) -> Any:
        """Our model in fp32 on the CPU: the weights that everybody gets."""
        kind = ViltForImagesAndTextClassification if self.workload.pictures > 1 else ViltForQuestionAnswering
        return _shared(self.key, lambda: telling_weights(kind(self.config)).eval())

    def model(self, dtype: torch.dtype) -> Any:
        """Our model with those weights, on the device. It is shared: who changes it copies it first."""
        return self.shared("vilt_fast", dtype, lambda: copy.deepcopy(self.master))

    def shared(self, name: str, dtype: torch.dtype, make: Callable[[], torch.nn.Module]) -> Any:
        """What `make` gives, on the device in `dtype`, kept for the cases that follow.

        Making a model takes seconds; a suite has fifty cases.
        """

        def moved() -> torch.nn.Module:
            return make().eval().to(self.device, dtype).requires_grad_(False)

        return _shared(f"{name} {dtype} {self.device} {self.key}", moved)

    @cached_property
    def inputs(self) -> list[dict[str, Tensor]]:
        """The padded inputs, fp32, on the device."""
        made = [self.workload.inputs(self.config, seed) for seed in range(self.sets)]
        return [{name: value.to(self.device) for name, value in one.items()} for one in made]

    def inputs_in(self, dtype: torch.dtype) -> list[dict[str, Tensor]]:
        """The inputs with pixels of a dtype."""
        return [{**one, "pixel_values": one["pixel_values"].to(dtype)} for one in self.inputs]

    @cached_property
    def packed_inputs(self) -> list[dict[str, Any]]:
        """The same images as bytes without padding."""
        return [self._pack(one) for one in self.inputs]

    def _pack(self, one: dict[str, Tensor]) -> dict[str, Any]:
        words = {name: one[name] for name in ("input_ids", "attention_mask")}
        return {**words, "pixel_values": self.as_bytes(one)}

    def as_bytes(self, one: dict[str, Tensor]) -> PackedPixels:
        """The images of one of the inputs, without padding."""
        images = one["pixel_values"].flatten(0, -4)
        flat = []
        for pixels, (height, width) in zip(images, self.workload.sizes, strict=True):
            u = (pixels[:, :height, :width] + 1).mul(127.5).round().to(torch.uint8)
            flat.append(u.permute(1, 2, 0).flatten())
        return PackedPixels(torch.cat(flat), self.workload.sizes)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every sequence."""
        return self.workload.sequences(self.config.patch_shape[0])

    @cached_property
    def wanted(self) -> Tensor:
        """Logits of the first inputs by the padded reference in fp64."""
        with full_precision(), torch.inference_mode():
            return self._reference(self.model(torch.float64).state_dict())

    def _reference(self, state: dict[str, Tensor]) -> Tensor:
        return padded_logits(state, self.config, self.inputs[0], torch.float64)

    @cached_property
    def packed(self) -> tuple[Tensor, Layout]:
        """Embedded rows (total_tokens, d) fp32 of the first inputs and their layout: where the encoder starts."""
        from vilt_fast import ops

        model = self.model(torch.float32)
        with ops.backend("reference"), torch.inference_mode():
            first: dict[str, Any] = self.inputs[0]
            inputs = Inputs(**first)
            inputs = inputs if model.slots is None else inputs.fold_images(model.slots)
            batch = inputs.check(self.config, self.device)
            layout = batch.layout(self.config, False, [])
            tokens, _ = model.vilt.embeddings(
                layout,
                input_ids=batch.input_ids,
                token_type_ids=batch.token_type_ids,
                pixel_values=batch.pixel_values,
                pair_modality=batch.pair_modality,
            )
        return tokens, layout

    @property
    def read_at(self) -> Tensor:
        """(B,) int32, where the row stands that the head reads, counted from the first row of each sequence."""
        layout = self.packed[1]
        return getattr(layout, self.master.row_read) - layout.first

    def cost(self, scope: str, dtype: torch.dtype) -> flops.Cost:
        """Useful work of one call: the whole model, or encoder and head; see `contestant.ENCODER`."""
        words = sum(self.workload.lengths) * self.workload.pictures
        arguments = (self.workload.batch, self.workload.pictures, dtype.itemsize)
        if scope.startswith("encoder"):
            read = len(self.lengths) if scope == "encoder" else None
            encoder = flops.encoder(self.config, self.lengths, dtype.itemsize, read)
            return encoder + flops.head(self.config, *arguments)
        return flops.model(self.config, self.lengths, words, *arguments)

    @property
    def is_sampled(self) -> bool:
        """Whether `max_image_length` leaves patches out."""
        return self.workload.max_image_length >= 0

    def describe(self) -> dict[str, Any]:
        """Columns of a row."""
        work, config, patch = self.workload, self.config, self.config.patch_shape[0]
        return {
            "workload": work.name,
            "batch": work.batch,
            "tokens": work.tokens(patch),
            "padded_tokens": work.padded_tokens(patch),
            "shape": work.shape(),
            "model": f"{config.num_hidden_layers} x {config.hidden_size}, patch {patch}",
        }


@contextmanager
def full_precision() -> Iterator[None]:
    """While the reference runs, no product is rounded to TF32, whatever the user has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def patch_mask(config: ViltConfig, inputs: dict[str, Tensor]) -> Tensor | None:
    """(B, GH, GW) bool: the patches that our model samples with seed 0, or None where it takes all."""
    if config.max_image_length < 0:
        return None
    pixel_mask, patch = inputs["pixel_mask"], config.patch_shape[0]
    batch, grid = len(pixel_mask), (pixel_mask.shape[1] // patch, pixel_mask.shape[2] // patch)
    index = torch.arange(batch, device=pixel_mask.device)
    mask = inputs["attention_mask"] != 0
    plan = patch_sample(mask, pixel_mask, None, grid, config.max_image_length, 0, index)
    kept = torch.zeros(batch * grid[0] * grid[1], dtype=torch.bool, device=pixel_mask.device)
    kept[plan.patch_index[plan.patch_index >= 0].long()] = True
    return kept.view(batch, *grid)


def padded_logits(
    state: dict[str, Tensor],
    config: ViltConfig,
    inputs: dict[str, Tensor],
    dtype: torch.dtype,
    chunk: int = REFERENCE_CHUNK,
) -> Tensor:
    """Logits by `vilt_fast.reference.vilt`, every pair padded to the largest of its chunk.

    Args:
        state: weights, moved to the inputs' device in `dtype`.
        chunk: pairs at once.
    """
    device = inputs["input_ids"].device
    state = {name: value.to(device, dtype) for name, value in state.items()}
    inputs = {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}
    images = {name: inputs.pop(name) for name in ("pixel_values", "pixel_mask")}
    if images["pixel_values"].ndim == 4:
        kept = patch_mask(config, {**inputs, **images})
        images |= {} if kept is None else {"patch_mask": kept}
        images = {name: value[:, None] for name, value in images.items()}
    logits = []
    for start in range(0, len(inputs["input_ids"]), chunk):
        some, texts = ({name: x[start : start + chunk] for name, x in part.items()} for part in (images, inputs))
        logits.append(reference.classify_pictures(state, config, some, texts))
    return torch.cat(logits)
