"""What stands on top of the encoder: the pooler and the heads of the tasks."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.layers.activations import resolve
from vilt_fast.layers.projection import normalise, project


class Pooler(nn.Module):
    """tanh(W x + b) of the first word's row."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, d) to (B, d)."""
        return project(self.dense, rows, activation="tanh")


class PredictionTransform(nn.Module):
    """LayerNorm(act(W x + b)), BERT's step before the decoder."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation, self.activation_after = resolve(config.hidden_act)

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, d) to (rows, d)."""
        rows = project(self.dense, rows, activation=self.activation)
        if self.activation_after is not None:
            rows = self.activation_after(rows)
        return normalise(self.LayerNorm, rows)


class MaskedLMHead(nn.Module):
    """Scores of the vocabulary."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, d) to (rows, vocabulary)."""
        return project(self.decoder, self.transform(rows))


class MatchingHead(nn.Module):
    """The original repository's image-text matching: two scores, row 1 says "they belong together"."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.hidden_size, 2)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, d) to (B, 2)."""
        return project(self.fc, rows)


class Classifier(nn.Sequential):
    """Linear, LayerNorm (eps 1e-5), exact GELU, Linear: the head of question answering and of NLVR2."""

    def __init__(self, inputs: int, hidden: int, labels: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, labels))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, inputs) to (B, labels)."""
        layers: Any = self
        first, norm, _, last = layers
        return project(last, F.gelu(normalise(norm, project(first, rows))))
