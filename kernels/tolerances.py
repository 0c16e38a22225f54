"""How far a kernel may be from the fp64 reference: the contract of all kernels, in one place.

A kernel's error is at most FACTOR times the error of the same computation done by PyTorch in the same dtype, plus the
operation's floor. Both the largest error and the root of the mean square are held to that, so that one large element
cannot cover for many small ones.

A floor is (absolute, relative to the largest element): an error that PyTorch does not make on these inputs, and that we
know of and accept. Raise one only with a reason that stands beside it.
"""

import torch
from torch import Tensor

FACTOR = 2.0
EPS = torch.finfo(torch.float32).eps

FLOORS: dict[str, tuple[float, float]] = {
    # fp32 sums in another order than the BLAS that PyTorch calls, which adds in wide blocks and loses less.
    "linear": (0.0, 4 * EPS),
    # Exact GELU for 16-bit outputs: the polynomial is within 3e-6.
    "linear gelu": (3e-6, 4 * EPS),
    # The sigmoid's reciprocal square root and exp2 are hardware approximations of 2^-22 each.
    "linear gelu_tanh": (0.0, 8 * EPS),
    "linear relu": (0.0, 4 * EPS),
    # exp in the tail form is an approximation of 2^-22 on a GPU, at values near 1.
    "linear tanh": (0.0, 8 * EPS),
    # fp32 statistics by a tree over the row; PyTorch's are by Welford's recurrence.
    "layer_norm": (0.0, 4 * EPS),
    # The running softmax rescales its sums once a block of keys; exp2 is an approximation of 2^-22 on a GPU.
    "attention": (0.0, 4 * EPS),
    # Sums of fp32 by a tree over the head; exp2 and the division are approximations of 2^-22 on a GPU.
    "attention_rows": (0.0, 4 * EPS),
    # fp32 sums over the patch in another order than the BLAS that PyTorch calls.
    "patch_embed": (0.0, 4 * EPS),
    # fp32 statistics by a tree over the row; the reciprocal square root is an approximation of 2^-22 on a GPU.
    "text_embed": (0.0, 4 * EPS),
}


def _errors(got: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Largest error and root mean square error."""
    difference = (got.double() - wanted.double()).abs()
    return difference.max().item(), difference.square().mean().sqrt().item()


def bound(name: str, out64: Tensor, torch_out: Tensor) -> tuple[float, float]:
    """Largest error and root mean square error that a kernel may have.

    Args:
        name: key of FLOORS.
        out64: fp64 result of the reference on the kernel's inputs, widened.
        torch_out: result of the same computation by PyTorch in the kernel's dtype.
    """
    absolute, relative = FLOORS[name]
    floor = absolute + relative * out64.abs().max().item()
    largest, typical = _errors(torch_out, out64)
    return FACTOR * largest + floor, FACTOR * typical + floor


def check(name: str, got: Tensor, out64: Tensor, torch_out: Tensor) -> None:
    """Asserts that `got` has the shape and dtype of `torch_out` and is within `bound` of `out64` everywhere."""
    assert got.shape == torch_out.shape == out64.shape
    assert got.dtype == torch_out.dtype
    assert got.numel(), "nothing to compare"
    got = got.cpu()
    out64, torch_out = out64.cpu(), torch_out.cpu()
    assert torch.isfinite(out64).all(), "inputs of a comparison must give finite results"
    unwritten = ~torch.isfinite(got)
    assert not unwritten.any(), (
        f"{name}: {int(unwritten.sum())} elements are NaN or infinite, first at {unwritten.nonzero()[0]}"
    )
    for kind, error, allowed in zip(
        ("largest", "mean"), _errors(got, out64), bound(name, out64, torch_out), strict=True
    ):
        assert error <= allowed, f"{name}: {kind} error {error:.3e}, allowed {allowed:.3e}"
