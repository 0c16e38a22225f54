"""The suites: which contestants meet on which cases.

ops         each operation at the shapes of one batch
model       the whole model, and the encoder alone, on every workload
end-to-end  decoded pictures and questions to logits, preparation included
latency     batches of one to eight
scaling     cost against batch, spread of lengths, and patches a picture
memory      peak memory of one forward
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch

from vilt_fast.bench import (
    contestant,
    embedding_operations,
    end_to_end,
    environment,
    operations,
    ours,
    peers,
    timing,
    workloads,
)
from vilt_fast.bench.case import Case, full_config, tiny_config
from vilt_fast.bench.contestant import Clock, Contestant, Row
from vilt_fast.bench.workloads import Workload

# In the order in which `all` runs them: what matters most comes first, where the time is limited.
SUITES = ("model", "latency", "ops", "end-to-end", "memory", "scaling")
# Contestants whose cost against size is a curve worth drawing.
CURVES = (
    "transformers eager", "padded SDPA", "packed varlen_attn", "packed varlen_attn + graph", "vilt_fast kernels",
    "vilt_fast kernels + graph", "vilt_fast kernels, packed uint8 + graph", "vilt_fast reference",
)  # fmt: skip


@dataclass
class Plan:
    """What to run and for how long.

    Args:
        device: where.
        quick: tiny model, tiny batches, a few samples: what CI runs. The figures mean nothing then.
        batches: pairs a batch; None: the suite's own.
        compiles: whether contestants that compile for minutes take part.
        minutes: after which no further contestant starts.
        extra: contestants that join every case of the model suite; tests hand in a wrong one.
        report: is told of every row as it comes.
    """

    device: torch.device
    quick: bool = False
    batches: tuple[int, ...] | None = None
    compiles: bool | None = None
    minutes: float = float("inf")
    extra: Sequence[Contestant] = ()
    report: Callable[[Row], None] = lambda row: None
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        on_gpu = self.device.type == "cuda"
        if self.compiles is None:
            self.compiles = on_gpu and not self.quick
        if self.quick:
            budget = timing.Budget(0.2, least=2, most=3, warm_up=1)
        elif on_gpu:
            budget = timing.Budget(3.0)
        else:  # a call takes seconds, and nothing is compiled or cached on the way
            budget = timing.Budget(60.0, least=5, warm_up=1)
        self.clock = Clock(budget, time.monotonic() + 60 * self.minutes)
        self.environment = {**environment.environment(self.device), "mode": "quick" if self.quick else "full"}
        self.peaks = cache(partial(timing.measure_peaks, self.device, quick=self.quick))

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Widest first; the last one is what a user of the device would take."""
        if self.device.type == "cuda":
            return (torch.float32, torch.float16, torch.bfloat16)
        return (torch.float32,)

    @property
    def is_small(self) -> bool:
        """Whether only a few small batches make sense: on the CPU, or in quick mode."""
        return self.quick or self.device.type != "cuda"

    def case(self, workload: Workload, *, sets: int = 2, compiles: bool = False) -> Case:
        """The workload with the full-size model, or shrunk with the tiny one."""
        compiles = bool(compiles and self.compiles)
        if self.device.type != "cuda" and not self.quick:
            sets = 1  # the weights alone are larger than any cache
        if self.quick:
            small = workloads.shrunk(workload, 8, side=192)
            return Case(small, tiny_config(small), self.device, sets, compiles)
        return Case(workload, full_config(workload), self.device, sets, compiles)

    def run(self, suite: str, case: contestant.Case, contestants: Sequence[Contestant]) -> list[Row]:
        """Rows of one case, told as they come."""
        rows = contestant.run(suite, case, contestants, self.clock, self.peaks, self.environment)
        for row in rows:
            self.report(row)
        return rows


def run_suite(name: str, plan: Plan) -> Iterator[list[Row]]:
    """The rows of a suite, case by case.

    Raises:
        ValueError: an unknown suite.
    """
    runners = {
        "ops": _ops, "model": _model, "end-to-end": _end_to_end, "latency": _latency, "scaling": _scaling,
        "memory": _memory,
    }  # fmt: skip
    if name not in runners:
        raise ValueError(f"suite: got {name!r}, wanted one of {', '.join(SUITES)}, or all")
    return runners[name](plan)


def _ops(plan: Plan) -> Iterator[list[Row]]:
    for batch in plan.batches or ((2,) if plan.is_small else (1, 64, 256)):
        whole = plan.case(workloads.vqa_mix(batch))
        compiles = bool(plan.compiles and batch == 256)
        found = operations.cases(whole.workload, whole.config, plan.device, compiles)
        for case in (*found, *embedding_operations.cases(whole.workload, whole.config, plan.device)):
            yield plan.run("ops", case, case.contestants(plan.dtypes[-1]))


def _model(plan: Plan) -> Iterator[list[Row]]:
    batches = plan.batches or ((2,) if plan.is_small else (8, 64, 256))
    for batch in batches:
        case = plan.case(workloads.vqa_mix(batch), compiles=batch == max(batches))
        yield plan.run("model", case, [*peers.model_peers(plan.dtypes), *ours.contestants(plan.dtypes), *plan.extra])
        yield plan.run("model", case, _encoders(plan))
    if plan.is_small and not plan.quick:
        return  # on a CPU the full-size model on the other workloads takes an hour
    low = plan.dtypes[-1:]
    for name, make in workloads.WORKLOADS.items():
        if name != "vqa-mix":
            case = plan.case(make(batches[-1] if plan.quick else 64))
            yield plan.run("model", case, [*peers.model_peers(low), *ours.contestants(low)])


def _encoders(plan: Plan) -> list[Contestant]:
    low = plan.dtypes[-1]
    return [*peers.encoder_peers(low), *ours.encoder_contestants(low)]


def _end_to_end(plan: Plan) -> Iterator[list[Row]]:
    for batch in plan.batches or ((2,) if plan.is_small else (64,)):
        case = end_to_end.PictureCase(plan.case(workloads.vqa_mix(batch)), quick=plan.quick)
        yield plan.run("end-to-end", case, end_to_end.contestants(plan.dtypes[-1], 2 if plan.is_small else 32))


def _latency(plan: Plan) -> Iterator[list[Row]]:
    for batch in plan.batches or ((1,) if plan.is_small else (1, 2, 4, 8)):
        case = plan.case(workloads.vqa_mix(batch), sets=4, compiles=batch == 1)
        low = plan.dtypes[-1:]
        yield plan.run("latency", case, [*peers.model_peers(low), *ours.contestants(low), *_encoders(plan)])


def scaling_cases(plan: Plan) -> Iterator[Workload]:
    """Batch from 1 to 1024; widths that differ by factors up to 19; 16 to 1025 patches at about the same total."""
    batches = plan.batches or ((1, 2) if plan.is_small else (1, 4, 16, 64, 256, 1024))
    yield from (workloads.vqa_mix(batch) for batch in batches)
    ratios, batch = ((1, 4), 2) if plan.is_small else ((1, 2, 4, 9, 19), 64)
    yield from (workloads.spread(ratio, batch) for ratio in ratios)
    counts, total = ((16, 64), 128) if plan.is_small else ((16, 49, 144, 256, 576, 1025), 16400)
    yield from (workloads.patches(count, max(1, total // count)) for count in counts)


def _scaling(plan: Plan) -> Iterator[list[Row]]:
    low = plan.dtypes[-1:]
    everybody = [*peers.model_peers(low), *ours.contestants(low), *_encoders(plan)]
    chosen = [one for one in everybody if one.name in CURVES]
    for workload in scaling_cases(plan):
        yield plan.run("scaling", plan.case(workload, sets=1), chosen)


def _memory(plan: Plan) -> Iterator[list[Row]]:
    low = plan.dtypes[-1:]
    for batch in plan.batches or ((2,) if plan.is_small else (64, 256)):
        case = plan.case(workloads.vqa_mix(batch), sets=1)
        rows = plan.run("memory", case, [*peers.model_peers(low), *ours.contestants(low), *_encoders(plan)])
        for row in rows:
            if row.status == "ok" and plan.device.type != "cuda":
                row.note = "peak memory needs a GPU: torch counts it there alone"
        yield rows
