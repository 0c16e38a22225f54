"""This library's contestants: the packed model on either backend, its encoder alone, and the padded reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import vilt_fast
from vilt_fast.bench.case import Case, padded_logits
from vilt_fast.bench.contestant import Contestant, Unavailable, graphed
from vilt_fast.models.vilt import Encoded


def model_calls(case: Case, dtype: torch.dtype, *, backend: str) -> list[Callable[[], Tensor]]:
    """The whole model on the padded inputs of Hugging Face's form."""
    need_kernels(case, backend)
    model = case.model(dtype)

    def call(inputs: dict[str, Tensor]) -> Tensor:
        with vilt_fast.backend(backend):
            return model(**inputs).logits

    return [partial(call, inputs) for inputs in case.inputs_in(dtype)]


def encoder_calls(
    case: Case, dtype: torch.dtype, *, backend: str, graphs: bool = False
) -> list[Callable[[], Tensor]]:
    """Embedded rows to logits, every row through every block, as the peers do it."""
    need_kernels(case, backend)
    model = case.model(dtype)
    tokens, layout = case.packed
    tokens = tokens.to(dtype)

    def call() -> Tensor:
        with vilt_fast.backend(backend):
            x, _, _ = model.vilt.encoder(tokens, layout, None, False, False)
            return model._logits(Encoded(layout, x[layout.first], [], []))

    return [graphed(call, case.device) if graphs else call]


def padded_reference_calls(case: Case, dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    """`vilt_fast.reference.vilt`: the whole batch padded at once, every attention matrix in memory."""
    state = {name: value.to(case.device, dtype) for name, value in case.master.state_dict().items()}
    batch = case.workload.batch
    return [partial(padded_logits, state, case.config, inputs, dtype, batch) for inputs in case.inputs_in(dtype)]


def need_kernels(case: Case, backend: str) -> None:
    """Raises:
    Unavailable: the kernels are asked for, and there is no GPU.
    """
    if backend == "kernels" and case.device.type != "cuda":
        raise Unavailable("needs a GPU: Triton kernels")


def contestants(dtypes: tuple[torch.dtype, ...]) -> list[Contestant]:
    """All of them; kernels in every dtype, references in the first."""
    wide = dtypes[0]
    found = [
        Contestant("padded reference", wide, partial(padded_reference_calls, dtype=wide), is_ours=True),
        Contestant("vilt_fast reference", wide, partial(model_calls, dtype=wide, backend="reference"), is_ours=True),
    ]
    for dtype in dtypes:
        kernels = partial(model_calls, dtype=dtype, backend="kernels")
        found.append(Contestant("vilt_fast kernels", dtype, kernels, is_ours=True))
    return found


def encoder_contestants(dtype: torch.dtype) -> list[Contestant]:
    """The encoder alone, beside `peers.encoder_peers`."""
    options = {
        "vilt_fast reference": {"backend": "reference"},
        "vilt_fast kernels": {"backend": "kernels"},
        "vilt_fast kernels + graph": {"backend": "kernels", "graphs": True},
    }
    return [
        Contestant(name, dtype, partial(encoder_calls, dtype=dtype, **chosen), "encoder", is_ours=True)
        for name, chosen in options.items()
    ]
