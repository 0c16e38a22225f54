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

    Raises:
        ValueError: from the kernel, where an argument has another shape, dtype or device than that.

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]]), torch.ones(2), torch.tensor([0.0, 5.0]), eps=0.0)
        tensor([[-1.,  6.]])
    """
    return F.layer_norm(input, (input.shape[-1],), weight, bias, eps)
