"""Multi-head attention inside each pair of a packed batch (Vaswani et al. 2017, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.configs.encoder import EncoderConfig
from vilt_fast.contracts.exporting import is_exporting
from vilt_fast.layers.dropout import Dropout, HiddenDropout
from vilt_fast.layers.projection import call_linear, weights
from vilt_fast.layers.untouched import is_untouched, skippable
from vilt_fast.packing import Layout
from vilt_fast.padding import PaddedLayout

# Query, key and value, (rows, d) each: side by side, or three of them under `torch.export`.
Projected: TypeAlias = Tensor | tuple[Tensor, Tensor, Tensor]


@skippable(query=nn.Linear, key=nn.Linear, value=nn.Linear, dropout=Dropout)
class SelfAttention(nn.Module):
    """Query, key and value, and the attention over them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = d // config.num_attention_heads
        self.query = nn.Linear(d, d, bias=config.qkv_bias)
        self.key = nn.Linear(d, d, bias=config.qkv_bias)
        self.value = nn.Linear(d, d, bias=config.qkv_bias)
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.kept_heads: list[int] | None = None  # None: all of them

    @property
    def all_head_size(self) -> int:
        """Columns of query, key and value each."""
        return self.num_attention_heads * self.attention_head_size

    def forward(
        self, x: Tensor, layout: Layout, *, head_scale: Tensor | None = None, want_attention: bool = False
    ) -> tuple[Tensor, ...]:
        """(total_tokens, d) to the same; and the probabilities (B, heads, places, places) where they are wanted."""
        projected = (self.query(x), self.key(x), self.value(x))
        qkv = projected if isinstance(layout, PaddedLayout) else torch.cat(projected, -1)
        return self.attend(qkv, layout, head_scale, want_attention, is_untouched(self.dropout, Dropout))

    def query_key_value(self, x: Tensor) -> Projected:
        """(rows, d) to (rows, 3 * d), side by side, in one product of the untouched three."""
        if is_exporting():  # a graph would copy the weights side by side in each of its runs
            return call_linear(self.query, x), call_linear(self.key, x), call_linear(self.value, x)
        # Copied side by side at each call: a third of a millisecond on a CPU, and nothing goes stale.
        parts, biases = zip(*map(weights, (self.query, self.key, self.value)), strict=True)
        absent = [bias is None for bias in biases]
        if all(absent):
            return ops.linear(x, torch.cat(parts))
        if any(absent):  # one of them was put in the place of another
            biases = tuple(x.new_zeros(self.all_head_size) if bias is None else bias for bias in biases)
        return ops.linear(x, torch.cat(parts), torch.cat(biases))

    def attend(
        self, qkv: Projected, layout: Layout, head_scale: Tensor | None, want_attention: bool, lends: bool
    ) -> tuple[Tensor, ...]:
        """`forward` behind the projections.

        lends: whether `dropout` is untouched: it lends its p and mode to the operation, which drops by itself.
        """
        if head_scale is not None and self.kept_heads is not None:
            head_scale = head_scale[self.kept_heads]
        dropout = self.dropout
        if isinstance(layout, PaddedLayout):
            assert not isinstance(qkv, Tensor)
            if lends and not (want_attention or dropout.is_active):
                return (self._attend_padded(qkv, layout, head_scale),)
            return self._attend_by_scores(torch.cat(qkv, -1), layout, head_scale, want_attention)
        assert isinstance(qkv, Tensor)
        scored = torch.is_grad_enabled() and (qkv.requires_grad or head_scale is not None and head_scale.requires_grad)
        if not lends or want_attention and (dropout.is_active or scored):
            return self._attend_by_scores(qkv, layout, head_scale, want_attention)
        heads, spans = self.num_attention_heads, layout.cu_seqlens
        options: dict[str, Any] = {"max_seqlen": layout.max_seqlen, "head_scale": head_scale}
        context = ops.attention(qkv, spans, heads, dropout_p=dropout.p if dropout.is_active else 0.0, **options)
        if not want_attention:
            return (context,)
        every_row = torch.arange(layout.total_tokens, device=qkv.device)
        rows = ops.attention_rows(qkv, spans, every_row, heads, **options)
        return context, layout.unpack_attention(rows)

    def _attend_padded(
        self, projected: tuple[Tensor, Tensor, Tensor], layout: PaddedLayout, head_scale: Tensor | None
    ) -> Tensor:
        """(B * S, d) each to (B * S, d): rows that hold no token are no keys."""
        shape = (layout.batch_size, layout.max_seqlen, self.num_attention_heads, self.attention_head_size)
        query, key, value = (part.view(shape).transpose(1, 2) for part in projected)  # (B, heads, S, head_size) each
        # For every query: onnxruntime's Attention, of opset 23 on, knows no mask of one row for all.
        keys = layout.stands[:, None, None, :].expand(-1, -1, layout.max_seqlen, -1)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        if head_scale is not None:
            context = context * head_scale[:, None, None]
        return context.transpose(1, 2).reshape(layout.total_tokens, self.all_head_size)

    def _attend_by_scores(
        self, qkv: Tensor, layout: Layout, head_scale: Tensor | None, want_attention: bool
    ) -> tuple[Tensor, ...]:
        """As the paper writes it, padded: what is returned as probabilities is what the values are weighed with."""
        padded = layout.unpack(qkv).unflatten(-1, (3, self.num_attention_heads, self.attention_head_size))
        query, key, value = padded.permute(2, 0, 3, 1, 4)  # (B, heads, places, head_size) each
        scores = query @ key.transpose(-1, -2) * self.attention_head_size**-0.5
        stands = layout.padded_row >= 0
        probabilities = scores.masked_fill(~stands[:, None, None, :], -torch.inf).softmax(-1)
        probabilities = self.dropout(probabilities.masked_fill(~stands[:, None, :, None], 0))
        if head_scale is not None:
            probabilities = probabilities * head_scale[:, None, None]
        context = layout.pack((probabilities @ value).transpose(1, 2).flatten(2))
        return (context, probabilities) if want_attention else (context,)


@skippable(dense=nn.Linear, dropout=HiddenDropout)
class SelfOutput(nn.Module):
    """The projection of the heads; the block adds the residual."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = HiddenDropout(config.hidden_dropout_prob)

    def forward(self, context: Tensor) -> Tensor:
        """(rows, d) to (rows, d)."""
        return self.dropout(self.dense(context))


class PrunableAttention(nn.Module):
    """Attention and its projection, of which heads can be taken out."""

    pruned_heads: set[int]
    output: Any  # with the projection `dense`

    @property
    def heads(self) -> SelfAttention:
        """The attention itself."""
        raise NotImplementedError

    def prune_heads(self, heads: Iterable[int]) -> None:
        """Keep all but these, by the numbers that they had at first; see `PreTrainedModel.prune_heads`."""
        attention = self.heads
        held = attention.kept_heads or range(attention.num_attention_heads)
        places = [place for place, head in enumerate(held) if head not in heads]
        size = attention.attention_head_size
        rows = torch.tensor([place * size + column for place in places for column in range(size)])
        for linear in (attention.query, attention.key, attention.value):
            _keep(linear, rows, 0)
        _keep(self.output.dense, rows, 1)
        attention.kept_heads, attention.num_attention_heads = [held[place] for place in places], len(places)
        self.pruned_heads.update(heads)

    def check_prunable(self) -> None:
        """Raise ValueError unless the four projections are as they were made."""
        attention = self.heads
        linears = (attention.query, attention.key, attention.value, self.output.dense)
        if len({id(linear.weight) for linear in linears if hasattr(linear, "weight")}) != len(linears):
            raise ValueError("prune_heads: query, key, value and output.dense must be modules of their own weights")
        for linear in linears:
            if type(linear) is not nn.Linear or type(linear.weight) is not nn.Parameter:
                raise ValueError(
                    f"prune_heads: got a {type(linear).__name__} with weights of another kind: prune first"
                )


@skippable(attention=SelfAttention, output=SelfOutput)
class Attention(PrunableAttention):
    """Attention and its projection."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.output = SelfOutput(config)
        self.pruned_heads = set()

    @property
    def heads(self) -> SelfAttention:
        """The attention itself."""
        return self.attention

    def forward(
        self, x: Tensor, layout: Layout, *, head_scale: Tensor | None = None, want_attention: bool = False
    ) -> tuple[Tensor, ...]:
        """(total_tokens, d) to the same; and the probabilities where they are wanted."""
        context, *rest = self.attention(x, layout, head_scale=head_scale, want_attention=want_attention)
        return (self.output(context), *rest)


@torch.no_grad()
def _keep(linear: nn.Linear, rows: Tensor, dimension: int) -> None:
    """Keep some outputs (dimension 0) or inputs (1) of a linear map."""
    names = ("weight", "bias") if dimension == 0 and linear.bias is not None else ("weight",)
    for name in names:
        old = getattr(linear, name)
        setattr(linear, name, nn.Parameter(old.index_select(dimension, rows.to(old.device)), old.requires_grad))
    linear.out_features, linear.in_features = linear.weight.shape
