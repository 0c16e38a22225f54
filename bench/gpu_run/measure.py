"""The steps that measure: python -m vilt_fast.bench.gpu_run.measure smoke 1

On a GPU in bf16 at the sizes of the model; without one tiny, on the reference: to rehearse. Contestants are checked
before they are timed, in turns; a fact that cannot be found costs no other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch

import vilt_fast
from vilt_fast.bench import check, end_to_end, operations, ours, peers, timing, workloads
from vilt_fast.bench import visual_bert as regions
from vilt_fast.bench import vit as images
from vilt_fast.bench.case import Case
from vilt_fast.bench.contestant import Contestant, Row
from vilt_fast.bench.gpu_run import facts
from vilt_fast.bench.suites import Run

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
SIDE = "kernels" if GPU else "reference"
BATCHES = (256, 64, 8, 1) if GPU else (2,)  # one in each size class of rows
# How often a block has each of the timed operations.
IN_A_BLOCK = {"layer_norm": 2, "attention": 1, "linear": 1, "linear + residual": 1, "linear + GELU": 1}


@cache
def make_run(seconds: float = 2.0, *, compiles: bool = False) -> Run:
    """A run that spends so long on the contestants of a case."""
    run = Run(DEVICE, quick=not GPU, compiles=compiles)
    if GPU:
        run.budget = timing.Budget(seconds, most=60)
    return run


def case_of(
    run: Run, batch: int, *, make: Callable[[int], workloads.Workload] = workloads.vqa_mix, compiles: bool = False
) -> Case:
    """So many pairs of vqa-mix, or what `make` gives."""
    return run.case(make(batch), sets=1, compiles=compiles)


def smoke(batch: str) -> None:
    """Every operation of the model beside its reference, at real sizes."""
    case, agreed = case_of(make_run(), int(batch) if GPU else 2), 0

    def one(found: operations.OperationCase) -> None:
        nonlocal agreed
        with vilt_fast.backend(SIDE):
            row = check.compare(found, DTYPE, SIDE)
        agreed += row.passed
        name = f"smoke B={batch}: {found.operation}, {found.shape}"
        facts.record(name, row.error, "error", bound=row.bound, passed=row.passed)
        if not row.passed:
            raise ValueError(f"error {row.error:.2e} is above {row.bound:.2e}")

    for operation in operations.modules():
        for found in operations.timed_cases(operation, case):
            if found.floor or GPU:  # integers and bytes take part where they are fast
                facts.attempt(f"smoke B={batch}: {found.operation}", partial(one, found))
    facts.record(f"smoke B={batch}: operations that agree", agreed, "operations", failed=len(facts.failures))


def ops() -> None:
    """Time of each operation in a replayed graph, and of twelve blocks of them."""

    def find(label: str, batch: int) -> None:
        case, block = case_of(make_run(), batch), 0.0
        for operation in operations.modules():
            for found in operations.timed_cases(operation, case):
                block += _operation(batch, found)
        facts.record(label, 12 * block, "ms", pairs_per_s=batch / (12e-3 * block))

    _each("twelve blocks", BATCHES, find)


def _operation(batch: int, found: operations.OperationCase) -> float:
    """Records an operation; returns the milliseconds that it has in a block."""
    times: list[float] = []

    def one() -> None:
        with vilt_fast.backend(SIDE):
            times.append(clock(partial(found.ours, *found.sets_in(DTYPE)[0]), bool(found.waiting)).median_ms)
        facts.record(f"{found.operation} B={batch}, {found.shape}", 1e3 * times[0], "us")

    facts.attempt(f"{found.operation} B={batch}", one)
    return IN_A_BLOCK.get(found.operation, 0) * times[0] if times else 0.0


def clock(call: Callable[[], object], waits: bool = False) -> timing.Times:
    """Time of a call in a replayed CUDA graph; of one that waits for the device, and without a GPU, by the wall."""
    if waits or not GPU:
        return timing.measure([[call]], DEVICE, timing.Budget(0.5 if GPU else 0.05, least=3))[0]
    from triton.testing import do_bench_cudagraph

    with torch.inference_mode():
        low, median, high = do_bench_cudagraph(call, rep=20, quantiles=[0.2, 0.5, 0.8])
    return timing.Times(median, low, high, 10)


def _time(label: str, run: Run, case: Case, contestants: Sequence[Contestant]) -> dict[tuple[str, str], Row]:
    """A fact for each contestant; the rows of those that answered rightly by name and scope."""
    rows = run.time("gpu-run", case, contestants)
    for row in rows:
        name = f"{label}: {row.contestant}" + (", every row" if row.scope.endswith("every row") else "")
        if row.status == "ok":
            spread = {"p20_ms": row.p20_ms, "p80_ms": row.p80_ms, "error": row.error}
            facts.record(name, row.median_ms, "ms", pairs_per_s=row.pairs_per_s, **spread, plan_ms=row.plan_ms)
        else:
            facts.record(name, None, "", failed=row.status)
            facts.failures.extend([name] if row.is_ours else [])
    return {(row.contestant, row.scope): row for row in rows if row.status == "ok"}


def _ratio(label: str, rows: dict[tuple[str, str], Row], mine: str, theirs: str, rival: str, scope: str) -> None:
    """How many times faster ours is, where both are there."""
    a, b = rows.get((mine, scope)), rows.get((theirs, scope))
    if a and b and a.median_ms and b.median_ms:
        every = ", every row" if scope.endswith("every row") else ""
        facts.record(f"{label}: ours to {rival}{every}", b.median_ms / a.median_ms, "times")


def _each(label: str, batches: Sequence[int], find: Callable[[str, int], None]) -> None:
    for batch in batches:
        facts.attempt(f"{label} B={batch}", partial(find, f"{label} B={batch}", batch))


def encoder(label: str = "encoder", theirs: str = "packed varlen_attn + graph", compiles: bool = False) -> None:
    """Embedded rows to logits in a graph, beside the rival; with first rows only in the last block, and without."""
    mine = "vilt_fast kernels + graph" if GPU else "vilt_fast reference"
    theirs = theirs if GPU else "padded SDPA"

    def find(label: str, batch: int) -> None:
        run = make_run(compiles=compiles)
        everybody = [*ours.encoder_contestants(DTYPE), *peers.encoder_peers(DTYPE)]
        chosen = [one for one in everybody if one.name in (mine, theirs)]
        rows = _time(label, run, case_of(run, batch, compiles=compiles), chosen)
        for scope in ("encoder", "encoder, every row"):
            _ratio(label, rows, mine, theirs, "the packed rival", scope)

    _each(label, BATCHES, find)


def compiled() -> None:
    """The same beside the rival under torch.compile."""
    encoder("compiled", "packed varlen_attn + torch.compile + graph", compiles=True)


def live() -> None:
    """The live form beside transformers, from pixels to logits; small batches first."""
    name = "vilt_fast live" if GPU else "vilt_fast live, reference"

    def find(label: str, batch: int) -> None:
        run = make_run()
        everybody = [*ours.contestants((DTYPE,)), *peers.model_peers((DTYPE,))]
        chosen = [one for one in everybody if one.name in (name, f"{name}, packed uint8", "transformers eager")]
        rows = _time(label, run, case_of(run, batch), chosen)
        _ratio(label, rows, name, "transformers eager", "transformers", "model")

    _each("live", BATCHES[::-1], find)


def frozen() -> None:
    """The frozen form, without graphs and with them."""

    def find(label: str, batch: int) -> None:
        run = make_run()
        chosen = [one for one in ours.contestants((DTYPE,)) if one.name.startswith("vilt_fast frozen")]
        chosen = [one for one in chosen if ("reference" in one.name) != GPU]
        _time(label, run, case_of(run, batch), chosen)

    _each("frozen", BATCHES[::-1], find)


def engine() -> None:
    """Decoded images to logits through the engine, with graphs and without."""
    run = make_run(8.0)
    images = end_to_end.ImageCase(case_of(run, 64 if GPU else 2), quick=not GPU)
    repeats = 64 if GPU else 2
    chosen = [one for one in end_to_end.contestants(DTYPE, repeats) if one.repeats > 1]
    plain = partial(end_to_end.engine_way, dtype=DTYPE, repeats=repeats, cuda_graphs=False)
    chosen.append(Contestant("vilt_fast Engine, no graphs", DTYPE, plain, end_to_end.SCOPE, True, repeats=repeats))
    _time("engine", run, images, chosen)


def vit() -> None:
    """A frozen ViT-B/16 beside compiled transformers, from pixels to logits; who drops no patch is not compiled."""
    mine = "vilt_fast frozen + graph" if GPU else "vilt_fast frozen, reference"
    batch = BATCHES[0]

    def find(name: str, label: str) -> None:
        is_compiled = GPU and name != "vit-half"
        theirs = "transformers + torch.compile" if is_compiled else "transformers eager"
        run = make_run(compiles=is_compiled)
        make = images.WORKLOADS[name]
        case = case_of(run, batch, make=make, compiles=is_compiled)
        wanted = (mine, f"{mine}, packed uint8", f"{mine}, every patch", theirs)
        rows = _time(label, run, case, [one for one in images.contestants(make(batch), DTYPE) if one.name in wanted])
        _ratio(label, rows, mine, theirs, f"{'compiled ' if is_compiled else ''}transformers", "model")
        _ratio(label, rows, mine, f"{mine}, every patch", "every patch", "model")

    for name in images.WORKLOADS:
        label = f"{name} B={batch}"
        facts.attempt(label, partial(find, name, label))


def visual_bert() -> None:
    """A frozen VisualBERT beside compiled transformers, from ids and features to logits; where most is padded first."""
    mine = "vilt_fast frozen + graph" if GPU else "vilt_fast frozen, reference"
    theirs = "transformers + torch.compile" if GPU else "transformers eager"
    wanted = (mine, f"{mine}, unpadded", theirs, "packed by hand")

    def find(name: str, label: str, batch: int) -> None:
        run = make_run(compiles=GPU)
        case = case_of(run, batch, make=regions.WORKLOADS[name], compiles=GPU)
        rows = _time(label, run, case, [one for one in regions.contestants(DTYPE) if one.name in wanted])
        for rival, who in ((theirs, f"{'compiled ' if GPU else ''}transformers"), ("packed by hand", "packed by hand")):
            _ratio(label, rows, mine, rival, who, "model")

    _each("visual-bert-mixed", BATCHES, partial(find, "visual-bert-mixed"))
    _each("visual-bert-full", BATCHES[:1], partial(find, "visual-bert-full"))


STEPS: dict[str, Callable[..., None]] = {
    "smoke": smoke,
    "ops": ops,
    "encoder": encoder,
    "compiled": compiled,
    "live": live,
    "frozen": frozen,
    "engine": engine,
    "vit": vit,
    "visual_bert": visual_bert,
}


def main(name: str, *arguments: str) -> int:
    """Run one of STEPS; 1 if something of ours failed."""
    facts.failures.clear()
    facts.attempt(name, partial(STEPS[name], *arguments))
    return int(bool(facts.failures))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
