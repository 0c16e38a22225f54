"""What each idea buys and costs: from the padded reference to the whole library, one switch at a time.

The switches are turned on one after the other in the order of SWITCHES and stay on, so each row holds the gain of one
idea on top of those before it. Any subset can be chosen; what is left out stays as in the reference. The last ones are
those of `vilt_fast.kernels.switches`: choices inside the kernels, which a chip decides.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import vilt_fast
from vilt_fast import ops
from vilt_fast.bench import choices, ours, workloads
from vilt_fast.bench.case import Case
from vilt_fast.bench.contestant import Calls, Contestant, Row, Unavailable
from vilt_fast.bench.suites import Run
from vilt_fast.ops import OPERATIONS
from vilt_fast.reference.linear import ACTIVATIONS

BASE = "padded reference"
# The operations of the model, each with a switch of its own.
KERNELS = tuple(name for name, operation in OPERATIONS.items() if operation.ablation)
SWITCHES = {
    "packing": "one flat tensor without padding, on the PyTorch reference",
    "first-rows": "the last block computes only the rows that the head reads",
    "linear": OPERATIONS["linear"].ablation,
    "epilogues": "bias, GELU, tanh and residual inside the product",
    **{name: OPERATIONS[name].ablation for name in reversed(KERNELS) if name != "linear"},
    "uint8": "pixels stay bytes; the normalisation is folded into the projection",
    "graphs": "the frozen form: planned on the host, padded to a bucket and replayed as one CUDA graph",
    **{name: switch.about for name, switch in choices.switches().items()},
    "sampling": "at most a third of the largest image's patches, drawn at random (max_image_length)",
}


def check_switches(names: Sequence[str]) -> tuple[str, ...]:
    """The names in the order of SWITCHES.

    Raises:
        ValueError: an unknown name, or a switch without the one that it builds on.
    """
    unknown = [name for name in names if name not in SWITCHES]
    if unknown:
        raise ValueError(f"switches: got {unknown[0]!r}, wanted any of {', '.join(SWITCHES)}")
    if names and "packing" not in names:
        raise ValueError("switches: every other switch builds on packing; add it")
    for name, base in (("epilogues", "linear"), *(("graphs", base) for base in ("uint8", "first-rows", "epilogues"))):
        if name in names and base not in names:
            raise ValueError(f"switches: {name} builds on {base}; add it")
    return tuple(name for name in SWITCHES if name in names)


def run_ablation(run: Run, names: Sequence[str] = tuple(SWITCHES)) -> list[Row]:
    """A row for the padded reference and one for each switch.

    A switch that cannot run here says so in its row and stays off in the rows after it.

    Raises:
        ValueError: see `check_switches`.
    """
    names = check_switches(names)
    batch = (run.batches or ((2,) if run.is_small else (64,)))[0]
    case = run.case(workloads.vqa_mix(batch))
    dtype = run.dtypes[-1]
    steps = [Contestant(BASE, dtype, partial(ours.padded_reference_calls, dtype=dtype), is_ours=True)]
    on: list[str] = []
    for name in names:
        make = partial(_calls, dtype=dtype, switches=(*on, name))
        price = name == "sampling"
        steps.append(Contestant(f"+ {name}", dtype, make, is_ours=True, approximates=price))
        if _reason(name, run.device) is None:
            on.append(name)
    rows = run.time("ablate", case, steps)
    for row, name in zip(rows[1:], names, strict=True):
        row.note = "; ".join(filter(None, (SWITCHES[name], row.note)))
    return rows


def _in_model(switch: Any) -> list[str]:
    """The operations of the model that a switch of the kernels changes."""
    return [operation for operation in switch.operations if operation in KERNELS]


def _reason(name: str, device: torch.device) -> str | None:
    """Why a switch cannot be turned on here; None if it can."""
    switch = choices.switches().get(name)
    if switch is not None and not _in_model(switch):
        return f"changes {', '.join(switch.operations)} alone, which the model does not call: see the suite ops"
    if not _has_kernels(device):
        return "needs a GPU" if switch is not None or name in (*KERNELS, "epilogues", "graphs") else None
    if switch is not None and name not in choices.available(device):
        return f"not made for {choices.arch(device)}, but for {', '.join(switch.families)}"
    return None


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda"


def _calls(case: Case, dtype: torch.dtype, switches: tuple[str, ...]) -> Calls:
    """The packed model with these switches on."""
    name = switches[-1]
    reason = _reason(name, case.device)
    if reason is not None:
        raise Unavailable(reason)
    if name in choices.switches():
        for operation in _in_model(choices.switches()[name]):
            if operation not in switches:
                raise Unavailable(f"changes the kernels of {operation}, which are off")
    if not _has_kernels(case.device):
        return _made(case, dtype, switches)
    choice = choices.Choice(switches)
    with choice.held():
        return [choice.around(call) for call in _made(case, dtype, switches)]


def _made(case: Case, dtype: torch.dtype, switches: tuple[str, ...]) -> Calls:
    model = _model(case, dtype, switches)
    if "graphs" in switches:
        if not set(KERNELS) <= set(switches):
            raise Unavailable("a graph holds the kernels alone: the reference reads back to the host")
        return ours.frozen_calls(case, dtype, backend="kernels", is_packed=True, graphs=True, model=model)
    inputs = case.packed_inputs if "uint8" in switches else case.inputs_in(dtype)
    return ours.answers(model, inputs, partial(_backends, switches))


def _model(case: Case, dtype: torch.dtype, switches: tuple[str, ...]) -> Any:
    model = copy.deepcopy(case.model(dtype))
    if "sampling" in switches:
        config, patch = case.config, case.config.patch_shape[0]
        most = max((height // patch) * (width // patch) for height, width in case.workload.sizes)
        config = type(config).from_dict({**config.to_dict(), "max_image_length": max(1, most // 3)})
        model.config = model.vilt.config = config
    if "first-rows" not in switches:
        encode = model.vilt.encode

        def every_row(*arguments: Any, **options: Any) -> Any:
            encoded = encode(*arguments, **{**options, "first_rows_only": False})
            return replace(encoded, tokens=encoded.tokens[encoded.layout.first])

        model.vilt.encode = every_row
    return model


@contextmanager
def _backends(switches: Sequence[str]) -> Iterator[None]:
    sides = {name: "kernels" if name in switches else "reference" for name in KERNELS}
    is_split = "linear" in switches and "epilogues" not in switches
    with vilt_fast.backend(**sides), unfused_epilogues() if is_split else nullcontext():
        yield


def unfused_epilogues() -> AbstractContextManager[Any]:
    """`ops.linear` as a bare product and PyTorch calls for bias's followers: activation, then residual."""
    fused = ops.linear

    def separate(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        output = fused(input, weight, bias)
        output = output if activation is None else ACTIVATIONS[activation](output)
        return output if residual is None else output + residual

    return mock.patch.object(ops, "linear", separate)
