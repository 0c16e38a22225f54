"""What VisualBERT and its heads have of their own beside their modules: fresh weights, and those of a BERT."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vilt_fast.configs.visual_bert import VisualBertConfig
from vilt_fast.layers.embeddings import VisualBertEmbeddings
from vilt_fast.models.base import PreTrainedModel
from vilt_fast.models.region_inputs import RegionInputs


class VisualBertPreTrainedModel(PreTrainedModel):
    """Base of the classes of this family."""

    config: VisualBertConfig
    config_class = VisualBertConfig
    inputs_class = RegionInputs
    base_model_prefix = "visual_bert"
    _no_split_modules = ["VisualBertEmbeddings", "PostNormLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisualBertEmbeddings) and self.config.special_visual_initialize:
            for text, visual in _tables(module):
                super()._init_weights(text)
                visual.weight.copy_(text.weight)
                text._has_weights = visual._has_weights = True  # drawn

    @torch.no_grad()
    def _complete(self, missing: set[str]) -> None:
        """Of a BERT, the tables of regions are copies of those of its words."""
        if not self.config.special_visual_initialize:
            return
        names = {id(tensor): name for name, tensor in self.state_dict(keep_vars=True).items()}
        for text, visual in _tables(self.base_model.embeddings):
            if names[id(visual.weight)] in missing and names[id(text.weight)] not in missing:
                visual.weight.copy_(text.weight)


def _tables(embeddings: Any) -> list[tuple[Any, Any]]:
    """The tables of types and positions: of words, and of regions."""
    return [
        (embeddings.token_type_embeddings, embeddings.visual_token_type_embeddings),
        (embeddings.position_embeddings, embeddings.visual_position_embeddings),
    ]
