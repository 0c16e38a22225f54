"""layer_norm beside PyTorch's, at the rows of 256 pairs (`one_operation` says how). A copy of the rows is the floor."""

import pytest
import torch

from vilt_fast.bench import one_operation


@pytest.mark.parametrize("contestant", one_operation.CONTESTANTS)
def test_layer_norm(benchmark, contestant: str) -> None:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    one_operation.run(benchmark, "layer_norm", 0, contestant, dtype)
