"""Facts: a measured figure per line of a file, written the moment it is known; and what was predicted for it.

Predictions stand in predictions.json, by the name of the fact, each with its arithmetic.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = "VILT_FAST_FACTS"  # the environment variables that say where facts go, and which step finds them
STEP = "VILT_FAST_STEP"
_KEYS = {"step", "name", "value", "unit"}
PREDICTIONS = Path(__file__).with_name("predictions.json")

failures: list[str] = []  # names of this process's facts that could not be found


def record(name: str, value: float | None, unit: str, **more: Any) -> None:
    """Print a fact and add it to the file, if there is one; `more` are columns of its own."""
    fact = {"step": os.environ.get(STEP, ""), "name": name, "value": value, "unit": unit, **more}
    rest = "  ".join(f"{key} {_text(value)}" for key, value in more.items())
    print(f"{name:<58} {'-' if value is None else f'{value:.5g}'} {unit}  {rest}".rstrip(), flush=True)
    if os.environ.get(FILE):
        with open(os.environ[FILE], "a", encoding="utf-8") as file:
            file.write(json.dumps(fact) + "\n")


def attempt(name: str, find: Callable[[], None]) -> None:
    """Call `find`, which records facts; where it raises, that is the fact."""
    try:
        find()
    except Exception as error:
        failures.append(name)
        traceback.print_exc(limit=-6)
        record(name, None, "", failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def read(path: Path) -> list[dict[str, Any]]:
    """The facts of a file; a line that was cut off is none, nor is one that `record` would not write."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            fact = json.loads(line)
        except ValueError:
            continue
        if isinstance(fact, dict) and _KEYS <= fact.keys() and isinstance(fact["value"], int | float | None):
            found.append(fact)
    return found


def predictions() -> dict[str, dict[str, Any]]:
    """Name of a fact -> value, unit and why."""
    content: dict[str, Any] = json.loads(PREDICTIONS.read_text(encoding="utf-8"))
    return content["facts"]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
