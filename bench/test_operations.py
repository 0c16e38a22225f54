"""One operation under pytest-benchmark: verify, then time the kernels alone, as a replayed CUDA graph.

`vilt-fast bench` times whole calls, launches included, and writes the result files. This file is for work on one
kernel: pytest-benchmark shows the time on the GPU, and `--benchmark-json FILE` adds the columns of a result row.

    pytest bench --benchmark-only -k linear

Without a GPU a tiny shape goes through the interpreter, so that CI runs the file; the figures mean nothing then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

from vilt_fast.bench import check, contestant, environment, operations, timing, workloads
from vilt_fast.bench.case import Case, full_config, tiny_config
from vilt_fast.bench.contestant import Contestant
from vilt_fast.bench.operations import OperationCase
from vilt_fast.ops import OPERATIONS

GPU = torch.cuda.is_available()
ROUNDS = {"rounds": 50, "warmup_rounds": 5} if GPU else {"rounds": 2}
GRAPH_MS = 5.0  # one replay lasts about this long: what it takes to start one does not count then


@lru_cache(maxsize=1)  # the tests of an operation follow each other, and a batch takes gigabytes
def cases(operation: str, device: str) -> list[OperationCase]:
    """An operation's cases: 256 pairs of vqa-mix, or tiny ones on the CPU."""
    if device == "cuda":
        workload = workloads.vqa_mix(256)
        config = full_config(workload)
    else:
        workload = workloads.shrunk(workloads.vqa_mix(2), 8, side=96)
        config = tiny_config(workload)
    found = operations.timed_cases(operation, Case(workload, config, torch.device(device), compiles=GPU))
    for case in found:
        case.interpreted = device != "cuda"
    return found


def contestants(case: OperationCase) -> dict[str, Contestant]:
    """The kernels and the peers, by name, in the dtype that a user of the device would take."""
    found = case.contestants(torch.bfloat16 if GPU else torch.float32)
    return {one.name: one for one in found if one.name != "vilt_fast reference" and (GPU or not one.compiles)}


PARAMETERS = [
    pytest.param(operation, number, name, id=f"{case.operation}, {number}-{name}")
    for operation in OPERATIONS
    for number, case in enumerate(cases(operation, "cpu"))  # for the names, which are the same at every size
    for name in contestants(case)
]


@pytest.mark.parametrize(("operation", "number", "name"), PARAMETERS)
def test_operation(benchmark: Any, operation: str, number: int, name: str) -> None:
    device = check.kernel_device()
    case = cases(operation, device.type)[number]
    one = contestants(case)[name]
    row = contestant.new_row("operation", case, one, environment.environment(device))
    calls = contestant.checked_calls(case, one, row)
    if not calls and row.status.startswith("not run: ") and ": raised " not in row.status:
        pytest.skip(row.status)
    assert calls, f"{name}: {row.status}"
    benchmark.group = f"{case.operation}, {case.shape}, {row.dtype}"
    with torch.inference_mode():
        if device.type == "cuda" and name not in case.waiting:
            timed, repeats = _replayed(calls, device)
            row.launches = f"not counted: a CUDA graph of {repeats} calls"
        else:
            timed, repeats = _waited(calls[0]), 1
        benchmark.pedantic(timed, **ROUNDS)
    if benchmark.stats is not None:  # None with --benchmark-disable, or under pytest-xdist
        times = timing.summary([1e3 * seconds for seconds in benchmark.stats.stats.data])
        row.fill(times, case.cost("operation", one.dtype), _peaks(device, one.dtype), repeats)
    benchmark.extra_info |= row.flat()


@lru_cache
def _peaks(device: torch.device, dtype: torch.dtype) -> timing.Peaks:
    return timing.measure_peaks(device, dtype, quick=not GPU)


def _waited(call: Callable[[], Any]) -> Callable[[], None]:
    def timed() -> None:
        call()
        if GPU:
            torch.cuda.synchronize()

    return timed


def _replayed(calls: list[Callable[[], Any]], device: torch.device) -> tuple[Callable[[], None], int]:
    """A call that replays a graph and waits for it, and how many calls of the operation are in the graph."""
    once_ms = timing.measure([calls], device, timing.Budget(0.2, 3, 10))[0].median_ms
    repeats = max(int(GRAPH_MS / once_ms), 1) * len(calls)

    def every_call() -> Any:
        for i in range(repeats):
            result = calls[i % len(calls)]()
        return result

    return _waited(contestant.graphed(every_call, device)), repeats
