"""What stands on top of the encoder: the pooler and the heads of the tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vilt_fast.configs.encoder import EncoderConfig
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.configs.visual_bert import VisualBertConfig
from vilt_fast.layers.activations import Activation, activation, fused_name
from vilt_fast.layers.dropout import Dropout
from vilt_fast.layers.projection import call_layer_norm, call_linear, linear
from vilt_fast.layers.untouched import is_untouched, skippable


@skippable(dense=nn.Linear, activation=nn.Tanh)
class Pooler(nn.Module):
    """tanh(W x + b) of each pair's first row; of ViT, with the width and the activation that its configuration says."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        act = getattr(config, "pooler_act", "tanh")
        self.dense = nn.Linear(config.hidden_size, getattr(config, "pooler_output_size", config.hidden_size))
        self.activation = nn.Tanh() if act == "tanh" else activation(act, "pooler_act")

    def forward(self, rows: Tensor) -> Tensor:
        """(B, d) to (B, d)."""
        return _activated(self.dense, self.activation, nn.Tanh, rows)


class PredictionTransform(nn.Module):
    """LayerNorm(act(W x + b)), BERT's step before the decoder."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = activation(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, d) to (rows, d)."""
        return call_layer_norm(self.LayerNorm, _activated(self.dense, self.transform_act_fn, Activation, rows))


def _activated(dense: nn.Module, act: nn.Module, act_kind: type[nn.Module], rows: Tensor) -> Tensor:
    """act(dense(rows)), in one step where both are untouched and there is one."""
    fused = fused_name(act) if is_untouched(act, act_kind) else None
    if fused is not None and is_untouched(dense, nn.Linear):
        return linear(dense, rows, activation=fused)
    return act(call_linear(dense, rows))


class MaskedLMHead(nn.Module):
    """Scores of the vocabulary."""

    def __init__(self, config: ViltConfig | VisualBertConfig) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, d) to (rows, vocabulary)."""
        return call_linear(self.decoder, self.transform(rows))


class PredictionHead(MaskedLMHead):
    """Scores of the vocabulary, under BERT's names: the decoder's bias is a parameter of the head too."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.bias = self.decoder.bias


class PreTrainingHeads(nn.Module):
    """Scores of the vocabulary, and whether text and image belong together."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        self.predictions = PredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, rows: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, d) and (B, d) to (rows, vocabulary) and (B, 2)."""
        return self.predictions(rows), call_linear(self.seq_relationship, pooled)


class RegionToPhraseAttention(nn.Module):
    """The scores of one attention head, as wide as one of the encoder's, before any softmax."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        d, width = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(d, width)
        self.key = nn.Linear(d, width)
        self.value = nn.Linear(d, width)  # of checkpoints; nothing reads it
        self.dropout = Dropout(config.attention_probs_dropout_prob)  # likewise

    def forward(self, chosen: Tensor, regions: Tensor, kept: Tensor) -> Tensor:
        """(B, S, d), (B, V, d) and (B, V) bool to (B, S, V), the dtype's least number where a region is not kept."""
        query, key = (
            call_linear(module, rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
            for module, rows in ((self.query, chosen), (self.key, regions))
        )
        return phrase_scores(query, key, kept)


def phrase_scores(query: Tensor, key: Tensor, kept: Tensor) -> Tensor:
    """(B, S, w), (B, V, w) and (B, V) bool to (B, S, V): scaled products, the least number where nothing is kept."""
    scores = torch.bmm(query, key.transpose(1, 2)) * query.shape[-1] ** -0.5
    return scores.masked_fill(~kept[:, None, :], torch.finfo(scores.dtype).min)


class MatchingHead(nn.Module):
    """The original repository's image-text matching: two scores, row 1 says "they belong together"."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.hidden_size, 2)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, d) to (B, 2)."""
        return call_linear(self.fc, rows)


class Classifier(nn.Sequential):
    """Linear, LayerNorm (eps 1e-5), exact GELU, Linear: the head of question answering and of NLVR2."""

    def __init__(self, inputs: int, hidden: int, labels: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, labels))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, inputs) to (B, labels)."""
        layer: Any
        for layer in self:
            if type(layer) is nn.Linear:
                rows = call_linear(layer, rows)
            elif type(layer) is nn.LayerNorm:
                rows = call_layer_norm(layer, rows)
            else:
                rows = layer(rows)
        return rows
