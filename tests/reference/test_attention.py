"""reference.attention on cases worked by hand, and against equation 1 written out with one big mask."""

import torch

from vilt_fast.reference.attention import attention, attention_rows


def _packed(*spans: list[tuple[float, float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One head of size one: rows (query, key, value) of every span."""
    rows = torch.tensor([row for span in spans for row in span], dtype=torch.float64)
    return rows, torch.tensor([0, *(len(s) for s in spans)]).cumsum(0).int()


def test_two_spans_worked_by_hand() -> None:
    # Span 0: query ln 3 against keys 1 and 0 gives probabilities 3/4 and 1/4. Span 1: one key, probability 1.
    log3 = torch.tensor(3.0, dtype=torch.float64).log().item()
    qkv, cu_seqlens = _packed([(log3, 1.0, 8.0), (0.0, 0.0, 4.0)], [(5.0, 5.0, 9.0)])
    out = attention(qkv, cu_seqlens, 1, max_seqlen=2, scale=1.0)
    # fp64 exp: a few units in the last place
    torch.testing.assert_close(out, torch.tensor([[7.0], [6.0], [9.0]], dtype=torch.float64), rtol=1e-14, atol=0)
    rows = attention_rows(qkv, cu_seqlens, torch.tensor([2, 0]), 1, max_seqlen=3, scale=1.0)
    expected = torch.tensor([[[1.0, 0.0, 0.0]], [[0.75, 0.25, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(rows, expected, rtol=1e-14, atol=0)


def test_equals_one_big_masked_softmax() -> None:
    torch.manual_seed(0)
    lengths, heads, size = [5, 1, 0, 7], 3, 4
    total, d = sum(lengths), heads * size
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    qkv = torch.randn(total + 2, 3 * d, dtype=torch.float64)  # two rows past the last span
    qkv[total:] = float("nan")
    pair = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    query, key, value = qkv[:total].view(total, 3, heads, size).permute(1, 2, 0, 3)
    scores = (query @ key.transpose(1, 2) / size**0.5).masked_fill(pair[:, None] != pair, -torch.inf)
    probabilities = scores.softmax(-1)
    scale = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    for head_scale in (None, scale):
        weights = probabilities if head_scale is None else probabilities * head_scale[:, None, None]
        expected = (weights @ value).transpose(0, 1).flatten(1)
        out = attention(qkv, cu_seqlens, heads, max_seqlen=9, head_scale=head_scale)
        torch.testing.assert_close(out[:total], expected, rtol=1e-12, atol=1e-14)  # fp64, another order of sums
        assert out[total:].eq(0).all()
        rows = attention_rows(qkv, cu_seqlens, torch.arange(total), heads, max_seqlen=9, head_scale=head_scale)
        for row in range(total):
            own = slice(cu_seqlens[pair[row]], cu_seqlens[pair[row] + 1])
            length = lengths[pair[row]]
            torch.testing.assert_close(rows[row, :, :length], weights[:, row, own], rtol=1e-12, atol=1e-14)
            assert rows[row, :, length:].eq(0).all()


def test_dropout_drops_and_rescales() -> None:
    torch.manual_seed(0)
    qkv, cu_seqlens = _packed([(0.0, 0.0, 1.0)] * 4000)
    for head_scale in (None, torch.ones(1, dtype=torch.float64)):
        out = attention(qkv[:4000], cu_seqlens, 1, max_seqlen=4000, dropout_p=0.5, head_scale=head_scale)
        # Each output is the mean of 4000 values that are 0 or 2: standard deviation 1 / sqrt(4000) = 0.016.
        assert (out - 1).abs().max() < 0.1
        assert out.std() > 0.005
