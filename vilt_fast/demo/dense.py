"""The model's forward pass on a batch whose images all have the same size, for training on a CPU.

Images of one size leave nothing to pack but a few padded words, and then batched products over the whole batch are the
fastest form of attention on a CPU. Parameters and results are those of the packed model; tests/demo compares them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast.layers.embeddings import ViltEmbeddings
from vilt_fast.layers.encoder import Layer
from vilt_fast.models.vilt import ViltForQuestionAnswering


class DenseOutput(NamedTuple):
    """Logits (B, labels), and the rows of the patches (B, patches, d) after each block but the last."""

    logits: Tensor
    patches: list[Tensor]


def dense_forward(model: ViltForQuestionAnswering, input_ids: Tensor, pixel_values: Tensor) -> DenseOutput:
    """Answer a batch of questions about images of one size.

    Args:
        model: with one token type for words and without sampling of patches.
        input_ids: (B, L) int64, padded at the right with 0.
        pixel_values: (B, C, H, W) floats, without padding.
    """
    vilt, words = model.vilt, input_ids.shape[1]
    text = _embed_text(vilt.embeddings, input_ids)
    image = _embed_image(model, pixel_values)
    x = torch.cat((text, image.to(text.dtype)), 1)
    bias = F.pad((input_ids == 0).float() * -1e9, (0, image.shape[1]))[:, None, None, :]
    patches = []
    *layers, last = vilt.encoder.layer
    for layer in layers:
        x = _block(layer, x, bias, model.config.num_attention_heads)
        patches.append(x[:, words + 1 :])
    x = _block(last, x, bias, model.config.num_attention_heads, rows=1)  # no other row is read
    pooled = torch.tanh(vilt.pooler.dense(vilt.layernorm(x[:, 0])))
    return DenseOutput(model.classifier(pooled).float(), patches)


def _embed_text(embeddings: ViltEmbeddings, input_ids: Tensor) -> Tensor:
    text = embeddings.text_embeddings
    rows = text.word_embeddings(input_ids) + text.position_embeddings.weight[: input_ids.shape[1]]
    rows = text.LayerNorm(rows + text.token_type_embeddings.weight[0])
    return rows + embeddings.token_type_embeddings.weight[0]


def _embed_image(model: ViltForQuestionAnswering, pixel_values: Tensor) -> Tensor:
    """CLS and patches. (B, 1 + patches, d)"""
    embeddings, patch = model.vilt.embeddings, model.config.patch_shape[0]
    projection = embeddings.patch_embeddings.projection
    grid = pixel_values.shape[2] // patch, pixel_values.shape[3] // patch
    pixels = F.unfold(pixel_values, patch, stride=patch).transpose(1, 2)  # (B, patches, C * patch * patch)
    table = embeddings.position_embeddings[0]
    square = table[1:].T.unflatten(1, model.config.table_size)[None]
    position = F.interpolate(square, grid, mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)
    rows = F.linear(pixels, projection.weight.flatten(1), projection.bias) + position
    first = (embeddings.cls_token + table[0]).expand(len(rows), 1, -1)
    return torch.cat((first, rows.to(first.dtype)), 1) + embeddings.token_type_embeddings.weight[1]


def _block(layer: Layer, x: Tensor, bias: Tensor, num_heads: int, rows: int | None = None) -> Tensor:
    """One block; `rows`: how many rows to compute, from the first on."""
    attention, normed = layer.attention.attention, layer.layernorm_before(x)
    query = attention.query(normed[:, :rows]).unflatten(-1, (num_heads, -1)).transpose(1, 2)
    weight = torch.cat([attention.key.weight, attention.value.weight])
    both = F.linear(normed, weight, torch.cat([attention.key.bias, attention.value.bias]))
    key, value = both.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, tokens, head_dim)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + bias.to(query.dtype)
    context = (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
    x = x[:, :rows] + layer.attention.output.dense(context)
    return x + layer.output.dense(F.gelu(layer.intermediate.dense(layer.layernorm_after(x))))
