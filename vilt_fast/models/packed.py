"""What the base models of the families share: from rows of the packed tensor through the encoder to the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vilt_fast.layers.encoder import Encoder
from vilt_fast.layers.heads import Pooler
from vilt_fast.layers.projection import call_layer_norm
from vilt_fast.models.base import PreTrainedModel
from vilt_fast.models.outputs import BaseModelOutputWithPooling, Encoded
from vilt_fast.packing import Layout


class PackedModel(PreTrainedModel):
    """Embeddings, encoder, a last LayerNorm where blocks are pre-norm, and a pooler."""

    output_class: type[BaseModelOutputWithPooling] = BaseModelOutputWithPooling
    encoder: Encoder
    layernorm: Any  # an nn.LayerNorm; None: blocks are post-norm
    pooler: Pooler | None

    @property
    def pools_first_rows(self) -> bool:
        """Whether our pooler is there, bare or wrapped; another gets the padded states, as in Hugging Face."""
        pooler = self.pooler
        if pooler is None or isinstance(pooler, Pooler):
            return pooler is not None
        return any(isinstance(module, Pooler) for module in pooler.modules())

    def _encode(
        self,
        tokens: Tensor,
        layout: Layout,
        head_mask: Tensor | None,
        want_attentions: bool | None,
        want_hidden_states: bool | None,
        only_rows: Tensor | None,
    ) -> Encoded:
        """The encoder on a batch that is embedded; None: as in the configuration, and all rows."""
        config = self.config
        tokens, states, attentions = self.encoder(
            tokens,
            layout,
            head_mask=None if head_mask is None else head_mask.to(tokens.dtype),
            want_attentions=config.output_attentions if want_attentions is None else want_attentions,
            want_hidden_states=config.output_hidden_states if want_hidden_states is None else want_hidden_states,
            only_rows=only_rows,
        )
        return Encoded(layout, tokens, states, attentions)

    def _output(self, encoded: Encoded, return_dict: bool | None) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """What `forward` returns of a batch that is encoded."""
        tokens = encoded.tokens if self.layernorm is None else call_layer_norm(self.layernorm, encoded.tokens)
        states = encoded.layout.unpack(tokens)
        pooled = None
        if self.pooler is not None:
            pooled = self.pooler(tokens[encoded.layout.first] if self.pools_first_rows else states)
        output = self.output_class(
            last_hidden_state=states,
            pooler_output=pooled,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        is_dict = self.config.return_dict if return_dict is None else return_dict
        return output if is_dict else output.plain_tuple()


def refuse_tracing() -> None:
    """Raise ValueError inside `torch.jit.trace`."""
    if torch.jit.is_tracing():
        raise ValueError(
            "torch.jit.trace would keep the lengths of this batch for every other; use torch.export.export, "
            "torch.onnx.export with dynamo=True, torch.compile or vilt_fast.freeze"
        )
