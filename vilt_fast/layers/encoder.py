"""Pre-norm Transformer blocks on the packed tensor (Dosovitskiy et al. 2021, equations 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.layers.activations import resolve
from vilt_fast.layers.projection import is_plain, normalise, project
from vilt_fast.packing import Layout


class BlockSteps(Protocol):
    """The steps of a block around its attention: of a live `Layer`, and of a frozen one."""

    def query_key_value(self, x: Tensor) -> Tensor:
        """qkv(LN(x)): (rows, d) to (rows, 3 * d)."""

    def project(self, context: Tensor, residual: Tensor) -> Tensor:
        """residual + W context: (rows, d)."""

    def expand(self, z: Tensor) -> Tensor:
        """act(W LN(z)): (rows, d) to (rows, hidden)."""

    def contract(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """residual + W hidden: (rows, hidden) to (rows, d)."""


def walk_block(
    steps: BlockSteps, x: Tensor, attend: Callable[[Tensor], Tensor], first_rows: Tensor | None = None
) -> Tensor:
    """z = x + Attention(LN(x)); z + MLP(LN(z)): the one description of a block. Seven launches on the kernels.

    Args:
        steps: of the block. x: (rows, d).
        attend: (rows, 3 * d) to (rows, d), inside each pair.
        first_rows: (B,), the rows to go on with after the attention; None: all.
    """
    context = attend(steps.query_key_value(x))
    if first_rows is not None:
        context, x = context[first_rows], x[first_rows]
    z = steps.project(context, x)
    return steps.contract(steps.expand(z), z)


class SelfAttention(nn.Module):
    """Query, key and value: three parameters each under Hugging Face's names, in one block of memory.

    The projection runs as one product. Without gradients it reads the block as it lies; with them, or where something
    has moved the three apart (`load_state_dict(assign=True)`, say), the three are concatenated first.
    """

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.query = nn.Linear(d, d, bias=config.qkv_bias)
        self.key = nn.Linear(d, d, bias=config.qkv_bias)
        self.value = nn.Linear(d, d, bias=config.qkv_bias)
        self._join()

    def forward(self, x: Tensor) -> Tensor:
        """(rows, d) to (rows, 3 * d): query, key and value side by side."""
        modules = (self.query, self.key, self.value)
        if not all(map(is_plain, modules)):
            return torch.cat([module(x) for module in modules], -1)
        bias = None if self.query.bias is None else _stack([module.bias for module in modules])
        return ops.linear(x, _stack([module.weight for module in modules]), bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SelfAttention:
        # .to(), .half(), .cuda() copy each parameter on its own; bring them back together.
        super()._apply(fn, recurse)
        self._join()
        return self

    @torch.no_grad()
    def _join(self) -> None:
        modules = (self.query, self.key, self.value)
        if not all(map(is_plain, modules)):
            return
        for parts in (tuple(module.weight for module in modules), tuple(module.bias for module in modules)):
            if parts[0] is not None and not parts[0].is_meta and not _adjacent(parts):
                for part, rows in zip(parts, torch.cat(parts).chunk(3), strict=True):
                    part.data = rows


def _adjacent(parts: Sequence[Tensor]) -> bool:
    """Whether the tensors lie one behind the other in one storage."""
    start, storage = parts[0].storage_offset(), parts[0].untyped_storage().data_ptr()
    return all(
        part.untyped_storage().data_ptr() == storage
        and part.storage_offset() == start + i * parts[0].numel()
        and part.is_contiguous()
        for i, part in enumerate(parts)
    )


def _stack(parts: list[Tensor]) -> Tensor:
    """The parts along dimension 0, without a copy where they lie together and nobody wants their gradients."""
    wants_grad = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    if torch.compiler.is_compiling() or wants_grad or not _adjacent(parts):
        return torch.cat(parts)
    first = parts[0]
    return first.as_strided((len(parts) * first.shape[0], *first.shape[1:]), first.stride())


class Dense(nn.Module):
    """A linear map under the name `dense`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)


class Attention(nn.Module):
    """The two halves of Hugging Face's attention block: `attention` (q, k, v) and `output` (projection)."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.output = Dense(config.hidden_size, config.hidden_size)


class Layer(nn.Module):
    """One block, see `walk_block`."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.block_layer_norm_eps
        self.attention = Attention(config)
        self.intermediate = Dense(d, config.intermediate_size)
        self.output = Dense(config.intermediate_size, d)
        self.layernorm_before = nn.LayerNorm(d, eps=eps)
        self.layernorm_after = nn.LayerNorm(d, eps=eps)
        self.num_heads = config.num_attention_heads
        self.activation, self.activation_after = resolve(config.hidden_act)
        self.hidden_dropout_p = config.hidden_dropout_prob
        self.attention_dropout_p = config.attention_probs_dropout_prob

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        *,
        head_scale: Tensor | None = None,
        want_attention: bool = False,
        first_rows_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """One block over all pairs: (total_tokens, d) to the same, and the probabilities where wanted.

        first_rows_only: whether to compute no row but `layout.first` after the attention: (B, d).
        """
        options: dict[str, Any] = {"max_seqlen": layout.max_seqlen, "head_scale": head_scale}
        dropout_p = self.attention_dropout_p if self.training else 0.0
        probabilities = None

        def attend(qkv: Tensor) -> Tensor:
            nonlocal probabilities
            if want_attention:
                every_row = torch.arange(layout.total_tokens, device=x.device)
                probabilities = ops.attention_rows(qkv, layout.cu_seqlens, every_row, self.num_heads, **options)
            return ops.attention(qkv, layout.cu_seqlens, self.num_heads, dropout_p=dropout_p, **options)

        return walk_block(self, x, attend, layout.first if first_rows_only else None), probabilities

    def query_key_value(self, x: Tensor) -> Tensor:
        """See `BlockSteps`, as for those that follow."""
        return self.attention.attention(normalise(self.layernorm_before, x))

    def project(self, context: Tensor, residual: Tensor) -> Tensor:
        return self._project_and_add(self.attention.output.dense, context, residual)

    def expand(self, z: Tensor) -> Tensor:
        hidden = project(self.intermediate.dense, normalise(self.layernorm_after, z), activation=self.activation)
        return hidden if self.activation_after is None else self.activation_after(hidden)

    def contract(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self._project_and_add(self.output.dense, hidden, residual)

    def _project_and_add(self, dense: nn.Module, input: Tensor, residual: Tensor) -> Tensor:
        """residual + dropout(dense(input))."""
        if self.training and self.hidden_dropout_p > 0:
            return F.dropout(project(dense, input), self.hidden_dropout_p) + residual
        return project(dense, input, residual=residual)


class Encoder(nn.Module):
    """The blocks."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.gradient_checkpointing_kwargs: dict[str, Any] = {}  # of torch.utils.checkpoint.checkpoint

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        *,
        head_mask: Tensor | None = None,
        want_attentions: bool = False,
        want_hidden_states: bool = False,
        first_rows_only: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """All blocks.

        Args:
            x: (total_tokens, d).
            layout: of the batch.
            head_mask: (layers, num_heads) or None.
            want_attentions, want_hidden_states: what to keep.
            first_rows_only: whether to return the rows `layout.first` alone. Unless hidden states are wanted, the last
                block's projection and MLP then run on these alone.

        Returns:
            (total_tokens or B, d); the packed input of every block and the last output, where wanted; the packed
            probabilities of every block, where wanted.
        """
        states, attentions = [], []
        last_narrows = first_rows_only and not want_hidden_states
        for i, layer in enumerate(self.layer):
            if want_hidden_states:
                states.append(x)
            options: dict[str, Any] = {
                "head_scale": None if head_mask is None else head_mask[i],
                "want_attention": want_attentions,
                "first_rows_only": last_narrows and i + 1 == len(self.layer),
            }
            if self.gradient_checkpointing and self.training:
                if not x.requires_grad:  # frozen embeddings: the reentrant kind gives no gradients without
                    x = x.detach().requires_grad_()
                kwargs = {"use_reentrant": False, **self.gradient_checkpointing_kwargs}
                x, probabilities = torch.utils.checkpoint.checkpoint(partial(layer, **options), x, layout, **kwargs)
            else:
                x, probabilities = layer(x, layout, **options)
            if probabilities is not None:
                attentions.append(probabilities)
        if want_hidden_states:
            states.append(x)
        if first_rows_only and (want_hidden_states or len(self.layer) == 0):  # no block has done it
            x = x[layout.first]
        return x, states, attentions
