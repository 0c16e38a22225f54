"""Weights in and out: directories of transformers 4.37 to 5.x, hub ids, and the original repository's checkpoints."""

from vilt_fast.checkpoints.load import load_weights, stored_dtype
from vilt_fast.checkpoints.save import save_weights
from vilt_fast.checkpoints.vilt import read_original_config

__all__ = ["load_weights", "read_original_config", "save_weights", "stored_dtype"]
