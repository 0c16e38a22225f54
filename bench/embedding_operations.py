"""The operations that make rows of tokens, at the shapes of one batch, beside what PyTorch offers for each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench import flops
from vilt_fast.bench.flops import Cost
from vilt_fast.bench.operations import EPS, OperationCase
from vilt_fast.bench.workloads import Workload
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.contracts.plan import Plan
from vilt_fast.reference.patch_embed import patch_embed as reference_patch_embed
from vilt_fast.reference.patch_sample import patch_sample as reference_patch_sample

GATHER, CONVOLUTION = "torch gather + F.linear, positions ready", "torch Conv2d on the padded batch, positions ready"
SAMPLED = 100  # patches a picture, or half of a small one's


class PlanCase(OperationCase):
    """An operation on integers, which are right or wrong."""

    def bound(self, dtype: torch.dtype) -> float:
        """No error is allowed."""
        return 0.0


def cases(workload: Workload, config: ViltConfig, device: torch.device) -> list[OperationCase]:
    """Planning with and without a limit, patches, the product of the patches alone, and words."""
    shared = {"workload": workload, "config": config, "device": device}
    inputs = workload.inputs(config)
    patch = config.patch_shape[0]
    grid_size = tuple(side // patch for side in inputs["pixel_values"].shape[2:])
    index, sampled = torch.arange(workload.batch), min(SAMPLED, grid_size[0] * grid_size[1] // 2)

    def plan(mask: Tensor, limit: int, has_cls: bool) -> Plan:
        return reference_patch_sample(mask, inputs["pixel_mask"], None, grid_size, limit, 0, index, has_cls=has_cls)

    words = inputs["attention_mask"] != 0
    return [
        *(_patch_sample_case(words, inputs["pixel_mask"], grid_size, limit, **shared) for limit in (-1, sampled)),
        *_patch_embed_cases(inputs["pixel_values"], plan(words[:, :0], -1, True), grid_size, **shared),
        _text_embed_case(inputs["input_ids"], plan(words, 0, False), **shared),
    ]


def _random(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    # Rounded to bf16 at once: every dtype then computes on the same numbers, and errors are those of the arithmetic.
    return (torch.randn(*shape, generator=generator) * scale).bfloat16().float()


def _patch_sample_case(
    words: Tensor, pixel_mask: Tensor, grid_size: tuple[int, int], limit: int, **shared: Any
) -> OperationCase:
    batch, cells = len(words), grid_size[0] * grid_size[1]

    def ours(words: Tensor, pixel_mask: Tensor, index: Tensor) -> Tensor:
        return ops.patch_sample(words, pixel_mask, None, grid_size, limit, 0, index).patch_row[:, None]

    def torch_way(words: Tensor, pixel_mask: Tensor, index: Tensor) -> Tensor:
        return reference_patch_sample(words, pixel_mask, None, grid_size, limit, 0, index).patch_row[:, None]

    return PlanCase(
        operation="patch_sample", shape=f"{batch} x {grid_size[0]} x {grid_size[1]}, at most {limit} a picture",
        make=lambda generator: [words, pixel_mask, torch.arange(batch)], ours=ours, peers={"torch": torch_way},
        work=lambda itemsize: Cost(0, 4 * (2 * batch * cells + words.numel())), **shared,
    )  # fmt: skip


def _patch_embed_cases(
    pixels: Tensor, plan: Plan, grid_size: tuple[int, int], *, config: ViltConfig, device: torch.device, **shared: Any
) -> list[OperationCase]:
    d, channels, patch = config.hidden_size, config.num_channels, config.patch_shape[0]
    batch, rows, values = len(pixels), int(plan.cu_seqlens[-1]), channels * patch * patch
    columns = grid_size[0] * grid_size[1]
    chosen = plan.patch_index >= 0
    places = {name: value.to(device) for name, value in plan._asdict().items()}
    cell, row = (places[name][chosen.to(device)].long() for name in ("patch_index", "patch_row"))
    picture, y, x = cell // columns, cell // grid_size[1] % grid_size[0], cell % grid_size[1]
    kind = torch.zeros(batch, dtype=torch.int64, device=device)
    indices = [places[name] for name in ("grid", "patch_index", "patch_row", "cls_row")]
    pixels = pixels.bfloat16().float()

    def make(generator: torch.Generator) -> list[Tensor]:
        weight = _random(generator, d, channels, patch, patch, scale=values**-0.5)
        position = _random(generator, 1 + config.table_size[0] * config.table_size[1], d)
        tables = [_random(generator, d), position, _random(generator, d), _random(generator, 2, d)]
        # What is added to the projection, which the peers get for nothing: positions and modality of every row.
        plain = (torch.zeros_like(weight), None, *tables[1:], kind.cpu(), *(index.cpu() for index in indices))
        tokens = torch.zeros(rows, d)
        added = reference_patch_embed(tokens, torch.zeros_like(pixels), *plain, table_size=config.table_size)
        return [pixels, weight, *tables, added]

    def ours(pixels: Tensor, weight: Tensor, *tables: Tensor) -> Tensor:
        tokens = weight.new_empty(rows, d)
        return ops.patch_embed(tokens, pixels, weight, *tables[:-1], kind, *indices, table_size=config.table_size)

    def gathered(pixels: Tensor) -> Tensor:
        tiles = pixels.unflatten(3, (grid_size[1], patch)).unflatten(2, (grid_size[0], patch))
        return tiles.permute(0, 2, 4, 1, 3, 5)[picture, y, x].flatten(1)

    def gather(pixels: Tensor, weight: Tensor, bias: Tensor, *tables: Tensor) -> Tensor:
        return tables[-1].index_add(0, row, F.linear(gathered(pixels), weight.flatten(1), bias))

    def convolution(pixels: Tensor, weight: Tensor, bias: Tensor, *tables: Tensor) -> Tensor:
        projected = F.conv2d(pixels, weight, bias, stride=patch).permute(0, 2, 3, 1).reshape(-1, d)
        return tables[-1].index_add(0, row, projected[cell])

    def ready(generator: torch.Generator) -> list[Tensor]:
        pixels, weight, bias = make(generator)[:3]
        return [gathered(pixels.to(device)), weight.flatten(1), bias]

    shape, work = f"{len(cell)} of {batch * columns} patches, {values} -> {d}", (len(cell), batch, values, d)
    shared |= {"config": config, "device": device, "shape": shape}
    product = {"make": ready, "ours": ops.linear, "peers": {"torch": F.linear}}
    return [
        OperationCase(
            operation="patch_embed", make=make, ours=ours, peers={GATHER: gather, CONVOLUTION: convolution},
            work=lambda itemsize: flops.patch_embed(*work, itemsize), **shared,
        ),
        OperationCase(
            operation="patch_embed, the product alone on ready patches", **product,
            work=lambda itemsize: flops.linear(len(cell), values, d, itemsize), **shared,
        ),
    ]  # fmt: skip


def _text_embed_case(
    ids: Tensor, plan: Plan, *, config: ViltConfig, device: torch.device, **shared: Any
) -> OperationCase:
    d, rows, kept = config.hidden_size, int(plan.cu_seqlens[-1]), plan.text_row >= 0
    text_row, ids = plan.text_row.to(device), ids.to(device)
    types = torch.zeros_like(ids)
    at, words, column = plan.text_row[kept].long().to(device), ids[kept.to(device)], kept.nonzero()[:, 1].to(device)

    def make(generator: torch.Generator) -> list[Tensor]:
        tables = (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
        return [_random(generator, n, d) for n in tables] + [_random(generator, d) for _ in range(3)]

    def ours(word: Tensor, *tables: Tensor) -> Tensor:
        return ops.text_embed(word.new_empty(rows, d), text_row, ids, types, None, word, *tables, EPS)

    def torch_way(
        word: Tensor, position: Tensor, kind: Tensor, weight: Tensor, bias: Tensor, modality: Tensor
    ) -> Tensor:
        out = F.embedding(words, word) + F.embedding(column, position) + kind[0]
        out = F.layer_norm(out, (d,), weight, bias, EPS) + modality
        return word.new_empty(rows, d).index_copy(0, at, out)

    return OperationCase(
        operation="text_embed", shape=f"{rows} words in {len(ids)} x {ids.shape[1]} -> {d}", make=make, ours=ours,
        peers={"torch": torch_way}, work=lambda itemsize: flops.text_embed(rows, d, itemsize),
        config=config, device=device, **shared,
    )  # fmt: skip
