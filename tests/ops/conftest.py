"""Fixtures of the kernels' tests: where kernels run here, and how far from the reference they may be."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="session")
def tolerances() -> ModuleType:
    """The contract: `tolerances.check(name, got, out64, torch_out)`."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    from vilt_fast.bench import tolerances

    return tolerances


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The GPU, for tests of real sizes."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA GPU")
    return device


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fills what torch.empty returns with NaN, so that an element nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
