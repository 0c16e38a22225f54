"""How each family names its tensors: one module per family, chosen by `config.model_type`.

A family's module holds PREFIX (of the base model's names), HEADS (prefixes of the names of all known heads), WORD_HEAD,
DECODER and WORDS (the masked-word head, its decoder, and the word table that it may share), and `full_names`.
"""

from __future__ import annotations

from types import ModuleType

from torch import nn

from vilt_fast.checkpoints import vilt

_FAMILIES = {"vilt": vilt}


def family_of(model: nn.Module) -> ModuleType:
    """The module that knows the names of a model's tensors."""
    return _FAMILIES[getattr(getattr(model, "config", None), "model_type", "vilt")]


def shares_words(model: nn.Module) -> bool:
    """Whether the masked-word decoder is the word table itself."""
    family, state = family_of(model), model.state_dict(keep_vars=True)
    return family.DECODER in state and state[family.DECODER] is state.get(family.WORDS)
