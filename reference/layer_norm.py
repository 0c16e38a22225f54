"""y = (x - mean) / sqrt(var + eps) * w + b over each row (Ba et al. 2016, equation 4; biased variance).

Also the mean and the variance alone, by groups of columns, for products that normalise their rows themselves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast.contracts.moments import GROUP


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


def row_moments(input: Tensor) -> Tensor:
    """Mean and sum of squared deviations of every group of 64 columns of a row.

    Args:
        input: (rows, d), d a multiple of 64.

    Returns:
        (2, d / 64, rows) fp32, or fp64 of fp64 rows: means, then squares.

    Raises:
        ValueError: d is not a multiple of 64; and from the kernel, where the dtype or device is another than that.

    Example:
        >>> row_moments(torch.tensor([[1.0, 3.0]]).repeat(1, 32))[:, 0, 0]
        tensor([ 2., 64.])
    """
    rows, d = input.shape
    if d == 0 or d % GROUP:
        raise ValueError(f"row_moments: input: got {d} columns, wanted a multiple of {GROUP}")
    groups = input.to(torch.promote_types(input.dtype, torch.float32)).view(rows, -1, GROUP)
    mean = groups.mean(dim=2)
    return torch.stack((mean.T, (groups - mean[:, :, None]).square().sum(dim=2).T))


def row_scale(moments: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(var + eps) of rows from their moments, combined in order (Chan et al. 1979, equation 2.1).

    A row of one value everywhere has the scale 0: whatever is left of x W^T - mean * sums after rounding is not to be
    divided by the root of eps.

    Args:
        moments: (2, groups, rows).

    Returns:
        (rows,) twice.
    """
    mean, squares = torch.zeros_like(moments[0, 0]), torch.zeros_like(moments[0, 0])
    for done, (group_mean, group_squares) in enumerate(moments.unbind(1)):
        delta = group_mean - mean
        mean = mean + delta / (done + 1)
        squares = squares + group_squares + delta.square() * (GROUP * done / (done + 1))
    variance = squares / (GROUP * moments.shape[1])
    return mean, torch.where(squares == 0, 0, (variance + eps).rsqrt())
