"""The kernels' switches, each with and without: python -m vilt_fast.bench.gpu_run.candidates resident

For a name out of `vilt_fast.kernels.switches`, "all" (every one that this chip can have on), or "table" (what
$VILT_FAST_CONFIGS says): the encoder in a graph and the operations that it changes. "compile" compiles for all of them
at once, a process each, so that the others find their kernels compiled.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

import vilt_fast
from vilt_fast.bench import operations, ours, timing, verify
from vilt_fast.bench.case import Case
from vilt_fast.bench.choices import Choice, arch, available, switches
from vilt_fast.bench.gpu_run import facts
from vilt_fast.bench.gpu_run.measure import BATCHES, DEVICE, DTYPE, GPU, SIDE, case_of, clock, make_run

ENCODER = ("linear", "layer_norm", "attention")  # its operations
ROUNDS = 2  # of taking turns, with operations
MARGIN = 0.01  # of the median
Calls = tuple[Callable[[], Any], Callable[[], Any]]  # without and with


def compare(name: str) -> None:
    """Facts of a switch: how many times faster the encoder, and each operation, is with it."""
    on = available(DEVICE) if name == "all" else in_tables() if name == "table" else [name]
    changed = {operation for one in on for operation in switches()[one].operations}
    timed = [] if name == "all" else sorted(changed)
    for batch in BATCHES:
        case = case_of(make_run(), batch)
        if name == "table" or changed & set(ENCODER):
            facts.attempt(f"switch {name}: encoder B={batch}", partial(_encoder, name, on, batch, case))
        for operation in timed:
            for found in operations.timed_cases(operation, case):
                label = f"switch {name}: {found.operation} B={batch}"
                facts.attempt(label, partial(_operation, name, batch, operation, found))


def in_tables() -> list[str]:
    """The switches that a table turns on here, if only for some sizes."""
    from vilt_fast.kernels import launch

    entries = [entry for entry in launch.table_entries(arch(DEVICE)) if entry["op"] == "switches"]
    return [name for name in switches() if any(entry["config"].get(name) for entry in entries)]


def _held(name: str, on: Sequence[str]) -> Choice | None:
    """None where the table says what is on."""
    return None if name == "table" else Choice(on)


def _encoder(name: str, on: Sequence[str], batch: int, case: Case) -> None:
    off, with_it = (_encoder_call(case, choice) for choice in (Choice([]), _held(name, on)))
    with torch.inference_mode():
        answers = [call().clone() for call in (off, with_it)]
    error = _judge(name, on, answers, case.wanted, verify.BOUNDS[DTYPE])
    times = timing.measure([[off], [with_it]], DEVICE, make_run(1.5).budget)
    _record(f"switch {name}: encoder B={batch}", times, name, "encoder", case, error)


def _encoder_call(case: Case, choice: Choice | None) -> Callable[[], Any]:
    with choice.held() if choice else contextlib.nullcontext(), torch.inference_mode():
        (call,) = ours.encoder_calls(case, DTYPE, backend=SIDE, graphs=GPU)
        return call if GPU or choice is None else choice.around(call)  # a graph holds what was chosen


def _operation(name: str, batch: int, operation: str, found: operations.OperationCase) -> None:
    choices, tensors = (Choice([]), _held(name, [name])), found.sets_in(DTYPE)[0]
    answers, times = [], []
    with torch.inference_mode(), vilt_fast.backend(SIDE):
        for choice in choices * ROUNDS:
            with choice.held() if choice else contextlib.nullcontext():
                answers.append(found.ours(*tensors))
                times.append(clock(partial(found.ours, *tensors), bool(found.waiting)))
    bound = found.bounds[DTYPE] if found.floor else 0.0
    error = _judge(name, [name], answers[:2], found.wanted, bound)
    pooled = [_pool(times[i::2]) for i in range(2)]
    _record(f"switch {name}: {found.operation} B={batch}", pooled, name, operation, found.batch, error)


def _pool(times: Sequence[timing.Times]) -> timing.Times:
    median = sum(one.median_ms for one in times) / len(times)
    low, high = min(one.p20_ms for one in times), max(one.p80_ms for one in times)
    return timing.Times(median, low, high, sum(one.samples for one in times))


def _judge(name: str, on: Sequence[str], answers: Sequence[Any], wanted: Any, bound: float) -> float:
    """The error with the switches.

    Raises:
        ValueError: it is above the bound, or bits differ of switches that say they do not.
    """
    without, with_it = ([one] if isinstance(one, torch.Tensor) else list(one) for one in answers)
    error = verify.error_of(lambda: answers[1], wanted)
    if not error <= bound:
        raise ValueError(f"error {error:.2e} is above {bound:.2e}")
    is_exact = all(switches()[one].is_exact for one in on if one in switches())
    if is_exact and name != "table" and not all(map(torch.equal, without, with_it)):
        raise ValueError(f"bits differ, and the switch {name!r} says that they do not")
    return error


def _record(label: str, times: Sequence[timing.Times], name: str, operation: str, batch: Case, error: float) -> None:
    from vilt_fast.kernels import launch

    off, on = times
    verdict = verdict_of(off, on)
    more = {"switch": name, "operation": operation, "bucket": launch.size_bucket(sum(batch.lengths)), "error": error}
    facts.record(
        label, off.median_ms / on.median_ms, "times", verdict=verdict, off_ms=off.median_ms, on_ms=on.median_ms, **more
    )


def verdict_of(off: timing.Times, on: timing.Times) -> str:
    """What differs beyond the noise of one comparison, and by enough to be worth a table's entry."""
    if on.p80_ms < off.p20_ms and on.median_ms < (1 - MARGIN) * off.median_ms:
        return "faster"
    if on.p20_ms > off.p80_ms and on.median_ms > (1 + MARGIN) * off.median_ms:
        return "slower"
    return "same"


def compile_all() -> None:
    """Run everything once for each switch, alone and together, as many processes at a time as there are cores."""
    names = ["none", *available(DEVICE), "all"]
    command = [sys.executable, "-m", __spec__.name, "once"]

    def one(name: str) -> int:
        return subprocess.run([*command, name], stdout=subprocess.DEVNULL).returncode

    with ThreadPoolExecutor(max_workers=max(1, min(len(names), (os.cpu_count() or 1) - 1))) as pool:
        codes = dict(zip(names, pool.map(one, names), strict=True))
    broken = [name for name, code in codes.items() if code]
    facts.record("switches that run", len(names) - len(broken), "of them", of=len(names), broken=broken)
    facts.failures.extend(broken)


def once(name: str) -> None:
    """The encoder and the changed operations, once at each size."""
    choice = Choice(available(DEVICE) if name == "all" else [name])
    with choice.held(), vilt_fast.backend(SIDE), torch.inference_mode():
        for batch in BATCHES:
            case = case_of(make_run(), batch)
            ours.encoder_calls(case, DTYPE, backend=SIDE)[0]()
            for operation in switches()[name].operations if name in switches() else ():
                for found in operations.timed_cases(operation, case):
                    found.ours(*found.sets_in(DTYPE)[0])


def main(name: str, *arguments: str) -> int:
    """See the top; 1 if something failed."""
    facts.failures.clear()
    steps: dict[str, Callable[..., None]] = {"compile": compile_all, "once": once}
    work = steps.get(name) or partial(compare, name)
    facts.attempt(f"switch {name}", partial(work, *arguments))
    return int(bool(facts.failures))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
