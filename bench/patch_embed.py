"""patch_embed beside PyTorch's ways from pixels to rows, for 256 pictures (`one_operation` says how).

Peers: a gather of the chosen patches and F.linear, and the convolution of the padded batch that transformers runs; both
are given the interpolated positions. The product alone, on patches that are ready, is the floor.
"""

import pytest
import torch

from vilt_fast.bench import embedding_operations, one_operation

CONTESTANTS = ("vilt_fast", embedding_operations.GATHER, embedding_operations.CONVOLUTION)


def _dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_patch_embed(benchmark, contestant: str) -> None:
    one_operation.run(benchmark, "patch_embed", 0, contestant, _dtype())


@pytest.mark.parametrize("contestant", ["vilt_fast", "torch"])
def test_product_alone(benchmark, contestant: str) -> None:
    one_operation.run(benchmark, "patch_embed", 1, contestant, _dtype())
