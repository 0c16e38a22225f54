"""attention beside PyTorch's, over the spans of a batch.

Peers: the flash kernel for packed spans, and scaled dot-product attention on the padded batch, packing included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench import flops, peers
from vilt_fast.bench.case import Case
from vilt_fast.bench.operations import TUNED_DTYPES, OperationCase, Task, rounded

# Of spans whose keys stay in shared memory: how many blocks of queries are on their way, and the tile of longer spans.
RESIDENT_TILES = [(64, 32, 4, 3, 128, 2), (64, 32, 4, 3, 128, 1), (64, 64, 4, 2, 128, 2), (64, 64, 4, 2, 128, 1)]
TILES = [(64, 32, 4, 3), (64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 8, 3), (128, 64, 8, 3)]
_PARAMETERS = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages", "HALF", "QUERY_STAGES")


def cases(batch: Case) -> list[OperationCase]:
    """The spans of a packed batch; then the attention rows of every seventh query."""
    lengths, d, heads = batch.lengths, batch.config.hidden_size, batch.config.num_attention_heads
    spans, longest, total = _cu_seqlens(lengths, batch.device), max(lengths), sum(lengths)
    queries = torch.arange(0, total, 7, device=batch.device)

    def varlen(qkv: Tensor) -> Tensor:
        attend = peers.varlen(qkv, spans, longest)
        return attend(*qkv.unflatten(-1, (3, heads, -1)).unbind(1)).flatten(1)

    def attend(qkv: Tensor) -> Tensor:
        listed = ops.list_spans(spans, total, d // heads, qkv.dtype)  # a launch that a model makes once a batch
        return ops.attention(qkv, spans, heads, max_seqlen=longest, span_list=listed)

    case = partial(
        OperationCase,
        batch,
        shape=f"{len(lengths)} spans of {min(lengths)}..{longest}, {total} x 3 x {d}",
        make=lambda generator: [rounded(generator, total, 3 * d)],
        work=lambda itemsize: flops.attention(lengths, d, itemsize),
    )
    attention = case(
        operation="attention",
        floor="attention",
        ours=attend,
        peers={
            "torch varlen_attn": varlen,
            "torch SDPA, unpacked, padded and packed again": _padded(spans, longest, heads),
        },
    )
    rows = case(
        operation="attention_rows",
        floor="attention_rows",
        ours=lambda qkv: ops.attention_rows(qkv, spans, queries, heads, max_seqlen=longest),
    )
    return [attention, rows]


def _cu_seqlens(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def _padded(spans: Tensor, longest: int, heads: int) -> Callable[[Tensor], Tensor]:
    start, at = spans[:-1, None].long(), torch.arange(longest, device=spans.device)
    real = at < spans.diff()[:, None]
    padded, mask, flat = torch.where(real, start + at, 0), real[:, None, None], real.flatten().nonzero().flatten()

    def sdpa(qkv: Tensor) -> Tensor:
        query, key, value = qkv[padded].unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.transpose(1, 2).flatten(2).flatten(0, 1)[flat]

    return sdpa


def tasks(batches: Sequence[Case]) -> Iterator[Task]:
    """One tile for every size class, chosen where most time goes; for the kernel that the switch "resident" chose."""
    from vilt_fast.kernels import attention, launch

    config = batches[-1].config
    head_dim = config.hidden_size // config.num_attention_heads
    arch = launch.arch_of(torch.empty(0, device=batches[-1].device))
    is_resident = "HALF" in attention.configure(arch, head_dim, torch.bfloat16, sum(batches[-1].lengths))[0]
    op, tiles = ("attention_resident", RESIDENT_TILES) if is_resident else ("attention", TILES)
    candidates = [dict(zip(_PARAMETERS, tile, strict=False)) for tile in tiles]
    yield Task(op, {"N": head_dim, "dtype": TUNED_DTYPES}, cases(batches[-1])[0], candidates)
