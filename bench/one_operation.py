"""One operation under pytest-benchmark: verify, then time the kernels alone, as a replayed CUDA graph.

`vilt-fast bench` times whole calls, launches included, and writes the result files. The files beside this one that are
named after an operation are for work on that kernel: what pytest-benchmark shows is the time on the GPU, and
`--benchmark-json FILE` writes it with the columns below.

    pytest bench/linear.py --benchmark-json linear.json

Without a GPU a tiny shape goes through the interpreter, so that CI runs the file; the figures mean nothing then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench import case as models
from vilt_fast.bench import embedding_operations, environment, operations, timing, verify, workloads
from vilt_fast.bench.contestant import Unavailable

CONTESTANTS = ("vilt_fast", "torch", "torch + torch.compile")
ROUNDS, WARM_UP = 50, 5
GRAPH_MS = 5.0  # one replay lasts about this long: what it takes to start one does not count then


def find(operation: str, number: int, device: torch.device) -> operations.OperationCase:
    """The case `number` of those whose name begins with `operation`: 256 pairs of vqa-mix, or a tiny one on the CPU."""
    if device.type == "cuda":
        workload = workloads.vqa_mix(256)
        config = models.full_config(workload)
    else:
        workload = workloads.shrunk(workloads.vqa_mix(2), 8, side=96)
        config = models.tiny_config(workload)
    module = embedding_operations if operation.endswith(("_embed", "_sample")) else operations
    return [case for case in module.cases(workload, config, device) if case.operation.startswith(operation)][number]


def run(
    benchmark: Any, operation: str, number: int, contestant: str, dtype: torch.dtype, *, graph: bool = True
) -> None:
    """Check a contestant against the fp64 reference and time it.

    Args:
        benchmark: pytest-benchmark's fixture.
        operation, number: which case.
        contestant: "vilt_fast", a peer of the case, or a peer followed by " + torch.compile".
        dtype: of the tensors.
        graph: whether calls are captured; a contestant that waits for the device cannot be, and is timed as it is.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and contestant.endswith("compile"):
        pytest.skip("needs a GPU: torch.compile on the CPU is nobody's peer")
    case = find(operation, number, device)
    with torch.inference_mode():
        calls = _calls(case, contestant, dtype)
        try:
            verdict = verify.check(calls[0], case.wanted, case.bound(dtype))
        except Unavailable as reason:
            pytest.skip(str(reason))
        assert verdict.passed, f"{contestant}: error {verdict.error:.2e}, allowed {verdict.bound:.2e}; not timed"
        graph = graph and device.type == "cuda"
        timed, repeats = _graph(calls) if graph else (_waited(calls[0], device), 1)
        rounds = {"rounds": ROUNDS, "warmup_rounds": WARM_UP} if device.type == "cuda" else {"rounds": 2}
        benchmark.group = f"{case.operation}, {case.shape}, {str(dtype).removeprefix('torch.')}"
        benchmark.pedantic(timed, **rounds)
    launches = f"not counted: a CUDA graph of {repeats} calls" if graph else timing.LAUNCHES
    benchmark.extra_info |= _columns(case, contestant, dtype, verdict, benchmark, repeats, launches)


def _calls(case: operations.OperationCase, contestant: str, dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    if contestant != "vilt_fast":
        peer = case.peers[contestant.removesuffix(" + torch.compile")]
        function = torch.compile(peer, dynamic=False) if contestant.endswith("compile") else peer
        return [lambda tensors=tensors: function(*tensors) for tensors in case.sets_in(dtype)]

    def ours(tensors: list[Tensor]) -> Tensor:
        with ops.backend("kernels"):
            return case.ours(*tensors)

    return [lambda tensors=tensors: ours(tensors) for tensors in case.sets_in(dtype)]


def _waited(call: Callable[[], Tensor], device: torch.device) -> Callable[[], None]:
    def timed() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return timed


def _graph(calls: list[Callable[[], Tensor]]) -> tuple[Callable[[], None], int]:
    """A call that replays a graph and waits for it, and how many calls of the operation are in the graph."""
    for call in calls:
        call()
    once_ms = timing.measure([calls], torch.device("cuda"), timing.Budget(0.2, 3, 10))[0].median_ms
    repeats = max(int(GRAPH_MS / once_ms), 1) * len(calls)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(repeats):
            calls[i % len(calls)]()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay, repeats


def _columns(
    case: operations.OperationCase,
    contestant: str,
    dtype: torch.dtype,
    verdict: verify.Verdict,
    benchmark: Any,
    repeats: int,
    launches: str,
) -> dict[str, Any]:
    """What stands beside the times in the JSON file; milliseconds are of one call."""
    cost = case.cost("operation", dtype)
    columns = environment.environment(case.device) | case.describe()
    columns |= {"contestant": contestant, "dtype": str(dtype).removeprefix("torch."), "error": verdict.error}
    columns["launches"] = launches
    if benchmark.stats is None:  # --benchmark-disable, or pytest-xdist
        return columns
    times = timing.summary([1e3 * seconds / repeats for seconds in benchmark.stats.stats.data])
    columns |= {"median_ms": times.median_ms, "p20_ms": times.p20_ms, "p80_ms": times.p80_ms}
    return columns | {"tflops": cost.flops / times.median_ms / 1e9, "gbps": cost.bytes / times.median_ms / 1e6}
