"""One function per operation; each goes to the Triton kernels for CUDA tensors and to the PyTorch reference otherwise.

`backend` switches all operations or single ones, for ablations and for debugging. Nothing falls back: an operation that
was sent to the kernels and cannot run there raises. Signatures and shapes are those of `vilt_fast.reference`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import PIL
from torch import Tensor

from vilt_fast.reference import attention as _attention
from vilt_fast.reference import layer_norm as _layer_norm
from vilt_fast.reference import linear as _linear
from vilt_fast.reference import patch_embed as _patch_embed
from vilt_fast.reference import patch_sample as _patch_sample
from vilt_fast.reference import resize as _resize
from vilt_fast.reference import text_embed as _text_embed

OPERATIONS = ("attention", "layer_norm", "linear", "patch_embed", "patch_sample", "resize", "text_embed")
BACKENDS = ("kernels", "reference")

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
    before = dict(_chosen)
    if default is not None:
        _chosen.update(dict.fromkeys(OPERATIONS, default))
    _chosen.update(operations)
    try:
        yield
    finally:
        _chosen.clear()
        _chosen.update(before)


def uses_kernels(operation: str, tensor: Tensor) -> bool:
    """Whether `operation` on `tensor` goes to the kernels.

    Raises:
        RuntimeError: it does, and Triton is not installed.
    """
    side = _chosen.get(operation)
    kernels = tensor.is_cuda if side is None else side == "kernels"
    if kernels and not _HAS_TRITON:
        raise RuntimeError(
            f"{operation}: the kernels need Triton, which is not installed; install triton, or run the PyTorch "
            'reference with `with vilt_fast.backend("reference"): ...`'
        )
    return kernels


# The kernels are imported where they are used, so that `import vilt_fast` needs no Triton; torch.compile traces this.


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """See `vilt_fast.reference.linear`."""
    if uses_kernels("linear", input):
        from vilt_fast.kernels import linear as kernels

        return kernels.linear(input, weight, bias, **options)
    return _linear.linear(input, weight, bias, **options)


def layer_norm(input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `vilt_fast.reference.layer_norm`."""
    if uses_kernels("layer_norm", input):
        from vilt_fast.kernels import layer_norm as kernels

        return kernels.layer_norm(input, weight, bias, eps)
    return _layer_norm.layer_norm(input, weight, bias, eps)


def attention(qkv: Tensor, cu_seqlens: Tensor, num_heads: int, **options: Any) -> Tensor:
    """See `vilt_fast.reference.attention`."""
    if uses_kernels("attention", qkv):
        from vilt_fast.kernels import attention as kernels

        return kernels.attention(qkv, cu_seqlens, num_heads, **options)
    return _attention.attention(qkv, cu_seqlens, num_heads, **options)


def attention_rows(qkv: Tensor, cu_seqlens: Tensor, query_rows: Tensor, num_heads: int, **options: Any) -> Tensor:
    """See `vilt_fast.reference.attention`; follows the switch of "attention"."""
    if uses_kernels("attention", qkv):
        from vilt_fast.kernels import attention as kernels

        return kernels.attention_rows(qkv, cu_seqlens, query_rows, num_heads, **options)
    return _attention.attention_rows(qkv, cu_seqlens, query_rows, num_heads, **options)


def text_embed(tokens: Tensor, *arguments: Any) -> Tensor:
    """See `vilt_fast.reference.text_embed`."""
    if uses_kernels("text_embed", tokens):
        from vilt_fast.kernels import text_embed as kernels

        return kernels.text_embed(tokens, *arguments)
    return _text_embed.text_embed(tokens, *arguments)


def patch_embed(tokens: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """See `vilt_fast.reference.patch_embed`."""
    if uses_kernels("patch_embed", tokens):
        from vilt_fast.kernels import patch_embed as kernels

        return kernels.patch_embed(tokens, *arguments, **options)
    return _patch_embed.patch_embed(tokens, *arguments, **options)


def patch_sample(attention_mask: Tensor, *arguments: Any, **options: Any) -> Any:
    """See `vilt_fast.reference.patch_sample`."""
    if uses_kernels("patch_sample", attention_mask):
        from vilt_fast.kernels import patch_sample as kernels

        return kernels.patch_sample(attention_mask, *arguments, **options)
    return _patch_sample.patch_sample(attention_mask, *arguments, **options)


@cache
def _installed_rule() -> str:
    """The pass order of the Pillow that is installed, so that `resize` gives its bytes."""
    return _resize.pillow_rule(PIL.__version__)


def resize(images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Pictures (H, W, C) uint8 at new sizes (height, width), bit for bit as the installed Pillow's bicubic.

    See `vilt_fast.reference.resize`.
    """
    if images and uses_kernels("resize", images[0]):
        from vilt_fast.kernels import resize as kernels

        return kernels.resize(images, sizes, rule=_installed_rule())
    return _resize.resize(images, sizes, rule=_installed_rule())


def resize_packed(
    source: Tensor, shapes: Sequence[tuple[int, int, int]], sizes: Sequence[tuple[int, int]], **options: Any
) -> tuple[Tensor, list[int]]:
    """`resize` from one flat buffer into another, see `vilt_fast.reference.resize`; follows the switch of "resize"."""
    if uses_kernels("resize", source):
        from vilt_fast.kernels import resize as kernels

        return kernels.resize_packed(source, shapes, sizes, rule=_installed_rule(), **options)
    return _resize.resize_packed(source, shapes, sizes, rule=_installed_rule(), **options)
