"""ViT-B/16 on the same clocks: its workloads, what a case of them is, and who answers it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.bench import case as vilt
from vilt_fast.bench import flops, ours, peers, workloads
from vilt_fast.bench.contestant import Calls, Contestant, Unavailable
from vilt_fast.configs.vit import ViTConfig
from vilt_fast.models.image_inputs import ImageInputs
from vilt_fast.models.vit import ViTForImageClassification
from vilt_fast.packing import Layout
from vilt_fast.processing.settings import resize_size
from vilt_fast.reference import vit as reference

EVERY_PATCH = "keeps every patch, which is another answer; "  # of who cannot drop them, or does not


# --- workloads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images(workloads.Workload):
    """Images alone.

    Args:
        dropped: patches of each image that its patch mask leaves out, at random.
    """

    dropped: int = 0

    def sequences(self, patch_size: int = 16) -> list[int]:
        """Tokens of each image: one CLS, and the patches that are kept."""
        return [count - self.dropped for count in super().sequences(patch_size)]

    def shape(self) -> str:
        """See the base class."""
        dropped = f", {self.dropped} patches of each dropped" if self.dropped else ""
        return super().shape().removesuffix(", 0..0 words") + dropped

    def inputs(self, config: Any, seed: int = 0) -> dict[str, Tensor]:
        """pixel_values (B, C, H, W) float32; pixel_mask (B, H, W) of other sizes; patch_mask (B, GH, GW) int64."""
        generator = torch.Generator().manual_seed(seed)
        pixels, pixel_mask = self.images(config, generator)
        found = {"pixel_values": pixels}
        if set(self.sizes) != {config.image_shape}:
            found["pixel_mask"] = pixel_mask
        if self.dropped:
            patch = config.patch_shape[0]
            place = torch.rand(self.batch, *(side // patch for side in self.sizes[0]), generator=generator)
            found["patch_mask"] = (place.flatten(1).argsort(1) >= self.dropped).long().view_as(place)
        return found


def squares(batch_size: int, seed: int = 0) -> Images:
    """Images as ViT's processor makes them: nothing to pad, so packing wins nothing."""
    return Images("vit-224", ((224, 224),) * batch_size, (0,) * batch_size)


def mixed(batch_size: int, seed: int = 0) -> Images:
    """COCO-like images that keep their shape: the shorter side 224, the longer at most 373, whole patches of 16."""
    sizes = workloads.coco_sizes(np.random.default_rng(seed), batch_size)
    resized = tuple(resize_size(*size, shortest_edge=224, size_divisor=16) for size in sizes)
    return Images("vit-mixed", resized, (0,) * batch_size)


def half(batch_size: int, seed: int = 0) -> Images:
    """Squares of which every other patch, at random, is dropped."""
    return replace(squares(batch_size), name="vit-half", dropped=98)


WORKLOADS: dict[str, Callable[..., Images]] = {"vit-224": squares, "vit-mixed": mixed, "vit-half": half}


# --- the case ---------------------------------------------------------------------------------------------------------


class ViTCase(vilt.Case):
    """Images with a ViT that classifies them."""

    @classmethod
    def of(
        cls, workload: workloads.Workload, device: torch.device, sets: int, compiles: bool, *, quick: bool
    ) -> ViTCase:
        """With ViT-B/16 and a thousand labels; or half as many patches a side and two blocks of 48."""
        config = ViTConfig(num_labels=1000)
        if quick:
            assert isinstance(workload, Images)
            sizes = tuple((height // 32 * 8, width // 32 * 8) for height, width in workload.sizes)
            workload = replace(workload, sizes=sizes, dropped=workload.dropped // 4)
            small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
            config = ViTConfig(**small, patch_size=8, image_size=56, num_labels=7)  # type: ignore[arg-type]
        return cls(workload, config, device, sets, compiles)

    @property
    def master(self) -> Any:
        """Our model in fp32 on the CPU: the weights that everybody gets."""
        make = ViTForImageClassification
        return vilt._shared(self.key, lambda: vilt.telling_weights(make(self.config)).eval())

    def _pack(self, one: dict[str, Tensor]) -> dict[str, Any]:
        rest = {name: one[name] for name in ("patch_mask",) if name in one}
        return {**rest, "pixel_values": self.as_bytes(one)}

    def _reference(self, state: dict[str, Tensor]) -> Tensor:
        inputs, logits = self.inputs_in(torch.float64)[0], []
        if "patch_mask" in inputs:
            inputs["patch_mask"] = inputs["patch_mask"] != 0
        for start in range(0, self.workload.batch, vilt.REFERENCE_CHUNK):
            some: dict[str, Any] = {name: one[start : start + vilt.REFERENCE_CHUNK] for name, one in inputs.items()}
            logits.append(reference.classify(state, reference.encode(state, self.config, **some).last_hidden_state))
        return torch.cat(logits)

    @cached_property
    def packed(self) -> tuple[Tensor, Layout]:
        """See the base class."""
        model = self.model(torch.float32)
        with ops.backend("reference"), torch.inference_mode():
            given: dict[str, Any] = self.inputs[0]
            batch = ImageInputs(**given).check(self.config, has_mask_token=False)
            layout, pixels = batch.layout([]), batch.pixel_values
            rows, _ = model.vit.embeddings(layout, pixel_values=pixels, interpolation=batch.interpolation)
        return rows, layout

    def cost(self, scope: str, dtype: torch.dtype) -> flops.Cost:
        """See the base class."""
        size, images = dtype.itemsize, self.workload.batch
        encoder = flops.encoder(self.config, self.lengths, size, images if scope == "encoder" else None)
        head = flops.classifier(self.config, images, size)
        if scope.startswith("encoder"):
            return encoder + head
        return flops.embeddings(self.config, self.lengths, 0, size) + encoder + head


# --- transformers -----------------------------------------------------------------------------------------------------


def transformers_model(case: ViTCase, dtype: torch.dtype) -> nn.Module:
    """Its class with our weights and SDPA.

    Raises:
        Unavailable: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise Unavailable("transformers is not installed") from error

    def make() -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            case.master.save_pretrained(folder)
            return transformers.ViTForImageClassification.from_pretrained(folder, attn_implementation="sdpa")

    return case.shared("transformers", dtype, make)


def transformers_calls(case: ViTCase, dtype: torch.dtype, *, compile: bool = False) -> Calls:
    """Its model. Images of several sizes are padded to the largest: each with its own positions, padding masked."""
    model = transformers_model(case, dtype)
    arguments: dict[str, Any] = {}
    if "pixel_mask" in case.inputs[0]:
        model, arguments = _padded(case, model)
    forward: Any = torch.compile(model) if compile else model

    def call(pixels: Tensor) -> Tensor:
        return forward(pixel_values=pixels, **arguments).logits

    return [partial(call, one["pixel_values"]) for one in case.inputs_in(dtype)]


def _padded(case: ViTCase, model: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The model for the padded images of a case, and its arguments.

    By itself it would stretch the position table over the padding. The positions are made before the clock runs.
    """
    pixel_mask, patch = case.inputs[0]["pixel_mask"], case.config.patch_shape[0]
    rows, columns = (side // patch for side in pixel_mask.shape[1:])
    model, real = copy.deepcopy(model), pixel_mask[:, ::patch, ::patch]
    embeddings = model.vit.embeddings
    table = embeddings.position_embeddings
    positions = table.new_zeros(len(real), 1 + rows * columns, table.shape[2])
    positions[:, 0] = table[:, 0]
    with torch.inference_mode():
        for one, (height, width) in zip(positions, case.workload.sizes, strict=True):
            h, w = height // patch, width // patch
            own = embeddings.interpolate_pos_encoding(table.new_empty(1, 1 + h * w, table.shape[2]), height, width)
            one[1:].view(rows, columns, -1)[:h, :w] = own[0, 1:].view(h, w, -1)
    embeddings.interpolate_pos_encoding = lambda *_: positions
    mask = nn.functional.pad(real.flatten(1), (1, 0), value=1)
    return model, {"attention_mask": mask, "interpolate_pos_encoding": True}


def one_by_one_calls(case: ViTCase, dtype: torch.dtype) -> Calls:
    """Its model on one image after the other, each of its own size."""
    if "pixel_mask" not in case.inputs[0]:
        raise Unavailable("takes part where images are of other sizes")
    model = transformers_model(case, dtype)

    def call(pixels: Tensor) -> Tensor:
        images = [one[None, :, :h, :w] for one, (h, w) in zip(pixels, case.workload.sizes, strict=True)]
        return torch.cat([model(image, interpolate_pos_encoding=True).logits for image in images])

    return [partial(call, one["pixel_values"]) for one in case.inputs_in(dtype)]


# --- the list ---------------------------------------------------------------------------------------------------------


def contestants(workload: workloads.Workload, dtype: torch.dtype) -> list[Contestant]:
    """transformers and the hand-written encoders, then ours."""
    is_dropping = isinstance(workload, Images) and workload.dropped > 0
    no_mask: dict[str, Any] = {"approximates": True, "note": EVERY_PATCH + "it drops none"} if is_dropping else {}
    theirs, compiled = partial(transformers_calls, dtype=dtype), partial(transformers_calls, dtype=dtype, compile=True)
    found = [
        Contestant("transformers eager", dtype, theirs, **no_mask),
        Contestant("transformers + torch.compile", dtype, compiled, compiles=True, **no_mask),
        Contestant("transformers, one by one", dtype, partial(one_by_one_calls, dtype=dtype)),
    ]
    mine = [one for one in ours.contestants((dtype,)) if one.name != "padded reference"]
    if is_dropping:
        other: dict[str, Any] = {"note": EVERY_PATCH + "for comparison", "approximates": True, "planning": None}
        mine += [
            replace(one, name=f"{one.name}, every patch", make=partial(_every_patch, make=one.make), **other)
            for one in mine
            if "packed" not in one.name
        ]
    return [*found, *mine, *peers.encoder_peers(dtype), *ours.encoder_contestants(dtype)]


def _every_patch(case: ViTCase, make: Callable[[ViTCase], Calls]) -> Calls:
    """Its calls on the same images, of which no patch is dropped."""
    assert isinstance(case.workload, Images)
    return make(ViTCase(replace(case.workload, dropped=0), case.config, case.device, case.sets, case.compiles))
