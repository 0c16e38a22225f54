"""y = act(x W^T + b) + r: the affine map of every projection in the model (Vaswani et al. 2017, section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Affine map of rows with an optional activation and an optional residual, in that order.

    Args:
        input: (rows, K).
        weight: (N, K).
        bias: (N,) or None.
        activation: None, "gelu" (exact), "gelu_tanh", "relu" or "tanh".
        residual: (rows, N), added after the activation, or None.

    Returns:
        (rows, N) in the dtype of `input`.

    Raises:
        ValueError: from the kernel, where an argument has another shape, dtype or device than that.

    Example:
        >>> weight = torch.tensor([[1.0, 1.0], [0.0, -1.0]])
        >>> linear(torch.tensor([[1.0, 2.0]]), weight, activation="relu", residual=torch.tensor([[0.5, 0.5]]))
        tensor([[3.5000, 0.5000]])
    """
    output = F.linear(input, weight, bias)
    if activation is not None:
        output = ACTIVATIONS[activation](output)
    return output if residual is None else output + residual
