"""patch_sample beside the same plan made by PyTorch, for 256 pictures (`one_operation` says how).

PyTorch's way waits for the device (`nonzero`), so no graph can hold it: its time has its launches in it.
"""

import pytest
import torch

from vilt_fast.bench import one_operation

LIMITS = ("every patch", "sampled")


@pytest.mark.parametrize("contestant", ["vilt_fast", "torch"])
@pytest.mark.parametrize("limit", LIMITS)
def test_patch_sample(benchmark, limit: str, contestant: str) -> None:
    graph = contestant == "vilt_fast"
    one_operation.run(benchmark, "patch_sample", LIMITS.index(limit), contestant, torch.float32, graph=graph)
