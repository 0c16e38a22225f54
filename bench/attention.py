"""attention beside PyTorch's, over the spans of 256 pairs (`one_operation` says how).

Peers: the flash kernel for packed spans, and scaled dot-product attention on the padded batch, packing included.
"""

import pytest
import torch

from vilt_fast.bench import one_operation

CONTESTANTS = ("vilt_fast", "torch varlen_attn", "torch SDPA, unpacked, padded and packed again")


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_attention(benchmark, contestant: str) -> None:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    one_operation.run(benchmark, "attention", 0, contestant, dtype)
