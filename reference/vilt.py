"""A whole ViLT, padded, written as the paper reads: the oracle that the packed model is tested against.

Kim, Son and Kim, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", ICML 2021,
section 3.1 and equations 1 to 6. With t the words of a pair, v the patches of its image and z the joint sequence:

    t_bar = [t_class; t_1 T; ...; t_L T] + T_pos                        (1)
    v_bar = [v_class; v_1 V; ...; v_N V] + V_pos                        (2)
    z_0   = [t_bar + t_type; v_bar + v_type]                            (3)
    z'_d  = MSA(LN(z_{d-1})) + z_{d-1}                                  (4)
    z_d   = MLP(LN(z'_d)) + z'_d                                        (5)
    p     = tanh(z_D,0 W_pool)                                          (6)

Every function takes a state dict with Hugging Face's parameter names and, where sizes matter, any object with
ViltConfig's attributes. Nothing here knows of packing, sampling or bad input, and nothing here is fast.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]

# A LayerNorm inside a classifier keeps PyTorch's epsilon; every other one has its own in the config.
CLASSIFIER_EPS = 1e-5

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "selu": F.selu,
    "tanh": torch.tanh,
}


class Encoded(NamedTuple):
    """What the body of the model gives for a batch of B pairs padded to S = L + 1 + (most patches) rows.

    Rows are the L words (masked ones included), the image's class token, then its patches in raster order. `mask`
    (B, S) bool says which are real; every other row, and every attention to or from it, is zero.
    """

    last_hidden_state: Tensor  # (B, S, d), after the final LayerNorm
    pooler_output: Tensor | None  # (B, d), None without pooler weights
    hidden_states: tuple[Tensor, ...]  # z_0 ... z_D, each (B, S, d), before the final LayerNorm
    attentions: tuple[Tensor, ...]  # one (B, heads, S, S) for each block
    mask: Tensor  # (B, S) bool


def encode(
    state: State,
    config: Any,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    pixel_values: Tensor | None = None,
    pixel_mask: Tensor | None = None,
    head_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    image_embeds: Tensor | None = None,
    image_token_type_idx: int = 1,
    patch_mask: Tensor | None = None,
    prefix: str = "vilt.",
) -> Encoded:
    """The body of ViLT, equations 1 to 6. `prefix` is "" for the state dict of a bare ViltModel.

    input_ids, token_type_ids (B, L) int64 or inputs_embeds (B, L, d); attention_mask (B, L); pixel_values
    (B, C, H, W) with pixel_mask (B, H, W), or image_embeds (B, N, d) whose row 0 is the class token with pixel_mask
    (B, N); head_mask (heads,) or (layers, heads); patch_mask (B, H // p, W // p), False drops a patch.
    """
    body = below(state, prefix)
    text = text_embedding(body, config, input_ids, token_type_ids, inputs_embeds)
    text_mask = torch.ones(text.shape[:2]) if attention_mask is None else attention_mask
    if image_embeds is None:
        assert pixel_values is not None
        image, image_mask = visual_embedding(body, config, pixel_values, pixel_mask, patch_mask)
    else:
        image = image_embeds
        image_mask = torch.ones(image.shape[:2]) if pixel_mask is None else pixel_mask.flatten(1)
    modality = body["embeddings.token_type_embeddings.weight"]
    z = torch.cat([text + modality[0], image + modality[image_token_type_idx]], dim=1)  # equation 3
    mask = torch.cat([text_mask.to(z.device) != 0, image_mask.to(z.device) != 0], dim=1)
    return transformer(body, config, z, mask, head_mask)


def text_embedding(
    body: State,
    config: Any,
    input_ids: Tensor | None,
    token_type_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """Equation 1, with BERT's segment rows and LayerNorm (section 3.1: the text embedding is BERT's). (B, L, d)."""
    text = below(body, "embeddings.text_embeddings.")
    words = text["word_embeddings.weight"][input_ids] if inputs_embeds is None else inputs_embeds
    if token_type_ids is None:
        token_type_ids = torch.zeros(words.shape[:2], dtype=torch.long, device=words.device)
    positions = text["position_embeddings.weight"][: words.shape[1]]
    rows = words + positions + text["token_type_embeddings.weight"][token_type_ids]
    return layer_norm(rows, text, "LayerNorm", config.layer_norm_eps)


def visual_embedding(
    body: State, config: Any, pixel_values: Tensor, pixel_mask: Tensor | None = None, patch_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Equation 2: class token and projected patches plus positions, padded at the end.

    pixel_values (B, C, H, W), pixel_mask (B, H, W) true on a rectangle at the top left, patch_mask (B, H // p, W // p).
    Returns rows (B, 1 + N, d) and their mask (B, 1 + N), N the most patches that any image keeps.
    """
    patches = split_patches(pixel_values, _pair(config.patch_size))  # (B, GH, GW, C * p * p)
    rows, columns = patches.shape[1:3]
    projection = body["embeddings.patch_embeddings.projection.weight"]
    projected = patches.to(projection.dtype) @ projection.flatten(1).T
    bias = body.get("embeddings.patch_embeddings.projection.bias")
    projected = projected if bias is None else projected + bias

    class_position, table = _position_table(body, config)
    grid_mask = _grid_mask(pixel_values, pixel_mask, rows, columns)
    keep = grid_mask if patch_mask is None else grid_mask & (patch_mask.to(grid_mask.device) != 0)
    pictures = []
    for b in range(patches.shape[0]):
        height, width = int(grid_mask[b, :, 0].sum()), int(grid_mask[b, 0].sum())
        picture = projected[b, :height, :width] + interpolate_positions(table, height, width)
        pictures.append(picture[keep[b, :height, :width].to(picture.device)])
    padded = torch.nn.utils.rnn.pad_sequence(pictures, batch_first=True)  # (B, N, d)
    kept = torch.tensor([len(picture) for picture in pictures])
    first = (body["embeddings.cls_token"][0, 0] + class_position).expand(len(pictures), 1, -1)
    mask = torch.arange(1 + padded.shape[1])[None] < 1 + kept[:, None]
    return torch.cat([first, padded], dim=1), mask


def split_patches(pixel_values: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """The N patches of (C, p, p) values each, in raster order; pixels past the last whole patch are left out.

    pixel_values (B, C, H, W) to (B, H // p, W // p, C * p * p).
    """
    batch, channels, height, width = pixel_values.shape
    p, q = patch_size
    rows, columns = height // p, width // q
    whole = pixel_values[:, :, : rows * p, : columns * q]
    split = whole.reshape(batch, channels, rows, p, columns, q)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows, columns, channels * p * q)


def interpolate_positions(table: Tensor, height: int, width: int) -> Tensor:
    """V_pos fitted to one image's grid (section 4.2), bilinear with aligned corners.

    table (P, Q, d) to (height, width, d).
    """
    channels_first = table.permute(2, 0, 1)[None]
    fitted = F.interpolate(channels_first, size=(height, width), mode="bilinear", align_corners=True)
    return fitted[0].permute(1, 2, 0)


def _position_table(body: State, config: Any) -> tuple[Tensor, Tensor]:
    """The class token's position (d,) and the table (P, Q, d) of the grid that the model was trained on."""
    positions = body["embeddings.position_embeddings"][0]
    (height, width), (p, q) = _pair(config.image_size), _pair(config.patch_size)
    return positions[0], positions[1:].reshape(height // p, width // q, -1)


def _grid_mask(pixel_values: Tensor, pixel_mask: Tensor | None, rows: int, columns: int) -> Tensor:
    """The pixel mask at the nearest pixel of every patch. (B, rows, columns) bool."""
    if pixel_mask is None:
        return torch.ones(pixel_values.shape[0], rows, columns, dtype=torch.bool, device=pixel_values.device)
    return F.interpolate(pixel_mask[:, None].float(), size=(rows, columns), mode="nearest")[:, 0] != 0


def transformer(body: State, config: Any, z: Tensor, mask: Tensor, head_mask: Tensor | None) -> Encoded:
    """Equations 4 to 6 over the joint sequence; rows outside `mask` are neither read nor left non-zero.

    z (B, S, d), mask (B, S) bool, head_mask (heads,) or (layers, heads). A ViT's configuration names another activation
    of equation 6, as `pooler_act`.
    """
    real = mask[..., None].to(z.dtype)
    scores_mask = torch.zeros_like(real[..., 0]).masked_fill(~mask, torch.finfo(z.dtype).min)[:, None, None, :]
    eps = getattr(config, "encoder_layer_norm_eps", None)
    eps = config.layer_norm_eps if eps is None else eps
    z = z * real
    hidden_states, attentions = [z], []
    for d in range(config.num_hidden_layers):
        block = below(body, f"encoder.layer.{d}.")
        scale = head_mask if head_mask is None or head_mask.dim() == 1 else head_mask[d]
        attended, weights = self_attention(
            below(block, "attention."),
            layer_norm(z, block, "layernorm_before", eps),
            scores_mask,
            config.num_attention_heads,
            scale,
        )
        z = attended + z  # equation 4
        inner = ACTIVATIONS[config.hidden_act](
            linear(layer_norm(z, block, "layernorm_after", eps), block, "intermediate.dense")
        )
        z = (linear(inner, block, "output.dense") + z) * real  # equation 5
        hidden_states.append(z)
        attentions.append(weights * real[:, None])
    last = layer_norm(z, body, "layernorm", eps) * real
    pooled = None
    if "pooler.dense.weight" in body:
        first = last[torch.arange(len(last)), mask.int().argmax(1)]  # row 0, or the first word that is not masked
        pooled = ACTIVATIONS[getattr(config, "pooler_act", "tanh")](linear(first, body, "pooler.dense"))  # equation 6
    return Encoded(last, pooled, tuple(hidden_states), tuple(attentions), mask)


def self_attention(
    weights: State, x: Tensor, scores_mask: Tensor, num_heads: int, head_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """MSA of equation 4: softmax(q k^T / sqrt(d / heads) + mask) v for every head, heads joined and projected.

    x (B, S, d); scores_mask added to scores (B, heads, S, S); head_scale (heads,) multiplies the probabilities.
    Returns (B, S, d) and the probabilities (B, heads, S, S).
    """
    query, key, value = (
        linear(x, weights, f"attention.{name}").unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for name in ("query", "key", "value")
    )  # each (B, heads, S, d / heads)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    probabilities = torch.softmax(scores + scores_mask, dim=-1)
    if head_scale is not None:
        probabilities = probabilities * head_scale.to(x)[:, None, None]
    joined = (probabilities @ value).transpose(1, 2).flatten(2)
    return linear(joined, weights, "output.dense"), probabilities


def masked_lm(state: State, config: Any, text: Tensor) -> Tensor:
    """Word logits (B, L, vocabulary) of text rows (B, L, d): the MLM head of section 3.2, BERT's two layers.

    Without a decoder matrix of its own the head reads the word embeddings (transformers 5 ties them).
    """
    inner = ACTIVATIONS[config.hidden_act](linear(text, state, "mlm_score.transform.dense"))
    inner = layer_norm(inner, state, "mlm_score.transform.LayerNorm", config.layer_norm_eps)
    tied = state["vilt.embeddings.text_embeddings.word_embeddings.weight"]
    bias = state["mlm_score.decoder.bias"] if "mlm_score.decoder.bias" in state else state["mlm_score.bias"]
    return inner @ state.get("mlm_score.decoder.weight", tied).T + bias


def classify(state: State, pooled: Tensor) -> Tensor:
    """Logits of the two-layer head on (B, d) for questions, or (B, n * d), n poolers joined, for n images."""
    inner = layer_norm(linear(pooled, state, "classifier.0"), state, "classifier.1", CLASSIFIER_EPS)
    return linear(F.gelu(inner), state, "classifier.3")


def classify_pictures(state: State, config: Any, images: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> Tensor:
    """Logits for a text and n images (NLVR2, section 4.3): one pass per image, modality row i + 1, poolers joined.

    `images` holds what `encode` takes of images, with an axis n after the batch: pixel_values (B, n, C, H, W), ...
    """
    pooled: list[Any] = []
    for i in range(next(iter(images.values())).shape[1]):
        pair: dict[str, Any] = {**text, **{name: value[:, i] for name, value in images.items()}}
        pooled.append(encode(state, config, image_token_type_idx=i + 1, **pair).pooler_output)
    return classify(state, torch.cat(pooled, dim=-1))


def retrieve(state: State, pooled: Tensor) -> Tensor:
    """Score (B, 1) of each pair, for retrieval (section 4.4)."""
    return linear(pooled, state, "rank_output")


def match(state: State, pooled: Tensor) -> Tensor:
    """Logits (B, 2), [does not match, matches]: the image text matching head of section 3.2."""
    return linear(pooled, state, "itm_score.fc")


def classify_tokens(state: State, text: Tensor) -> Tensor:
    """Logits (B, L, labels) of text rows (B, L, d), one linear layer without a pooler."""
    return linear(text, state, "classifier")


def linear(x: Tensor, weights: State, name: str) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def layer_norm(x: Tensor, weights: State, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * torch.rsqrt(variance + eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def below(weights: State, prefix: str) -> State:
    """The part of a state dict under `prefix`, with the prefix taken off."""
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
