"""tests/THEIRS.md: what became of each of transformers' tests; read, compared with a run, and written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from .mount import LENT
from .running import Outcome

PATH = Path(__file__).parents[1] / "THEIRS.md"
REFUSED, ACCEPTED, INTERNALS, THEIRS_TOO, FAILED = "refused", "accepted", "internals", "theirs too", "FAILED"
MEANINGS = {
    REFUSED: "on purpose: this package says no, and what to do instead",
    ACCEPTED: "on purpose: the test wants an error where this package does what was meant",
    INTERNALS: "the test reaches into transformers' own machinery",
    THEIRS_TOO: "transformers' own classes do not pass it either",
    FAILED: "a user would meet it: to be repaired",
}


@dataclass
class Row:
    """A test that does not pass: verdict, the line that it ends with, and the reason, which a person writes."""

    verdict: str
    line: str
    why: str


@dataclass
class Suite:
    """One of their test classes. `skipped` are those that skip themselves for transformers' ViLT, too."""

    note: str = ""
    passed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)


def read(path: Path = PATH) -> dict[str, Suite]:
    """The suites of the table by name; empty where there is no table yet."""
    suites: dict[str, Suite] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("## "):
            suites[line[3:]] = suite = Suite()
        elif not suites:
            continue
        elif match := re.match(r"(Passed|Skipped) \(\d+\): (.*)", line):
            (suite.passed if match[1] == "Passed" else suite.skipped).extend(re.findall(r"`(\w+)`", match[2]))
        elif match := re.match(r"\| `(\w+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", line):
            suite.rows[match[1]] = Row(match[2], match[3], match[4])
        elif line and not line.startswith("|"):
            suite.note = line
    return suites


def differences(suite: Suite, outcomes: dict[str, Outcome]) -> list[str]:
    """What a run shows, and the table does not say; a sentence for each."""
    listed = {**dict.fromkeys(suite.passed, "passed"), **dict.fromkeys(suite.skipped, "skipped"), **suite.rows}
    found = [f"{name}: listed, but transformers has no such test" for name in listed if name not in outcomes]
    for name, outcome in outcomes.items():
        wanted = listed.get(name)
        if wanted is None:
            found.append(f"{name}: not listed; it {_ending(outcome)}")
        elif isinstance(wanted, str) and outcome.kind != wanted:
            found.append(f"{name}: listed as {wanted}, but it {_ending(outcome)}")
        elif isinstance(wanted, Row) and _row_line(outcome) != wanted.line:
            found.append(f"{name}: listed as {wanted.verdict} ({wanted.line}), but it {_ending(outcome)}")
    return found


def updated(old: Suite, note: str, outcomes: dict[str, Outcome], control: dict[str, Outcome]) -> Suite:
    """The suite after a run; `control` is a run of the same tests on transformers' own classes."""
    new = Suite(note)
    for name, outcome in outcomes.items():
        if outcome.kind == "passed":
            new.passed.append(name)
        elif outcome.kind == control[name].kind == "skipped":
            new.skipped.append(name)
        else:
            row = old.rows.get(name)
            line = _row_line(outcome)
            if row is not None and row.line == line:
                new.rows[name] = row
            else:  # a new ending needs a new look
                end = "" if control[name].kind == "passed" else f"transformers' own: {_row_line(control[name])}"
                new.rows[name] = Row(FAILED, line, row.why if row is not None else end)
    return new


def write(suites: dict[str, Suite], path: Path = PATH) -> None:
    """The whole table."""
    parts = [_HEADER.format(lent=_lent(), meanings=_meanings()), _summary(suites)]
    for name, suite in suites.items():
        parts.append(f"## {name}\n")
        parts.append(f"{suite.note}\n")
        for title, names in (("Passed", suite.passed), ("Skipped", suite.skipped)):
            if names:
                parts.append(f"{title} ({len(names)}): {' '.join(f'`{test}`' for test in names)}\n")
        if suite.rows:
            parts.append("| test | verdict | ends with | why |\n| --- | --- | --- | --- |")
            for test, row in sorted(suite.rows.items(), key=lambda item: (item[1].verdict, item[0])):
                parts.append(f"| `{test}` | {row.verdict} | {row.line} | {row.why} |")
            parts.append("")
    path.write_text("\n".join(parts).rstrip() + "\n")


_HEADER = """# transformers' own tests of ViLT, ViT and VisualBERT, run on this package

`python tests/run_theirs.py --update` runs the common test classes of transformers' source distribution, with our
classes in the place of theirs, and rewrites this table; `--source DIR` runs a folder of per-model test files as well,
which the distribution lacks. `tests/tools/test_theirs.py` holds the common ones to the table. "Skipped" are tests that
skip themselves, for transformers' classes just as for ours; some of the passed ones find nothing to do in either (there
are no features of sounds). Verdict and reason of a row are written by hand, and stay for as long as the test ends with
the same line:

{meanings}

Lent to our classes while the tests run, where they lack it, because the test classes read it on their way: {lent}.
"""


def _meanings() -> str:
    return "\n".join(f"- **{verdict}**: {meaning}" for verdict, meaning in MEANINGS.items())


def _lent() -> str:
    return "; ".join(
        f"{path.rsplit('.', 1)[1]} {', '.join(f'`{name}`' for name in names)}" for path, names in LENT.items()
    )


def _summary(suites: dict[str, Suite]) -> str:
    lines = [f"| | passed | skipped | {' | '.join(MEANINGS)} |", "| --- " * (3 + len(MEANINGS)) + "|"]
    for name, suite in suites.items():
        verdicts = [row.verdict for row in suite.rows.values()]
        counts = [len(suite.passed), len(suite.skipped), *(verdicts.count(verdict) for verdict in MEANINGS)]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


def _row_line(outcome: Outcome) -> str:
    return outcome.line if outcome.kind == "failed" else f"{outcome.kind}: {outcome.line}".rstrip(": ")


def _ending(outcome: Outcome) -> str:
    return {"passed": "passes", "skipped": f"is skipped: {outcome.line}"}.get(
        outcome.kind, f"fails with {outcome.line}"
    )
