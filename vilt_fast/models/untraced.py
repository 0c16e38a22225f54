"""What torch.compile calls and does not trace. Only what it traces imports this: such an import takes a second."""

from __future__ import annotations

from typing import Any

import torch


@torch.compiler.disable(reason="vilt_fast reads the lengths of the batch back to the host; plan() does it beforehand")
def with_layout(model: Any, inputs: Any, labels: Any, *wanted: bool | None) -> Any:
    """The inputs of a call with their layout, so that the rest of it is one graph. Values are checked as ever."""
    return model._plan_ahead(inputs, labels, *wanted)
