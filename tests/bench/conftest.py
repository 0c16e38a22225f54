"""A run for the CPU in quick mode, and small cases with the tiny model."""

import pytest
import torch

from vilt_fast.bench import suites, workloads
from vilt_fast.bench.case import Case, tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def run() -> suites.Run:
    return suites.Run(CPU, quick=True)


@pytest.fixture(scope="session")
def case() -> Case:
    """Three pairs under the tiny model, of very unequal texts and images."""
    work = workloads.Workload("ragged", ((32, 72), (48, 16), (40, 40)), (14, 3, 7))
    return Case(work, tiny_config(work), CPU)
