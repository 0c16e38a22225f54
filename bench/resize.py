"""resize beside Pillow and torch's antialiased bicubic, from decoded bytes to ViLT's sizes (verify, then time).

    pytest bench/resize.py --benchmark-json resize.json

256 COCO-like pictures on a GPU, launches and the host's tables included; two small ones in the interpreter without.
Ours must equal Pillow to the byte. torch's way computes in floats and rounds once, where Pillow rounds and clips after
each pass: on noise, the worst picture there is for that, it may be off by two steps of 255 on average.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench.workloads import COCO_SIZES
from vilt_fast.processing.sizes import resize_size

Sizes = list[tuple[int, int]]


def _pictures(device: torch.device) -> tuple[list[Tensor], Sizes]:
    """uint8 (H, W, 3) pictures and the size (height, width) that ViLT wants of each."""
    generator = torch.Generator().manual_seed(0)
    if device.type == "cuda":
        shapes = [size for size, count in COCO_SIZES.items() for _ in range(count)] * 3
        shapes, sizes = shapes[:256], [resize_size(*shape) for shape in shapes[:256]]
    else:
        shapes, sizes = [(48, 64), (60, 40)], [(32, 48), (48, 32)]
    pictures = [torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8) for shape in shapes]
    return [picture.to(device) for picture in pictures], sizes


def _pillow(pictures: list[Tensor], sizes: Sizes) -> list[Tensor]:
    resized = [
        Image.fromarray(picture.cpu().numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
        for picture, size in zip(pictures, sizes, strict=True)
    ]
    return [torch.from_numpy(np.array(picture)) for picture in resized]


def _torch(pictures: list[Tensor], sizes: Sizes) -> list[Tensor]:
    def one(picture: Tensor, size: tuple[int, int]) -> Tensor:
        planes = picture.permute(2, 0, 1)[None].float()
        planes = F.interpolate(planes, size=size, mode="bicubic", antialias=True)
        return planes.round().clamp(0, 255).byte()[0].permute(1, 2, 0)

    return [one(picture, size) for picture, size in zip(pictures, sizes, strict=True)]


def _ours(pictures: list[Tensor], sizes: Sizes) -> list[Tensor]:
    with ops.backend("kernels"):
        return ops.resize(pictures, sizes)


CONTESTANTS: dict[str, tuple[Callable[[list[Tensor], Sizes], list[Tensor]], int]] = {
    "vilt_fast": (_ours, 0),
    "Pillow": (_pillow, 0),
    "torch antialiased bicubic": (_torch, 2),
}


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_resize(benchmark, contestant: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resize, allowed = CONTESTANTS[contestant]
    pictures, sizes = _pictures(device)
    for got, wanted in zip(resize(pictures, sizes), _pillow(pictures, sizes), strict=True):
        error = (got.cpu().float() - wanted.float()).abs().mean().item()
        assert error <= allowed, f"{contestant}: {error:.2g} of 255 off, allowed {allowed}; not timed"

    def timed() -> None:
        resize(pictures, sizes)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"resize, {len(pictures)} pictures, {device.type}"
    benchmark.pedantic(timed, rounds=50 if device.type == "cuda" else 2, warmup_rounds=1)
