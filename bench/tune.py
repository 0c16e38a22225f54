"""Measures a short list of tiles for each kernel on the GPU at hand and writes the table that launchers then read.

The lists are in `bench/<operation>.py`, and short because compiling takes longer than measuring. A tile of `linear`
that does not give the same bits as the anchor is left out: a pair's answer may not depend on the size of its batch.

Tiles are measured in bf16 and serve fp16 too, whose instructions take the same time.

    python -m vilt_fast.bench.tune SHARD COUNT SIZES      compiles a part of the candidates; `tune` starts them
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vilt_fast
from vilt_fast.bench import operations, workloads
from vilt_fast.bench.case import Case
from vilt_fast.bench.operations import Task
from vilt_fast.checkpoints.files import write_atomically
from vilt_fast.configs.vilt import ViltConfig

BATCHES = (1, 8, 64, 256)  # pairs of 211 tokens, one in each size class


def tune(
    *,
    hidden_size: int = 768,
    intermediate_size: int = 3072,
    num_heads: int = 12,
    batches: Sequence[int] = BATCHES,
    directory: str | Path | None = None,
    measure: Callable[[Callable[[], Tensor]], float] | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Measure on the current GPU and write its table.

    Args:
        hidden_size, intermediate_size, num_heads: sizes of the model that the table is for.
        batches: pairs of vqa-mix, ascending; each stands for the size class of its tokens.
        directory: where the table goes; launchers read $VILT_FAST_CONFIGS, by default ~/.cache/vilt_fast/configs.
        measure: milliseconds per call; the median of a replayed CUDA graph where None.
        report: is told of every entry, one line each.

    Returns:
        Path of the table, named by GPU and Triton version.

    Raises:
        ValueError: no GPU, a batch size that is not positive, or entries that could not be measured: the others are
            in the table.
        OSError: the table cannot be written.
    """
    from vilt_fast.kernels import launch  # Triton is imported where it is used

    if measure is None and not torch.cuda.is_available():
        raise ValueError("tune: got no CUDA GPU, wanted one to measure on")
    if not batches or min(batches) < 1:
        raise ValueError(f"tune: batches: got {tuple(batches)}, wanted positive numbers")
    sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_attention_heads": num_heads}
    if not launch.INTERPRETED:
        _compile_candidates(sizes, batches)
    folder = Path(directory) if directory else launch.tuned_tables()
    entries: list[dict[str, Any]] = []
    failed: list[str] = []
    for task in _tasks(sizes, batches):
        try:
            with vilt_fast.backend("kernels"):
                entry = _best(task, measure or _median_ms)
        except Exception as error:  # what was found before it stays
            failed.append(f"{task.op} {task.key}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            report(f"failed: {failed[-1]}")
            continue
        if entry:
            entries.append(entry)
            # Whoever is cut short keeps what is measured, and the entries of before.
            write_table(folder, entries, keeps=lambda entry: entry not in entries)
            report(f"{task.op} {task.key}: {entry['config']}, {entry['why']}")
    if failed:
        raise ValueError(f"tune: {len(failed)} entries could not be measured, the first is {failed[0]}")
    # Tiles were measured under the switches that a table turns on.
    return write_table(folder, entries, keeps=lambda entry: entry["op"] == "switches")


def _tasks(sizes: dict[str, Any], batches: Sequence[int]) -> Iterator[Task]:
    config = ViltConfig(**sizes)
    cases = [Case(workloads.vqa_mix(batch), config, _device()) for batch in batches]
    for module in operations.modules().values():
        yield from module.tasks(cases) if hasattr(module, "tasks") else ()


def _compile_candidates(sizes: dict[str, int], batches: Sequence[int]) -> None:
    """Compile every candidate once, in as many processes as there are cores; the measuring process finds them."""
    count = max(1, min(16, (os.cpu_count() or 1) - 1))
    command = [sys.executable, "-m", "vilt_fast.bench.tune"]
    given = json.dumps([sizes, list(batches)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen([*command, str(shard), str(count), given], env=environment) for shard in range(count)]
    try:
        for child in children:
            child.wait()  # one that breaks leaves its share to the measuring process
    finally:
        for child in children:
            child.kill()
            child.wait()


def compile_share(shard: int, count: int, sizes: dict[str, int], batches: Sequence[int]) -> int:
    """Launch every `count`-th candidate once; returns how many were launched.

    A program does not depend on the rows, so one that several size classes have is launched for the smallest.
    """
    from vilt_fast.kernels import launch

    seen: list[Any] = []
    launched = 0
    for task in _tasks(sizes, batches):
        for config in task.candidates:
            program = (task.op, task.key.get("N"), task.key.get("K"), config)
            if program in seen:
                continue
            seen.append(program)
            if len(seen) % count == shard:
                with contextlib.suppress(Exception), vilt_fast.backend("kernels"), launch.forced(task.op, config):
                    task.case.ours(*task.case.sets_in(torch.bfloat16)[0])
                launched += 1
    return launched


def write_table(folder: Path, entries: list[dict[str, Any]], *, keeps: Callable[[dict[str, Any]], bool]) -> Path:
    """Write the table of this GPU and this Triton.

    Args:
        entries: in front of those that stay. keeps: says of an entry of the table that is there whether it stays.

    Raises:
        OSError: it cannot be written. ValueError: what is there is no table.
    """
    import triton

    from vilt_fast.kernels import launch

    arch = launch.arch_of(torch.empty(0, device=_device()))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else arch
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / launch.table_name(gpu, triton.__version__)
    entries = [*entries, *filter(keeps, launch.read_table(path))]
    table = {"gpu": gpu, "arch": arch, "triton": triton.__version__, "torch": torch.__version__, "entries": entries}
    write_atomically(path, json.dumps(table, indent=1) + "\n")
    launch.forget_configurations()
    return path


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _median_ms(call: Callable[[], Tensor]) -> float:
    from triton.testing import do_bench_cudagraph

    # A replayed graph: for few rows a launch from Python would take longer than the kernel.
    return do_bench_cudagraph(call, rep=20, return_mode="median")


def _best(task: Task, measure: Callable[[Callable[[], Tensor]], float]) -> dict[str, Any] | None:
    """The entry of the fastest candidate that runs and gives the right result; None where none does."""
    from vilt_fast.kernels import launch

    call = partial(task.case.ours, *task.case.sets_in(torch.bfloat16)[0])
    today = measure(call)
    with launch.forced(task.op, task.anchor) if task.anchor else contextlib.nullcontext():
        wanted = call()
    same = _equal if task.anchor else _close
    best, best_ms, left_out = None, float("inf"), 0
    for config in task.candidates:
        with launch.forced(task.op, config):
            try:
                fits = same(call(), wanted)
                took = measure(call) if fits else float("inf")
            except Exception:  # too much shared memory for this chip, or more than its compiler can do
                fits, took = False, float("inf")
        left_out += not fits
        if took < best_ms:
            best, best_ms = config, took
    if best is None:
        return None
    why = f"{best_ms:.4f} ms, {today:.4f} before; {len(task.candidates)} measured, {left_out} left out"
    return {"op": task.op, **task.key, "why": why, "config": best}


def _equal(got: Tensor | tuple[Tensor, ...], wanted: Tensor | tuple[Tensor, ...]) -> bool:
    if isinstance(got, Tensor) and isinstance(wanted, Tensor):
        return torch.equal(got, wanted)
    return all(map(torch.equal, got, wanted))


def _close(got: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(got.float(), wanted.float(), rtol=2e-2, atol=2e-2)


if __name__ == "__main__":
    compile_share(int(sys.argv[1]), int(sys.argv[2]), *json.loads(sys.argv[3]))
