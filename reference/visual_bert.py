"""A whole VisualBERT, padded, written as the paper reads: the oracle of what transformers lacks or gets wrong.

Li, Yatskar, Yin, Hsieh and Chang, "VisualBERT: A Simple and Performant Baseline for Vision and Language", 2019
(arXiv 1908.03557), sections 3.1 to 3.3. With e the words of a pair, f its regions and P the projection of features:

    e_i  = token_i + segment_i + position_i                  (section 3.1: BERT's)
    f_j  = P feature_j + segment_j + position_j              (section 3.2)
    z_0  = LN([e; f])
    a_l  = LN(z_{l-1} + MSA(z_{l-1}))
    z_l  = LN(a_l + MLP(a_l))

The position of a region is row 0 of a table of regions, plus, where the words that it belongs to are known, the mean of
their positions (the paper says sum; its code, and every checkpoint, takes the mean). Every function takes a state dict
with Hugging Face's parameter names and, where sizes matter, any object with VisualBertConfig's attributes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vilt_fast.reference.vilt import ACTIVATIONS, Encoded, State, below, layer_norm, linear, self_attention


def encode(
    state: State,
    config: Any,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    head_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    visual_embeds: Tensor | None = None,
    visual_attention_mask: Tensor | None = None,
    visual_token_type_ids: Tensor | None = None,
    image_text_alignment: Tensor | None = None,
    prefix: str = "visual_bert.",
) -> Encoded:
    """The body of VisualBERT. `prefix` is "" for the state dict of a bare VisualBertModel.

    input_ids, token_type_ids, position_ids (B, L) int64 or inputs_embeds (B, L, d); attention_mask (B, L) of 0 and 1;
    visual_embeds (B, R, features) with visual_attention_mask and visual_token_type_ids (B, R) and image_text_alignment
    (B, R or more, K), or none; head_mask (heads,) or (layers, heads). Rows are the L words, then the R regions; those
    outside the masks are zero. With `bypass_transformer` the blocks read words alone, and one more reads all rows.
    """
    body = below(state, prefix)
    rows = word_rows(body, input_ids, token_type_ids, position_ids, inputs_embeds)
    real, length = present(attention_mask, rows), rows.shape[1]
    if visual_embeds is not None:
        regions = region_rows(body, visual_embeds, visual_token_type_ids, image_text_alignment)
        real = torch.cat([real, present(visual_attention_mask, regions)], dim=1)
        rows = torch.cat([rows, regions], dim=1)
    z = layer_norm(rows, body, "embeddings.LayerNorm", config.layer_norm_eps) * real[..., None]
    if not (config.bypass_transformer and visual_embeds is not None):
        hidden_states, attentions = blocks(body, config, z, real, head_mask)
        last = hidden_states[-1]
    else:
        hidden_states, attentions = blocks(body, config, z[:, :length], real[:, :length], head_mask)
        joint = torch.cat([hidden_states[-1], z[:, length:]], dim=1)
        last, weights = block(below(body, "additional_layer."), config, joint, real)
        hidden_states, attentions = (*hidden_states, last), (*attentions, weights)
    return Encoded(last, pool(body, last, real), hidden_states, attentions, real)


def present(mask: Tensor | None, rows: Tensor) -> Tensor:
    """(B, n) bool for rows (B, n, d): which of them are there; all, without a mask."""
    return torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device) if mask is None else mask != 0


def word_rows(
    body: State,
    input_ids: Tensor | None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """e, (B, L, d): segments are 0 and positions 0 to L - 1 where none are given."""
    words = body["embeddings.word_embeddings.weight"][input_ids] if inputs_embeds is None else inputs_embeds
    segments = body["embeddings.token_type_embeddings.weight"]
    positions = body["embeddings.position_embeddings.weight"]
    segment = segments[0] if token_type_ids is None else segments[token_type_ids]
    position = positions[: words.shape[1]] if position_ids is None else positions[position_ids]
    return words + segment + position


def region_rows(
    body: State,
    visual_embeds: Tensor,
    visual_token_type_ids: Tensor | None = None,
    image_text_alignment: Tensor | None = None,
) -> Tensor:
    """f, (B, R, d): segments are 1 where none are given; -1 fills an alignment, whose regions past R are not read."""
    segments = body["embeddings.visual_token_type_embeddings.weight"]
    segment = segments[1] if visual_token_type_ids is None else segments[visual_token_type_ids]
    position = body["embeddings.visual_position_embeddings.weight"][0]
    if image_text_alignment is not None:
        words = image_text_alignment[:, : visual_embeds.shape[1]]  # (B, R, K)
        aligned = (words != -1)[..., None]
        positions = body["embeddings.position_embeddings.weight"][words.clamp(min=0)]  # (B, R, K, d)
        position = position + (positions * aligned).sum(2) / aligned.sum(2).clamp(min=1)
    return linear(visual_embeds, body, "embeddings.visual_projection") + segment + position


def blocks(
    body: State, config: Any, z: Tensor, real: Tensor, head_mask: Tensor | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """z_0 ... z_D, each (B, S, d), and the attentions of each block, (B, heads, S, S). real (B, S) bool."""
    hidden_states, attentions = [z], []
    for d in range(config.num_hidden_layers):
        scale = head_mask if head_mask is None or head_mask.dim() == 1 else head_mask[d]
        z, weights = block(below(body, f"encoder.layer.{d}."), config, z, real, scale)
        hidden_states.append(z)
        attentions.append(weights)
    return tuple(hidden_states), tuple(attentions)


def block(
    weights: State, config: Any, z: Tensor, real: Tensor, head_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One block, (B, S, d) to (B, S, d), and its attentions; rows outside `real` are neither read nor left non-zero."""
    attention = {name.replace("self.", "attention."): value for name, value in below(weights, "attention.").items()}
    hidden = torch.zeros_like(z[..., 0]).masked_fill(~real, torch.finfo(z.dtype).min)[:, None, None, :]
    attended, probabilities = self_attention(attention, z, hidden, config.num_attention_heads, head_scale)
    a = layer_norm(z + attended, weights, "attention.output.LayerNorm", config.layer_norm_eps)
    inner = ACTIVATIONS[config.hidden_act](linear(a, weights, "intermediate.dense"))
    z = layer_norm(a + linear(inner, weights, "output.dense"), weights, "output.LayerNorm", config.layer_norm_eps)
    both = real[:, None, :, None] & real[:, None, None, :]
    return z * real[..., None], probabilities * both


def pool(body: State, last: Tensor, real: Tensor) -> Tensor | None:
    """(B, d) of the first row that is real, [CLS]; None without pooler weights."""
    if "pooler.dense.weight" not in body:
        return None
    first = last[torch.arange(len(last)), real.int().argmax(1)]
    return torch.tanh(linear(first, body, "pooler.dense"))


def pretrain(state: State, config: Any, encoded: Encoded) -> tuple[Tensor, Tensor]:
    """The two objectives of section 3.3: word logits (B, S, vocabulary), zero where `mask` is False, and (B, 2).

    Without a decoder of its own the first reads the word embeddings, to which transformers ties it.
    """
    name = "cls.predictions.transform"
    inner = ACTIVATIONS[config.hidden_act](linear(encoded.last_hidden_state, state, f"{name}.dense"))
    inner = layer_norm(inner, state, f"{name}.LayerNorm", config.layer_norm_eps)
    tied = state["visual_bert.embeddings.word_embeddings.weight"]
    words = inner @ state.get("cls.predictions.decoder.weight", tied).T + state["cls.predictions.bias"]
    assert encoded.pooler_output is not None
    return words * encoded.mask[..., None], linear(encoded.pooler_output, state, "cls.seq_relationship")


def answer(state: State, last_hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits (B, labels) of a question (section 4.1), from the row before the last word that is attended to.

    In a text that ends in [MASK] [SEP] that is the mask's.
    """
    words = attention_mask != 0  # (B, L), at least two in every row
    before_last = words & (words.cumsum(1) == words.sum(1, keepdim=True) - 1)
    return linear(last_hidden_state[torch.arange(len(words)), before_last.int().argmax(1)], state, "cls")


def classify(state: State, pooled: Tensor) -> Tensor:
    """Logits (B, labels) of (B, d), one linear layer: visual reasoning (section 4.3)."""
    return linear(pooled, state, "cls")


def choose(state: State, config: Any, choices: Mapping[str, Tensor]) -> Tensor:
    """Scores (B, n) of n choices (section 4.2): each is a pair of its own. `choices` holds what `encode` takes, with an
    axis n after the batch."""
    batch, count = next(iter(choices.values())).shape[:2]
    pairs: dict[str, Any] = {name: value.flatten(0, 1) for name, value in choices.items()}
    pooled = encode(state, config, **pairs).pooler_output
    assert pooled is not None
    return linear(pooled, state, "cls").view(batch, count)


def align(state: State, config: Any, encoded: Encoded, phrases: Tensor, regions: int) -> Tensor:
    """Scores (B, N, R) of R regions for N phrases (section 4.4): q k^T / sqrt(d / heads) of one head, no softmax.

    phrases (B, N) int64 are rows of words, with -1 read as row 0; a region that is masked scores the least number of
    the dtype.
    """
    last = encoded.last_hidden_state
    query = linear(last[torch.arange(len(last))[:, None], phrases.clamp(min=0)], state, "attention.query")
    key = linear(last[:, last.shape[1] - regions :], state, "attention.key")
    scores = query @ key.transpose(1, 2) / (config.hidden_size // config.num_attention_heads) ** 0.5
    missing = ~encoded.mask[:, None, encoded.mask.shape[1] - regions :]
    return scores.masked_fill(missing, torch.finfo(scores.dtype).min)
