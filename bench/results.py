"""Result files: one JSON and one CSV with the same rows, named by suite, device and versions; and how two compare."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vilt_fast.bench.contestant import Row
from vilt_fast.bench.environment import file_stem
from vilt_fast.checkpoints.files import write_atomically

# What names a measurement: rows of two files with the same key are compared.
KEY = ("suite", "workload", "scope", "contestant", "dtype", "batch", "model", "tokens", "shape")


def write(rows: Sequence[Row], suite: str, environment: dict[str, str], directory: str | Path) -> list[Path]:
    """Write rows as JSON and CSV and return both paths.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    stem = file_stem(suite, environment)
    flat = [_rounded(row.flat()) for row in rows]
    as_json, as_csv = folder / f"{stem}.json", folder / f"{stem}.csv"
    content = {"suite": suite, "environment": environment, "rows": flat}
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(flat[0]) if flat else ["suite"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(as_json, json.dumps(content, indent=1) + "\n")
    write_atomically(as_csv, lines.getvalue())
    return [as_json, as_csv]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    # Six digits: more than any clock here has.
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}


def read(path: str | Path) -> dict[str, Any]:
    """A JSON result file.

    Raises:
        FileNotFoundError: there is none. ValueError: it is no result file.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path}: not a result file: it is a directory, a pipe or a device")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a result file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ValueError(f"{path}: not a result file: it has no rows")
    return content


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of every measurement of two files.

    A change counts where the two intervals from the 20th to the 80th percentile do not overlap; what overlaps is noise.

    Returns:
        For each key of either file: the columns of KEY, before_ms, after_ms (medians, or None), ratio, and verdict:
        "slower", "faster", "same", "broke" (ran before, does not now), "new" or "gone".
    """
    old, new = ({_key(row): row for row in file["rows"]} for file in (before, after))
    found = []
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        first, second = (None if row is None else row.get("median_ms") for row in (a, b))
        times = {"before_ms": first, "after_ms": second, "ratio": second / first if first and second else None}
        found.append({**dict(zip(KEY, key, strict=True)), **times, "verdict": _verdict(a, b)})
    return found


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)


def _verdict(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    if before is None or after is None:
        return "new" if before is None else "gone"
    if after.get("median_ms") is None:
        return "same" if before.get("median_ms") is None else "broke"
    if before.get("median_ms") is None:
        return "new"
    if after["p20_ms"] > before["p80_ms"]:
        return "slower"
    return "faster" if after["p80_ms"] < before["p20_ms"] else "same"


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned text."""
    lines = [list(columns), *([_text(row.get(name)) for name in columns] for row in rows)]
    width = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, width, strict=True)).rstrip() for line in lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
