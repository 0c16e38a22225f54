"""What holds while `torch.export` traces a model: sizes may be symbols."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Whether torch.export traces. PyTorch 2.6, which cannot tell, exports no model of ours.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def always(condition: Any) -> bool:
    """Whether a comparison of sizes holds; of sizes that are symbols, whether it holds for all that they stand for.

    A plain `if` would restrict what is exported to sizes that decide as those of the example.
    """
    if not is_exporting():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy

    return statically_known_true(condition)


def apart(part: Tensor) -> Tensor:
    """A view as a tensor of its own: of the view, PyTorch would take symbols for sizes that are never 1."""
    return part.clone(memory_format=torch.contiguous_format)
