"""Which patches of the image the answer was drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def attended_patches(attentions: Sequence[Tensor], num_words: int, grid: tuple[int, int]) -> np.ndarray:
    """How much of each patch is in row 0, the row from which the answer is read (attention rollout).

    Layer by layer a token is half itself and half the mean over the heads of what it attends to; the product of these
    mixtures over the layers says how much of each input token ends in each output row (Abnar and Zuidema 2020,
    "Quantifying Attention Flow in Transformers", section 3).

    Args:
        attentions: of one pair alone, one (1, heads, S, S) per layer; S = words, the image's CLS, patches.
        num_words: tokens of the text, which come first.
        grid: (height, width) in patches, all of them in the batch.

    Returns:
        (height, width) float array; what it lacks to a sum of 1 went to words and CLS.

    Raises:
        ValueError: S is not num_words + 1 + height * width.
    """
    height, width = grid
    length = attentions[0].shape[-1]
    if length != num_words + 1 + height * width:
        raise ValueError(
            f"attentions: got {length} tokens, wanted {num_words} words, a CLS and {height} x {width} patches"
        )
    # Row 0 of the product of all layers, from the last to the first: a vector times one matrix per layer.
    share = attentions[0].new_zeros(length).double()
    share[0] = 1.0
    for layer in reversed(attentions):
        share = (share + share @ layer[0].double().mean(0)) / 2
    return share[num_words + 1 :].reshape(height, width).cpu().numpy()
