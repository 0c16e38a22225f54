"""layer_norm beside PyTorch's, at the rows of a batch. A copy of the rows is the floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from vilt_fast import ops
from vilt_fast.bench import flops
from vilt_fast.bench.case import Case
from vilt_fast.bench.operations import EPS, TUNED_DTYPES, OperationCase, Task, rounded, tuning_input
from vilt_fast.configs.vilt import ViltConfig

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


def tasks(config: ViltConfig, rows: Sequence[int], device: torch.device) -> Iterator[Task]:
    """One tile for every size class, chosen where most time goes."""
    from vilt_fast.kernels.layer_norm import layer_norm

    d = config.hidden_size
    x, weight, bias = (tuning_input(device, *shape) for shape in ((max(rows), d), (d,), (d,)))
    candidates = [{"ROWS": count, "num_warps": warps} for count, warps in TILES]
    key = {"N": d, "dtype": TUNED_DTYPES}
    yield Task("layer_norm", key, lambda: layer_norm(x, weight, bias, EPS), candidates)
