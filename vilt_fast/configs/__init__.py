"""Configurations that read and write Hugging Face's config.json: a file per family."""

from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.configs.vit import ViTConfig

__all__ = ["ViTConfig", "ViltConfig"]
