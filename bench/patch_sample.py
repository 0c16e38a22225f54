"""patch_sample beside the same plan made by PyTorch, for the images of a batch: every patch, and a sample.

PyTorch's way waits for the device (`nonzero`), so no graph can hold it: its time has its launches in it.
"""

from __future__ import annotations

from typing import Any

import torch

from vilt_fast import ops
from vilt_fast.bench.case import Case
from vilt_fast.bench.flops import Cost
from vilt_fast.bench.operations import OperationCase
from vilt_fast.reference.patch_sample import patch_sample as reference

SAMPLED = 100  # patches per image, or half of a small one's


def cases(batch: Case) -> list[OperationCase]:
    """Planning with and without a limit; PyTorch's way is not compiled."""
    patch, pixel_mask, lengths = batch.config.patch_shape[0], batch.workload.pixel_mask(), batch.workload.lengths
    words = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    pairs, grid_size = len(lengths), (pixel_mask.shape[1] // patch, pixel_mask.shape[2] // patch)
    cells = grid_size[0] * grid_size[1]

    def case(limit: int) -> OperationCase:
        options: dict[str, Any] = {"patch_mask": None, "grid_size": grid_size, "max_patches": limit, "seed": 0}
        return OperationCase(
            batch,
            operation="patch_sample",
            shape=f"{pairs} x {grid_size[0]} x {grid_size[1]}, at most {limit} a picture",
            make=lambda generator: [words, pixel_mask, torch.arange(pairs)],
            ours=lambda words, pixel_mask, index: ops.patch_sample(words, pixel_mask, image_index=index, **options),
            peers={
                "torch": lambda words, pixel_mask, index: reference(words, pixel_mask, image_index=index, **options)
            },
            work=lambda itemsize: Cost(0, 4 * (2 * pairs * cells + words.numel())),
            can_compile=False,
            waiting=["torch"],
        )

    return [case(-1), case(min(SAMPLED, cells // 2))]
