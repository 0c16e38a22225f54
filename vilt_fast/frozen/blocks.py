"""The blocks of a frozen model, as `vilt_fast.layers.encoder.walk_block` takes them.

In a 16-bit model the norms can be folded into the products that follow them (the switch "fold_norm"), see
`vilt_fast.reference.linear`: gamma goes into the weight, beta into the bias, and mean and deviation of a row come with
it as moments, which the product before has written. LayerNorm's two passes over the rows are gone.

Whether a model is folded is decided when it is frozen, and holds for every batch: from its width (whole groups of
columns) and dtype, and from its weights, see `_Taker.folded`.

Post-norm blocks keep their norms: what one makes is the residual of the next sum too, which would have to be normalised
a second time.

A row whose mean is r times its deviation loses to cancellation, in fp32. Normalised rows sum to zero, so the mean of
each row of a folded weight is taken off; what cancels then are roundings. On the reference, whose sums round, that left
an error of about r / 2^25 of the product, and of weights with any mean: in bf16, where r is at most 256 sqrt(d), less
than rounding the weight costs; in fp16 no more than a norm and a product have for 768 columns, up to 4.5 times that for
4096 and an r of 65,000. A chip whose accumulators truncate may lose more, which nobody has measured. Rows of one value
everywhere are treated apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilt_fast import ops
from vilt_fast.contracts.moments import GROUP

_MAX_WIDTH = 4096  # of `ops.row_moments`


def can_fold(config: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the norms of a model are to be folded: the switch is on, and its dtype and width allow it."""
    width, is_on = config.hidden_size, ops.is_on("fold_norm", torch.empty(0, device=device))
    fits = dtype in (torch.bfloat16, torch.float16) and width % GROUP == 0 and width <= _MAX_WIDTH
    return is_on and fits


class Affine(NamedTuple):
    """x W^T + b."""

    weight: Tensor  # (N, K)
    bias: Tensor | None  # (N,)

    def __call__(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        return ops.linear(x, self.weight, self.bias, activation=activation, residual=residual)


class Norm(NamedTuple):
    """LayerNorm of rows."""

    weight: Tensor  # (d,)
    bias: Tensor  # (d,)
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Rows(NamedTuple):
    """The stream between blocks whose norms are folded."""

    rows: Tensor  # (rows, d)
    moments: Tensor | None  # (2, d / 64, rows), see `ops.row_moments`; None of rows that are only added to

    def __getitem__(self, index: Tensor) -> Rows:  # type: ignore[override]
        """Some of the rows, as a residual: a block chooses first rows after it has normalised all."""
        return Rows(self.rows[index], None)


class NormedAffine(NamedTuple):
    """LN(x) W^T + b as one product of x."""

    weight: Tensor  # (N, K), times the norm's weight
    column_sums: Tensor  # (N,) fp32
    bias: Tensor  # (N,) fp32, with the norm's bias in it
    eps: float

    def __call__(self, x: Rows, activation: str | None = None) -> Tensor:
        assert x.moments is not None
        weights = (self.weight, self.column_sums, self.bias)
        return ops.linear_of_normed(x.rows, x.moments, *weights, self.eps, activation=activation)


@dataclass(frozen=True, eq=False)
class Block:
    """The steps of one block, as `vilt_fast.layers.encoder.walk_block` takes them."""

    norm_before: Norm
    joined: Affine  # query, key and value in one
    out: Affine
    norm_after: Norm
    up: Affine
    down: Affine
    num_heads: int
    kept_heads: list[int] | None  # of those in a `head_mask`; None: all
    activation: str | None
    activation_after: Callable[[Tensor], Tensor] | None

    def scale_of(self, head_mask: Tensor) -> Tensor:
        """(heads,) of the whole model to those that are left."""
        return head_mask if self.kept_heads is None else head_mask[self.kept_heads]

    def query_key_value(self, x: Tensor) -> Tensor:
        return self.joined(self.norm_before(x))

    def project(self, context: Tensor, residual: Tensor) -> Tensor:
        return self.out(context, residual=residual)

    def expand(self, z: Tensor) -> Tensor:
        hidden = self.up(self.norm_after(z), activation=self.activation)
        return hidden if self.activation_after is None else self.activation_after(hidden)

    def contract(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.down(hidden, residual=residual)


@dataclass(frozen=True, eq=False)
class FoldedBlock:
    """A `Block` whose norms are part of the products after them: five launches.

    The products before them leave the moments of their rows; the last block, which no product follows, plain rows.
    """

    joined: NormedAffine
    out: Affine
    up: NormedAffine
    down: Affine
    num_heads: int
    kept_heads: list[int] | None
    activation: str | None
    activation_after: Callable[[Tensor], Tensor] | None
    is_last: bool

    def scale_of(self, head_mask: Tensor) -> Tensor:
        """See `Block`."""
        return head_mask if self.kept_heads is None else head_mask[self.kept_heads]

    def query_key_value(self, x: Rows) -> Tensor:
        return self.joined(x)

    def project(self, context: Tensor, residual: Rows) -> Rows:
        return Rows(*ops.linear_and_moments(context, self.out.weight, self.out.bias, residual.rows))

    def expand(self, z: Rows) -> Tensor:
        hidden = self.up(z, activation=self.activation)
        return hidden if self.activation_after is None else self.activation_after(hidden)

    def contract(self, hidden: Tensor, residual: Rows) -> Rows | Tensor:
        if self.is_last:
            return self.down(hidden, residual=residual.rows)
        return Rows(*ops.linear_and_moments(hidden, self.down.weight, self.down.bias, residual.rows))


@dataclass(frozen=True, eq=False)
class PostNormBlock:
    """A `Block` that normalises its sums. The products add the residuals: a norm that did would read as much."""

    joined: Affine
    out: Affine
    norm_after_attention: Norm
    up: Affine
    down: Affine
    norm_after_mlp: Norm
    num_heads: int
    kept_heads: list[int] | None
    activation: str | None
    activation_after: Callable[[Tensor], Tensor] | None

    def scale_of(self, head_mask: Tensor) -> Tensor:
        """See `Block`."""
        return head_mask if self.kept_heads is None else head_mask[self.kept_heads]

    def query_key_value(self, x: Tensor) -> Tensor:
        return self.joined(x)

    def project(self, context: Tensor, residual: Tensor) -> Tensor:
        return self.norm_after_attention(self.out(context, residual=residual))

    def expand(self, z: Tensor) -> Tensor:
        hidden = self.up(z, activation=self.activation)
        return hidden if self.activation_after is None else self.activation_after(hidden)

    def contract(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.norm_after_mlp(self.down(hidden, residual=residual))
