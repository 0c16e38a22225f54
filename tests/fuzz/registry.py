"""The kinds of cases: each is a function that makes one mutated input, reads it, and checks what was read.

    @kind
    def question_file(rng: random.Random, folder: Path) -> None:
        (folder / "questions.txt").write_bytes(...)     # an input, by the seeded generator, in an empty folder
        questions = read_questions(folder / "questions.txt")
        assert ...                                      # a right result; or the reading refuses

A file of this folder whose name starts with `kinds_` is found by itself. A refusal is a ValueError or an OSError that
names the folder (so the file) in one or two lines; any other ending is a failure.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
Kind = Callable[[Random, Path], None]
_KINDS: dict[str, Kind] = {}


def kind(function: Kind) -> Kind:
    """Register a kind of case under its function's name."""
    _KINDS[function.__name__] = function
    return function


def kinds() -> dict[str, Kind]:
    """Every kind by its name, from all files of this folder."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    for path in sorted(HERE.glob("kinds_*.py")):
        importlib.import_module(path.stem)
    return dict(sorted(_KINDS.items()))


def run_case(name: str, seed: int, number: int, folder: Path) -> bool:
    """Run one case: whether it was read (True) or refused; AssertionError or another error where it broke the rule."""
    try:
        kinds()[name](Random(f"{name} {seed} {number}"), folder)
    except (ValueError, OSError) as error:
        message = str(error)
        if type(error) is not ValueError and not isinstance(error, OSError):
            raise  # json.JSONDecodeError, UnicodeDecodeError, ...: raw errors from the depth
        if str(folder) not in message or len(message.splitlines()) > 2 or "allocate memory" in message:
            raise AssertionError(f"no refusal that names the file in one or two lines: {error!r}") from error
        return False
    return True
