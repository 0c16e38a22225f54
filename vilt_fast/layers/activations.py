"""The activations that a configuration can name, and which of them the `linear` operation applies itself."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

# Applied inside `ops.linear`: Hugging Face's name -> the operation's name.
FUSED = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}


def _identity(x: Tensor) -> Tensor:
    return x


def _quick_gelu(x: Tensor) -> Tensor:
    return x * F.sigmoid(1.702 * x)


# Applied after it.
SEPARATE: dict[str, Callable[[Tensor], Tensor]] = {
    "selu": F.selu,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "sigmoid": F.sigmoid,
    "linear": _identity,
    "quick_gelu": _quick_gelu,
}
ACTIVATIONS = (*FUSED, *SEPARATE)


def resolve(name: str | Callable[[Tensor], Tensor]) -> tuple[str | None, Callable[[Tensor], Tensor] | None]:
    """(activation for `ops.linear`, function to call after it); one of them is None.

    Raises:
        ValueError: an unknown name.
    """
    if callable(name):
        return None, name
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be a callable or one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return FUSED.get(name), SEPARATE.get(name)
