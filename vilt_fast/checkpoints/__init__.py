"""Weights in and out: directories of transformers 4.37 to 5.x, hub ids, and the original repository's checkpoints.

Names are imported when they are first used: a configuration reads its file without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from vilt_fast.checkpoints.arguments import as_device, check_attention, drop_unneeded, single_device
    from vilt_fast.checkpoints.load import check_sizes, fill, load_weights, open_source, shapes_only, stored_dtype
    from vilt_fast.checkpoints.memory import check_weights
    from vilt_fast.checkpoints.push import upload
    from vilt_fast.checkpoints.save import save_weights
    from vilt_fast.checkpoints.vilt import read_original_fields
    from vilt_fast.checkpoints.weight_files import weight_names

_HOMES = {
    "as_device": "arguments",
    "check_attention": "arguments",
    "check_sizes": "load",
    "check_weights": "memory",
    "drop_unneeded": "arguments",
    "fill": "load",
    "load_weights": "load",
    "open_source": "load",
    "read_original_fields": "vilt",
    "save_weights": "save",
    "shapes_only": "load",
    "single_device": "arguments",
    "stored_dtype": "load",
    "upload": "push",
    "weight_names": "weight_files",
}

__all__ = [
    "as_device",
    "check_attention",
    "check_sizes",
    "check_weights",
    "drop_unneeded",
    "fill",
    "load_weights",
    "open_source",
    "read_original_fields",
    "save_weights",
    "shapes_only",
    "single_device",
    "stored_dtype",
    "upload",
    "weight_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vilt_fast.checkpoints' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vilt_fast.checkpoints.{_HOMES[name]}"), name)
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
