"""What verifies and times one operation: `bench/<operation>.py` for each entry of `vilt_fast.ops.OPERATIONS`.

Such a file holds two functions, of which an operation that is not tuned lacks the second:

    cases(batch) -> list[OperationCase]              for `vilt-fast check`, `vilt-fast bench --suite ops` and pytest
    tasks(batches) -> Iterator[Task]                 for `vilt-fast tune`, from the smallest batch to the largest

Kernels are imported where they are called: a bench runs on machines without Triton.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import vilt_fast
from vilt_fast.bench import ours, timing, verify
from vilt_fast.bench.case import Case
from vilt_fast.bench.contestant import Calls, Contestant
from vilt_fast.bench.flops import Cost
from vilt_fast.ops import OPERATIONS

EPS = 1e-12  # of LayerNorm in ViLT
TUNED_DTYPES = ["bfloat16", "float16"]


def modules() -> dict[str, ModuleType]:
    """The bench file of every operation, by its name."""
    return {name: importlib.import_module(f"vilt_fast.bench.{name}") for name in OPERATIONS}


def timed_cases(operation: str, batch: Case) -> list[OperationCase]:
    """The cases of an operation that have a peer to be timed beside."""
    return [case for case in modules()[operation].cases(batch) if case.peers]


def rounded(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers in fp32, rounded to bf16 at once.

    Every dtype then computes on the same numbers, and errors are those of the arithmetic.
    """
    return (torch.randn(*shape, generator=generator) * scale).bfloat16().float()


# --- check and bench --------------------------------------------------------------------------------------------------


@dataclass
class OperationCase:
    """One operation at one shape.

    Args:
        batch: where the shape comes from.
        operation, shape: what a table says.
        make: from a generator to the tensors, fp32 on the CPU.
        ours: from those tensors to the result, a tensor or a sequence of them, through `vilt_fast.ops`.
        work: from the size of an element to the cost.
        peers: PyTorch's ways, by name; they may raise Unavailable. Without any, the case is checked and not timed.
        floor: key of the operation's `floors`; "" if its result is integers, which are right or wrong.
        right: from the tensors to the right result; None: `ours` on the reference, in fp64.
        can_compile: whether the peers also take part under torch.compile.
        peer_bounds: the largest relative error of peers that round in other places or draw other numbers, by name.
        waiting: contestants that wait for the device, which no CUDA graph can hold.
        interpreted: whether the kernels take part without a GPU, in Triton's interpreter.
    """

    batch: Case
    operation: str
    shape: str
    make: Callable[[torch.Generator], list[Tensor]]
    ours: Callable[..., Any]
    work: Callable[[int], Cost]
    peers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    floor: str = ""
    right: Callable[..., Any] | None = None
    can_compile: bool = True
    peer_bounds: dict[str, float] = field(default_factory=dict)
    waiting: Sequence[str] = ()
    interpreted: bool = False

    is_sampled = False

    def __post_init__(self) -> None:
        self.device, self.compiles = self.batch.device, self.batch.compiles and self.can_compile
        self.bounds = verify.OPERATION_BOUNDS if self.floor else dict.fromkeys(verify.OPERATION_BOUNDS, 0.0)

    @cached_property
    def sets(self) -> list[list[Tensor]]:
        """Input sets in fp32 on the device, as many as the cache asks for."""
        generator = torch.Generator().manual_seed(0)
        count = timing.rotations(self.work(2).bytes, self.device)
        return [[tensor.to(self.device) for tensor in self.make(generator)] for _ in range(count)]

    def sets_in(self, dtype: torch.dtype) -> list[list[Tensor]]:
        """The same in a dtype; integers stay."""
        return [[t.to(dtype) if t.is_floating_point() else t for t in one] for one in self.sets]

    @cached_property
    def wanted(self) -> Any:
        """The right result for the first set; the inputs, rounded to bf16, count as exact."""
        if self.right is not None:
            return self.right(*self.sets[0])
        with vilt_fast.backend("reference"), torch.inference_mode():
            return self.ours(*self.sets_in(torch.float64)[0])

    def cost(self, scope: str, dtype: torch.dtype) -> Cost:
        """Useful work of one call."""
        return self.work(dtype.itemsize)

    def describe(self) -> dict[str, Any]:
        """Columns of a row."""
        names = {"workload": self.operation, "shape": self.shape, "model": self.batch.workload.name}
        return {**self.batch.describe(), **names}

    def contestants(self, dtype: torch.dtype) -> list[Contestant]:
        """Ours on both backends, then PyTorch's ways, each also under torch.compile."""
        found = [
            Contestant(f"vilt_fast {side}", dtype, partial(_our_calls, dtype=dtype, backend=side), "operation", True)
            for side in ("kernels", "reference")
        ]
        for name, peer in self.peers.items():
            bound, plain = self.peer_bounds.get(name), partial(_peer_calls, dtype=dtype, peer=peer)
            found.append(Contestant(name, dtype, plain, "operation", bound=bound))
            compiled = partial(plain, compile=True)
            found.append(
                Contestant(f"{name} + torch.compile", dtype, compiled, "operation", compiles=True, bound=bound)
            )
        return found


def _our_calls(case: OperationCase, dtype: torch.dtype, backend: str) -> Calls:
    if not case.interpreted:
        ours.need_kernels(case, backend)

    def call(tensors: Sequence[Tensor]) -> Any:
        with vilt_fast.backend(backend):
            return case.ours(*tensors)

    return [partial(call, tensors) for tensors in case.sets_in(dtype)]


def _peer_calls(case: OperationCase, dtype: torch.dtype, peer: Callable[..., Any], compile: bool = False) -> Calls:
    function = torch.compile(peer, dynamic=False) if compile else peer
    return [partial(function, *tensors) for tensors in case.sets_in(dtype)]


# --- tune -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One entry of the table to be.

    Args:
        op: name of the kernel in the tables.
        key: N, K, bucket and dtype of the entry, as far as it has them.
        case: what is measured, with the configuration that is forced meanwhile.
        candidates: configurations to measure.
        anchor: configuration whose result every candidate must give, bit for bit; within rounding where None.
    """

    op: str
    key: dict[str, Any]
    case: OperationCase
    candidates: list[dict[str, Any]]
    anchor: dict[str, Any] | None = None
