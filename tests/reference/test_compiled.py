"""Under torch.compile the reference has sizes that follow from shapes alone: the same results as its loops."""

import pytest
import torch

from vilt_fast.reference.attention import attention, attention_rows
from vilt_fast.reference.patch_embed import patch_embed
from vilt_fast.reference.text_embed import text_embed

NAN = float("nan")
# fp64: what is left is rounding, of sums in another order.
CLOSE = {"rtol": 0, "atol": 1e-12}


def both(function, *given):
    """Results and gradients of a function, as it is and as one graph for any size."""
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    results = []
    for call in (function, compiled):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        out = call(*leaves)
        weights = torch.arange(1.0, out.numel() + 1, dtype=out.dtype).view(out.shape)
        out.masked_fill(out.isnan(), 0).mul(weights).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    return results


@pytest.mark.parametrize("is_scaled", [False, True])
def test_attention_of_spans_an_empty_one_and_rows_past_the_last(is_scaled):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(11, 3 * 6, dtype=torch.float64, generator=generator)
    spans = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64) if is_scaled else None
    wanted, got = both(lambda x: attention(x, spans, 2, max_seqlen=7, head_scale=scale), qkv)
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert got[0][9:].eq(0).all()


def test_a_nan_stays_in_its_span():
    qkv = torch.randn(9, 3 * 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    qkv[0] = NAN  # of the row that stands for padding
    spans = torch.tensor([0, 2, 9], dtype=torch.int32)
    wanted, got = both(lambda x: attention(x, spans, 2, max_seqlen=7)[2:], qkv)
    assert got[0].isfinite().all() and got[1][2:].isfinite().all()
    torch.testing.assert_close(got, wanted, **CLOSE, equal_nan=True)


@pytest.mark.parametrize("is_scaled", [False, True])
def test_attention_rows(is_scaled):
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn(9, 3 * 6, dtype=torch.float64, generator=generator)
    spans, rows = torch.tensor([0, 4, 9], dtype=torch.int32), torch.tensor([8, 0, 3, 4])
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64) if is_scaled else None
    wanted, got = both(lambda x: attention_rows(x, spans, rows, 2, max_seqlen=6, head_scale=scale), qkv)
    torch.testing.assert_close(got, wanted, **CLOSE)


def test_masked_words_may_be_nan():
    generator = torch.Generator().manual_seed(3)
    embeds = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    embeds[0, 1] = NAN
    text_row = torch.tensor([[3, -1, 0], [-1, 4, 1]], dtype=torch.int32)
    tables = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator)
    tokens = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    types = torch.tensor([[0, 4, 1], [2, 3, 0]])

    def embed(tokens, embeds, tables):
        position, token_type = tables
        norm = (position[0], token_type[0], token_type[1])  # weight, bias, modality
        return text_embed(tokens, text_row, None, types, embeds, None, position, token_type, *norm, 1e-12)

    wanted, got = both(embed, tokens, embeds, tables)
    torch.testing.assert_close(got, wanted, **CLOSE)


def test_patches_and_images_without_a_place():
    """-1 in `patch_index` and in `cls_row`."""
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randn(2, 1, 4, 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=generator)
    position = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    grid = torch.tensor([[2, 3], [1, 2]], dtype=torch.int32)
    index, row = torch.tensor([4, 0, -1, 6], dtype=torch.int32), torch.tensor([2, 5, -1, 1], dtype=torch.int32)
    cls_row = torch.tensor([-1, 0], dtype=torch.int32)

    def embed(pixels, weight, position):
        tokens = position.new_full((6, 3), 9.0)
        tables = (weight, None, position, position[1], None, None)
        return patch_embed(tokens, pixels, *tables, grid, index, row, cls_row, table_size=(2, 2))

    wanted, got = both(embed, pixels, weight, position)
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert got[0][3:5].eq(9).all()
