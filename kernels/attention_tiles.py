"""What the programs of `attention` share: which rows are theirs, and how they read and zero rows."""

import triton
import triton.language as tl


@triton.jit
def load_rows(ptrs, row_mask, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASK_ROWS: tl.constexpr):
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
def place_of(cu_seqlens_ptr, list_ptr, rows, heads, row_bits):
    """Head, span and queries of this program.

    Returns head; first row and length of its span, the length negative for the rows past the last span; which
    2^row_bits rows of it are the program's, and how many programs the rows past the last span have.
    """
    if list_ptr is not None:
        # The heads of a span are neighbours in memory, and in time.
        head = tl.program_id(0) % heads
        entry_ptr = list_ptr + tl.program_id(0) // heads * 4
        start = tl.load(entry_ptr)
        length = tl.load(entry_ptr + 1)
        number = tl.load(entry_ptr + 2)
        numbers = -length + (1 << row_bits) - 1 >> row_bits
    else:
        span = tl.program_id(2)
        is_last = span == tl.num_programs(2) - 1
        head = tl.program_id(1)
        start = tl.load(cu_seqlens_ptr + span)
        if is_last:
            length = start - rows
        else:
            length = tl.load(cu_seqlens_ptr + span + 1) - start
        number = tl.program_id(0)
        numbers = tl.num_programs(0)
    return head, start, length, number, numbers


@triton.jit
def write_zeros(
    out_ptr,
    first,  # row to zero, and the end
    end,
    head,
    number,  # of this program among those that share the rows
    numbers,
    stride_out,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Zeroes one head's columns of rows."""
    d_offs = tl.arange(0, BLOCK_D)
    zeros = tl.zeros((BLOCK_M, BLOCK_D), dtype=out_ptr.dtype.element_ty)
    for block in range(first + number * BLOCK_M, end, numbers * BLOCK_M):
        m_offs = block + tl.arange(0, BLOCK_M)
        mask = (m_offs[:, None] < end) & (d_offs[None, :] < HEAD_DIM)
        out_ptrs = out_ptr + m_offs[:, None].to(tl.int64) * stride_out + head * HEAD_DIM + d_offs[None, :]
        tl.store(out_ptrs, zeros, mask=mask)
