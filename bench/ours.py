"""This library's contestants: the packed model on either backend, its encoder alone, and the padded reference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

import vilt_fast
from vilt_fast.bench import contestant
from vilt_fast.bench.case import Case, padded_logits
from vilt_fast.bench.contestant import Calls, Contestant, Unavailable, graphed
from vilt_fast.models.vilt import Encoded
from vilt_fast.pixels import PackedPixels


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


def bucketed_calls(case: Case, dtype: torch.dtype, *, backend: str, model: Any = None) -> Calls:
    """As the engine runs a batch: planned on the host in every call, padded to a bucket, on a GPU replayed as a graph.

    Args:
        backend: "kernels", or "reference" for the same shapes launch by launch.
        model: in place of the case's.
    """
    need_kernels(case, backend)
    if case.workload.pictures > 1:
        raise Unavailable("the engine takes one image per text")
    from vilt_fast.frozen.graphs import Bucketed, Limits, plan_batch

    model = case.model(dtype) if model is None else model
    config, patch = model.config, case.config.patch_shape[0]
    like = case.packed_inputs[0]["pixel_values"]
    most = max(h * w for h, w in like.grids(patch))
    limits = Limits(max(2 * sum(case.lengths), 512), config.max_position_embeddings, like.grid_size(patch), most)
    runner = Bucketed(model, limits, like, is_recording=backend == "kernels")
    # The plan is made on the host: kernels for all operations would be asked for there too.
    side = None if backend == "kernels" else backend

    def call(ids: list[list[int]], pixels: PackedPixels) -> Tensor:
        with vilt_fast.backend(side):
            plan = plan_batch(ids, pixels, config, limits.grid_size)
            bucket = runner.bucket_of(plan)
            assert bucket is not None  # the limits are those of these batches
            return runner.run(*runner.pad(plan, bucket), bucket, len(ids))

    calls: Calls = []
    for one in case.packed_inputs:
        rows = zip(one["input_ids"].tolist(), case.workload.lengths, strict=True)
        calls.append(partial(call, [row[:length] for row, length in rows], one["pixel_values"]))
    return calls


def encoder_calls(case: Case, dtype: torch.dtype, *, backend: str, graphs: bool = False) -> Calls:
    """Embedded rows to logits, every row through every block, as the peers do it."""
    need_kernels(case, backend)
    model = case.model(dtype)
    tokens, layout = case.packed
    tokens = tokens.to(dtype)

    def call() -> Tensor:
        with vilt_fast.backend(backend):
            x, _, _ = model.vilt.encoder(tokens, layout)
            return model.logits(Encoded(layout, x[layout.first]))

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
    graphs = partial(bucketed_calls, backend="kernels")
    return [
        _ours("padded reference", wide, padded_reference_calls),
        _ours("vilt_fast reference", wide, reference),
        _ours("vilt_fast reference, packed uint8", wide, partial(reference, is_packed=True)),
        *(_ours("vilt_fast kernels", dtype, kernels) for dtype in dtypes),
        _ours("vilt_fast kernels, packed uint8", low, partial(kernels, is_packed=True)),
        # Its buckets draw one sample for all images of a size, and the model one per image.
        _ours("vilt_fast kernels, packed uint8 + graph", low, graphs, samples=False),
    ]


def _ours(name: str, dtype: torch.dtype, make: Callable[..., Calls], **options: Any) -> Contestant:
    return Contestant(name, dtype, partial(make, dtype=dtype), is_ours=True, **options)


def encoder_contestants(dtype: torch.dtype) -> list[Contestant]:
    """The encoder alone, beside `peers.encoder_peers`."""
    reference, kernels = (partial(encoder_calls, backend=backend) for backend in ("reference", "kernels"))
    return [
        _ours("vilt_fast reference", dtype, reference, scope="encoder"),
        _ours("vilt_fast kernels", dtype, kernels, scope="encoder"),
        _ours("vilt_fast kernels + graph", dtype, partial(kernels, graphs=True), scope="encoder"),
    ]
