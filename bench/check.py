"""Every kernel beside its reference, on whatever the machine has: a GPU, or Triton's interpreter on the CPU.

The bound is the contract of the kernels: at most twice the error that PyTorch makes in the same dtype, both measured
against the fp64 reference, plus a named floor (`vilt_fast.bench.tolerances`). Of integers, none may differ.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilt_fast.bench import operations, tolerances
from vilt_fast.bench.contestant import name_of
from vilt_fast.bench.operations import CheckCase
from vilt_fast.ops import OPERATIONS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Row:
    """One comparison: largest error against fp64, and what it may be."""

    operation: str
    dtype: str
    shape: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.error <= self.bound


def check_kernels(*, small: bool = False) -> Iterator[Row]:
    """Run every kernel once for each dtype and compare it; small sizes in the interpreter, ViT-B's on a GPU.

    Args:
        small: the small sizes on a GPU too, for compute-sanitizer.

    Raises:
        RuntimeError: Triton is not installed, or was imported without its interpreter on a machine without a GPU.
    """
    device = kernel_device()
    large = device.type == "cuda" and not small
    for dtype in DTYPES:
        for name, module in operations.modules().items():
            if OPERATIONS[name].floors:
                for case in module.check_cases(_source(dtype, device), device, large=large):
                    yield _compare(name, case, dtype)
    for name, module in operations.modules().items():
        if not OPERATIONS[name].floors:
            for case in module.check_cases(_source(torch.float32, device), device, large=large):
                yield _compare_exactly(name, case, device)


def kernel_device() -> torch.device:
    """The GPU, or the CPU with Triton's interpreter, which is chosen here if Triton is not imported yet.

    Raises:
        RuntimeError: see `check_kernels`.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, just below
    try:
        from vilt_fast.kernels import interpreter, launch
    except ModuleNotFoundError as error:
        raise RuntimeError("the kernels need Triton, which is not installed: pip install triton") from error
    if launch.INTERPRETED:
        interpreter.patch()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("no GPU, and Triton was imported without TRITON_INTERPRET=1: set it and start again")
    return torch.device("cuda")


def _source(dtype: torch.dtype, device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)

    return random


def _both(operation: str, case: CheckCase) -> list[Callable[..., Any]]:
    """The kernel's launcher and the reference."""
    sides = (importlib.import_module(f"vilt_fast.{side}.{operation}") for side in ("kernels", "reference"))
    return [getattr(side, case.function or operation) for side in sides]


def _compare(operation: str, case: CheckCase, dtype: torch.dtype) -> Row:
    kernel, reference = _both(operation, case)
    (wanted,) = case.call(reference, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    (plain,) = case.call(reference, lambda tensor: tensor)
    (got,) = case.call(kernel, Tensor.clone)  # a kernel may write into its first argument
    bound, _ = tolerances.bound(case.name, wanted, plain)
    error = (got.double() - wanted).abs().max().item()
    return Row(case.name, name_of(dtype), case.shape, error, bound)


def _compare_exactly(operation: str, case: CheckCase, device: torch.device) -> Row:
    kernel, reference = _both(operation, case)
    wanted = case.call(reference, lambda tensor: tensor.cpu())
    got = case.call(kernel, lambda tensor: tensor.to(device))
    different = sum(int((a.cpu() != b).sum()) for a, b in zip(got, wanted, strict=True))
    return Row(case.name, name_of(wanted[0].dtype), case.shape, float(different), 0.0)
