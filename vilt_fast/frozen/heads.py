"""What stands on top of a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

from vilt_fast.frozen.blocks import Affine, Norm
from vilt_fast.layers.heads import phrase_scores
from vilt_fast.packing import Layout


@dataclass(frozen=True, eq=False)
class ClassifierHead:
    """See `vilt_fast.layers.heads.Classifier`."""

    first: Affine
    norm: Norm
    last: Affine

    def __call__(self, rows: Tensor) -> Tensor:
        return self.last(F.gelu(self.norm(self.first(rows))))


@dataclass(frozen=True, eq=False)
class WordHead:
    """See `vilt_fast.layers.heads.MaskedLMHead`."""

    dense: Affine
    activation: str | None
    activation_after: Callable[[Tensor], Tensor] | None
    norm: Norm
    decoder: Affine

    def __call__(self, rows: Tensor) -> Tensor:
        rows = self.dense(rows, activation=self.activation)
        rows = rows if self.activation_after is None else self.activation_after(rows)
        return self.decoder(self.norm(rows))


@dataclass(frozen=True, eq=False)
class PatchHead:
    """See `vilt_fast.layers.reconstruction.PatchDecoder`."""

    values: Affine
    stride: int

    def __call__(self, rows: Tensor, layout: Layout) -> Tensor:
        return F.pixel_shuffle(layout.unpack_patches(self.values(rows)).permute(0, 3, 1, 2), self.stride)


@dataclass(frozen=True, eq=False)
class PooledHead:
    """See `vilt_fast.layers.heads.Pooler`."""

    dense: Affine
    activation: str | None
    activation_after: Callable[[Tensor], Tensor] | None

    def __call__(self, rows: Tensor) -> Tensor:
        rows = self.dense(rows, activation=self.activation)
        return rows if self.activation_after is None else self.activation_after(rows)


@dataclass(frozen=True, eq=False)
class PreTrainingHead:
    """See `vilt_fast.layers.heads.PreTrainingHeads`."""

    words: WordHead
    sentence: Affine


@dataclass(frozen=True, eq=False)
class PhraseHead:
    """See `vilt_fast.layers.heads.RegionToPhraseAttention`."""

    query: Affine
    key: Affine

    def __call__(self, chosen: Tensor, regions: Tensor, kept: Tensor) -> Tensor:
        query, key = (
            project(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
            for project, rows in ((self.query, chosen), (self.key, regions))
        )
        return phrase_scores(query, key, kept)


Head: TypeAlias = Affine | ClassifierHead | WordHead | PatchHead | PreTrainingHead | PhraseHead
