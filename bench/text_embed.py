"""text_embed beside three embeddings, LayerNorm and a scatter, for 256 questions (`one_operation` says how)."""

import pytest
import torch

from vilt_fast.bench import one_operation


@pytest.mark.parametrize("contestant", one_operation.CONTESTANTS)
def test_text_embed(benchmark, contestant: str) -> None:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    one_operation.run(benchmark, "text_embed", 0, contestant, dtype)
