"""The kernels' switches held on or off while something is made and while it is called, so that two choices take turns.

Kernels are imported where they are called: a bench runs on machines without Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def switches() -> dict[str, Any]:
    """The rows of `vilt_fast.kernels.switches`; none without Triton."""
    try:
        from vilt_fast.kernels.switches import SWITCHES
    except ModuleNotFoundError:
        return {}
    return SWITCHES


def arch(device: torch.device) -> str:
    """What kernels call the chip of a device; "interpreter" on a CPU."""
    import torch

    from vilt_fast.kernels import launch

    return launch.arch_of(torch.empty(0, device=device)) if device.type == "cuda" else "interpreter"


def available(device: torch.device) -> list[str]:
    """The switches that can be on where kernels run."""
    if not switches():
        return []
    from vilt_fast.kernels import launch

    family = launch.family(arch(device))
    return [name for name, switch in switches().items() if family in switch.families]


class Choice:
    """Switches that are on; all others are off, whatever tables and the environment say.

    Launches that are planned inside a `with` block of it are kept for the next one, apart from those of other choices.
    """

    def __init__(self, on: Sequence[str]) -> None:
        self._forced = {name: name in on for name in switches()}
        self._plans: dict[Any, Any] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """While something is made or called."""
        from vilt_fast.kernels import launch
        from vilt_fast.kernels.switches import forced

        before, launch.plans = launch.plans, {}
        try:
            with forced(**self._forced):  # clears the plans that it finds
                launch.plans = self._plans
                try:
                    yield
                finally:
                    launch.plans = {}
        finally:
            launch.plans = before

    def around(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call, always under this choice."""
        return partial(self._call, call)

    def _call(self, call: Callable[[], Any]) -> Any:
        with self.held():
            return call()
