"""What a contestant is, and how a row of results comes from it."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vilt_fast.bench import timing, verify
from vilt_fast.bench.flops import Cost

MEBIBYTE = 2**20
Calls = list[Callable[[], Any]]  # from nothing to the answer, one for each input set


# From embedded rows to logits, ours and theirs alike; and the same without a shortcut.
ENCODER: dict[str, Any] = {"scope": "encoder", "note": "the last block computes only the rows that the head reads"}
EVERY_ROW: dict[str, Any] = {"scope": "encoder, every row", "note": "the last block computes every row"}


class Unavailable(Exception):
    """A contestant cannot run here; the message says why."""


class Case(Protocol):
    """What contestants run on: a batch for the model (`case.Case`), or one operation (`operations.OperationCase`)."""

    device: torch.device
    compiles: bool  # whether contestants that compile for minutes take part
    bounds: dict[torch.dtype, float]  # largest error

    @property
    def is_sampled(self) -> bool:
        """Whether `max_image_length` leaves patches out."""

    @property
    def wanted(self) -> Any:
        """The right answer for the first input set: a tensor, or a list of them."""

    def describe(self) -> dict[str, Any]:
        """workload, batch, tokens, padded_tokens, shape and model of a row."""

    def cost(self, scope: str, dtype: torch.dtype) -> Cost:
        """Useful work of a call."""


@dataclass(frozen=True)
class Contestant:
    """Somebody who answers a case.

    Args:
        name: in tables.
        dtype: of weights and activations.
        make: from a case the calls to time, one per input set; raises `Unavailable`.
        scope: "model" from padded pixels and ids to logits, "encoder" from embedded rows to logits (see ENCODER), or
            another word with `cost`.
        is_ours: whether it is this library.
        compiles: whether it compiles for so long that only some cases are worth it.
        samples: whether it can draw the same patches as we do under `max_image_length`.
        approximates: whether its error is a price it states, and not a mistake; it is timed whatever the error.
        repeats: how many times over a call answers the case: a pipeline needs more than one batch to fill.
        bound: largest error; None: the case's.
        planning: from a case the part of its calls that the host does before anything is launched, where it is apart.
        note: what a reader of its row should know.
    """

    name: str
    dtype: torch.dtype
    make: Callable[[Any], Calls]
    scope: str = "model"
    is_ours: bool = False
    compiles: bool = False
    samples: bool = True
    approximates: bool = False
    repeats: int = 1
    bound: float | None = None
    planning: Callable[[Any], Calls] | None = None
    note: str = ""

    def calls(self, case: Case) -> Calls:
        """The calls to time.

        Raises:
            Unavailable: it does not take part in this case.
        """
        if self.compiles and not case.compiles:
            raise Unavailable("compiles for long: takes part where a case says so (--compile)")
        if not self.samples and case.is_sampled:
            raise Unavailable("samples other patches, so its answer cannot be checked")
        with torch.inference_mode():
            return self.make(case)


@dataclass
class Row:
    """One line of a result file. Figures are None where nothing was timed."""

    suite: str
    workload: str
    scope: str
    contestant: str
    is_ours: bool
    dtype: str
    batch: int
    tokens: int
    padded_tokens: int
    shape: str
    status: str = "ok"
    error: float | None = None
    bound: float | None = None
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    samples: int | None = None
    times_first: float | None = None  # how many times faster than the case's first contestant, round by round
    plan_ms: float | None = None  # of it, what the host plans
    launches: str = timing.LAUNCHES
    pairs_per_s: float | None = None
    tokens_per_s: float | None = None
    tflops: float | None = None
    gbps: float | None = None
    matmul_share: float | None = None
    copy_share: float | None = None
    peak_mib: float | None = None
    model: str = ""
    note: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def flat(self) -> dict[str, object]:
        """One level of columns."""
        row = asdict(self)
        found = row.pop("environment")
        return {**row, **found}

    def fill(self, times: timing.Times, cost: Cost, peaks: timing.Peaks, repeats: int = 1) -> None:
        """Everything that follows from the times of a call that answers the case `repeats` times over."""
        self.samples, self.times_first = times.samples, times.times_first * repeats
        self.median_ms, self.p20_ms, self.p80_ms = (
            ms / repeats for ms in (times.median_ms, times.p20_ms, times.p80_ms)
        )
        seconds = self.median_ms / 1e3
        self.pairs_per_s, self.tokens_per_s = self.batch / seconds, self.tokens / seconds
        self.tflops, self.gbps = cost.flops / seconds / 1e12, cost.bytes / seconds / 1e9
        self.matmul_share = self.tflops / peaks.matmul_tflops
        self.copy_share = self.gbps / peaks.copy_gbps


def name_of(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def new_row(suite: str, case: Case, contestant: Contestant, environment: dict[str, str]) -> Row:
    """A row with everything that is known before the run."""
    return Row(
        suite=suite,
        scope=contestant.scope,
        contestant=contestant.name,
        is_ours=contestant.is_ours,
        dtype=name_of(contestant.dtype),
        note=contestant.note,
        environment=environment,
        **case.describe(),
    )


def checked_calls(case: Case, contestant: Contestant, row: Row) -> Calls:
    """The calls of a contestant that is right; none, and the reason in the row, of another."""
    try:
        calls = contestant.calls(case)
        row.bound = case.bounds[contestant.dtype] if contestant.bound is None else contestant.bound
        wanted = case.wanted if contestant.repeats == 1 else torch.cat([case.wanted] * contestant.repeats)
        row.error = verify.error_of(calls[0], wanted)
    except Unavailable as reason:
        row.status = f"not run: {reason}"
        return []
    except Exception as error:  # a peer that breaks is a result too; ours is one that readers must see
        row.status = f"not run: raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        release(case.device)
        return []
    if contestant.approximates and math.isfinite(row.error):
        row.note = "; ".join(filter(None, (row.note, "an approximation: its error is its price")))
    elif not row.error <= row.bound:  # NaN is wrong too
        row.status = f"wrong: error {row.error:.1e} is above {row.bound:.0e}; not timed"
        return []
    return calls


def peak_memory(call: Callable[[], Tensor], device: torch.device) -> float | None:
    """MiB that a call allocates at most beyond what was there before it (weights and inputs); None without a GPU."""
    if device.type != "cuda":
        return None
    with torch.inference_mode():
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MEBIBYTE


def release(device: torch.device) -> None:
    """Give what nobody holds any more back to the device."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def graphed(call: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The call as a CUDA graph; what it returns is overwritten by the next replay.

    Raises:
        Unavailable: no CUDA device.
    """
    if device.type != "cuda":
        raise Unavailable("needs a GPU: CUDA graphs")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
