"""A list of the pieces that the spans of a batch are cut into, one program of `attention` for each piece and head.

    cu_seqlens  0          211      437   437         rows        entry = (first row of the span, its length, number
                |  span 0  | span 1  |     | past all  |                   of the piece), and a word to fill 16 bytes
    pieces      |0 .  1 .  2 . 3|0 . 1 . 2 . 3| -|0 .  1|

A grid has programs for as many spans, and as many pieces of each, as there might be; the list has room for
rows / piece + spans + 1 entries. What lies past the last span is one more, of negative length.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch


# Sizes of a batch are not specialised: a new one must not compile a new kernel.
@triton.jit(do_not_specialize=["rows", "row_bits"])
def list_kernel(
    list_ptr,  # ((rows >> row_bits) + spans + 1, 4) int32
    cu_seqlens_ptr,  # (spans + 1,) int32
    rows,
    row_bits,
    BLOCK: tl.constexpr,
):
    """Writes the entries of one span: its first row, its length, and 0, 1, ... for each piece of 2^row_bits rows.

    Span s begins at entry (cu_seqlens[s] >> row_bits) + s. That is room enough: the shifted bounds of a span are at
    most one less apart than it has pieces. So a span has at most one entry without rows.
    """
    span = tl.program_id(0)
    is_last = span == tl.num_programs(0) - 1
    start = tl.load(cu_seqlens_ptr + span)
    end = rows
    if not is_last:
        end = tl.load(cu_seqlens_ptr + span + 1)
    first = (start >> row_bits) + span
    length = tl.where(is_last, start - end, end - start)
    for entry in range(first, (end >> row_bits) + span + 1, BLOCK):
        e_offs = entry + tl.arange(0, BLOCK)
        entry_ptrs = list_ptr + e_offs * 4
        mask = e_offs <= (end >> row_bits) + span
        tl.store(entry_ptrs, tl.zeros((BLOCK,), tl.int32) + start, mask=mask)
        tl.store(entry_ptrs + 1, tl.zeros((BLOCK,), tl.int32) + length, mask=mask)
        tl.store(entry_ptrs + 2, e_offs - first, mask=mask)


def entries(rows: int, cu_seqlens: Tensor, row_bits: int) -> int:
    """How many entries a list has for pieces of 2^row_bits rows."""
    return (rows >> row_bits) + cu_seqlens.shape[0]


def make_list(cu_seqlens: Tensor, rows: int, row_bits: int) -> Tensor:
    """(entries, 4) int32, see above; one launch."""
    made = torch.empty(entries(rows, cu_seqlens, row_bits), 4, dtype=torch.int32, device=cu_seqlens.device)
    launch.run(list_kernel, (cu_seqlens.shape[0],), made, cu_seqlens, rows, row_bits, BLOCK=32, num_warps=1)
    return made


def check_list(span_list: Tensor, rows: int, cu_seqlens: Tensor, row_bits: int) -> None:
    """Raises unless a list has as many entries as it should.

    What the entries are is not looked at, which would cost a copy to the host: the list of another batch with as many
    spans, and as many whole pieces of rows, passes, and gives rows that are wrong or not written.

    Raises:
        ValueError: it was made for another number of rows or spans, another dtype or head size.
    """
    wanted = entries(rows, cu_seqlens, row_bits)
    if span_list.shape[0] != wanted:
        reason = f"{wanted}: what list_spans makes for these rows, spans, dtype and head size"
        raise ValueError(f"attention: span_list: got {span_list.shape[0]} entries, wanted {reason}")
