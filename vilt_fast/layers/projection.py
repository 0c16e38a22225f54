"""Linear modules sent through `ops.linear`, unless someone has changed what the module does."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.reference.linear import ACTIVATIONS


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the module is nn.Linear as it came: not replaced (LoRA, quantisation), no forward hooks."""
    return type(module) is nn.Linear and not module._forward_hooks and not module._forward_pre_hooks


def project(
    module: nn.Module, input: Tensor, *, activation: str | None = None, residual: Tensor | None = None
) -> Tensor:
    """activation(module(input)) + residual, as in `reference.linear`; a module that is not plain is called as it is."""
    if is_plain(module):
        return ops.linear(input, module.weight, module.bias, activation=activation, residual=residual)
    output = module(input)
    if activation is not None:
        output = ACTIVATIONS[activation](output)
    return output if residual is None else output + residual


def normalise(module: nn.LayerNorm, input: Tensor) -> Tensor:
    """LayerNorm of rows: (rows, d) to (rows, d)."""
    return ops.layer_norm(input, module.weight, module.bias, module.eps)
