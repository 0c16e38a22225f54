"""Linear and LayerNorm through `vilt_fast.ops`, where the module is untouched; else it is called."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.layers.untouched import is_untouched


def weights(module: Any) -> tuple[Any, Any]:
    """Weight and bias of an untouched module, past nn.Module's search for attributes."""
    parameters = module._parameters
    return parameters["weight"], parameters["bias"]


def linear(module: Any, input: Tensor, *, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
    """activation(module(input)) + residual in one step, of an untouched nn.Linear; see `vilt_fast.reference.linear`."""
    return ops.linear(input, *weights(module), activation=activation, residual=residual)


def normalise(module: Any, input: Tensor) -> Tensor:
    """LayerNorm of rows, (rows, d) to (rows, d), of an untouched nn.LayerNorm."""
    return ops.layer_norm(input, *weights(module), module.eps)


def call_linear(module: nn.Module, input: Tensor) -> Tensor:
    """module(input) of rows."""
    return linear(module, input) if is_untouched(module, nn.Linear) else module(input)


def call_layer_norm(module: nn.Module, input: Tensor) -> Tensor:
    """module(input) of rows."""
    return normalise(module, input) if is_untouched(module, nn.LayerNorm) else module(input)
