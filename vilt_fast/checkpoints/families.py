"""How each family names its tensors: one module per family, see `family_of`.

A family's module holds PREFIX (of the base model's names), MODEL_TYPES (of the config.json beside weights that it
reads), HEADS (prefixes of the names of all known heads), FRESH (of what a checkpoint may lack), WORD_HEAD, DECODER and
WORDS (the masked-word head, its decoder, and the word table that it may share; None without words), SECOND_NAMES (of
one parameter under two names: the one that files need not hold -> the other), and `full_names`.
"""

from __future__ import annotations

from types import ModuleType

from torch import nn

from vilt_fast.checkpoints import vilt, visual_bert, vit

_FAMILIES = {"vilt": vilt, "vit": vit, "visual_bert": visual_bert}


def family_of(model: nn.Module) -> ModuleType:
    """The module that knows the names of a model's tensors.

    That of its configuration, or of the nearest class that the configuration derives from; ViLT where none is known,
    so that weights which do not fit are refused by name.
    """
    config = getattr(model, "config", None)
    kinds = [getattr(config, "model_type", None), *(vars(base).get("model_type") for base in type(config).__mro__)]
    return next((_FAMILIES[kind] for kind in kinds if kind in _FAMILIES), vilt)


def family_name(model: nn.Module, name: str) -> str:
    """A tensor's name as the family has it, where the model's class has a `base_model_prefix` of its own."""
    own, usual = f"{getattr(model, 'base_model_prefix', '')}.", family_of(model).PREFIX
    return usual + name[len(own) :] if own != "." and name.startswith(own) else name


def shares_words(model: nn.Module) -> bool:
    """Whether the masked-word decoder is the word table itself."""
    family = family_of(model)
    state = {family_name(model, name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    return family.DECODER in state and state[family.DECODER] is state.get(family.WORDS)
