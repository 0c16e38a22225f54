"""Choices inside the kernels that a chip should make, each on or off by one entry.

Every one computes what the kernels compute without it, to the bit or within their error; which is faster, only a chip
can say. What counts, first match wins:

    1. `with forced(resident=True): ...`, for tests, ablations and measurements
    2. the environment variable VILT_FAST_SWITCHES, for example "resident,-pdl": on, and off with a minus
    3. a table of `vilt_fast.kernels.launch`: {"op": "switches", "config": {"resident": true}}; one with "N", "K",
       "dtype" or "bucket" counts there alone, where the switch is asked for by that (else the table is refused)
    4. off

A launcher asks when it plans a launch, `freeze` when it lays weights out: what was planned or recorded before a change
of the environment stays as it is.
"""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

from . import launch
from .registry import EVERYWHERE, HOPPER, NVIDIA, SWITCHES, Switch

__all__ = ["EVERYWHERE", "HOPPER", "NVIDIA", "SWITCHES", "Switch", "forced", "is_on", "with_pdl"]

VARIABLE = "VILT_FAST_SWITCHES"
_forced: dict[str, bool] = {}


@contextlib.contextmanager
def forced(**choices: bool) -> Iterator[None]:
    """Turns switches on or off inside a `with` block, for launches that are planned in it.

    Raises:
        ValueError: an unknown switch.
    """
    _check_names(choices, "forced")
    before = dict(_forced)
    _forced.update(choices)
    launch.plans.clear()
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
        launch.plans.clear()


def is_on(name: str, arch: str, **asked: Any) -> bool:
    """Whether a switch is on where the kernels run.

    Args:
        name: a key of SWITCHES. arch: what `launch.arch_of` said.
        asked: N, K, bucket, dtype, as far as the tables may tell them apart; see `launch.configuration`.

    Raises:
        ValueError: it was asked for on a chip that it is not made for; or a table or $VILT_FAST_SWITCHES is wrong.
    """
    chosen = {**_from_environment(os.environ.get(VARIABLE, "")), **_forced}.get(name)
    if chosen is None:
        chosen = _from_tables(name, arch, asked)
    if chosen and launch.family(arch) not in SWITCHES[name].families:
        wanted = ", ".join(SWITCHES[name].families)
        raise ValueError(f"switch {name!r}: got a chip of {launch.family(arch)}, wanted one of {wanted}")
    return chosen


@functools.cache
def _from_environment(words: str) -> dict[str, bool]:
    choices = {}
    for word in filter(None, (word.strip() for word in words.split(","))):
        name = word.removeprefix("-")
        _check_names({name or word}, f"${VARIABLE}")
        choices[name] = name == word
    return choices


def _from_tables(name: str, arch: str, asked: dict[str, Any]) -> bool:
    for entry in launch.table_entries(arch):
        if entry["op"] != "switches" or name not in entry["config"]:
            continue
        is_asked = entry.keys() & {"N", "K", "bucket", "dtype"} <= asked.keys()  # else it would count everywhere
        if is_asked and launch.matches(entry, asked):
            return entry["config"][name]
    return False


def _check_names(choices: Iterable[str], source: str) -> None:
    unknown = sorted(set(choices) - SWITCHES.keys())
    if unknown:
        raise ValueError(f"{source}: got the switch {unknown[0]!r}, wanted any of {', '.join(SWITCHES)}")


# Programmatic dependent launch: with PDL and launch_pdl (sm_90 and later) the programs of a kernel may start while the
# kernel before it still runs. Then every program of the kernel has to call `gdc_wait` before it reads what another
# kernel wrote, before it writes anything, and also if it has nothing to do. The wait ends when the kernel before has
# ended and all that it wrote can be seen. As that one waited too before it could end, all kernels before it have ended
# as well: so none still reads a buffer that is written again, and no other order has to be kept. A kernel without PDL
# starts when the one before it has ended, as ever. `gdc_launch_dependents` only says that the next kernel may come:
# when all our programs have called it or ended, so it never takes the place of a program of ours.
def with_pdl(config: dict[str, Any], arch: str, **asked: Any) -> dict[str, Any]:
    """A configuration, of a kernel that starts while the one before it ends where the switch "pdl" says so.

    The interpreter, which runs one kernel after the other, changes nothing. Arguments as in `is_on`.
    """
    asked["dtype"] = str(asked["dtype"]).removeprefix("torch.")
    early = is_on("pdl", arch, **asked) and launch.family(arch) != "interpreter"
    return config | {"PDL": True, "launch_pdl": True} if early else config
