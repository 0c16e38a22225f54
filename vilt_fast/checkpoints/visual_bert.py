"""VisualBERT's names: Hugging Face's, of every release; and BERT's, whose weights are the text's half."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from vilt_fast.checkpoints.weight_files import StoredTensor

PREFIX = "visual_bert."
MODEL_TYPES = ("visual_bert", "bert")
# Heads of known checkpoints: a model without one leaves its tensors out.
HEADS = ("cls.", "attention.", "visual_bert.pooler.", "visual_bert.additional_layer.")
FRESH = ()
WORD_HEAD = "cls.predictions."
DECODER = "cls.predictions.decoder.weight"
WORDS = "visual_bert.embeddings.word_embeddings.weight"
SECOND_NAMES = {"cls.predictions.decoder.bias": "cls.predictions.bias"}
_CONSTANTS = (".position_ids",)  # a table that old transformers saved


def full_names(stored: dict[str, StoredTensor], config: Any) -> dict[str, StoredTensor]:
    """Tensors under the names of a model with a head, whichever release and model they come from."""
    bare = not any(name.startswith((PREFIX, "bert.")) for name in stored)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        if name.endswith(_CONSTANTS):
            continue
        full = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        full = re.sub(r"^bert\.", PREFIX, full)
        tensors[PREFIX + full if bare and not full.startswith(HEADS) else full] = tensor
    for second, first in SECOND_NAMES.items():  # of which a file may hold either; the decoder's own wins
        found = tensors.get(second) or tensors.get(first)
        if found is not None:
            tensors[first], tensors[second] = found, replace(found, derived=True)
    return tensors
