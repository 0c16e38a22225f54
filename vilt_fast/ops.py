"""One function per operation; each goes to the Triton kernels for CUDA tensors and to the PyTorch reference otherwise.

`backend` switches all operations or single ones, for ablations and for debugging. Nothing falls back: an operation that
was sent to the kernels and cannot run there raises. Shapes, dtypes and errors are documented in `vilt_fast.reference`,
where each operation has a file of its own; `vilt_fast.kernels` has a file of the same name.

`OPERATIONS` is the only list of operations. Whatever goes over all of them reads it: the switch, the compiler
(`bench/compile.py`), tolerances, `vilt-fast check`, the bench and the ablation.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import PIL
import torch
from torch import Tensor

from vilt_fast.contracts.exporting import is_exporting
from vilt_fast.contracts.pillow import pillow_rule
from vilt_fast.contracts.plan import Plan
from vilt_fast.contracts.positions import BILINEAR
from vilt_fast.reference import attention as _attention
from vilt_fast.reference import dropout as _dropout
from vilt_fast.reference import layer_norm as _layer_norm
from vilt_fast.reference import linear as _linear
from vilt_fast.reference import patch_embed as _patch_embed
from vilt_fast.reference import patch_sample as _patch_sample
from vilt_fast.reference import resize as _resize
from vilt_fast.reference import text_embed as _text_embed

_EPS = 2.0**-23  # of fp32


@dataclass(frozen=True)
class Operation:
    """What is known of an operation beside its code.

    Args:
        ablation: what its kernel does, for a row of `vilt-fast ablate`; "" where it is not part of the model.
        floors: errors that PyTorch does not make on the same inputs, and that we know of and accept, by the name of
            the comparison: (absolute, relative to the largest element). Empty where the result is integers, of which
            none may differ. Raise one only with a reason that stands beside it (`vilt_fast.bench.tolerances`).
    """

    ablation: str = ""
    floors: dict[str, tuple[float, float]] = field(default_factory=dict)


# In the order of the way of a batch.
OPERATIONS = {
    "resize": Operation(),
    "patch_sample": Operation("the plan of the batch by the kernel"),
    "patch_embed": Operation(
        "pixels to rows in one pass",
        # fp32 sums over the patch in another order than the BLAS that PyTorch calls.
        {"patch_embed": (0.0, 4 * _EPS)},
    ),
    "text_embed": Operation(
        "word rows by the kernel",
        # fp32 statistics by a tree over the row; the reciprocal square root is an approximation of 2^-22 on a GPU.
        {"text_embed": (0.0, 4 * _EPS)},
    ),
    "layer_norm": Operation(
        "LayerNorm by the kernel",
        # fp32 statistics by a tree over the row; PyTorch's are by Welford's recurrence.
        {"layer_norm": (0.0, 4 * _EPS)},
    ),
    "linear": Operation(
        "matrix products by the kernel, each epilogue a PyTorch call of its own",
        {
            # fp32 sums in another order than the BLAS that PyTorch calls, which adds in wide blocks and loses less.
            "linear": (0.0, 4 * _EPS),
            # Exact GELU for 16-bit outputs: the polynomial is within 3e-6.
            "linear gelu": (3e-6, 4 * _EPS),
            # The sigmoid's reciprocal square root and exp2 are hardware approximations of 2^-22 each.
            "linear gelu_tanh": (0.0, 8 * _EPS),
            "linear relu": (0.0, 4 * _EPS),
            # exp in the tail form is an approximation of 2^-22 on a GPU, at values near 1.
            "linear tanh": (0.0, 8 * _EPS),
        },
    ),
    "attention": Operation(
        "attention inside spans, no score matrix in memory",
        {
            # The running softmax rescales its sums once per block of keys; exp2 is an approximation of 2^-22 on a GPU.
            "attention": (0.0, 4 * _EPS),
            # Sums of fp32 by a tree over the head; exp2 and the division are approximations of 2^-22 on a GPU.
            "attention_rows": (0.0, 4 * _EPS),
        },
    ),
    # None: both sides draw the same words, multiply in fp32 and round once.
    "dropout": Operation(floors={"dropout": (0.0, 0.0)}),
}
BACKENDS = ("kernels", "reference")

SWITCHES = "VILT_FAST_SWITCHES"  # the environment variable of `vilt_fast.kernels.switches`
_SWITCHES_FILE = "vilt_fast.kernels.switches"
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_chosen: dict[str, str] = {}  # operation -> backend; an operation that is absent follows the device of its tensors


@contextmanager
def backend(default: str | None = None, /, **operations: str) -> Iterator[None]:
    """Send operations to "kernels" or "reference" inside a `with` block, in the whole process.

    Args:
        default: for every operation; None leaves those that are not named as they are.
        **operations: for one each, by name: `backend(attention="reference", linear="kernels")`.

    Raises:
        ValueError: an unknown operation or backend.
    """
    for name, side in {**operations, **({} if default is None else {"default": default})}.items():
        if name != "default" and name not in OPERATIONS:
            raise ValueError(f"backend: unknown operation {name!r}, expected one of {', '.join(OPERATIONS)}")
        if side not in BACKENDS:
            raise ValueError(f"backend: {name} must be one of {', '.join(BACKENDS)}, got {side!r}")
    global _chosen
    before = _chosen
    _chosen = before | ({} if default is None else dict.fromkeys(OPERATIONS, default)) | operations
    try:
        yield
    finally:
        _chosen = before


def is_switched(side: str, *operations: str) -> bool:
    """Whether any of these operations was sent to "kernels" or "reference" by `backend`."""
    return any(_chosen.get(operation) == side for operation in operations)


def is_on(switch: str, tensor: Tensor) -> bool:
    """Whether a choice of `vilt_fast.kernels.switches` is on where `tensor` is; off a GPU, as for the interpreter.

    Off a GPU Triton is not imported for it: without $VILT_FAST_SWITCHES, and before the kernels are, nothing is on.
    """
    if not _HAS_TRITON or not (tensor.is_cuda or os.environ.get(SWITCHES) or _SWITCHES_FILE in sys.modules):
        return False
    from vilt_fast.kernels import launch, switches

    return switches.is_on(switch, launch.arch_of(tensor) if tensor.is_cuda else "interpreter")


def side(reference: ModuleType, tensor: Tensor) -> Any:
    """A file of `reference`, or the file of that name in `kernels`; torch.compile traces this.

    What is exported holds PyTorch's operations alone, wherever its tensors are.

    Raises:
        RuntimeError: the kernels are asked for, and Triton is not installed.
    """
    operation = reference.__name__.rpartition(".")[2]
    if is_exporting() or _chosen.get(operation, "kernels" if tensor.is_cuda else "reference") == "reference":
        return reference
    if not _HAS_TRITON:
        raise RuntimeError(
            f"{operation}: the kernels need Triton, which is not installed; install triton, or run the PyTorch "
            'reference with `with vilt_fast.backend("reference"): ...`'
        )
    _load_kernels(operation)
    from vilt_fast import kernels

    return getattr(kernels, operation)


def _load_kernels(operation: str) -> None:
    """Import a file of `kernels` when it is first used: `import vilt_fast` needs no Triton."""
    importlib.import_module(f"vilt_fast.kernels.{operation}")


# torch.compile calls it instead of tracing it, as importlib cannot be traced. The mark is all that
# `torch.compiler.assume_constant_result` sets, after an import of torch._dynamo that takes a second.
_load_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """See `vilt_fast.reference.linear`."""
    return side(_linear, input).linear(input, weight, bias, activation=activation, residual=residual)


def linear_and_moments(input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
    """See `vilt_fast.reference.linear`; follows the switch of "linear"."""
    return side(_linear, input).linear_and_moments(input, weight, bias, residual)


def linear_of_normed(
    input: Tensor,
    moments: Tensor,
    weight: Tensor,
    column_sums: Tensor,
    bias: Tensor,
    eps: float,
    *,
    activation: str | None = None,
) -> Tensor:
    """See `vilt_fast.reference.linear`; follows the switch of "linear"."""
    return side(_linear, input).linear_of_normed(input, moments, weight, column_sums, bias, eps, activation=activation)


def layer_norm(input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `vilt_fast.reference.layer_norm`."""
    return side(_layer_norm, input).layer_norm(input, weight, bias, eps)


def row_moments(input: Tensor) -> Tensor:
    """See `vilt_fast.reference.layer_norm`; follows the switch of "layer_norm"."""
    return side(_layer_norm, input).row_moments(input)


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    *,
    max_seqlen: int,
    scale: float | None = None,
    head_scale: Tensor | None = None,
    dropout_p: float = 0.0,
    span_list: Tensor | None = None,
) -> Tensor:
    """See `vilt_fast.reference.attention`."""
    return side(_attention, qkv).attention(
        qkv,
        cu_seqlens,
        num_heads,
        max_seqlen=max_seqlen,
        scale=scale,
        head_scale=head_scale,
        dropout_p=dropout_p,
        span_list=span_list,
    )


def list_spans(cu_seqlens: Tensor, rows: int, head_dim: int, dtype: torch.dtype) -> Tensor | None:
    """See `vilt_fast.reference.attention`; follows the switch of "attention"."""
    return side(_attention, cu_seqlens).list_spans(cu_seqlens, rows, head_dim, dtype)


def attention_rows(
    qkv: Tensor,
    cu_seqlens: Tensor,
    query_rows: Tensor,
    num_heads: int,
    *,
    max_seqlen: int,
    scale: float | None = None,
    head_scale: Tensor | None = None,
) -> Tensor:
    """See `vilt_fast.reference.attention`; follows the switch of "attention"."""
    return side(_attention, qkv).attention_rows(
        qkv, cu_seqlens, query_rows, num_heads, max_seqlen=max_seqlen, scale=scale, head_scale=head_scale
    )


def dropout(input: Tensor, p: float, seed: Tensor) -> Tensor:
    """See `vilt_fast.reference.dropout`."""
    return side(_dropout, input).dropout(input, p, seed)


def text_embed(
    tokens: Tensor,
    text_row: Tensor,
    input_ids: Tensor | None,
    token_type_ids: Tensor,
    inputs_embeds: Tensor | None,
    word: Tensor | None,
    position: Tensor,
    token_type: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    modality: Tensor | None,
    eps: float,
    *,
    position_ids: Tensor | None = None,
) -> Tensor:
    """See `vilt_fast.reference.text_embed`."""
    return side(_text_embed, tokens).text_embed(
        tokens,
        text_row=text_row,
        input_ids=input_ids,
        token_type_ids=token_type_ids,
        inputs_embeds=inputs_embeds,
        word=word,
        position=position,
        token_type=token_type,
        ln_weight=ln_weight,
        ln_bias=ln_bias,
        modality=modality,
        eps=eps,
        position_ids=position_ids,
    )


def patch_embed(
    tokens: Tensor,
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor,
    cls_token: Tensor,
    modality: Tensor | None,
    pair_modality: Tensor | None,
    grid: Tensor,
    patch_index: Tensor,
    patch_row: Tensor,
    cls_row: Tensor,
    *,
    table_size: tuple[int, int],
    grid_size: tuple[int, int] | None = None,
    pixel_offset: Tensor | None = None,
    pixel_scale: float = 1.0,
    interpolation: str | None = BILINEAR,
    mask_token: Tensor | None = None,
    masked: Tensor | None = None,
) -> Tensor:
    """See `vilt_fast.reference.patch_embed`."""
    return side(_patch_embed, tokens).patch_embed(
        tokens,
        pixels=pixels,
        weight=weight,
        bias=bias,
        position=position,
        cls_token=cls_token,
        modality=modality,
        pair_modality=pair_modality,
        grid=grid,
        patch_index=patch_index,
        patch_row=patch_row,
        cls_row=cls_row,
        table_size=table_size,
        grid_size=grid_size,
        pixel_offset=pixel_offset,
        pixel_scale=pixel_scale,
        interpolation=interpolation,
        mask_token=mask_token,
        masked=masked,
    )


def patch_sample(
    attention_mask: Tensor,
    pixel_mask: Tensor | None,
    patch_mask: Tensor | None,
    grid_size: tuple[int, int],
    max_patches: int,
    seed: int,
    image_index: Tensor,
    *,
    has_cls: bool = True,
) -> Plan:
    """See `vilt_fast.reference.patch_sample`."""
    return side(_patch_sample, attention_mask).patch_sample(
        attention_mask, pixel_mask, patch_mask, grid_size, max_patches, seed, image_index, has_cls=has_cls
    )


@cache
def _installed_rule() -> str:
    """The pass order of the Pillow that is installed, so that `resize` gives its bytes."""
    return pillow_rule(PIL.__version__)


def resize(images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], *, resample: str = "bicubic") -> list[Tensor]:
    """Images (H, W, C) uint8 at new sizes (height, width), bit for bit as the installed Pillow's bicubic or bilinear.

    See `vilt_fast.reference.resize`.
    """
    room = side(_resize, images[0]) if images else _resize
    return room.resize(images, sizes, rule=_installed_rule(), resample=resample)


def resize_packed(
    source: Tensor,
    shapes: Sequence[tuple[int, int, int]],
    sizes: Sequence[tuple[int, int]],
    *,
    offsets: Sequence[int] | None = None,
    resample: str = "bicubic",
) -> tuple[Tensor, list[int]]:
    """`resize` from one flat buffer into another, see `vilt_fast.reference.resize`; follows the switch of "resize"."""
    room = side(_resize, source)
    return room.resize_packed(source, shapes, sizes, offsets=offsets, rule=_installed_rule(), resample=resample)
