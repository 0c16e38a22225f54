"""patch_embed beside PyTorch's ways from pixels to rows, for the images of a batch.

Peers: a gather of the chosen patches and F.linear, and the convolution of the padded batch that transformers runs; both
are given the interpolated positions. The product alone, on patches that are ready, is the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench import flops
from vilt_fast.bench.case import Case
from vilt_fast.bench.operations import CheckCase, OperationCase, rounded
from vilt_fast.bench.patch_sample import ragged_plan
from vilt_fast.bench.workloads import Workload
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.reference.patch_embed import patch_embed as reference
from vilt_fast.reference.patch_sample import patch_sample

GATHER, CONVOLUTION = "torch gather + F.linear, positions ready", "torch Conv2d on the padded batch, positions ready"


def check_cases(random: Callable[..., Tensor], device: torch.device, *, large: bool) -> Iterator[CheckCase]:
    """A random ragged batch, padded and as bytes one image behind the other."""
    d, patch = (768, 32) if large else (48, 8)
    plan, _, pixel_mask = ragged_plan(device, large=large)
    batch, total = len(pixel_mask), int(plan.cu_seqlens[-1])
    tokens, shape = random(total, d), f"{batch} pairs, {total} rows"
    pixels = random(batch, 3, *pixel_mask.shape[1:])
    weight = random(d, 3, patch, patch, scale=(3 * patch**2) ** -0.5)
    kind = torch.arange(batch, device=device) % 2 + 1
    rest = (random(d), random(1 + 12 * 12, d), random(d), random(3, d), kind)
    places = (plan.grid, plan.patch_index, plan.patch_row, plan.cls_row)
    options: dict[str, Any] = {"table_size": (12, 12)}
    yield CheckCase("patch_embed", shape, (tokens, pixels, weight, *rest, *places), options)
    sizes = plan.grid.long().prod(1) * (3 * patch**2)
    generator = torch.Generator().manual_seed(2)
    data = torch.randint(0, 256, (int(sizes.sum()),), generator=generator, dtype=torch.uint8).to(device)
    grid_size = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    options |= {"grid_size": grid_size, "pixel_offset": sizes.cumsum(0) - sizes, "pixel_scale": 2 / 255}
    yield CheckCase("patch_embed", f"{shape}, bytes", (tokens, data, weight, *rest, *places), options)


def cases(batch: Case) -> list[OperationCase]:
    """Pixels to rows, and the product of the patches alone; PyTorch's ways are not compiled."""
    patches = _Patches(batch.workload, batch.config, batch.device)
    count, images, values, d = len(patches.cell), batch.workload.batch, patches.values, patches.d
    whole = OperationCase(
        batch,
        operation="patch_embed",
        shape=patches.shape,
        make=patches.make,
        ours=patches.ours,
        peers={GATHER: patches.gather, CONVOLUTION: patches.convolution},
        work=lambda itemsize: flops.patch_embed(count, images, values, d, itemsize),
        can_compile=False,
    )
    product = OperationCase(
        batch,
        operation="patch_embed, the product alone on ready patches",
        shape=patches.shape,
        make=patches.ready,
        ours=ops.linear,
        peers={"torch": F.linear},
        work=lambda itemsize: flops.linear(count, values, d, itemsize),
        can_compile=False,
    )
    return [whole, product]


class _Patches:
    """The pixels of a batch, which patches of them are tokens, and the ways from one to the other."""

    def __init__(self, workload: Workload, config: ViltConfig, device: torch.device) -> None:
        inputs = workload.inputs(config)
        self.pixels = inputs["pixel_values"].bfloat16().float()
        self.config, self.device, self.patch = config, device, config.patch_shape[0]
        self.grid_size = grid = self.pixels.shape[2] // self.patch, self.pixels.shape[3] // self.patch
        self.d, self.values = config.hidden_size, config.num_channels * self.patch**2
        index = torch.arange(workload.batch)
        no_words = torch.zeros(workload.batch, 0, dtype=torch.bool)
        plan = patch_sample(no_words, inputs["pixel_mask"], None, grid, -1, 0, index)
        self.rows = int(plan.cu_seqlens[-1])
        chosen = plan.patch_index >= 0
        self.cell, self.row = (t[chosen].long().to(device) for t in (plan.patch_index, plan.patch_row))
        self.places = [t.to(device) for t in (plan.grid, plan.patch_index, plan.patch_row, plan.cls_row)]
        self.kind = torch.zeros(workload.batch, dtype=torch.int64, device=device)
        cells = grid[0] * grid[1]
        self.image, self.y, self.x = self.cell // cells, self.cell // grid[1] % grid[0], self.cell % grid[1]
        self.shape = f"{len(self.cell)} of {workload.batch * cells} patches, {self.values} -> {self.d}"

    def make(self, generator: torch.Generator) -> list[Tensor]:
        """Pixels, weight, tables, and what is added to the projection, which the peers get for nothing."""
        config, d = self.config, self.d
        weight = rounded(generator, d, config.num_channels, self.patch, self.patch, scale=self.values**-0.5)
        position = rounded(generator, 1 + config.table_size[0] * config.table_size[1], d)
        tables = [rounded(generator, d), position, rounded(generator, d), rounded(generator, 2, d)]
        plain: Any = (torch.zeros_like(weight), None, *tables[1:], self.kind.cpu(), *(t.cpu() for t in self.places))
        tokens, black = torch.zeros(self.rows, d), torch.zeros_like(self.pixels)
        return [self.pixels, weight, *tables, reference(tokens, black, *plain, table_size=config.table_size)]

    def ready(self, generator: torch.Generator) -> list[Tensor]:
        """Patches, weight and bias of a plain product."""
        pixels, weight, bias = self.make(generator)[:3]
        return [self._gathered(pixels.to(self.device)), weight.flatten(1), bias]

    def ours(self, pixels: Tensor, weight: Tensor, *tables: Tensor) -> Tensor:
        tokens, size = weight.new_empty(self.rows, self.d), self.config.table_size
        rest: Any = (*tables[:-1], self.kind, *self.places)
        return ops.patch_embed(tokens, pixels, weight, *rest, table_size=size)

    def _gathered(self, pixels: Tensor) -> Tensor:
        (height, width), patch = self.grid_size, self.patch
        tiles = pixels.unflatten(3, (width, patch)).unflatten(2, (height, patch))
        return tiles.permute(0, 2, 4, 1, 3, 5)[self.image, self.y, self.x].flatten(1)

    def gather(self, pixels: Tensor, weight: Tensor, bias: Tensor, *tables: Tensor) -> Tensor:
        return tables[-1].index_add(0, self.row, F.linear(self._gathered(pixels), weight.flatten(1), bias))

    def convolution(self, pixels: Tensor, weight: Tensor, bias: Tensor, *tables: Tensor) -> Tensor:
        projected = F.conv2d(pixels, weight, bias, stride=self.patch).permute(0, 2, 3, 1).reshape(-1, self.d)
        return tables[-1].index_add(0, self.row, projected[self.cell])
