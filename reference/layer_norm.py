"""y = (x - mean) / sqrt(var + eps) * w + b over each row (Ba et al. 2016, equation 4; biased variance)."""

import torch.nn.functional as F
from torch import Tensor


def layer_norm(input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation of rows.

    Args:
        input: (rows, d).
        weight: (d,).
        bias: (d,).
        eps: added to the variance.

    Returns:
        (rows, d) in the dtype of `input`.
    """
    return F.layer_norm(input, (input.shape[-1],), weight, bias, eps)
