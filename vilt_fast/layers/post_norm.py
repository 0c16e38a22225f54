"""Post-norm Transformer blocks on the packed tensor (Vaswani et al. 2017, section 3.1; Devlin et al. 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from vilt_fast.configs.encoder import EncoderConfig
from vilt_fast.layers.attention import PrunableAttention, SelfAttention
from vilt_fast.layers.dropout import HiddenDropout
from vilt_fast.layers.encoder import Block, Intermediate
from vilt_fast.layers.projection import linear, normalise
from vilt_fast.layers.untouched import is_untouched, skippable
from vilt_fast.packing import Layout


@skippable(dense=nn.Linear, LayerNorm=nn.LayerNorm, dropout=HiddenDropout)
class AddAndNorm(nn.Module):
    """LN(residual + W x + b), the end of both halves of a block.

    Args:
        config: of the model.
        inputs: columns of x.
    """

    def __init__(self, config: EncoderConfig, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = HiddenDropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(rows, inputs) and (rows, d) to (rows, d)."""
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)

    def at_once(self, x: Tensor, residual: Tensor) -> Tensor:
        """`forward` of an untouched module: the product adds the residual, which a norm would read as often."""
        return normalise(self.LayerNorm, linear(self.dense, x, residual=residual))


@skippable(self=SelfAttention, output=AddAndNorm)
class PostNormAttention(PrunableAttention):
    """Attention, its projection, and the norm of the sum."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = AddAndNorm(config, config.hidden_size)
        self.pruned_heads = set()

    @property
    def heads(self) -> SelfAttention:
        """The attention itself."""
        return self.self

    def forward(
        self, x: Tensor, layout: Layout, *, head_scale: Tensor | None = None, want_attention: bool = False
    ) -> tuple[Tensor, ...]:
        """(total_tokens, d) to the same; and the probabilities where they are wanted."""
        context, *rest = self.self(x, layout, head_scale=head_scale, want_attention=want_attention)
        return (self.output(context, x), *rest)


@skippable(attention=PostNormAttention, intermediate=Intermediate, output=AddAndNorm)
class PostNormLayer(Block):
    """A block of BERT."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = PostNormAttention(config)
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config, config.intermediate_size)

    def is_untouched(self) -> bool:
        """See `Block`, as for those that follow."""
        return is_untouched(self, PostNormLayer)

    def _call_modules(
        self, x: Tensor, layout: Layout, head_scale: Tensor | None, want_attention: bool
    ) -> tuple[Tensor, ...]:
        z, *rest = self.attention(x, layout, head_scale=head_scale, want_attention=want_attention)
        return (self.output(self.intermediate(z), z), *rest)

    def query_key_value(self, x: Tensor) -> Tensor:
        return self.attention.heads.query_key_value(x)

    def project(self, context: Tensor, residual: Tensor) -> Tensor:
        return self.attention.output.at_once(context, residual)

    def contract(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.output.at_once(hidden, residual)
