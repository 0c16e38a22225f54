"""Every kernel beside its reference, on whatever the machine has: a GPU, or Triton's interpreter on the CPU.

The bound is the contract of the kernels: at most twice the error that PyTorch makes in the same dtype, both measured
against the fp64 reference, plus a named floor (`vilt_fast.bench.tolerances`). Of integers, none may differ.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

import vilt_fast
from vilt_fast.bench import choices, operations, tolerances
from vilt_fast.bench.case import Case, full_config, tiny_config
from vilt_fast.bench.contestant import name_of
from vilt_fast.bench.operations import OperationCase
from vilt_fast.bench.workloads import Workload

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Sequences of 3, 64 and 65 tokens, and of 3, 63, 64, 65, 197 and 281, eight times: a tile of attention has 64 rows. Of
# the largest images a sample of the patches is taken.
SMALL = Workload("check", ((8, 8), (48, 72), (72, 48)), (1, 23, 24), max_image_length=40)
# Where every switch changes something: heads of 64, patches of 16, spans of at most 256 that are longer than 128; on a
# GPU rows enough for its large tiles.
SWITCHED = Workload("check", ((128, 256), (16, 32)), (3, 8))
_COPIES = 30
_SIZES = ((32, 32), (192, 288), (288, 192), (192, 288), (384, 480), (640, 640))
LARGE = Workload("check", _SIZES * 8, (1, 8, 9, 10, 16, 40) * 8, max_image_length=240)


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
    on_gpu = device.type == "cuda"
    if on_gpu and not small:
        found = _cases(Case(LARGE, full_config(LARGE), device))
    else:
        found = itertools.chain(
            _cases(Case(SMALL, tiny_config(SMALL), device)), switched_cases(device, _COPIES if on_gpu else 1)
        )
    for case, dtype in found:
        yield compare(case, dtype)


def _cases(batch: Case) -> Iterator[tuple[OperationCase, torch.dtype]]:
    for module in operations.modules().values():
        for case in module.cases(batch):
            yield from ((case, dtype) for dtype in (DTYPES if case.floor else DTYPES[:1]))


def switched_cases(device: torch.device, copies: int) -> Iterator[tuple[OperationCase, torch.dtype]]:
    """The operations that switches change, at sizes where they do; in bf16, as most are for 16 bits.

    Args:
        copies: of the two sequences.
    """
    changed = {operation for switch in choices.switches().values() for operation in switch.operations}
    work = replace(SWITCHED, sizes=SWITCHED.sizes * copies, lengths=SWITCHED.lengths * copies)
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 192, "patch_size": 16}
    batch = Case(work, tiny_config(work, **sizes), device)
    for name, module in operations.modules().items():
        for case in module.cases(batch) if name in changed else ():
            yield case, torch.bfloat16


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


def compare(case: OperationCase, dtype: torch.dtype, side: str = "kernels") -> Row:
    """One operation in a dtype beside the reference in fp64."""
    (tensors, *_), wanted = case.sets_in(dtype), case.wanted
    with torch.inference_mode():
        with vilt_fast.backend(side):
            got = case.ours(*tensors)
        if not case.floor:
            different = sum(int((a.cpu() != b.cpu()).sum()) for a, b in zip(got, wanted, strict=True))
            return Row(case.operation, name_of(wanted[0].dtype), case.shape, float(different), 0.0)
        with vilt_fast.backend("reference"):
            torch_way = case.ours(*tensors)
    parts = zip(*([one] if isinstance(one, torch.Tensor) else one for one in (got, wanted, torch_way)), strict=True)
    rows = [_row(case, dtype, *part) for part in parts]
    return max(rows, key=lambda row: (not row.passed, row.error / row.bound))


def _row(case: OperationCase, dtype: torch.dtype, got: torch.Tensor, wanted: torch.Tensor, torch_way: Any) -> Row:
    bound, _ = tolerances.bound(case.floor, wanted, torch_way)
    return Row(case.floor, name_of(dtype), case.shape, (got.double() - wanted).abs().max().item(), bound)
