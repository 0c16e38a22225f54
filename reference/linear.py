"""y = act(x W^T + b) + r: the affine map of every projection in the model (Vaswani et al. 2017, section 3.3).

And the same with LayerNorm in front as part of the product: with W' = W gamma, b' = b + W beta and the sums of the
columns of W'^T,

    W LN(x) + b = (x W'^T - mean * sums) / sqrt(var + eps) + b'

(x - mean) sums to zero, so a constant may be taken off each row of W'; with the row's mean off, the sums are those of
roundings, and hardly anything is left to cancel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer_norm import row_moments, row_scale

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


def linear_and_moments(input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
    """x W^T + b + r, and the `row_moments` of the result as it is rounded. Shapes and errors as in `linear`.

    Returns:
        (rows, N) in the dtype of `input`; (2, N / 64, rows) fp32.
    """
    output = linear(input, weight, bias, residual=residual)
    return output, row_moments(output)


def linear_of_normed(
    input: Tensor,
    moments: Tensor,
    weight: Tensor,
    column_sums: Tensor,
    bias: Tensor,
    eps: float,
    *,
    activation: str | None = None,
) -> Tensor:
    """act(W LN(x) + b), from a weight into which LayerNorm is folded; rounded once, at the end.

    A row whose mean is r times its deviation loses to cancellation, beside what it loses by rounding: some r / 2^25
    with the mean of the weight's rows taken off, measured with fp32 sums that round; more, up to a thousand times, with
    rows whose sum is many times their norm.

    Args:
        input: (rows, K), before LayerNorm.
        moments: (2, K / 64, rows) fp32, see `vilt_fast.reference.layer_norm.row_moments`.
        weight: (N, K), W gamma, at best less the mean of each row, rounded to the dtype of `input`.
        column_sums: (N,) fp32, the sums over K of `weight` as it is rounded, so that the mean cancels.
        bias: (N,) fp32, b + W beta.
        eps: added to the variance.
        activation: as in `linear`.

    Returns:
        (rows, N) in the dtype of `input`.

    Raises:
        ValueError: from the kernel, where an argument has another shape, dtype or device than that.

    Example:
        >>> x, weight = torch.tensor([[1.0, 3.0]]).repeat(1, 32), torch.eye(64)[:2]
        >>> linear_of_normed(x, row_moments(x), weight, weight.sum(1), torch.zeros(2), eps=0.0)
        tensor([[-1.,  1.]])
    """
    mean, scale = row_scale(moments, eps)
    product = F.linear(input.to(moments.dtype), weight.to(moments.dtype))
    output = scale[:, None] * (product - mean[:, None] * column_sums) + bias
    if activation is not None:
        output = ACTIVATIONS[activation](output)
    return output.to(input.dtype)
