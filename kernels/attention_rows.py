"""Rows of softmax(q k^T * scale) for chosen queries, for maps and rollout, with no (length, length) buffer.

Vaswani et al. 2017, equation 1. One program makes the row of one query and head, in two passes over the keys of its
span: the first finds the maximum and the sum, the second writes the probabilities and zeros up to max_seqlen.

      query  [ BLOCK_N | BLOCK_N | tail ] keys of its span      grid (query, head); the program finds the span
       out   [ p p p p p p p p p p p p p 0 0 0 0 ] max_seqlen

All arithmetic is fp32, outside the tensor cores. Not supported: backward, scale <= 0.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .shipped import Configuration, compiled, empty

LOG2_E = math.log2(math.e)
MAX_HEAD_DIM = 128
# Limit of a grid's second and third axis.
MAX_GRID = 65535


@triton.jit
def _scores(query, keys_ptr, n_offs, length, stride_qkv, score_scale, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(BLOCK_N,) products of one query with a block of keys, -inf past the end, in fp32."""
    d_offs = tl.arange(0, BLOCK_D)
    key_mask = n_offs < length
    mask = key_mask[:, None] & (d_offs[None, :] < HEAD_DIM)
    key = tl.load(keys_ptr + n_offs[:, None].to(tl.int64) * stride_qkv + d_offs[None, :], mask=mask, other=0.0)
    score = tl.sum(query[None, :] * key.to(tl.float32), 1) * score_scale
    return tl.where(key_mask, score, float("-inf"))


@triton.jit
def _span_of(row, cu_seqlens_ptr, spans, BLOCK_B: tl.constexpr):
    """Index of the span that holds a row (`spans` past the last): the bounds at or below it, less one."""
    b_offs = tl.arange(0, BLOCK_B)
    below = 0
    for b in range(0, spans + 1, BLOCK_B):
        bound = tl.load(cu_seqlens_ptr + b + b_offs, mask=b + b_offs <= spans, other=2147483647)
        below += tl.sum((bound <= row).to(tl.int32), 0)
    return below - 1


# Sizes of a batch are not specialised: a new one must not compile a new kernel.
@triton.jit(do_not_specialize=["spans", "max_seqlen"])
def attention_rows_kernel(
    out_ptr,  # (queries, num_heads, max_seqlen)
    qkv_ptr,  # (rows, 3 * hidden)
    cu_seqlens_ptr,  # (spans + 1,) int32
    query_rows_ptr,  # (queries,) int32 or int64
    head_scale_ptr,  # (num_heads,) or None
    spans,
    max_seqlen,
    hidden,
    stride_qkv,
    score_scale,  # scale * log2(e)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    chosen = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = tl.load(query_rows_ptr + chosen).to(tl.int64)
    span = _span_of(row, cu_seqlens_ptr, spans, BLOCK_B)
    inside = (span >= 0) & (span < spans)
    start = tl.load(cu_seqlens_ptr + span, mask=inside, other=0)
    length = tl.load(cu_seqlens_ptr + span + 1, mask=inside, other=0) - start

    d_offs = tl.arange(0, BLOCK_D)
    head_ptr = qkv_ptr + head * HEAD_DIM
    query_mask = (d_offs < HEAD_DIM) & inside
    query = tl.load(head_ptr + row * stride_qkv + d_offs, mask=query_mask, other=0.0).to(tl.float32)  # (BLOCK_D,)
    keys_ptr = head_ptr + hidden + start.to(tl.int64) * stride_qkv
    n_offs = tl.arange(0, BLOCK_N)

    row_max = float("-inf")
    row_sum = 0.0
    for n in range(0, length, BLOCK_N):
        score = _scores(query, keys_ptr, n + n_offs, length, stride_qkv, score_scale, HEAD_DIM, BLOCK_D)
        new_max = tl.maximum(row_max, tl.max(score, 0))
        row_sum = row_sum * tl.exp2(row_max - new_max) + tl.sum(tl.exp2(score - new_max), 0)
        row_max = new_max

    factor = 1.0 / row_sum
    if head_scale_ptr is not None:
        factor = factor * tl.load(head_scale_ptr + head).to(tl.float32)
    out_row = out_ptr + (chosen * tl.num_programs(1) + head) * max_seqlen
    for n in range(0, max_seqlen, BLOCK_N):
        score = _scores(query, keys_ptr, n + n_offs, length, stride_qkv, score_scale, HEAD_DIM, BLOCK_D)
        probability = tl.where(n + n_offs < length, tl.exp2(score - row_max) * factor, 0.0)
        tl.store(out_row + n + n_offs, probability.to(out_ptr.dtype.element_ty), mask=n + n_offs < max_seqlen)


def _launch(
    qkv: Tensor,
    cu_seqlens: Tensor,
    query_rows: Tensor,
    num_heads: int,
    max_seqlen: int,
    scale: float,
    head_scale: Tensor | None,
) -> Tensor:
    hidden, spans = qkv.shape[1] // 3, cu_seqlens.shape[0] - 1
    head_dim = hidden // num_heads
    out = qkv.new_empty(query_rows.shape[0], num_heads, max_seqlen)
    if out.numel() == 0:
        return out
    qkv = launch.row_major(qkv)
    launch.run(
        *(attention_rows_kernel, (query_rows.shape[0], num_heads)),
        *(out, qkv, *launch.contiguous(cu_seqlens, query_rows, head_scale)),
        *(spans, max_seqlen, hidden, qkv.stride(0), scale * LOG2_E),
        HEAD_DIM=head_dim,
        BLOCK_D=max(launch.next_power_of_2(head_dim), 16),
        BLOCK_N=64,
        BLOCK_B=1024,
        num_warps=4,
    )
    return out


_attention_rows = torch.library.custom_op("vilt_fast::attention_rows", _launch, mutates_args=())
_attention_rows.register_fake(
    lambda qkv, bounds, query_rows, heads, max_seqlen, *_: qkv.new_empty(query_rows.shape[0], heads, max_seqlen)
)


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    arguments = (empty("bf16", 211, 3 * 768), empty("i32", 2), empty("i64", 1), 12, 211, 0.125, None)
    return compiled(target, "d64 bf16", _launch, *arguments)


def attention_rows(
    qkv: Tensor,
    cu_seqlens: Tensor,
    query_rows: Tensor,
    num_heads: int,
    *,
    max_seqlen: int,
    scale: float | None = None,
    head_scale: Tensor | None = None,
) -> Tensor:
    """`vilt_fast.reference.attention.attention_rows` in fp32 arithmetic throughout; a query in no span gives zeros.

    The limits of `attention` hold, and `query_rows` is int32 or int64.
    """
    scale = check_arguments("attention_rows", qkv, cu_seqlens, num_heads, max_seqlen, scale, head_scale, query_rows)
    launch.check_tensor("attention_rows", "query_rows", query_rows, ("queries",), (torch.int32, torch.int64))
    return _attention_rows(qkv, cu_seqlens, query_rows, num_heads, max_seqlen, scale, head_scale)


def check_arguments(
    op: str,
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    max_seqlen: int,
    scale: float | None,
    head_scale: Tensor | None,
    query_rows: Tensor | None = None,
) -> float:
    """Checks what both functions take, and gives the scale."""
    launch.check_device(op, qkv, cu_seqlens, head_scale, query_rows)
    launch.check_tensor(op, "qkv", qkv, ("rows", "3 * num_heads * head_dim"))
    launch.check_tensor(op, "cu_seqlens", cu_seqlens, ("spans + 1",), torch.int32)
    launch.check_tensor(op, "head_scale", head_scale, (num_heads,))
    columns = qkv.shape[1]
    if num_heads < 1 or columns % (3 * num_heads) or not 1 <= columns // (3 * num_heads) <= MAX_HEAD_DIM:
        wanted = f"three times a multiple of num_heads ({num_heads}), and heads of at most {MAX_HEAD_DIM}"
        raise ValueError(f"{op}: qkv: got {columns} columns, wanted {wanted}")
    if not 1 <= cu_seqlens.shape[0] <= MAX_GRID or num_heads > MAX_GRID:
        raise ValueError(f"{op}: got {cu_seqlens.shape[0] - 1} spans and {num_heads} heads, wanted < {MAX_GRID} each")
    if max_seqlen < 0:
        raise ValueError(f"{op}: max_seqlen: got {max_seqlen}, wanted at least 0")
    scale = (columns // (3 * num_heads)) ** -0.5 if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(f"{op}: scale: got {scale}, wanted a positive number")
    return scale
