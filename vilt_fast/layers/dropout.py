"""Dropout as a module over `ops.dropout` (Srivastava et al. 2014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.contracts.exporting import is_exporting
from vilt_fast.layers.untouched import skippable

_DROP = nn.Dropout.forward


@skippable()
class Dropout(nn.Dropout):
    """nn.Dropout: `p`, `train()` and `eval()` of each one hold."""

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise, any shape."""
        if nn.Dropout.forward is not _DROP:  # what someone put there holds for every Dropout
            return super().forward(input)
        if not self.is_active:
            return input
        if is_exporting():
            raise ValueError("the model is in training mode, and its dropout draws anew each time: model.eval() first")
        # Drawn from PyTorch's default generator, on the device, where nothing waits for it.
        seed = torch.randint(2**63 - 1, (), device=input.device)
        return ops.dropout(input, self.p, seed)

    @property
    def is_active(self) -> bool:
        """Whether it drops anything."""
        return self.training and self.p > 0


@skippable(lambda dropout: not dropout.is_active)
class HiddenDropout(Dropout):
    """Dropout in front of a sum. No fused step has it: where it is active, all around it is called as modules."""
