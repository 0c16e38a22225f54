"""patch_sample beside the same plan made by PyTorch, for the images of a batch: every patch, and a sample.

PyTorch's way waits for the device (`nonzero`), so no graph can hold it: its time has its launches in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench.case import Case
from vilt_fast.bench.flops import Cost
from vilt_fast.bench.operations import CheckCase, OperationCase
from vilt_fast.contracts.plan import Plan
from vilt_fast.reference.patch_sample import patch_sample as reference

SAMPLED = 100  # patches per image, or half of a small one's


def check_cases(random: Callable[..., Tensor], device: torch.device, *, large: bool) -> Iterator[CheckCase]:
    """A random ragged batch."""
    arguments = ragged_batch(large=large)
    yield CheckCase("patch_sample", f"{len(arguments[0])} pairs", arguments)


def ragged_batch(*, large: bool) -> tuple[Any, ...]:
    """Arguments of `patch_sample` on the CPU for texts and images of random sizes, half of the patches sampled."""
    batch, words, rows, columns, patch = (64, 16, 20, 20, 32) if large else (3, 5, 3, 4, 8)
    generator = torch.Generator().manual_seed(1)
    attention_mask = torch.arange(words) < torch.randint(1, words + 1, (batch, 1), generator=generator)
    height = torch.randint(1, rows + 1, (batch, 1, 1), generator=generator) * patch
    width = torch.randint(1, columns + 1, (batch, 1, 1), generator=generator) * patch
    pixel_mask = (torch.arange(rows * patch)[:, None] < height) & (torch.arange(columns * patch) < width)
    limit = rows * columns // 2
    return attention_mask, pixel_mask.long(), None, (rows, columns), limit, 7, torch.arange(batch)


def ragged_plan(device: torch.device, *, large: bool) -> tuple[Plan, Tensor, Tensor]:
    """The reference's plan of that batch, its attention mask and its pixel mask, on the device."""
    arguments = ragged_batch(large=large)
    plan = Plan(*(value.to(device) for value in reference(*arguments)))
    return plan, arguments[0].to(device), arguments[1].to(device)


def cases(batch: Case) -> list[OperationCase]:
    """Planning with and without a limit; PyTorch's way is not compiled."""
    patch, pixel_mask, lengths = batch.config.patch_shape[0], batch.workload.pixel_mask(), batch.workload.lengths
    words = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    pairs, grid_size = len(lengths), (pixel_mask.shape[1] // patch, pixel_mask.shape[2] // patch)
    cells = grid_size[0] * grid_size[1]

    def case(limit: int) -> OperationCase:
        def ours(words: Tensor, pixel_mask: Tensor, index: Tensor) -> Tensor:
            return ops.patch_sample(words, pixel_mask, None, grid_size, limit, 0, index).patch_row[:, None]

        def torch_way(words: Tensor, pixel_mask: Tensor, index: Tensor) -> Tensor:
            return reference(words, pixel_mask, None, grid_size, limit, 0, index).patch_row[:, None]

        return OperationCase(
            batch,
            operation="patch_sample",
            shape=f"{pairs} x {grid_size[0]} x {grid_size[1]}, at most {limit} a picture",
            make=lambda generator: [words, pixel_mask, torch.arange(pairs)],
            ours=ours,
            peers={"torch": torch_way},
            work=lambda itemsize: Cost(0, 4 * (2 * pairs * cells + words.numel())),
            is_exact=True,
            can_compile=False,
            waiting=["torch"],
        )

    return [case(-1), case(min(SAMPLED, cells // 2))]
