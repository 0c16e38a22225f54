"""linear beside cuBLAS: the four products of a ViT-B block at the rows of 256 pairs (`one_operation` says how).

Peers: F.linear, F.linear + add, F.gelu(F.linear), and the same under torch.compile, which fuses what follows a product.
"""

import pytest
import torch

from vilt_fast.bench import one_operation

PRODUCTS = ("qkv", "attention out + residual", "up + GELU", "down + residual")


@pytest.mark.parametrize("contestant", one_operation.CONTESTANTS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_linear(benchmark, product: str, contestant: str) -> None:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    one_operation.run(benchmark, "linear", PRODUCTS.index(product), contestant, dtype)
