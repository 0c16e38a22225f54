"""The kernels of every operation, imported together when the first is used."""

from . import attention, layer_norm, linear, patch_embed, patch_sample, resize, text_embed

__all__ = ["attention", "layer_norm", "linear", "patch_embed", "patch_sample", "resize", "text_embed"]
