"""From facts to the table of switches that kernels read: python -m vilt_fast.bench.gpu_run.choose FACTS FOLDER

A switch is judged by the encoder where it changes the encoder, else by its operations. One that a table may choose by
size (`Switch.by_bucket`) is turned on for the size classes in which it is faster beyond noise. Any other is turned on
for all sizes or for none: it must be faster at one size and slower at none.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vilt_fast.bench.choices import switches
from vilt_fast.bench.gpu_run import facts

Facts = Sequence[Mapping[str, Any]]


def entries(measured: Facts) -> list[dict[str, Any]]:
    """Entries for a table of `vilt_fast.kernels.launch`."""
    return [entry for name in switches() for entry in _entries_of(name, measured)]


def _entries_of(name: str, measured: Facts) -> list[dict[str, Any]]:
    judged = _by_bucket(name, measured)
    faster = [bucket for bucket in judged if verdict(judged[bucket]) == "faster"]
    everywhere = len(faster) == len(judged)
    by_bucket = switches()[name].by_bucket
    if not by_bucket:
        everywhere = all(verdict(found) != "slower" for found in judged.values())
    if not faster or not (everywhere or by_bucket) or _is_broken(name, measured):
        return []
    entry: dict[str, Any] = {"op": "switches", "why": _why(judged), "config": {name: True}}
    return [entry if everywhere else {**entry, "bucket": faster}]


def _by_bucket(name: str, measured: Facts) -> dict[str, list[Mapping[str, Any]]]:
    """The facts that decide, by size class."""
    mine = [fact for fact in measured if fact.get("switch") == name and fact["value"] is not None]
    deciding = [fact for fact in mine if fact["operation"] == "encoder"] or mine
    found: dict[str, list[Mapping[str, Any]]] = {}
    for fact in deciding:
        found.setdefault(fact["bucket"], []).append(fact)
    return found


def verdict(found: Facts) -> str:
    """Of several operations the one that differs; where they differ both ways, what they take together."""
    verdicts = {fact["verdict"] for fact in found} - {"same"}
    if len(verdicts) != 2:
        return next(iter(verdicts), "same")
    return "faster" if sum(fact["on_ms"] for fact in found) < sum(fact["off_ms"] for fact in found) else "slower"


def _is_broken(name: str, measured: Facts) -> bool:
    """Whether a measurement of the switch raised or was wrong: then it stays off everywhere."""
    return any(fact["name"].startswith(f"switch {name}") and fact["value"] is None for fact in measured)


def _why(judged: Mapping[str, Facts]) -> str:
    return ", ".join(
        f"{bucket} {sum(f['off_ms'] for f in found):.4g} to {sum(f['on_ms'] for f in found):.4g} ms"
        for bucket, found in judged.items()
    )


def undecided(measured: Facts) -> list[str]:
    """What a person should look at: switches that win at one size and lose at another, or broke."""
    found = []
    for name, switch in switches().items():
        verdicts = {bucket: verdict(facts_of) for bucket, facts_of in _by_bucket(name, measured).items()}
        if _is_broken(name, measured):
            found.append(f"{name}: off, it broke or was wrong; see its log")
        elif not switch.by_bucket and {"faster", "slower"} <= set(verdicts.values()):
            words = ", ".join(f"{word} for {bucket}" for bucket, word in verdicts.items())
            found.append(f"{name}: off, it is {words}, and it is for all sizes or none")
    return found


def main(path: str, folder: str) -> int:
    """Write the table, beside the tiles that are in it, and print it."""
    from vilt_fast.bench.tune import write_table

    measured = facts.read(Path(path))
    chosen = entries(measured)
    table = write_table(Path(folder), chosen, keeps=lambda entry: entry["op"] != "switches")
    for entry in chosen:
        print(entry)
    print("\n".join(undecided(measured)))
    print(f"{len(chosen)} entries in {table}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
