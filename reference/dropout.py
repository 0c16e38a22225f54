"""Each element is zero with probability p, and else multiplied by 1 / (1 - p) (Srivastava et al. 2014).

What is dropped follows from the seed and from the place of the element, and from nothing else: a seed drops the same
elements on every device and in every dtype, and in a backward pass, for which a kernel so keeps no mask.
"""

import torch
from torch import Tensor

from vilt_fast.contracts.dropout import keep_rule

from .philox import MASK32, philox4x32


def dropout(input: Tensor, p: float, seed: Tensor) -> Tensor:
    """Drop elements at random.

    Element i of the flat input, in row-major order whatever its strides, has word i % 4 of Philox4x32-10 with counter
    i // 4 and key `seed`. It is kept where that word is at least round(p * 2**32).

    Args:
        input: any shape, floating.
        p: probability of dropping an element, 0 to 1. With 0 the result is `input` itself.
        seed: () int64 on the device of `input`, 0 <= seed < 2**63, which is not checked: nothing waits for the device.
            The kernel's backward pass reads it again: until then it must not change.

    Returns:
        The shape and dtype of `input`; the product is computed in fp32 (fp64 for fp64) and rounded once. What is
        dropped is 0, even where the input is NaN or infinite, and so is its gradient. Under `torch.func.vmap` examples
        that share a seed share a mask.

    Raises:
        ValueError: p outside 0 to 1; from the kernel, where an argument has another shape, dtype or device than that.

    Example:
        >>> dropout(torch.ones(2, 5), 0.5, torch.tensor(0))
        tensor([[0., 2., 2., 2., 2.],
                [0., 2., 0., 0., 0.]])
    """
    _, scale = keep_rule(p)
    if p == 0:
        return input
    exact = input.to(torch.promote_types(input.dtype, torch.float32))
    return torch.where(keep_mask(input.shape, p, seed), exact * scale, 0.0).to(input.dtype)


def keep_mask(shape: torch.Size, p: float, seed: Tensor) -> Tensor:
    """(shape) bool, True for the elements that `dropout` keeps."""
    numel, (threshold, _) = shape.numel(), keep_rule(p)
    counter = torch.arange((numel + 3) // 4, device=seed.device)
    words = philox4x32((counter & MASK32, counter >> 32, 0, 0), (seed & MASK32, seed >> 32))
    return torch.stack([word >= threshold for word in words], dim=1).flatten()[:numel].view(shape)
