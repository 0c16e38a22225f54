"""ViT's names: those of transformers 4.37, which every release reads and writes, those of 5.x's modules, and DeiT's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from vilt_fast.checkpoints.weight_files import StoredTensor

PREFIX = "vit."
MODEL_TYPES = ("vit", "deit", "vit_mae")  # of the config.json beside weights that are read
# Heads of known checkpoints (`decoder.` is MAE's too), and tokens that a model need not have.
_DISTILLED = ("vit.embeddings.distillation_token", "distillation_classifier.")
HEADS = ("classifier.", "decoder.", "vit.pooler.", "vit.embeddings.mask_token", *_DISTILLED)
# What a checkpoint may lack, because it is trained afresh where it is wanted: DINO and MAE have no pooler.
FRESH = ("decoder.", "vit.pooler.", "vit.embeddings.mask_token")
WORD_HEAD = DECODER = WORDS = None
SECOND_NAMES: dict[str, str] = {}
_BLOCK, _LAYER = r"((?:vit\.)?)layers\.(\d+)\.", r"\1encoder.layer.\2."
_RENAMED = {
    _BLOCK + r"attention\.q_proj\.": _LAYER + "attention.attention.query.",
    _BLOCK + r"attention\.k_proj\.": _LAYER + "attention.attention.key.",
    _BLOCK + r"attention\.v_proj\.": _LAYER + "attention.attention.value.",
    _BLOCK + r"attention\.o_proj\.": _LAYER + "attention.output.dense.",
    _BLOCK + r"mlp\.fc1\.": _LAYER + "intermediate.dense.",
    _BLOCK + r"mlp\.fc2\.": _LAYER + "output.dense.",
    _BLOCK + r"layernorm_": _LAYER + "layernorm_",
}
_OWN, _THEIRS = r"((?:vit\.)?)encoder\.layer\.(\d+)\.", r"\1layers.\2."
_OF_5 = {
    _OWN + r"attention\.attention\.query\.": _THEIRS + "attention.q_proj.",
    _OWN + r"attention\.attention\.key\.": _THEIRS + "attention.k_proj.",
    _OWN + r"attention\.attention\.value\.": _THEIRS + "attention.v_proj.",
    _OWN + r"attention\.output\.dense\.": _THEIRS + "attention.o_proj.",
    _OWN + r"intermediate\.dense\.": _THEIRS + "mlp.fc1.",
    _OWN + r"output\.dense\.": _THEIRS + "mlp.fc2.",
    _OWN: _THEIRS,
}
_SECOND_TOKEN = "embeddings.distillation_token"
_POSITIONS = "embeddings.position_embeddings"


def full_names(stored: dict[str, StoredTensor], config: Any) -> dict[str, StoredTensor]:
    """Tensors under the names of a model with a head, whichever release they come from.

    Raises:
        ValueError: a distilled DeiT, unless `config.drop_distillation_token` is set.
    """
    if any(name.endswith(_SECOND_TOKEN) for name in stored):
        stored = _without_second_token(stored, config)
    bare = not any(name.startswith(PREFIX) for name in stored)
    tensors = {}
    for name, tensor in stored.items():
        full = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        full = own_name(full)
        tensors[PREFIX + full if bare and not full.startswith(HEADS) else full] = tensor
    return tensors


def own_name(name: str) -> str:
    """A name of transformers 5's modules as 4.37's, which are ours; another stays as it is."""
    for old, new in _RENAMED.items():
        name = re.sub("^" + old, new, name)
    return name


def names_of_5(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A model's tensors under the names of transformers 5's modules, for `load_state_dict` there.

    Files need none of this: both sides write 4.37's names, and read them.
    """
    named = {}
    for name, tensor in state_dict.items():
        for old, new in _OF_5.items():
            name = re.sub("^" + old, new, name)
        named[name] = tensor
    return named


def _without_second_token(stored: dict[str, StoredTensor], config: Any) -> dict[str, StoredTensor]:
    if not getattr(config, "drop_distillation_token", False):
        raise ValueError(
            "the checkpoint is a distilled DeiT, whose second token ViT does not have; drop_distillation_token=True "
            "loads it without that token, which costs accuracy"
        )
    tensors = {}
    for name, tensor in stored.items():
        name = re.sub(r"^deit\.", PREFIX, name)
        if name.endswith(_POSITIONS) and len(tensor.shape) == 3 and tensor.shape[1] > 2:
            tensor = _without_row(tensor)
        tensors[re.sub(r"^cls_classifier\.", "classifier.", name)] = tensor
    return tensors


def _without_row(tensor: StoredTensor) -> StoredTensor:
    """(1, n, d) without row 1, that of the second token."""

    def read() -> torch.Tensor:
        rows = tensor.read()
        return torch.cat((rows[:, :1], rows[:, 2:]), 1)

    return replace(tensor, shape=(tensor.shape[0], tensor.shape[1] - 1, tensor.shape[2]), read=read)
