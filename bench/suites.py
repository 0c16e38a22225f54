"""The suites: which contestants meet on which cases.

ops         each operation at the shapes of one batch
model       the whole model, and the encoder alone, on every workload
end-to-end  decoded images and questions to logits, preparation included
latency     batches of one to eight
scaling     cost against batch, spread of lengths, and patches per image
memory      peak memory of one forward
vit         ViT-B/16: images of one size, of several, and with half of their patches
visual_bert VisualBERT that answers questions: texts and regions of many lengths, and of one
export      ViLT as a torch.export program, in onnxruntime and as an AOTInductor package, beside live and frozen
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch

from vilt_fast.bench import (
    contestant,
    end_to_end,
    environment,
    export,
    operations,
    ours,
    peers,
    timing,
    visual_bert,
    vit,
    workloads,
)
from vilt_fast.bench.case import Case
from vilt_fast.bench.contestant import Contestant, Row
from vilt_fast.bench.workloads import Workload
from vilt_fast.ops import OPERATIONS

# Contestants whose cost against size is a curve worth drawing.
CURVES = (
    "transformers eager",
    "padded SDPA",
    "packed varlen_attn",
    "packed varlen_attn + graph",
    "vilt_fast live",
    "vilt_fast frozen",
    "vilt_fast frozen + graph",
    "vilt_fast live, reference",
    "vilt_fast frozen, reference",
)

_PLANNING = timing.Budget(0.5, least=3)


@dataclass
class Run:
    """What to run and for how long.

    Args:
        device: where.
        quick: tiny model, tiny batches, a few samples: what CI runs. The figures mean nothing then.
        batches: pairs per batch; None: the suite's own.
        compiles: whether contestants that compile for minutes take part.
        minutes: after which no further contestant starts.
        clock: "wall", or on a CPU "cpu": the CPU time of one thread, which what others run there hardly moves.
        report: is told of every row as it comes.
    """

    device: torch.device
    quick: bool = False
    batches: tuple[int, ...] | None = None
    compiles: bool | None = None
    minutes: float = float("inf")
    clock: str = "wall"
    report: Callable[[Row], None] = lambda row: None
    budget: timing.Budget = field(init=False)

    def __post_init__(self) -> None:
        on_gpu = self.device.type == "cuda"
        if self.clock == "cpu":
            if on_gpu:
                raise ValueError("clock: got 'cpu' on a GPU, whose work it does not count; wanted 'wall'")
            torch.set_num_threads(1)
        if self.compiles is None:
            self.compiles = on_gpu and not self.quick
        if self.quick:
            self.budget = timing.Budget(0.2, least=2, most=3, warm_up=1)
        elif on_gpu:
            self.budget = timing.Budget(3.0)
        else:  # a call takes seconds, and nothing is compiled or cached on the way
            self.budget = timing.Budget(150.0, least=9, warm_up=1)
        if self.clock == "cpu":  # calls differ little, and the check was one
            self.budget = replace(self.budget, least=4, warm_up=0, clock="cpu")
        self.deadline = time.monotonic() + 60 * self.minutes
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
        kinds = {vit.Images: vit.ViTCase, visual_bert.Pairs: visual_bert.VisualBertCase}
        kind = kinds.get(type(workload), Case)
        if self.device.type != "cuda" and not self.quick:
            sets = 1  # the weights alone are larger than any cache
        return kind.of(workload, self.device, sets, bool(compiles and self.compiles), quick=self.quick)

    def time(self, suite: str, case: contestant.Case, contestants: Sequence[Contestant]) -> list[Row]:
        """Check every contestant, then time those that were right, in turns; a row for each, whatever became of it."""
        if case.compiles:
            # torch.compile keeps eight versions of a function and runs the ninth without a word as if never compiled.
            torch._dynamo.reset()
        rows, ready = [], []
        for one in contestants:
            row = contestant.new_row(suite, case, one, self.environment)
            row.launches = timing.CLOCKS[self.clock][0]
            rows.append(row)
            if time.monotonic() > self.deadline:
                row.status = "not run: the time limit of this run was spent"
            elif calls := contestant.checked_calls(case, one, row):
                row.peak_mib = contestant.peak_memory(calls[0], case.device)
                if row.peak_mib == 0:  # a graph's memory is there before the call and stays
                    row.peak_mib = None
                    row.note = "; ".join(filter(None, (row.note, "holds its memory between calls")))
                ready.append((one, row, calls))
        left = max(0.0, self.deadline - time.monotonic())  # less than that makes no fewer than the least rounds
        budget = replace(self.budget, seconds=min(self.budget.seconds, left))
        times = timing.measure([calls for _, _, calls in ready], case.device, budget)
        for (one, row, _), measured in zip(ready, times, strict=True):
            row.fill(measured, case.cost(one.scope, one.dtype), self.peaks(one.dtype), one.repeats)
            if one.planning is not None:
                row.plan_ms = timing.measure([one.planning(case)], case.device, _PLANNING)[0].median_ms
        del ready
        contestant.release(case.device)
        for row in rows:
            self.report(row)
        return rows


def run_suite(name: str, run: Run) -> Iterator[list[Row]]:
    """The rows of a suite, case by case.

    Raises:
        ValueError: an unknown suite.
    """
    if name not in SUITES:
        raise ValueError(f"suite: got {name!r}, wanted one of {', '.join(SUITES)}, or all")
    return SUITES[name](run)


def _ops(run: Run) -> Iterator[list[Row]]:
    for batch in run.batches or ((2,) if run.is_small else (1, 64, 256)):
        whole = run.case(workloads.vqa_mix(batch), compiles=batch == 256)
        for operation in OPERATIONS:
            for case in operations.timed_cases(operation, whole):
                yield run.time("ops", case, case.contestants(run.dtypes[-1]))


def _model(run: Run) -> Iterator[list[Row]]:
    batches = run.batches or ((2,) if run.is_small else (8, 64, 256))
    for batch in batches:
        case = run.case(workloads.vqa_mix(batch), compiles=batch == max(batches))
        yield run.time("model", case, _models(run.dtypes))
        yield run.time("model", case, _encoders(run.dtypes[-1]))
    if run.is_small and not run.quick:
        return  # on a CPU the full-size model on the other workloads takes an hour
    for name, make in workloads.WORKLOADS.items():
        if name != "vqa-mix":
            case = run.case(make(batches[-1] if run.quick else 64))
            yield run.time("model", case, _models(run.dtypes[-1:]))


def _models(dtypes: tuple[torch.dtype, ...]) -> list[Contestant]:
    return [*peers.model_peers(dtypes), *ours.contestants(dtypes)]


def _encoders(dtype: torch.dtype) -> list[Contestant]:
    return [*peers.encoder_peers(dtype), *ours.encoder_contestants(dtype)]


def _everybody(run: Run) -> list[Contestant]:
    return [*_models(run.dtypes[-1:]), *_encoders(run.dtypes[-1])]


def _end_to_end(run: Run) -> Iterator[list[Row]]:
    for batch in run.batches or ((2,) if run.is_small else (64,)):
        case = end_to_end.ImageCase(run.case(workloads.vqa_mix(batch)), quick=run.quick)
        yield run.time("end-to-end", case, end_to_end.contestants(run.dtypes[-1], 2 if run.is_small else 32))


def _latency(run: Run) -> Iterator[list[Row]]:
    for batch in run.batches or ((1,) if run.is_small else (1, 2, 4, 8)):
        case = run.case(workloads.vqa_mix(batch), sets=4, compiles=batch == 1)
        yield run.time("latency", case, _everybody(run))


def _vit(run: Run) -> Iterator[list[Row]]:
    batches = run.batches or ((2,) if run.quick else (8,) if run.is_small else (8, 64, 256))
    for batch in batches:
        for make in vit.WORKLOADS.values():
            case = run.case(make(batch), sets=1, compiles=batch == max(batches))
            found = vit.contestants(case.workload, run.dtypes[-1])
            if run.is_small and not run.quick:  # on a CPU a call of the full-size model takes seconds
                found = [one for one in found if one.scope == "model" and "packed" not in one.name]
            yield run.time("vit", case, found)


def _visual_bert(run: Run) -> Iterator[list[Row]]:
    batches = run.batches or ((2,) if run.quick else (8,) if run.is_small else (1, 8, 64, 256))
    for batch in batches:
        for make in visual_bert.WORKLOADS.values():
            case = run.case(make(batch), sets=1, compiles=batch == max(batches))
            for dtype in run.dtypes[-2:]:
                found = visual_bert.contestants(dtype)
                if run.is_small and not run.quick:
                    found = [one for one in found if one.scope == "model"]
                yield run.time("visual_bert", case, found)


def _export(run: Run) -> Iterator[list[Row]]:
    for batch in run.batches or ((2,) if run.quick else (8,)):
        for make in export.WORKLOADS.values():
            case = run.case(make(batch), sets=1, compiles=True)
            yield run.time("export", case, export.contestants(torch.float32))


def scaling_cases(run: Run) -> Iterator[Workload]:
    """Batch from 1 to 1024; widths that differ by factors up to 19; 16 to 1025 patches at about the same total."""
    batches = run.batches or ((1, 2) if run.is_small else (1, 4, 16, 64, 256, 1024))
    yield from (workloads.vqa_mix(batch) for batch in batches)
    ratios, batch = ((1, 4), 2) if run.is_small else ((1, 2, 4, 9, 19), 64)
    yield from (workloads.spread(ratio, batch) for ratio in ratios)
    counts, total = ((16, 64), 128) if run.is_small else ((16, 49, 144, 256, 576, 1025), 16400)
    yield from (workloads.patches(count, max(1, total // count)) for count in counts)


def _scaling(run: Run) -> Iterator[list[Row]]:
    chosen = [one for one in _everybody(run) if one.name in CURVES]
    for workload in scaling_cases(run):
        yield run.time("scaling", run.case(workload, sets=1), chosen)


def _memory(run: Run) -> Iterator[list[Row]]:
    for batch in run.batches or ((2,) if run.is_small else (64, 256)):
        rows = run.time("memory", run.case(workloads.vqa_mix(batch), sets=1), _everybody(run))
        for row in rows:
            if row.status == "ok" and run.device.type != "cuda":
                row.note = "; ".join(filter(None, (row.note, "peak memory needs a GPU: torch counts it there alone")))
        yield rows


# In the order in which `all` runs them: what matters most comes first, where the time is limited.
SUITES: dict[str, Callable[[Run], Iterator[list[Row]]]] = {
    "model": _model,
    "latency": _latency,
    "ops": _ops,
    "end-to-end": _end_to_end,
    "memory": _memory,
    "scaling": _scaling,
    "vit": _vit,
    "visual_bert": _visual_bert,
    "export": _export,
}
