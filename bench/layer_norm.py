"""layer_norm beside PyTorch's, at the rows of a batch. A copy of the rows is the floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F

from vilt_fast import ops
from vilt_fast.bench import flops
from vilt_fast.bench.case import Case
from vilt_fast.bench.operations import EPS, TUNED_DTYPES, OperationCase, Task, rounded

TILES = [(1, 1), (2, 1), (4, 1), (1, 2), (4, 2), (4, 4), (8, 4)]  # (ROWS, num_warps)


def cases(batch: Case) -> list[OperationCase]:
    """Every row of a packed batch."""
    rows, d = sum(batch.lengths), batch.config.hidden_size
    case = OperationCase(
        batch,
        operation="layer_norm",
        floor="layer_norm",
        shape=f"{rows} x {d}",
        make=lambda generator: [rounded(generator, rows, d), rounded(generator, d), rounded(generator, d)],
        ours=lambda x, weight, bias: ops.layer_norm(x, weight, bias, EPS),
        peers={"torch": lambda x, weight, bias: F.layer_norm(x, (d,), weight, bias, EPS)},
        work=lambda itemsize: flops.layer_norm(rows, d, itemsize),
    )
    return [case]


def tasks(batches: Sequence[Case]) -> Iterator[Task]:
    """One tile for every size class, chosen where most time goes."""
    candidates = [{"ROWS": count, "num_warps": warps} for count, warps in TILES]
    key = {"N": batches[-1].config.hidden_size, "dtype": TUNED_DTYPES}
    yield Task("layer_norm", key, cases(batches[-1])[0], candidates)
