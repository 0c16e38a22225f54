"""The frozen form: a snapshot of a model for inference, see `vilt_fast.freeze`."""

from vilt_fast.frozen.model import FrozenModel, Stats, freeze

__all__ = ["FrozenModel", "Stats", "freeze"]
