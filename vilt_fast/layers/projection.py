"""Linear and LayerNorm through `vilt_fast.ops`, where the module is untouched; else it is called."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.layers.untouched import is_untouched


def linear(module: Any, input: Tensor, *, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
    """activation(module(input)) + residual in one step, of an untouched nn.Linear; see `vilt_fast.reference.linear`."""
    return ops.linear(input, module.weight, module.bias, activation=activation, residual=residual)


def normalise(module: Any, input: Tensor) -> Tensor:
    """LayerNorm of rows, (rows, d) to (rows, d), of an untouched nn.LayerNorm."""
    return ops.layer_norm(input, module.weight, module.bias, module.eps)


def call_linear(module: nn.Module, input: Tensor) -> Tensor:
    """module(input) of rows."""
    return linear(module, input) if is_untouched(module, nn.Linear) else module(input)


def call_layer_norm(module: nn.Module, input: Tensor) -> Tensor:
    """module(input) of rows."""
    return normalise(module, input) if is_untouched(module, nn.LayerNorm) else module(input)
