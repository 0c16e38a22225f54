"""What a part prints at its end, short enough to be read where only the last lines come back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vilt_fast.bench.gpu_run import choose, facts

Row = Mapping[str, Any]


def text(outcomes: Sequence[Row], measured: Sequence[Row], work: Path) -> str:
    """The steps; predicted beside measured; every switch by size class; the tables that kernels can be given.

    Args:
        outcomes: `runner.Outcome`s as dictionaries. measured: facts. work: folder with `configs`.
    """
    parts = [
        _steps(outcomes),
        _predicted(measured),
        _compared(measured),
        *map(_chosen, sorted((work / "configs").glob("*.json"))),
    ]
    return "\n\n".join(part for part in parts if part)


def _steps(outcomes: Sequence[Row]) -> str:
    lines = [("step", "s", "rc", "status", "")]
    for one in outcomes:
        rc = "-" if one["rc"] is None else str(one["rc"])
        lines.append((one["step"], f"{one['seconds']:.0f}", rc, one["status"], one["headline"]))
    return _aligned(lines)


def _predicted(measured: Sequence[Row]) -> str:
    """The last measurement of each fact that was predicted."""
    last = {fact["name"]: fact for fact in measured}
    lines = [("fact", "measured", "predicted", "ratio", "unit")]
    for name, wanted in facts.predictions().items():
        value = last.get(name, {}).get("value")
        if value:
            ratio = f"{value / wanted['value']:.2f}"
            lines.append((name, f"{value:.4g}", f"{wanted['value']:.4g}", ratio, wanted["unit"]))
    return _aligned(lines) if len(lines) > 1 else ""


def _compared(measured: Sequence[Row]) -> str:
    """How many times faster each switch makes what it changes, and what a person should look at."""
    compared = [fact for fact in measured if "switch" in fact]
    if not compared:
        return ""
    from vilt_fast.kernels.registry import CLASSES

    lines = [("switch", "of", *CLASSES)]
    for switch, operation in dict.fromkeys((fact["switch"], fact["operation"]) for fact in compared):
        cells = []
        for bucket in CLASSES:
            wanted = (switch, operation, bucket)
            found = [fact for fact in compared if (fact["switch"], fact["operation"], fact["bucket"]) == wanted]
            cells.append(f"{_together(found):.3f} {choose.verdict(found)}" if found else "-")
        lines.append((switch, operation, *cells))
    return "\n".join([_aligned(lines), *choose.undecided(measured)])


def _together(found: Sequence[Row]) -> float:
    return sum(fact["off_ms"] for fact in found) / sum(fact["on_ms"] for fact in found)


def _chosen(path: Path) -> str:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
        keys = ("op", "N", "K", "bucket", "dtype")
        lines = [" ".join(str(one[key]) for key in keys if key in one) + f" -> {one['config']}" for one in entries]
    except (ValueError, KeyError, TypeError, OSError):
        return f"{path.name}: not a table"
    return "\n".join(
        [f"configs/{path.name}: copy it to kernels/configs, or name its folder in $VILT_FAST_CONFIGS", *lines]
    )


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    width = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, width, strict=True)).rstrip() for line in lines)
