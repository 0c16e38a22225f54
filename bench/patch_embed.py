"""patch_embed beside PyTorch's ways from pixels to rows, for the images of a batch.

Peers: a gather of the chosen patches and F.linear, and the convolution of the padded batch that transformers runs; both
are given the interpolated positions. The product alone, on patches that are ready, is the floor.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench import flops
from vilt_fast.bench.case import Case
from vilt_fast.bench.operations import OperationCase, rounded
from vilt_fast.bench.workloads import Workload
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.reference.patch_embed import patch_embed as reference
from vilt_fast.reference.patch_sample import patch_sample

GATHER, CONVOLUTION = "torch gather + F.linear, positions ready", "torch Conv2d on the padded batch, positions ready"


def cases(batch: Case) -> list[OperationCase]:
    """Pixels to rows, the product of the patches alone, and bytes without padding to rows, which are not timed.

    PyTorch's ways are not compiled.
    """
    patches = _Patches(batch.workload, batch.config, batch.device)
    count, images, values, d = len(patches.cell), batch.workload.batch, patches.values, patches.d
    case = partial(OperationCase, batch, shape=patches.shape, can_compile=False)
    whole = case(
        operation="patch_embed",
        floor="patch_embed",
        make=patches.make,
        ours=patches.ours,
        peers={GATHER: patches.gather, CONVOLUTION: patches.convolution},
        work=lambda itemsize: flops.patch_embed(count, images, values, d, itemsize),
    )
    product = case(
        operation="patch_embed, the product alone on ready patches",
        floor="linear",
        make=patches.ready,
        ours=ops.linear,
        peers={"torch": F.linear},
        work=lambda itemsize: flops.linear(count, values, d, itemsize),
    )
    from_bytes = case(
        operation="patch_embed, bytes",
        floor="patch_embed",
        make=patches.make_bytes,
        ours=patches.ours_on_bytes,
        work=whole.work,
    )
    return [whole, product, from_bytes]


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
        plan = patch_sample(no_words, inputs["pixel_mask"], None, grid, config.max_image_length, 0, index)
        self.rows = int(plan.cu_seqlens[-1])
        chosen = plan.patch_index >= 0
        self.cell, self.row = (t[chosen].long().to(device) for t in (plan.patch_index, plan.patch_row))
        self.places = [t.to(device) for t in (plan.grid, plan.patch_index, plan.patch_row, plan.cls_row)]
        self.kind = (index % 2).to(device)
        sizes = plan.grid.long().prod(1) * self.values
        self.bytes, self.offset = int(sizes.sum()), (sizes.cumsum(0) - sizes).to(device)
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

    def make_bytes(self, generator: torch.Generator) -> list[Tensor]:
        """The same with random bytes, one image behind the other."""
        data = torch.randint(0, 256, (self.bytes,), generator=generator, dtype=torch.uint8)
        return [data, *self.make(generator)[1:]]

    def ours(self, pixels: Tensor, weight: Tensor, *tables: Tensor, **options: Any) -> Tensor:
        tokens, size = weight.new_empty(self.rows, self.d), self.config.table_size
        rest: Any = (*tables[:-1], self.kind, *self.places)
        return ops.patch_embed(tokens, pixels, weight, *rest, table_size=size, **options)

    def ours_on_bytes(self, *tensors: Tensor) -> Tensor:
        return self.ours(*tensors, grid_size=self.grid_size, pixel_offset=self.offset, pixel_scale=2 / 255)

    def _gathered(self, pixels: Tensor) -> Tensor:
        (height, width), patch = self.grid_size, self.patch
        tiles = pixels.unflatten(3, (width, patch)).unflatten(2, (height, patch))
        return tiles.permute(0, 2, 4, 1, 3, 5)[self.image, self.y, self.x].flatten(1)

    def gather(self, pixels: Tensor, weight: Tensor, bias: Tensor, *tables: Tensor) -> Tensor:
        return tables[-1].index_add(0, self.row, F.linear(self._gathered(pixels), weight.flatten(1), bias))

    def convolution(self, pixels: Tensor, weight: Tensor, bias: Tensor, *tables: Tensor) -> Tensor:
        projected = F.conv2d(pixels, weight, bias, stride=self.patch).permute(0, 2, 3, 1).reshape(-1, self.d)
        return tables[-1].index_add(0, self.row, projected[self.cell])
