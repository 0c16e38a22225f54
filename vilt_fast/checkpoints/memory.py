"""Whether a model that is about to be made fits this machine."""

from __future__ import annotations

import os

import torch
from torch import nn


def check_memory(size: float, what: str, advice: str = "") -> None:
    """Refuse what takes more than all memory of this machine, before PyTorch tries.

    Args:
        size: in bytes.
        what: for the message.

    Raises:
        ValueError: it does not fit.
    """
    if size > (memory := total_memory()):
        raise ValueError(f"{what} takes {size / 1e9:.0f} GB, this machine has {memory / 1e9:.0f}{advice}")


def check_weights(count: float, what: str, advice: str = "") -> None:
    """As `check_memory`, for as many fresh weights; nothing is refused where they are made elsewhere or nowhere."""
    size = count * torch.get_default_dtype().itemsize
    if size > total_memory() and _made_here():
        check_memory(size, what, advice)


def total_memory() -> float:
    """Bytes of this machine's memory; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return float("inf")


def _made_here() -> bool:
    """Whether fresh parameters are in this machine's memory: not on a GPU or the meta device, and not pretended."""
    weight = nn.LayerNorm(1).weight  # draws nothing; accelerate.init_empty_weights shows in a module alone
    return weight.device.type == "cpu" and type(weight.data) is torch.Tensor
