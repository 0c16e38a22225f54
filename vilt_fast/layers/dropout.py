"""Dropout whose mask follows from a seed (Srivastava et al. 2014)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast.layers.untouched import skippable


@skippable()
class Dropout(nn.Dropout):
    """nn.Dropout: `p`, `train()` and `eval()` of each one hold."""

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return F.dropout(input, self.p) if self.is_active else input

    @property
    def is_active(self) -> bool:
        """Whether it drops anything."""
        return self.training and self.p > 0
