"""resize beside Pillow and torch's antialiased filters, from decoded bytes to ViLT's sizes; the host's tables included.

Ours must equal Pillow to the byte. torch's way computes in floats and rounds once, where Pillow rounds and clips after
each pass; the images are noise, the worst case for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench.case import Case
from vilt_fast.bench.flops import Cost
from vilt_fast.bench.operations import OperationCase
from vilt_fast.contracts.pillow import RESAMPLES, RULES
from vilt_fast.reference import resize

Sizes = Sequence[tuple[int, int]]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Two steps of 255 on average: bytes of resized noise have a root mean square of 136.
TORCH_BOUND = 2 / 137


def cases(batch: Case) -> list[OperationCase]:
    """The images of a batch, a quarter larger on each side: COCO's 640 x 480 become ViLT's 512 x 384.

    Timed are both filters in the pass order of the installed Pillow; each order is checked.
    """
    return [case for resample in RESAMPLES for case in _cases(batch, resample)]


def _cases(batch: Case, resample: str) -> list[OperationCase]:
    sizes = batch.workload.sizes
    shapes = [(height * 5 // 4, width * 5 // 4) for height, width in sizes]
    pixels = sum(height * width for size in (shapes, sizes) for height, width in size)
    torch_name = f"torch antialiased {resample}"
    peers: dict[str, Callable[..., Any]] = {
        "Pillow": partial(_pillow, sizes=sizes, resample=resample),
        torch_name: partial(_torch, sizes=sizes, resample=resample),
    }
    shape = f"{len(sizes)} images, {pixels / 1e6:.3g} megapixels read and written"
    shape += "" if resample == "bicubic" else f", {resample}"
    case = partial(
        OperationCase,
        batch,
        operation="resize",
        make=lambda generator: [_noise(generator, shape) for shape in shapes],
        work=lambda itemsize: Cost(0, 3 * pixels),
    )
    timed = case(
        shape=shape,
        ours=lambda *images: ops.resize(images, sizes, resample=resample),
        peers=peers,
        right=peers["Pillow"],
        can_compile=False,
        peer_bounds={torch_name: TORCH_BOUND},
        waiting=["vilt_fast kernels", *peers],
    )
    return [timed, *(case(shape=f"{shape}, {rule}", ours=partial(_by_rule, rule, resample, sizes)) for rule in RULES)]


def _by_rule(rule: str, resample: str, sizes: Sizes, *images: Tensor) -> list[Tensor]:
    return ops.side(resize, images[0]).resize(images, sizes, rule=rule, resample=resample)


def _noise(generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
    """(H, W, 3) bytes."""
    return torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)


def _pillow(*images: Tensor, sizes: Sizes, resample: str) -> list[Tensor]:
    resized = [
        Image.fromarray(image.cpu().numpy()).resize(size[::-1], FILTERS[resample])
        for image, size in zip(images, sizes, strict=True)
    ]
    return [torch.from_numpy(np.array(image)) for image in resized]


def _torch(*images: Tensor, sizes: Sizes, resample: str) -> list[Tensor]:
    def one(image: Tensor, size: tuple[int, int]) -> Tensor:
        planes = image.permute(2, 0, 1)[None].float()
        planes = F.interpolate(planes, size=size, mode=resample, antialias=True)
        return planes.round().clamp(0, 255).byte()[0].permute(1, 2, 0)

    return [one(image, size) for image, size in zip(images, sizes, strict=True)]
