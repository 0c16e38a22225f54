"""Clocks: contestants take turns, so that a machine that slows down slows all of them.

Every sample is the wall time from an idle device through one call to an idle device again, so the launches of kernels,
Python and every wait for the device count. A CUDA graph's replay is one call too, with one launch.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

CLOCKS = {  # by name: what it says, and what it is
    "wall": ("included: wall clock from idle to idle", time.perf_counter),
    "cpu": ("included: CPU time of one thread", time.process_time),
}
LAUNCHES = CLOCKS["wall"][0]


@dataclass(frozen=True)
class Times:
    """Milliseconds per call.

    times_first: how many times faster than the first contestant, the median over the rounds. On a machine that others
    use it says more than two medians: the two calls of a round met the same load.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    samples: int
    times_first: float = 1.0


@dataclass(frozen=True)
class Budget:
    """When to stop: after `seconds` for all contestants together, but not before `least` rounds; at most `most`.

    Before the clock runs, every contestant has `warm_up` calls per input set. `clock` is one of CLOCKS.
    """

    seconds: float = 10.0
    least: int = 7
    most: int = 100
    warm_up: int = 3
    clock: str = "wall"


def measure(contestants: Sequence[Sequence[Callable[[], object]]], device: torch.device, budget: Budget) -> list[Times]:
    """Time contestants in turns.

    Args:
        contestants: for each one its calls, one per input set; round i runs set i modulo their number.
        device: what to wait for before and after a call.
        budget: of all of them together.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None  # a CPU is done when the call returns
    samples: list[list[float]] = [[] for _ in contestants]
    with torch.inference_mode():
        for calls in contestants:
            for i in range(budget.warm_up * len(calls)):
                calls[i % len(calls)]()
        wait()
        gc.disable()  # a collection would hit one contestant by chance
        try:
            started = time.perf_counter()
            for i in range(budget.most):
                if i >= budget.least and time.perf_counter() - started > budget.seconds:
                    break
                for calls, times in zip(contestants, samples, strict=True):
                    times.append(_one(calls[i % len(calls)], wait, CLOCKS[budget.clock][1]))
        finally:
            gc.enable()
    return [replace(summary(times), times_first=_ratio(samples[0], times)) for times in samples]


def _ratio(first: Sequence[float], times: Sequence[float]) -> float:
    return float(np.median(np.divide(first, times)))


def _one(call: Callable[[], object], wait: Callable[[], object], clock: Callable[[], float]) -> float:
    wait()
    started = clock()
    call()
    wait()
    return 1e3 * (clock() - started)


def summary(samples_ms: Sequence[float]) -> Times:
    """Median and the 20th and 80th percentile; of two samples or fewer, what there is."""
    p20, median, p80 = np.quantile(samples_ms, (0.2, 0.5, 0.8)).tolist()
    return Times(median, p20, p80, len(samples_ms))


def rotations(bytes_per_call: int, device: torch.device, most: int = 8) -> int:
    """How many input sets to take turns with so that no call finds its inputs in the cache.

    Args:
        bytes_per_call: what a call reads. most: sets that a small operation gets at most.
    """
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 32 * 2**20
    return max(1, min(most, math.ceil(2 * cache / max(bytes_per_call, 1))))


# --- what the device can do at most -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peaks:
    """What the device reaches, measured in the same run: PyTorch's own product and copy at a large size."""

    matmul_tflops: float
    copy_gbps: float


def measure_peaks(device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> Peaks:
    """The rate of a square matrix product (2 n^3 operations) and of a copy (bytes read and written)."""
    on_gpu = device.type == "cuda"
    side, length = (8192, 2**29) if on_gpu else (256, 2**20) if quick else (1024, 2**25)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(length, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    budget = Budget(seconds=0.05 if quick else 1.0, least=3, most=30)
    product, copy = measure([[lambda: a @ b], [lambda: target.copy_(source)]], device, budget)
    # The best of the run is a ceiling; a median on a busy machine would not be one.
    return Peaks(2 * side**3 / product.p20_ms / 1e9, 2 * length / copy.p20_ms / 1e6)
