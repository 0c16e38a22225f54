"""softmax(q k^T * scale) v inside each span of a packed sequence, with no score matrix in memory.

Vaswani et al. 2017, equation 1, by the online softmax of Milakov & Gimelshein 2018 (algorithm 3), tiled as in
FlashAttention-2 (Dao 2023, algorithm 1). One program owns BLOCK_M queries of one head of one span:

                 keys of the span ->                  qkv, one row per token:
               +-------+-------+----+                 [ query | key | value ], each (num_heads, head_dim)
      BLOCK_M  |BLOCK_N|BLOCK_N|tail|
      queries  +-------+-------+----+                 grid (m-block, head, span), a program past its span's end
                  only the tail is masked             returns at once; one more "span" zeroes the rows past the last

Three switches (`vilt_fast.kernels.switches`) change this:

- resident: spans of 129 to 256 keys of at most 64 elements of 16 bits go to `attention_resident.py`, which loads them
  once for all queries. All other spans, heads and dtypes go on as above.
- span_list: programs read their place from a list, made once a batch by `list_spans`, with room for
  rows / BLOCK_M + spans entries, in place of a grid in which every span has programs for the longest. It counts where
  a list is given, as by frozen models.
- pdl: a program may start while the kernel before ends, and waits for it before its first read (sm_90 and later).

Tile and way depend on head size, dtype, chip and the length of the span alone, never on the batch: a pair's output is
bit for bit the same alone and in any batch. Not supported: dropout, bias, causal masks, backward, scale <= 0.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from . import launch, switches
from .attention_list import check_list, entries, make_list
from .attention_resident import attend_resident
from .attention_rows import LOG2_E, MAX_GRID, attention_rows, check_arguments
from .attention_rows import shipped_configurations as shipped_rows
from .attention_tiles import load_rows, place_of, write_zeros
from .shipped import Configuration, compiled, empty

__all__ = ["attention", "attention_rows", "heuristic", "list_spans", "shipped_configurations"]

# What was found to compile without spills on every chip of the switch "resident".
MAX_RESIDENT_HEAD_DIM = 64


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
        key = load_rows(key_ptrs, key_mask, HEAD_DIM, BLOCK_D, MASK_KEYS)
        score = tl.dot(query, tl.trans(key), input_precision=INPUT_PRECISION)  # (BLOCK_M, BLOCK_N)
    value = load_rows(value_ptrs, key_mask, HEAD_DIM, BLOCK_D, MASK_KEYS)
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
def _attend_all(
    out_ptr,
    qkv_ptr,
    hidden,
    head,
    span,  # its first row and its length
    first,  # of BLOCK_M queries, counted in the span
    stride_out,
    stride_qkv,
    score_scale,
    head_factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Writes the rows of one block of queries, for a span of any length."""
    start, length = span
    m_offs = first + tl.arange(0, BLOCK_M)[:, None]
    m_mask = m_offs < length
    m_rows = (start + m_offs).to(tl.int64)
    head_ptr = qkv_ptr + head * HEAD_DIM
    keys = (head_ptr + hidden, head_ptr + 2 * hidden, start, length)
    query_ptrs = head_ptr + m_rows * stride_qkv  # (BLOCK_M, 1)
    queries = (load_rows(query_ptrs, m_mask, HEAD_DIM, BLOCK_D, True), query_ptrs, m_mask)

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
    out = accumulator * (head_factor / row_sum)[:, None]
    d_offs = tl.arange(0, BLOCK_D)[None, :]
    out_ptrs = out_ptr + m_rows * stride_out + head * HEAD_DIM + d_offs
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=m_mask & (d_offs < HEAD_DIM))


# Sizes of a batch are not specialised: a new one must not compile a new kernel.
@triton.jit(do_not_specialize=["rows", "row_bits"])
def attention_kernel(
    out_ptr,  # (rows, hidden)
    qkv_ptr,  # (rows, 3 * hidden)
    cu_seqlens_ptr,  # (spans + 1,) int32
    head_scale_ptr,  # (num_heads,) or None
    list_ptr,  # of `list_kernel`, or None
    rows,
    row_bits,  # a program has up to 2^row_bits queries: BLOCK_M, or with HALF a multiple of it
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
    HALF: tl.constexpr = 0,  # of the keys that stay in shared memory; 0: none do
    QUERY_STAGES: tl.constexpr = 1,
    PDL: tl.constexpr = False,
):
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    head, start, length, number, numbers = place_of(cu_seqlens_ptr, list_ptr, rows, hidden // HEAD_DIM, row_bits)
    if length < 0:
        write_zeros(out_ptr, start, rows, head, number, numbers, stride_out, HEAD_DIM, BLOCK_D, BLOCK_M)
        return
    first = number * BLOCK_M
    if HALF:
        first = number << row_bits
    if first >= length:
        return

    head_factor = 1.0
    if head_scale_ptr is not None:
        head_factor = tl.load(head_scale_ptr + head).to(tl.float32)
    if HALF:
        stop = tl.minimum(first + (1 << row_bits), length)
        out_ptr_of_span = out_ptr + start.to(tl.int64) * stride_out + head * HEAD_DIM
        query_ptr = qkv_ptr + start.to(tl.int64) * stride_qkv + head * HEAD_DIM
        if (length > HALF) & (length <= 2 * HALF):
            attend_resident(
                *(out_ptr_of_span, query_ptr, hidden, length, first, stop, stride_out, stride_qkv, score_scale),
                *(head_factor, HEAD_DIM, BLOCK_D, BLOCK_M, HALF, QUERY_STAGES),
            )
        else:
            for m in range(first, stop, BLOCK_M):
                _attend_all(
                    *(out_ptr, qkv_ptr, hidden, head, (start, length), m, stride_out, stride_qkv, score_scale),
                    *(head_factor, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, CHUNK_D, INPUT_PRECISION),
                )
    else:
        _attend_all(
            *(out_ptr, qkv_ptr, hidden, head, (start, length), first, stride_out, stride_qkv, score_scale),
            *(head_factor, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, CHUNK_D, INPUT_PRECISION),
        )


# --- launchers --------------------------------------------------------------------------------------------------------


def heuristic(*, op: str, arch: str, N: int, K: int, bucket: str, dtype: str) -> dict[str, Any]:
    """Tile by head size (N), chip and dtype ("float32" for full fp32, "tf32" for fp32 on tensor cores)."""
    if dtype == "float32":
        # The largest that does not spill.
        return {"BLOCK_M": 64, "BLOCK_N": 32 if N <= 64 else 16, "num_warps": 8, "num_stages": 1}
    # The best for a prototype of this kernel at 211 keys of 64 elements on an H200.
    tile = {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3}
    if op == "attention_resident":
        # Two programs a multiprocessor of sm_90, by their registers as by their shared memory. Tensor memory is read
        # in a loop of its own, which a second stage doubles.
        return tile | {"HALF": 128, "QUERY_STAGES": 1 if launch.family(arch) == "sm100" else 2}
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


class _Plan(NamedTuple):
    """A launch for all batches of a size class."""

    program: launch.Program
    row_bits: int  # see the kernel


# Size classes in which one program takes all queries of a resident span; in smaller ones there would be too few.
GROUPED = ("medium", "large")


def configure(arch: str, head_dim: int, dtype: torch.dtype, rows: int) -> tuple[dict[str, Any], int]:
    """Constexprs and options of the kernel, and `row_bits`: one answer for `attention` and for its list."""
    bucket, product = launch.size_bucket(rows), launch.product_name(dtype)
    key = ("attention's tile", arch, head_dim, dtype, bucket, product)
    if launch.recording is not None:
        return _configure(arch, head_dim, dtype, bucket, product)
    found = launch.plans[key] = launch.plans.get(key) or _configure(arch, head_dim, dtype, bucket, product)
    return found


def _configure(arch: str, head_dim: int, dtype: torch.dtype, bucket: str, product: str) -> tuple[dict[str, Any], int]:
    asked: dict[str, Any] = {"N": head_dim, "dtype": product}
    fits = head_dim <= MAX_RESIDENT_HEAD_DIM and dtype in (torch.float16, torch.bfloat16)
    is_resident = switches.is_on("resident", arch, **asked) and fits
    op = "attention_resident" if is_resident else "attention"
    tile = dict(launch.configuration(op, arch=arch, heuristic=heuristic, **asked))
    queries, tile = tile["BLOCK_M"], switches.with_pdl(tile, arch, **asked, bucket=bucket)
    if is_resident and bucket in GROUPED:
        queries = 2 * tile["HALF"]
    return tile, queries.bit_length() - 1


def _plan(qkv: Tensor, head_dim: int) -> _Plan:
    tile, row_bits = configure(launch.arch_of(qkv), head_dim, qkv.dtype, qkv.shape[0])
    block = max(launch.next_power_of_2(head_dim), 16)
    program = launch.Program(
        attention_kernel,
        HEAD_DIM=head_dim,
        BLOCK_D=block,
        CHUNK_D=16 if launch.product_name(qkv.dtype) == "float32" else block,
        INPUT_PRECISION=launch.input_precision(qkv.dtype),
        **tile,
    )
    return _Plan(program, row_bits)


def _key(
    qkv: Tensor, cu_seqlens: Tensor, num_heads: int, head_scale: Tensor | None, span_list: Tensor | None
) -> tuple[Any, ...]:
    return (
        *("attention", num_heads, launch.size_bucket(qkv.shape[0]), qkv.shape[1:]),
        None if head_scale is None else head_scale.shape,
        cu_seqlens.ndim == 1 and 0 < cu_seqlens.shape[0] <= MAX_GRID,
        *map(launch.traits, (qkv, cu_seqlens, head_scale)),
        None if span_list is None else (span_list.shape[1:], *launch.traits(span_list)),
        None if qkv.dtype != torch.float32 else torch.get_float32_matmul_precision(),
    )


def _launch(
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    max_seqlen: int,
    scale: float,
    head_scale: Tensor | None,
    span_list: Tensor | None = None,
) -> Tensor:
    qkv, (cu_seqlens, head_scale) = launch.row_major(qkv), launch.contiguous(cu_seqlens, head_scale)
    key = _key(qkv, cu_seqlens, num_heads, head_scale, span_list)
    plan = launch.plans.get(key) or _plan(qkv, qkv.shape[1] // 3 // num_heads)
    if launch.recording is None:
        launch.plans[key] = plan
    return _run(plan, qkv, cu_seqlens, num_heads, max_seqlen, scale, head_scale, span_list)


def _run(
    plan: _Plan,
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    max_seqlen: int,
    scale: float,
    head_scale: Tensor | None,
    span_list: Tensor | None,
) -> Tensor:
    rows, hidden = qkv.shape[0], qkv.shape[1] // 3
    out = qkv.new_empty(rows, hidden)
    if span_list is None:
        grid = (launch.cdiv(max(max_seqlen, 1), 1 << plan.row_bits), num_heads, cu_seqlens.shape[0])
    else:
        check_list(span_list, rows, cu_seqlens, plan.row_bits)
        grid = (span_list.shape[0] * num_heads, 1, 1)
    if rows:
        sizes = (rows, plan.row_bits, hidden, hidden, qkv.stride(0), scale * LOG2_E)
        plan.program(grid, out, qkv, cu_seqlens, head_scale, span_list, *sizes)
    return out


_attention = torch.library.custom_op("vilt_fast::attention", _launch, mutates_args=())
_attention.register_fake(lambda qkv, *_: qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3))


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    cases = [(64, "bf16"), (64, "fp16"), (64, "fp32 tf32"), (64, "fp32 ieee"), (16, "bf16"), (80, "bf16")]
    cases += [(128, "bf16"), (128, "fp32 tf32"), (128, "fp32 ieee")]
    shipped = []
    for head_dim, dtype in cases:
        name, is_tf32 = f"d{head_dim} {dtype}", dtype.endswith("tf32")
        qkv, bounds = empty(dtype[:4], 211, 3 * 12 * head_dim), empty("i32", 2)
        arguments = (qkv, bounds, 12, 211, 0.125, None)
        shipped += compiled(target, name, _launch, *arguments, tf32=is_tf32)
        if dtype == "bf16" and head_dim <= MAX_RESIDENT_HEAD_DIM:
            shipped += _switched(target, name, head_dim, arguments)
    shipped += compiled(target, "span_list", make_list, empty("i32", 2), 211, 6)
    return shipped + shipped_rows(target)


def _switched(target: str, name: str, head_dim: int, arguments: tuple[Any, ...]) -> list[Configuration]:
    """The same call with each of its switches, and with all that the target has."""
    shipped = []
    possible = [word for word in ("resident", "span_list", "pdl") if target in switches.SWITCHES[word].families]
    for words in dict.fromkeys([*((word,) for word in possible), tuple(possible)]):
        with switches.forced(**dict.fromkeys(words, True)):
            row_bits = configure(target, head_dim, arguments[0].dtype, arguments[0].shape[0])[1]
            listed = empty("i32", entries(211, arguments[1], row_bits), 4) if "span_list" in words else None
            shipped += compiled(target, f"{name} {' '.join(words)}", _launch, *arguments, listed)
    return shipped


# --- public functions -------------------------------------------------------------------------------------------------


def list_spans(cu_seqlens: Tensor, rows: int, head_dim: int, dtype: torch.dtype) -> Tensor | None:
    """`vilt_fast.reference.attention.list_spans`: a list where the switch "span_list" is on, made by one launch."""
    arch, bucket, product = launch.arch_of(cu_seqlens), launch.size_bucket(rows), launch.product_name(dtype)
    key = ("span_list", arch, head_dim, product, bucket)
    is_wanted = launch.plans.get(key)
    if is_wanted is None:
        is_wanted = switches.is_on("span_list", arch, N=head_dim, dtype=product, bucket=bucket)
        launch.plans[key] = is_wanted
    row_bits = configure(arch, head_dim, dtype, rows)[1] if is_wanted else None
    return None if row_bits is None else make_list(cu_seqlens.contiguous(), rows, row_bits)


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    *,
    max_seqlen: int,
    scale: float | None = None,
    head_scale: Tensor | None = None,
    dropout_p: float = 0.0,
    span_list: Tensor | None = None,
) -> Tensor:
    """`vilt_fast.reference.attention.attention` for fp32, fp16 and bf16, heads of at most 128 and a positive scale.

    No dropout and no gradients. fp32 is multiplied as torch.get_float32_matmul_precision() says. Rows may be strided.
    """
    if launch.is_direct() and dropout_p == 0 and scale is None and max_seqlen >= 0:
        plan = launch.plans.get(_key(qkv, cu_seqlens, num_heads, head_scale, span_list))
        if plan is not None:
            usual = (qkv.shape[1] // 3 // num_heads) ** -0.5
            return _run(plan, qkv, cu_seqlens, num_heads, max_seqlen, usual, head_scale, span_list)
    scale = check_arguments("attention", qkv, cu_seqlens, num_heads, max_seqlen, scale, head_scale)
    launch.check_tensor("attention", "span_list", span_list, ("entries", 4), torch.int32)
    if span_list is not None:
        launch.check_device("attention", qkv, span_list)
        if not span_list.is_contiguous():
            raise ValueError(f"attention: span_list: got strides {span_list.stride()}, wanted what list_spans makes")
    if dropout_p != 0:
        raise ValueError(f"attention: dropout_p: got {dropout_p}, wanted 0 (the kernel has no dropout)")
    run = _launch if launch.is_direct(qkv, cu_seqlens, head_scale, span_list) else _attention
    return run(qkv, cu_seqlens, num_heads, max_seqlen, scale, head_scale, span_list)
