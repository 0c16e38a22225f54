"""How far a kernel may be from the fp64 reference: the contract of all kernels, in one place.

A kernel's error is at most FACTOR times the error of the same computation done by PyTorch in the same dtype, plus the
operation's floor. Both the largest error and the root of the mean square are held to that, so that one large element
cannot cover for many small ones.

The floors, with their reasons, stand in `vilt_fast.ops.OPERATIONS`.
"""

import torch
from torch import Tensor

from vilt_fast.ops import OPERATIONS

FACTOR = 2.0
FLOORS = {name: floor for operation in OPERATIONS.values() for name, floor in operation.floors.items()}


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
