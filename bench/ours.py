"""This library's contestants: the packed model on either backend, its encoder alone, and the padded reference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

import vilt_fast
from vilt_fast.bench import contestant
from vilt_fast.bench.case import Case, padded_logits
from vilt_fast.bench.contestant import ENCODER, EVERY_ROW, Calls, Contestant, Unavailable, graphed
from vilt_fast.frozen.graphs import Spans
from vilt_fast.frozen.model import family_of


def model_calls(case: Case, dtype: torch.dtype, *, backend: str, is_packed: bool = False) -> Calls:
    """The whole model: on the padded inputs of Hugging Face's form, or on the same images as packed bytes."""
    need_kernels(case, backend)
    inputs = case.packed_inputs if is_packed else case.inputs_in(dtype)
    return answers(case.model(dtype), inputs, partial(vilt_fast.backend, backend))


def answers(model: Any, inputs: list[dict[str, Any]], switched: Callable[[], AbstractContextManager[None]]) -> Calls:
    """A call of the model for each of the inputs, under what `switched` gives."""

    def call(one: dict[str, Any]) -> Tensor:
        with switched():
            return model(**one).logits

    return [partial(call, one) for one in inputs]


def frozen_calls(
    case: Case, dtype: torch.dtype, *, backend: str, is_packed: bool = False, graphs: bool = False, model: Any = None
) -> Calls:
    """The frozen form: words and masks on the host, pixels and regions where contestants run; every call plans.

    Args:
        graphs: whether calls replay CUDA graphs. model: in place of the case's.
    """
    frozen, switched = frozen_model(case, dtype, backend=backend, graphs=graphs, model=model)
    return answers(frozen, _planned_on_host(case, dtype, is_packed), switched)


def frozen_model(
    case: Case, dtype: torch.dtype, *, backend: str, graphs: bool = False, model: Any = None
) -> tuple[Any, Callable[[], AbstractContextManager[None]]]:
    """The frozen form, and what switches to the backend around its calls; arguments as of `frozen_calls`."""
    need_kernels(case, backend)
    if graphs and case.device.type != "cuda":
        raise Unavailable("needs a GPU: CUDA graphs")
    frozen = vilt_fast.freeze(
        case.model(dtype) if model is None else model,
        graphs=graphs,
        max_tokens=max(2 * sum(case.lengths), 512),
        max_seqlen=max(case.lengths),
    )
    # Graphs hold the kernels of a GPU: nothing is switched when they are replayed.
    return frozen, nullcontext if graphs else partial(vilt_fast.backend, backend)


def planning_calls(case: Case, dtype: torch.dtype, *, is_packed: bool = False) -> Calls:
    """What the frozen form does on the host before anything is launched."""
    model = case.model(dtype)
    family = family_of(model)

    def plan(one: dict[str, Any]) -> None:
        batch = family.plan(family.read(one, model), case.config)
        assert batch is not None  # or the device would plan it

    return [partial(plan, one) for one in _planned_on_host(case, dtype, is_packed)]


def _planned_on_host(case: Case, dtype: torch.dtype, is_packed: bool) -> list[dict[str, Any]]:
    given = case.packed_inputs if is_packed else case.inputs_in(dtype)
    stays = ("pixel_values", "visual_embeds")
    return [{name: one[name] if name in stays else one[name].cpu() for name in one} for one in given]


def encoder_calls(
    case: Case, dtype: torch.dtype, *, backend: str, graphs: bool = False, every_row: bool = False
) -> Calls:
    """Embedded rows to logits by the frozen encoder.

    Args:
        graphs: whether a call replays a CUDA graph.
        every_row: whether the last block computes rows that the head does not read, as the live encoder does if asked.
    """
    need_kernels(case, backend)
    model, (tokens, layout) = case.model(dtype), case.packed
    tokens, body = tokens.to(dtype), getattr(model, model.base_model_prefix)
    read = getattr(layout, model.row_read)
    frozen, spans = vilt_fast.freeze(model, graphs=False), Spans(layout.cu_seqlens, read, layout.max_seqlen)

    def call() -> Tensor:
        with vilt_fast.backend(backend):
            if not every_row:
                return frozen._encode(tokens, spans)
            return frozen._score(body.encoder(tokens, layout)[0][read])

    return [graphed(call, case.device) if graphs else call]


def padded_reference_calls(case: Case, dtype: torch.dtype) -> Calls:
    """`vilt_fast.reference.vilt`: the whole batch padded at once, every attention matrix in memory."""
    state = case.model(dtype).state_dict()
    batch = case.workload.batch
    return [partial(padded_logits, state, case.config, inputs, dtype, batch) for inputs in case.inputs_in(dtype)]


def need_kernels(case: contestant.Case, backend: str) -> None:
    """Raises:
    Unavailable: the kernels are asked for, and there is no GPU.
    """
    if backend == "kernels" and case.device.type != "cuda":
        raise Unavailable("needs a GPU: Triton kernels")


def contestants(dtypes: tuple[torch.dtype, ...]) -> list[Contestant]:
    """All of them; kernels in every dtype, references in the first."""
    wide, low = dtypes[0], dtypes[-1]
    reference, kernels = (partial(model_calls, backend=backend) for backend in ("reference", "kernels"))
    return [
        _ours("padded reference", wide, padded_reference_calls),
        _ours("vilt_fast live, reference", wide, reference),
        _ours("vilt_fast live, reference, packed uint8", wide, partial(reference, is_packed=True)),
        *_frozen("vilt_fast frozen, reference", wide, backend="reference"),
        *(_ours("vilt_fast live", dtype, kernels) for dtype in dtypes),
        _ours("vilt_fast live, packed uint8", low, partial(kernels, is_packed=True)),
        *_frozen("vilt_fast frozen", low, backend="kernels"),
        *_frozen("vilt_fast frozen + graph", low, backend="kernels", graphs=True),
    ]


def _ours(name: str, dtype: torch.dtype, make: Callable[..., Calls], **options: Any) -> Contestant:
    return Contestant(name, dtype, partial(make, dtype=dtype), is_ours=True, **options)


def _frozen(name: str, dtype: torch.dtype, **options: Any) -> list[Contestant]:
    """From padded floats and from packed bytes, each with its planning reported apart."""
    found = []
    for form, is_packed in (("", False), (", packed uint8", True)):
        make = partial(frozen_calls, is_packed=is_packed, **options)
        planning = partial(planning_calls, dtype=dtype, is_packed=is_packed)
        found.append(_ours(name + form, dtype, make, planning=planning))
    return found


def encoder_contestants(dtype: torch.dtype) -> list[Contestant]:
    """The encoder alone, beside `peers.encoder_peers`."""
    reference, kernels = (partial(encoder_calls, backend=backend) for backend in ("reference", "kernels"))
    graph = partial(kernels, graphs=True)
    return [
        _ours("vilt_fast reference", dtype, reference, **ENCODER),
        _ours("vilt_fast kernels", dtype, kernels, **ENCODER),
        _ours("vilt_fast kernels + graph", dtype, graph, **ENCODER),
        _ours("vilt_fast kernels + graph", dtype, partial(graph, every_row=True), **EVERY_ROW),
    ]
