"""softmax(q k^T / sqrt(head_dim)) v inside each span of a packed sequence (Vaswani et al. 2017, equation 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad


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
    """Multi-head attention in which row i sees only the rows of its own span.

    Args:
        qkv: (rows, 3 * d): query, key and value side by side, each (num_heads, head_dim).
        cu_seqlens: (spans + 1,) int32, ascending from 0; span i is rows cu_seqlens[i] up to cu_seqlens[i + 1].
        num_heads: d is a multiple of it.
        max_seqlen: upper bound of the lengths. The kernel sizes its grid by it, torch.compile the padded form of this.
        scale: multiplies q k^T; 1 / sqrt(head_dim) where None.
        head_scale: (num_heads,) multiplies the probabilities of each head (Hugging Face's `head_mask`).
        dropout_p: probability of dropping a probability.
        span_list: what `list_spans` made of `cu_seqlens`. Unused here; the kernel launches no program in vain with it.

    Returns:
        (rows, d) in the dtype of `qkv`. Rows past the last span are zero.

    Raises:
        ValueError: from the kernel, where an argument has another shape, dtype or device than that.

    Example:
        >>> qkv = torch.zeros(5, 3 * 4)  # all keys are alike: each query averages the values of its span
        >>> qkv[:, 8:] = torch.arange(5.0)[:, None]
        >>> attention(qkv, torch.tensor([0, 2, 5], dtype=torch.int32), num_heads=2, max_seqlen=3)[:, 0]
        tensor([0.5000, 0.5000, 3.0000, 3.0000, 3.0000])
    """
    if torch.compiler.is_compiling():
        return _attention_padded(qkv, cu_seqlens, num_heads, max_seqlen, scale, head_scale, dropout_p)
    lengths = cu_seqlens.diff().tolist()
    total, context = sum(lengths), []
    spells_out = head_scale is not None or _is_transformed()
    for span in qkv[:total].split(lengths):
        query, key, value = span.unflatten(-1, (3, num_heads, -1)).permute(1, 2, 0, 3)  # (num_heads, length, head_dim)
        if not spells_out:
            # F.scaled_dot_product_attention is equation 1; the spelled-out form below is what it computes.
            batch_of_one = (query[None], key[None], value[None])
            out = F.scaled_dot_product_attention(*batch_of_one, dropout_p=dropout_p, scale=scale)[0]
        else:
            probabilities = _probabilities(query, key, scale)
            probabilities = F.dropout(probabilities, dropout_p, training=dropout_p > 0)
            if head_scale is not None:
                probabilities = probabilities * head_scale[:, None, None]
            out = probabilities @ value
        context.append(out.transpose(0, 1).flatten(1))  # (length, d)
    context.append(qkv.new_zeros(qkv.shape[0] - total, qkv.shape[1] // 3))
    return torch.cat(context)


def list_spans(cu_seqlens: Tensor, rows: int, head_dim: int, dtype: torch.dtype) -> Tensor | None:
    """A list of the pieces that the spans of a batch are cut into, to be made once and given to every `attention`.

    Args:
        cu_seqlens: as in `attention`. rows, head_dim, dtype: of the `qkv` that will come.

    Returns:
        (entries, 4) int32 where the kernels want one: first row and length of a span, number of the piece; its rows
        are as many as the kernel's plan says. None here.
    """
    return None


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
    """The attention probabilities of chosen queries over the keys of their own span.

    Args:
        qkv, cu_seqlens, num_heads, scale, head_scale: as in `attention`.
        query_rows: (queries,) integers, rows of `qkv` inside a span.
        max_seqlen: length of the last dimension of the result, at least the longest span.

    Returns:
        (queries, num_heads, max_seqlen) in the dtype of `qkv`; zero past the end of the query's span.

    Raises:
        ValueError: from the kernel, where an argument has another shape, dtype or device than that.

    Example:
        >>> qkv = torch.zeros(5, 3 * 4)  # all keys are alike: each query attends evenly to its span
        >>> cu_seqlens, query_rows = torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([1, 4])
        >>> attention_rows(qkv, cu_seqlens, query_rows, num_heads=1, max_seqlen=3)
        tensor([[[0.5000, 0.5000, 0.0000]],
        <BLANKLINE>
                [[0.3333, 0.3333, 0.3333]]])
    """
    if torch.compiler.is_compiling():
        return _attention_rows_padded(qkv, cu_seqlens, query_rows, num_heads, max_seqlen, scale, head_scale)
    query, key, _ = qkv.unflatten(-1, (3, num_heads, -1)).unbind(1)  # (rows, num_heads, head_dim)
    bounds = cu_seqlens.tolist()
    span_of = torch.searchsorted(cu_seqlens.long(), query_rows.long(), right=True) - 1
    result = qkv.new_zeros(len(query_rows), num_heads, max_seqlen)
    for span in span_of.unique().tolist():
        chosen = (span_of == span).nonzero().flatten()
        keys = key[bounds[span] : bounds[span + 1]]
        probabilities = _probabilities(query[query_rows[chosen]].transpose(0, 1), keys.transpose(0, 1), scale)
        if head_scale is not None:
            probabilities = probabilities * head_scale[:, None, None]
        result = result.index_copy(0, chosen, F.pad(probabilities.transpose(0, 1), (0, max_seqlen - len(keys))))
    return result


def _attention_padded(
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    max_seqlen: int,
    scale: float | None,
    head_scale: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """`attention` for torch.compile, which traces no loop over spans: the same, every span padded to the longest."""
    query, key, value, mask = _pad_spans(qkv, cu_seqlens, num_heads, max_seqlen)
    if head_scale is None:
        context = F.scaled_dot_product_attention(query, key, value, mask, dropout_p, scale=scale)
    else:
        probabilities = F.dropout(_probabilities(query, key, scale, mask), dropout_p)
        context = (probabilities * head_scale[:, None, None]) @ value
    rows = torch.arange(qkv.shape[0], device=qkv.device)
    span, place = _places(cu_seqlens, rows)
    outside = rows >= cu_seqlens[-1]
    return context.transpose(1, 2).flatten(2)[span, place].masked_fill(outside[:, None], 0)


def _attention_rows_padded(
    qkv: Tensor,
    cu_seqlens: Tensor,
    query_rows: Tensor,
    num_heads: int,
    max_seqlen: int,
    scale: float | None,
    head_scale: Tensor | None,
) -> Tensor:
    """`attention_rows` likewise."""
    query, key, _, mask = _pad_spans(qkv, cu_seqlens, num_heads, max_seqlen)
    probabilities = _probabilities(query, key, scale, mask)  # (spans, num_heads, max_seqlen, max_seqlen)
    if head_scale is not None:
        probabilities = probabilities * head_scale[:, None, None]
    span, place = _places(cu_seqlens, query_rows)
    return probabilities.transpose(1, 2)[span, place]


def _pad_spans(
    qkv: Tensor, cu_seqlens: Tensor, num_heads: int, max_seqlen: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key and value, (spans, num_heads, max_seqlen, head_dim) each, and which keys there are."""
    places = torch.arange(max_seqlen, device=qkv.device)
    stands = places < cu_seqlens.diff()[:, None]  # (spans, max_seqlen)
    row = torch.where(stands, cu_seqlens[:-1, None] + places, 0)
    padded = qkv[row].masked_fill(~stands[:, :, None], 0)  # zero, so that no NaN of row 0 gets about
    query, key, value = padded.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    # An empty span attends to its padding: without any key its gradient would be NaN.
    return query, key, value, (stands | (places == 0))[:, None, None, :]


def _places(cu_seqlens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The span of each row, and its place there, both 0 for rows past the last span."""
    span = torch.searchsorted(cu_seqlens[1:].long(), rows.long(), right=True)
    outside = span == len(cu_seqlens) - 1
    span = span.masked_fill(outside, 0)
    return span, (rows - cu_seqlens[span]).masked_fill(outside, 0)


def _is_transformed() -> bool:
    """Whether torch.func or forward mode runs, for which PyTorch's fused attention has no rules."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _probabilities(query: Tensor, key: Tensor, scale: float | None, mask: Tensor | None = None) -> Tensor:
    """(..., queries, keys) from (..., queries, head_dim) and (..., keys, head_dim); mask: True for keys there are."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.transpose(-1, -2)) * scale
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
