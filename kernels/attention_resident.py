"""Attention of spans whose keys and values fit into shared memory: loaded once for all query blocks of a program.

                keys of the span, 2 * HALF of them at most, and as many values: in shared memory
               +-----------------+-----------------+
      BLOCK_M  |  HALF, unmasked |  HALF, masked   |    the scores of a block of queries: all in registers
      queries  +-----------------+-----------------+
        ...                                             the next block of queries meanwhile arrives

One softmax over all keys: no running maximum, nothing is rescaled. Every block of queries computes the same whether or
not the program has others, so their number may follow the batch.
"""

import triton
import triton.language as tl

from .attention_tiles import load_rows


@triton.jit
def attend_resident(
    out_ptr,  # at the first row of the span and the first column of the head, as the next one
    query_ptr,
    hidden,
    length,  # HALF < length <= 2 * HALF
    first,  # query of the program, and the end of its queries
    stop,
    stride_out,
    stride_qkv,
    score_scale,
    head_factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HALF: tl.constexpr,
    QUERY_STAGES: tl.constexpr,
):
    """Writes the rows from `first` to `stop` of one head of a span."""
    n_offs = tl.arange(0, HALF)
    key_mask = HALF + n_offs < length
    # At most 2 * HALF rows: offsets of 32 bits.
    key_ptrs = query_ptr + hidden + n_offs[:, None] * stride_qkv  # (HALF, 1)
    key = load_rows(key_ptrs, None, HEAD_DIM, BLOCK_D, False)
    value = load_rows(key_ptrs + hidden, None, HEAD_DIM, BLOCK_D, False)
    key_ptrs += HALF * stride_qkv
    last_key = load_rows(key_ptrs, key_mask[:, None], HEAD_DIM, BLOCK_D, True)
    last_value = load_rows(key_ptrs + hidden, key_mask[:, None], HEAD_DIM, BLOCK_D, True)
    d_offs = tl.arange(0, BLOCK_D)[None, :]
    for m in tl.range(first, stop, BLOCK_M, num_stages=QUERY_STAGES):
        m_offs = m + tl.arange(0, BLOCK_M)[:, None]
        m_mask = m_offs < length
        query = load_rows(query_ptr + m_offs * stride_qkv, m_mask, HEAD_DIM, BLOCK_D, True)
        score = tl.dot(query, tl.trans(key))  # (BLOCK_M, HALF)
        last_score = tl.dot(query, tl.trans(last_key))
        last_score = tl.where(key_mask[None, :], last_score, float("-inf"))
        row_max = tl.maximum(tl.max(score, 1), tl.max(last_score, 1)) * score_scale
        probability = tl.exp2(score * score_scale - row_max[:, None])
        last_probability = tl.exp2(last_score * score_scale - row_max[:, None])
        row_sum = tl.sum(probability, 1) + tl.sum(last_probability, 1)
        out = tl.dot(probability.to(value.dtype), value)  # (BLOCK_M, BLOCK_D)
        out = tl.dot(last_probability.to(value.dtype), last_value, out)
        out *= (head_factor / row_sum)[:, None]
        tl.store(
            out_ptr + m_offs * stride_out + d_offs,
            out.to(out_ptr.dtype.element_ty),
            mask=m_mask & (d_offs < HEAD_DIM),
        )
