"""text_embed beside three embeddings, LayerNorm and a scatter, for the questions of a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench import flops
from vilt_fast.bench.case import Case
from vilt_fast.bench.operations import EPS, OperationCase, rounded


def cases(batch: Case) -> list[OperationCase]:
    """The words of a batch, one text behind the other."""
    workload, config, device = batch.workload, batch.config, batch.device
    ids = workload.words(config, torch.Generator().manual_seed(0))["input_ids"].to(device)
    d, lengths = config.hidden_size, torch.tensor(workload.lengths, device=device)
    real = torch.arange(ids.shape[1], device=device) < lengths[:, None]  # (B, L)
    rows = int(real.sum())
    text_row = torch.where(real, real.flatten().cumsum(0).view_as(real) - 1, -1).int()
    types, words, column = torch.zeros_like(ids), ids[real], real.nonzero()[:, 1]
    at = torch.arange(rows, device=device)

    def make(generator: torch.Generator) -> list[Tensor]:
        tables = (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
        return [rounded(generator, n, d) for n in tables] + [rounded(generator, d) for _ in range(3)]

    def ours(word: Tensor, *tables: Tensor) -> Tensor:
        rest: Any = (word, *tables, EPS)
        return ops.text_embed(word.new_empty(rows, d), text_row, ids, types, None, *rest)

    def torch_way(
        word: Tensor, position: Tensor, kind: Tensor, weight: Tensor, bias: Tensor, modality: Tensor
    ) -> Tensor:
        out = F.embedding(words, word) + F.embedding(column, position) + kind[0]
        out = F.layer_norm(out, (d,), weight, bias, EPS) + modality
        return word.new_empty(rows, d).index_copy(0, at, out)

    case = OperationCase(
        batch,
        operation="text_embed",
        floor="text_embed",
        shape=f"{rows} words in {len(ids)} x {ids.shape[1]} -> {d}",
        make=make,
        ours=ours,
        peers={"torch": torch_way},
        work=lambda itemsize: flops.text_embed(rows, d, itemsize),
    )
    return [case, _visual_bert(batch, text_row, ids, real)]


def _visual_bert(batch: Case, text_row: Tensor, ids: Tensor, real: Tensor) -> OperationCase:
    """The same texts backwards, without a modality row, then a region for each of their words: checked alone."""
    d, words = batch.config.hidden_size, int(real.sum())
    columns = torch.arange(ids.shape[1], device=batch.device).flip(0).expand_as(ids)
    region_row = torch.arange(words, 2 * words, device=batch.device, dtype=torch.int32).view(-1, 1)
    kinds = torch.ones_like(region_row, dtype=torch.int64)

    def make(generator: torch.Generator) -> list[Tensor]:
        tables = (batch.config.vocab_size, batch.config.max_position_embeddings, 2)
        return [rounded(generator, n, d) for n in tables] + [rounded(generator, *n, d) for n in ((), (), (words, 1))]

    def ours(word: Tensor, position: Tensor, kind: Tensor, weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
        rest: Any = (position, kind, weight, bias, None, EPS)
        rows = word.new_empty(2 * words, d)
        rows = ops.text_embed(rows, text_row, ids, 0 * ids, None, word, *rest, position_ids=columns)
        return ops.text_embed(rows, region_row, None, kinds, features, None, *rest)

    return OperationCase(
        batch,
        operation="text_embed",
        floor="text_embed",
        shape=f"{words} words and {words} regions -> {d}",
        make=make,
        ours=ours,
        work=lambda itemsize: flops.text_embed(2 * words, d, itemsize),
    )
