"""The check that stands before every clock: a contestant whose answer is wrong is reported and not timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Largest relative error of one row of the result (`relative_error`) against the fp64 reference, for a whole model.
BOUNDS = {
    # 12 blocks of sums of up to 3072 products, each rounded at 2^-53.
    torch.float64: 1e-9,
    # The same at 2^-24 would give 1e-5, but cuDNN convolves fp32 in TF32 (2^-11) by default, which is what a user of
    # transformers gets, once, in the patch projection.
    torch.float32: 2e-3,
    # The stream between blocks is rounded at 2^-11, about 40 times, and the errors add like a random walk: 1e-3 with
    # two blocks of 48, 1.6e-3 with twelve of 384 (measured with the reference on a CPU).
    torch.float16: 1e-2,
    # At 2^-8, eight times that: 8e-3 and 1.4e-2. A missing mask or position costs more, which a test holds.
    torch.bfloat16: 5e-2,
}
# For one operation there is one rounding or two, not forty.
OPERATION_BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """The largest error of a row, relative to its length: max over b of |got_b - wanted_b| / |wanted_b|.

    One figure per row, so that one wrong pair cannot hide among many right ones. Infinite if the shapes differ or the
    result is not finite.

    Args:
        got, wanted: (rows, ...) of any dtype; the comparison is made in fp64.
    """
    if got.shape != wanted.shape or not torch.isfinite(got).all():
        return float("inf")
    wanted = wanted.double().flatten(1)
    difference = got.to(wanted).flatten(1) - wanted
    # Rows much shorter than the others are held to a hundredth of the typical length: zero rows have none.
    length = wanted.norm(dim=1)
    floor = length.square().mean().sqrt() / 100 + torch.finfo(length.dtype).tiny  # all may be zero
    return (difference.norm(dim=1) / length.clamp(min=floor)).max().item()


def error_of(call: Callable[[], Any], wanted: Tensor | list[Tensor]) -> float:
    """The relative error of what a contestant's call returns.

    Where `wanted` is a list, the result is a list too, and each of its tensors counts as one row.
    """
    with torch.inference_mode():
        got = call()
    if isinstance(wanted, Tensor):
        return relative_error(got, wanted)
    return max(relative_error(a[None], b[None]) for a, b in zip(got, wanted, strict=True))
