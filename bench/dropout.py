"""dropout beside PyTorch's, at the rows of a batch; PyTorch's draws another mask at each call, from a state of its own.

So the two have the share of what is dropped and the scale in common, and nothing else can be compared. The kernel
and the reference are compared bit for bit in `tests/ops`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench.case import Case
from vilt_fast.bench.flops import Cost
from vilt_fast.bench.operations import OperationCase, rounded

P = 0.1  # in BERT, and in ViT
# Two masks disagree on 2 p (1 - p) of the elements, and 1 - p of them are in the result: the norms are as sqrt(2 p) to
# 1. A quarter more is five deviations of that for 1000 elements.
PEER_BOUND = 1.25 * math.sqrt(2 * P)


def cases(batch: Case) -> list[OperationCase]:
    """Every row of a packed batch, as one row of the result, whose error is then an average over all elements."""
    rows, d = sum(batch.lengths), batch.config.hidden_size

    def make(generator: torch.Generator) -> list[Tensor]:
        return [rounded(generator, 1, rows, d), torch.randint(2**62, (), generator=generator)]

    peers = {"torch": lambda x, seed: F.dropout(x, P)}
    case = OperationCase(
        batch,
        operation="dropout",
        floor="dropout",
        shape=f"{rows} x {d}",
        make=make,
        ours=lambda x, seed: ops.dropout(x, P, seed),
        peers=peers,
        peer_bounds=dict.fromkeys(peers, PEER_BOUND),
        work=lambda itemsize: Cost(0, 2 * rows * d * itemsize),
    )
    return [case]
