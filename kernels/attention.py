"""softmax(q k^T * scale) v inside each span of a packed sequence, with no score matrix in memory.

Vaswani et al. 2017, equation 1, by the online softmax of Milakov & Gimelshein 2018 (algorithm 3), tiled as in
FlashAttention-2 (Dao 2023, algorithm 1). One program owns BLOCK_M queries of one head of one span:

                 keys of the span ->                  qkv, one row per token:
               +-------+-------+----+                 [ query | key | value ], each (num_heads, head_dim)
      BLOCK_M  |BLOCK_N|BLOCK_N|tail|
      queries  +-------+-------+----+                 grid (m-block, head, span), a program past its span's end
                  only the tail is masked             returns at once; one more "span" zeroes the rows past the last

The tile depends on head size, dtype and chip alone, never on the batch: a pair's output is bit for bit the same alone
and in any batch. Not supported: dropout, bias, causal masks, backward, scale <= 0.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .attention_rows import LOG2_E, MAX_GRID, attention_rows, check_arguments
from .attention_rows import shipped_configurations as shipped_rows
from .shipped import Configuration, compiled, empty

__all__ = ["attention", "attention_rows", "heuristic", "shipped_configurations"]


@triton.jit
def _load_rows(ptrs, row_mask, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASK_ROWS: tl.constexpr):
    """(rows, BLOCK_D) from the starts of rows, (rows, 1); without a mask where none is needed."""
    d_offs = tl.arange(0, BLOCK_D)[None, :]
    if MASK_ROWS:
        block = tl.load(ptrs + d_offs, mask=row_mask & (d_offs < HEAD_DIM), other=0.0)
    elif HEAD_DIM != BLOCK_D:
        block = tl.load(ptrs + d_offs, mask=d_offs < HEAD_DIM, other=0.0)
    else:
        block = tl.load(ptrs + d_offs)
    return block


@triton.jit
def _attend(
    accumulator,  # (BLOCK_M, BLOCK_D) fp32
    row_max,  # (BLOCK_M,) fp32, in units of the raw product
    row_sum,  # (BLOCK_M,) fp32
    queries,  # the block itself, (BLOCK_M, BLOCK_D); where its rows start, and which are there, (BLOCK_M, 1) each
    keys,  # pointers to row 0 of the head's keys and of its values; first row and length of the span
    first,  # first key of this block, counted in the span
    stride_qkv,
    score_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    MASK_KEYS: tl.constexpr,
):
    """One block of keys into the running softmax."""
    query, query_ptrs, query_mask = queries
    keys_ptr, values_ptr, start, length = keys
    n_offs = tl.arange(0, BLOCK_N)
    key_mask = first + n_offs[:, None] < length
    # One 64-bit product for the block, 32-bit offsets inside it.
    step = (start + first).to(tl.int64) * stride_qkv
    key_ptrs = keys_ptr + step + n_offs[:, None] * stride_qkv  # (BLOCK_N, 1)
    value_ptrs = values_ptr + step + n_offs[:, None] * stride_qkv
    if CHUNK_D < BLOCK_D:
        # Full fp32 runs outside the tensor cores with operands in registers, which hold a piece of a row at a time.
        score = tl.zeros((accumulator.shape[0], BLOCK_N), dtype=tl.float32)
        for d in range(0, BLOCK_D, CHUNK_D):
            c_offs = d + tl.arange(0, CHUNK_D)[None, :]
            query_piece = tl.load(query_ptrs + c_offs, mask=query_mask & (c_offs < HEAD_DIM), other=0.0)
            key_piece = tl.load(key_ptrs + c_offs, mask=key_mask & (c_offs < HEAD_DIM), other=0.0)
            score = tl.dot(query_piece, tl.trans(key_piece), score, input_precision=INPUT_PRECISION)
    else:
        key = _load_rows(key_ptrs, key_mask, HEAD_DIM, BLOCK_D, MASK_KEYS)
        score = tl.dot(query, tl.trans(key), input_precision=INPUT_PRECISION)  # (BLOCK_M, BLOCK_N)
    value = _load_rows(value_ptrs, key_mask, HEAD_DIM, BLOCK_D, MASK_KEYS)
    if MASK_KEYS:
        score = tl.where(first + n_offs[None, :] < length, score, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(score, 1))
    # exp(scale * (s - max)) as exp2 with log2(e) inside score_scale: one fused multiply-add and one exp2 a score.
    probability = tl.exp2(score * score_scale - (new_max * score_scale)[:, None])
    decay = tl.exp2((row_max - new_max) * score_scale)
    row_sum = row_sum * decay + tl.sum(probability, 1)
    accumulator = accumulator * decay[:, None]
    accumulator = tl.dot(probability.to(value.dtype), value, accumulator, input_precision=INPUT_PRECISION)
    return accumulator, new_max, row_sum


@triton.jit
def _write_zeros(
    out_ptr, first, rows, head, stride_out, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Zeroes one head's columns of the rows from `first` on; the programs of a head share the blocks of rows."""
    d_offs = tl.arange(0, BLOCK_D)
    zeros = tl.zeros((BLOCK_M, BLOCK_D), dtype=out_ptr.dtype.element_ty)
    for block in range(first + tl.program_id(0) * BLOCK_M, rows, tl.num_programs(0) * BLOCK_M):
        m_offs = block + tl.arange(0, BLOCK_M)
        mask = (m_offs[:, None] < rows) & (d_offs[None, :] < HEAD_DIM)
        out_ptrs = out_ptr + m_offs[:, None].to(tl.int64) * stride_out + head * HEAD_DIM + d_offs[None, :]
        tl.store(out_ptrs, zeros, mask=mask)


# Sizes of a batch are not specialised: a new one must not compile a new kernel.
@triton.jit(do_not_specialize=["rows"])
def attention_kernel(
    out_ptr,  # (rows, hidden)
    qkv_ptr,  # (rows, 3 * hidden)
    cu_seqlens_ptr,  # (spans + 1,) int32
    head_scale_ptr,  # (num_heads,) or None
    rows,
    hidden,
    stride_out,
    stride_qkv,
    score_scale,  # scale * log2(e)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    head = tl.program_id(1)
    span = tl.program_id(2)
    start = tl.load(cu_seqlens_ptr + span)
    if span == tl.num_programs(2) - 1:
        _write_zeros(out_ptr, start, rows, head, stride_out, HEAD_DIM, BLOCK_D, BLOCK_M)
        return
    length = tl.load(cu_seqlens_ptr + span + 1) - start
    first = tl.program_id(0) * BLOCK_M
    if first >= length:
        return

    m_offs = first + tl.arange(0, BLOCK_M)[:, None]
    m_mask = m_offs < length
    m_rows = (start + m_offs).to(tl.int64)
    head_ptr = qkv_ptr + head * HEAD_DIM
    keys = (head_ptr + hidden, head_ptr + 2 * hidden, start, length)
    query_ptrs = head_ptr + m_rows * stride_qkv  # (BLOCK_M, 1)
    queries = (_load_rows(query_ptrs, m_mask, HEAD_DIM, BLOCK_D, True), query_ptrs, m_mask)

    accumulator = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    row_max = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    whole = length // BLOCK_N * BLOCK_N
    for n in range(0, whole, BLOCK_N):
        accumulator, row_max, row_sum = _attend(
            *(accumulator, row_max, row_sum, queries, keys, n, stride_qkv, score_scale),
            *(HEAD_DIM, BLOCK_D, BLOCK_N, CHUNK_D, INPUT_PRECISION, False),
        )
    if whole < length:
        accumulator, row_max, row_sum = _attend(
            *(accumulator, row_max, row_sum, queries, keys, whole, stride_qkv, score_scale),
            *(HEAD_DIM, BLOCK_D, BLOCK_N, CHUNK_D, INPUT_PRECISION, True),
        )

    factor = 1.0 / row_sum
    if head_scale_ptr is not None:
        factor = factor * tl.load(head_scale_ptr + head).to(tl.float32)
    out = accumulator * factor[:, None]
    d_offs = tl.arange(0, BLOCK_D)[None, :]
    out_ptrs = out_ptr + m_rows * stride_out + head * HEAD_DIM + d_offs
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=m_mask & (d_offs < HEAD_DIM))


# --- launchers --------------------------------------------------------------------------------------------------------


def heuristic(*, op: str, arch: str, N: int, K: int, bucket: str, dtype: str) -> dict[str, Any]:
    """Tile by head size (N), chip and dtype ("float32" for full fp32, "tf32" for fp32 on tensor cores)."""
    if dtype == "float32":
        # The largest that does not spill.
        return {"BLOCK_M": 64, "BLOCK_N": 32 if N <= 64 else 16, "num_warps": 8, "num_stages": 1}
    # The best for a prototype of this kernel at 211 keys of 64 elements on an H200.
    tile = {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3}
    if dtype == "tf32":
        tile["num_stages"] = 2
    # mma.sync takes its operands from registers, where the tile above spills.
    if launch.family(arch) == "sm80" and dtype == "tf32":
        tile |= {"BLOCK_M": 32} if N > 64 else {"BLOCK_M": 128, "num_warps": 8}
    elif launch.family(arch) == "sm80" and N > 64:
        tile["num_warps"] = 8
    if launch.family(arch) == "gfx942":
        tile["num_stages"] = 2
    return tile


def _plan(qkv: Tensor, head_dim: int) -> launch.Program:
    name, block = launch.product_name(qkv.dtype), max(launch.next_power_of_2(head_dim), 16)
    tile = launch.configuration("attention", arch=launch.arch_of(qkv), N=head_dim, dtype=name, heuristic=heuristic)
    return launch.Program(
        attention_kernel,
        HEAD_DIM=head_dim,
        BLOCK_D=block,
        CHUNK_D=16 if name == "float32" else block,
        INPUT_PRECISION=launch.input_precision(qkv.dtype),
        **tile,
    )


def _key(qkv: Tensor, cu_seqlens: Tensor, num_heads: int, head_scale: Tensor | None) -> tuple[Any, ...]:
    return (
        *("attention", num_heads, qkv.shape[1:], None if head_scale is None else head_scale.shape),
        cu_seqlens.ndim == 1 and 0 < cu_seqlens.shape[0] <= MAX_GRID,
        *map(launch.traits, (qkv, cu_seqlens, head_scale)),
        None if qkv.dtype != torch.float32 else torch.get_float32_matmul_precision(),
    )


def _launch(
    qkv: Tensor, cu_seqlens: Tensor, num_heads: int, max_seqlen: int, scale: float, head_scale: Tensor | None
) -> Tensor:
    qkv, (cu_seqlens, head_scale) = launch.row_major(qkv), launch.contiguous(cu_seqlens, head_scale)
    key = _key(qkv, cu_seqlens, num_heads, head_scale)
    program = launch.plans.get(key) or _plan(qkv, qkv.shape[1] // 3 // num_heads)
    if launch.recording is None:
        launch.plans[key] = program
    return _run(program, qkv, cu_seqlens, num_heads, max_seqlen, scale, head_scale)


def _run(
    program: launch.Program,
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    max_seqlen: int,
    scale: float,
    head_scale: Tensor | None,
) -> Tensor:
    rows, hidden = qkv.shape[0], qkv.shape[1] // 3
    out = qkv.new_empty(rows, hidden)
    if rows:
        blocks = launch.cdiv(max(max_seqlen, 1), program.configuration["BLOCK_M"])
        sizes = (rows, hidden, hidden, qkv.stride(0), scale * LOG2_E)
        program((blocks, num_heads, cu_seqlens.shape[0]), out, qkv, cu_seqlens, head_scale, *sizes)
    return out


_attention = torch.library.custom_op("vilt_fast::attention", _launch, mutates_args=())
_attention.register_fake(lambda qkv, *_: qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3))


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    cases = [(64, "bf16"), (64, "fp16"), (64, "fp32 tf32"), (64, "fp32 ieee"), (16, "bf16"), (80, "bf16")]
    cases += [(128, "bf16"), (128, "fp32 tf32"), (128, "fp32 ieee")]
    shipped = []
    for head_dim, dtype in cases:
        qkv, name = empty(dtype[:4], 211, 3 * 12 * head_dim), f"d{head_dim} {dtype}"
        arguments = (qkv, empty("i32", 2), 12, 211, 0.125, None)
        shipped += compiled(target, name, _launch, *arguments, tf32=dtype.endswith("tf32"))
    return shipped + shipped_rows(target)


# --- public functions -------------------------------------------------------------------------------------------------


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    *,
    max_seqlen: int,
    scale: float | None = None,
    head_scale: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """`vilt_fast.reference.attention.attention` for fp32, fp16 and bf16, heads of at most 128 and a positive scale.

    No dropout and no gradients. fp32 is multiplied as torch.get_float32_matmul_precision() says. Rows may be strided.
    """
    if launch.is_direct() and dropout_p == 0 and scale is None and max_seqlen >= 0:
        program = launch.plans.get(_key(qkv, cu_seqlens, num_heads, head_scale))
        if program is not None:
            usual = (qkv.shape[1] // 3 // num_heads) ** -0.5
            return _run(program, qkv, cu_seqlens, num_heads, max_seqlen, usual, head_scale)
    scale = check_arguments("attention", qkv, cu_seqlens, num_heads, max_seqlen, scale, head_scale)
    if dropout_p != 0:
        raise ValueError(f"attention: dropout_p: got {dropout_p}, wanted 0 (the kernel has no dropout)")
    run = _launch if launch.is_direct(qkv, cu_seqlens, head_scale) else _attention
    return run(qkv, cu_seqlens, num_heads, max_seqlen, scale, head_scale)
