"""`vilt-fast bench` and `vilt-fast ablate`: verify, then time, and file what came of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def bench(arguments: argparse.Namespace) -> None:
    """Run suites and file their rows, or compare two result files."""
    if arguments.compare:
        _compare(*arguments.compare)
        return
    from vilt_fast.bench import results, suites

    run = _run(arguments)
    names = suites.SUITES if arguments.suite == "all" else (arguments.suite,)
    every: list[Any] = []
    for name in names:
        print(f"{name}:")
        started = time.perf_counter()
        rows: list[Any] = []
        for some in suites.run_suite(name, run):
            # Filed after every case, so that a run that is cut short keeps what it has measured.
            rows += some
            files = results.write(rows, name, run.environment, arguments.out)
        print(f"  {len(rows)} rows in {time.perf_counter() - started:.0f} s: {files[0]}")
        every += rows
    _end(every)


def ablate(arguments: argparse.Namespace) -> None:
    """Turn on one switch after the other, and print what each bought and cost."""
    from vilt_fast.bench import ablation, results
    from vilt_fast.commands.output import output_path

    if arguments.plot is not None:
        output_path(arguments.plot, (".png", ".pdf", ".svg"), option="--plot")  # what matplotlib draws
    names = list(ablation.SWITCHES) if arguments.only is None else arguments.only.split(",")
    without = arguments.without.split(",") if arguments.without else []
    ablation.check_switches([*without, "packing", "linear"])
    chosen = ablation.check_switches([name for name in names if name not in without])
    run = _run(arguments)
    print("ablate:")
    rows = ablation.run_ablation(run, chosen)
    files = results.write(rows, "ablate", run.environment, arguments.out)
    print()
    print(results.table(_waterfall(rows), ("step", "ms", "times", "of the first", "error", "status")))
    print(files[0])
    if arguments.plot is not None:
        from vilt_fast.bench import plots

        plots.PLOTS["waterfall"]([row.flat() for row in rows], Path(arguments.plot))
        print(arguments.plot)
    _end(rows)


def _waterfall(rows: Sequence[Any]) -> list[dict[str, Any]]:
    found, last = [], None
    for row in rows:
        line = {"step": row.contestant, "ms": row.median_ms, "error": row.error, "status": row.status}
        if row.median_ms:
            line["times"] = None if last is None else last / row.median_ms
            line["of the first"] = rows[0].median_ms / row.median_ms if rows[0].median_ms else None
            last = row.median_ms
        found.append(line)
    return found


def _run(arguments: argparse.Namespace) -> Any:
    import torch

    from vilt_fast.bench import suites
    from vilt_fast.checkpoints.files import directory_path
    from vilt_fast.commands.loading import parse_device

    directory_path(arguments.out, "--out")
    device = parse_device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return suites.Run(
        device=device,
        quick=arguments.quick,
        batches=tuple(arguments.batch) if arguments.batch else None,
        compiles=arguments.compile,
        minutes=arguments.minutes,
        clock=arguments.clock,
        report=_print_row,
    )


def _print_row(row: Any) -> None:
    time_ms = "" if row.median_ms is None else f"{row.median_ms:.4g} ms ({row.p20_ms:.4g} to {row.p80_ms:.4g})"
    speed = "" if row.pairs_per_s is None else f"{row.pairs_per_s:.5g} pairs/s"
    error = "" if row.error is None else f"error {row.error:.1e}"
    status = "" if row.status == "ok" else row.status
    what = f"{row.workload}, {row.scope}, {row.dtype}, B={row.batch}"
    parts = (f"  {what:<42} {row.contestant:<42}", time_ms, speed, error, status)
    print("  ".join(part for part in parts if part))


def _end(rows: Sequence[Any]) -> None:
    """Everything is filed by now; what went wrong still makes the command fail."""
    wrong = [f"{row.contestant} ({row.workload})" for row in rows if row.status.startswith("wrong")]
    broken = [f"{row.contestant} ({row.workload})" for row in rows if row.is_ours and ": raised " in row.status]
    if wrong:
        raise ValueError(f"wrong answers, not timed: {', '.join(wrong)}")
    if broken:
        raise ValueError(f"raised an error, see the rows: {', '.join(broken)}")


def _compare(before: str, after: str) -> None:
    from vilt_fast.bench import results

    changes = results.compare(results.read(before), results.read(after))
    columns = ("workload", "scope", "contestant", "dtype", "batch", "before_ms", "after_ms", "ratio", "verdict")
    print(results.table([row for row in changes if row["verdict"] != "same"], columns))
    count = {verdict: sum(row["verdict"] == verdict for row in changes) for verdict in ("same", "faster", "slower")}
    print(", ".join(f"{number} {verdict}" for verdict, number in count.items()))
    worse = [row for row in changes if row["verdict"] in ("slower", "broke")]
    if worse:
        raise ValueError(f"{len(worse)} regressions beyond noise (the 20th to 80th percentiles do not overlap)")
