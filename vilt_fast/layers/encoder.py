"""Transformer blocks on the packed tensor: what all kinds share, and pre-norm ones (Dosovitskiy et al. 2021).

`vilt_fast.layers.post_norm` has those of BERT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from vilt_fast.configs.encoder import EncoderConfig
from vilt_fast.contracts.exporting import is_exporting
from vilt_fast.layers.activations import Activation, activation, fused_name
from vilt_fast.layers.attention import Attention
from vilt_fast.layers.dropout import HiddenDropout
from vilt_fast.layers.projection import linear, normalise
from vilt_fast.layers.untouched import is_untouched, remembered, skippable
from vilt_fast.packing import Layout

# Between the steps: rows (rows, d); or rows with what a frozen block keeps beside them, which can be indexed alike.
Stream = Any


class BlockSteps(Protocol):
    """The steps of a block around its attention: of a live `Block`, and of a frozen one.

    Where its two norms stand is the kind of the block: pre-norm blocks normalise what goes into attention and MLP,
    post-norm blocks (Vaswani et al. 2017) each sum.
    """

    def query_key_value(self, x: Stream) -> Tensor:
        """W LN(x), or W x: (rows, d) to (rows, 3 * d)."""

    def project(self, context: Tensor, residual: Stream) -> Stream:
        """residual + W context, or LN of it: (rows, d)."""

    def expand(self, z: Stream) -> Tensor:
        """act(W LN(z)), or act(W z): (rows, d) to (rows, hidden)."""

    def contract(self, hidden: Tensor, residual: Stream) -> Stream:
        """residual + W hidden, or LN of it: (rows, hidden) to (rows, d)."""


def walk_block(
    steps: BlockSteps, x: Stream, attend: Callable[[Tensor], Tensor], only_rows: Tensor | None = None
) -> Stream:
    """z = x + Attention(x); z + MLP(z), with two norms: the one description of a block. Seven launches on the kernels.

    Args:
        steps: of the block. x: (rows, d).
        attend: (rows, 3 * d) to (rows, d), inside each pair.
        only_rows: (B,), the rows to go on with after the attention; None: all.
    """
    context = attend(steps.query_key_value(x))
    if only_rows is not None:
        context, x = context[only_rows], x[only_rows]
    z = steps.project(context, x)
    return steps.contract(steps.expand(z), z)


@skippable(dense=nn.Linear, intermediate_act_fn=Activation)
class Intermediate(nn.Module):
    """act(W x + b), the first half of the MLP."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, d) to (rows, hidden)."""
        return self.intermediate_act_fn(self.dense(x))


@skippable(dense=nn.Linear, dropout=HiddenDropout)
class Output(nn.Module):
    """residual + W hidden + b, the second half of the MLP."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = HiddenDropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """(rows, hidden) and (rows, d) to (rows, d)."""
        return self.dropout(self.dense(hidden)) + residual


class Block(nn.Module):
    """One block: by `walk_block` where nothing in it was touched, else module by module. A kind adds its steps."""

    attention: Any  # a PrunableAttention
    intermediate: Intermediate
    output: Any

    def is_untouched(self) -> bool:
        """Whether this and all below it is what its class makes of it."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        *,
        head_scale: Tensor | None = None,
        want_attention: bool = False,
        only_rows: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """One block over all pairs: (total_tokens, d) to the same; and the probabilities where they are wanted.

        only_rows: of an untouched block, (B,), the rows to compute alone after the attention: (B, d).
        """
        # Who asks for some rows alone has looked.
        if only_rows is None and not self.is_untouched():
            return self._call_modules(x, layout, head_scale, want_attention)
        rest: list[Tensor] = []

        def attend(qkv: Tensor) -> Tensor:
            context, *rest[:] = self.attention.heads.attend(qkv, layout, head_scale, want_attention, True)
            return context

        return (walk_block(self, x, attend, only_rows), *rest)

    def _call_modules(
        self, x: Tensor, layout: Layout, head_scale: Tensor | None, want_attention: bool
    ) -> tuple[Tensor, ...]:
        """The same block as `walk_block`, each module called."""
        raise NotImplementedError

    def query_key_value(self, x: Tensor) -> Tensor:
        """See `BlockSteps`, as for those that follow: steps of an untouched block."""
        raise NotImplementedError

    def project(self, context: Tensor, residual: Tensor) -> Tensor:
        raise NotImplementedError

    def expand(self, z: Tensor) -> Tensor:
        up, act = self.intermediate.dense, self.intermediate.intermediate_act_fn
        fused = fused_name(act)
        hidden = linear(up, z, activation=fused)
        return hidden if fused is not None else act(hidden)

    def contract(self, hidden: Tensor, residual: Tensor) -> Tensor:
        raise NotImplementedError


@skippable(
    attention=Attention,
    intermediate=Intermediate,
    output=Output,
    layernorm_before=nn.LayerNorm,
    layernorm_after=nn.LayerNorm,
)
class Layer(Block):
    """A pre-norm block (Dosovitskiy et al. 2021, equations 2 and 3)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.block_layer_norm_eps
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Output(config)
        self.layernorm_before = nn.LayerNorm(d, eps=eps)
        self.layernorm_after = nn.LayerNorm(d, eps=eps)

    def is_untouched(self) -> bool:
        """See `Block`, as for those that follow."""
        return is_untouched(self, Layer)

    def _call_modules(
        self, x: Tensor, layout: Layout, head_scale: Tensor | None, want_attention: bool
    ) -> tuple[Tensor, ...]:
        normed = self.layernorm_before(x)
        attended, *rest = self.attention(normed, layout, head_scale=head_scale, want_attention=want_attention)
        z = attended + x
        return (self.output(self.intermediate(self.layernorm_after(z)), z), *rest)

    def query_key_value(self, x: Tensor) -> Tensor:
        return self.attention.heads.query_key_value(normalise(self.layernorm_before, x))

    def project(self, context: Tensor, residual: Tensor) -> Tensor:
        return linear(self.attention.output.dense, context, residual=residual)

    def expand(self, z: Tensor) -> Tensor:
        return super().expand(normalise(self.layernorm_after, z))

    def contract(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return linear(self.output.dense, hidden, residual=residual)


class EncoderOutput(NamedTuple):
    """What `Encoder` gives."""

    last_hidden_state: Tensor  # (total_tokens, d), or (B, d) where these rows were enough
    hidden_states: tuple[Tensor, ...] | None  # (B, places, d) each: the input of every block, and the last output
    attentions: tuple[Tensor, ...] | None  # (B, heads, places, places) each


class CallsBlocks(nn.Module):
    """Calls blocks, whose activations are recomputed in the backward pass where `gradient_checkpointing` says so."""

    gradient_checkpointing = False
    gradient_checkpointing_kwargs: Mapping[str, Any] = {}  # of torch.utils.checkpoint.checkpoint

    def _call_layer(self, layer: nn.Module, x: Tensor, layout: Layout, options: dict[str, Any]) -> tuple[Tensor, ...]:
        if not (self.gradient_checkpointing and self.training):
            return layer(x, layout, **options)
        if torch.is_grad_enabled() and not x.requires_grad:  # frozen embeddings: reentrant gives no gradients without
            x = x.detach().requires_grad_()
        verdicts: list[bool] = []

        def run(x: Tensor) -> tuple[Tensor, ...]:
            with remembered(verdicts):
                return layer(x, layout, **options)

        kwargs = {"use_reentrant": False, **self.gradient_checkpointing_kwargs}
        return torch.utils.checkpoint.checkpoint(run, x, **kwargs)


@skippable()
class Encoder(CallsBlocks):
    """The blocks.

    Args:
        config: of the model.
        kind: of the blocks.
    """

    def __init__(self, config: EncoderConfig, kind: type[Block] = Layer) -> None:
        super().__init__()
        self.layer = nn.ModuleList(kind(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        *,
        head_mask: Tensor | None = None,
        want_attentions: bool = False,
        want_hidden_states: bool = False,
        only_rows: Tensor | None = None,
    ) -> EncoderOutput:
        """All blocks.

        Args:
            x: (total_tokens, d).
            layout: of the batch.
            head_mask: (layers, num_heads) or None.
            want_attentions, want_hidden_states: what to keep.
            only_rows: (B,), the rows that are enough, such as `layout.first`: the projection and MLP of an untouched
                last block then run on these alone. None: all.
        """
        states: list[Tensor] = []
        attentions: list[Tensor] = []
        # What hangs on the last block, or comes after it, sees every row.
        narrows = only_rows is not None and not want_hidden_states and len(self.layer) > 0
        narrows = narrows and isinstance(self.layer[-1], Block) and self.layer[-1].is_untouched()
        for i, layer in enumerate(self.layer):
            if want_hidden_states:
                x = _show(x, layout, states)
            options = {
                "head_scale": None if head_mask is None else head_mask[i],
                "want_attention": want_attentions,
                "only_rows": only_rows if narrows and i + 1 == len(self.layer) else None,
            }
            x, *rest = self._call_layer(layer, x, layout, options)
            attentions += rest
        if want_hidden_states:
            x = _show(x, layout, states)
        x = x if only_rows is None or narrows else x[only_rows]
        return EncoderOutput(x, tuple(states) or None, tuple(attentions) or None)


def _show(x: Tensor, layout: Layout, states: list[Tensor]) -> Tensor:
    """Keep the padded form of x, and go on from it where somebody may ask for its gradient."""
    states.append(layout.unpack(x))
    is_asked_for = torch.is_grad_enabled() and x.requires_grad and not is_exporting()
    return layout.pack(states[-1]) if is_asked_for else x
