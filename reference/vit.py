"""A whole ViT, padded, written as the paper reads: the oracle of what transformers does not have.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021, section
3.1 and equations 1 to 4. With x_p the patches of an image:

    z_0  = [x_class; x_p1 E; ...; x_pN E] + E_pos       (1)
    z'_l = MSA(LN(z_{l-1})) + z_{l-1}                   (2)
    z_l  = MLP(LN(z'_l)) + z'_l                         (3)
    y    = LN(z_L,0)                                    (4)

Equations 2 to 4 are ViLT's, and are in `vilt_fast.reference.vilt`. Every function takes a state dict with Hugging
Face's parameter names and, where sizes matter, any object with ViTConfig's attributes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast.reference.vilt import Encoded, State, split_patches, transformer


def encode(
    state: State,
    config: Any,
    *,
    pixel_values: Tensor,
    bool_masked_pos: Tensor | None = None,
    head_mask: Tensor | None = None,
    pixel_mask: Tensor | None = None,
    patch_mask: Tensor | None = None,
    rule: str = "size",
    prefix: str = "vit.",
) -> Encoded:
    """Equations 1 to 4, with the pooler where there is one. `prefix` is "" for the state dict of a bare ViTModel.

    pixel_values (B, C, H, W), pixel_mask (B, H, W) true on a rectangle at the top left; bool_masked_pos and patch_mask
    (B, H // p, W // p), True for patches that become the mask token, False for patches that are dropped; head_mask
    (heads,) or (layers, heads); rule of `interpolate_positions`. Rows are the class token, then the patches of each
    image in raster order, padded at the end.
    """
    body = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    z, mask = embed(body, config, pixel_values, bool_masked_pos, pixel_mask, patch_mask, rule)
    return transformer(body, config, z, mask, head_mask)


def embed(
    body: State,
    config: Any,
    pixel_values: Tensor,
    bool_masked_pos: Tensor | None = None,
    pixel_mask: Tensor | None = None,
    patch_mask: Tensor | None = None,
    rule: str = "size",
) -> tuple[Tensor, Tensor]:
    """Equation 1: rows (B, 1 + N, d) and their mask (B, 1 + N), N the most patches that any image keeps."""
    patch = config.patch_size
    patches = split_patches(pixel_values, (patch, patch))  # (B, GH, GW, C * p * p)
    weight = body["embeddings.patch_embeddings.projection.weight"]
    projected = patches @ weight.flatten(1).T + body["embeddings.patch_embeddings.projection.bias"]
    if bool_masked_pos is not None:  # SimMIM, section 3.1: "a learnable mask token vector to replace each masked patch"
        projected = torch.where(bool_masked_pos[..., None], body["embeddings.mask_token"][0, 0], projected)
    side = config.image_size if isinstance(config.image_size, tuple | list) else (config.image_size, config.image_size)
    positions = body["embeddings.position_embeddings"][0]
    table = positions[1:].view(side[0] // patch, side[1] // patch, -1)
    images = []
    for b in range(len(projected)):
        height, width = projected.shape[1:3]
        if pixel_mask is not None:  # what makes no whole patch is left out
            height, width = int((pixel_mask[b, :, 0] != 0).sum()) // patch, int((pixel_mask[b, 0] != 0).sum()) // patch
        image = projected[b, :height, :width] + interpolate_positions(table, height, width, rule)
        keep = torch.ones(height, width, dtype=torch.bool) if patch_mask is None else patch_mask[b, :height, :width]
        images.append(torch.cat([body["embeddings.cls_token"][0] + positions[:1], image[keep]]))
    mask = torch.nn.utils.rnn.pad_sequence([image.new_ones(len(image)) for image in images], batch_first=True) != 0
    return torch.nn.utils.rnn.pad_sequence(images, batch_first=True), mask


def interpolate_positions(table: Tensor, height: int, width: int, rule: str = "size") -> Tensor:
    """E_pos fitted to one image's grid (section 3.2), bicubic: (P, Q, d) to (height, width, d).

    rule: "size", or "scale_factor", transformers' before 4.45, which leaves a grid of the table's size as it is.
    """
    rows, columns = table.shape[:2]
    if (height, width) == (rows, columns):
        return table
    scale = ((height + 0.1) / rows, (width + 0.1) / columns)
    fit: dict[str, Any] = {"size": (height, width)} if rule == "size" else {"scale_factor": scale}
    fitted = F.interpolate(table.permute(2, 0, 1)[None], **fit, mode="bicubic", align_corners=False)
    return fitted[0].permute(1, 2, 0)


def classify(state: State, last_hidden_state: Tensor) -> Tensor:
    """Logits (B, labels) of rows (B, S, d), from the class token's."""
    return F.linear(last_hidden_state[:, 0], state["classifier.weight"], state["classifier.bias"])


def reconstruct(state: State, config: Any, last_hidden_state: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels (B, C, GH * s, GW * s) of rows (B, 1 + GH * GW, d): one linear layer, s = encoder_stride (SimMIM, 3.3)."""
    stride, channels = config.encoder_stride, config.num_channels
    values = F.linear(last_hidden_state[:, 1:], state["decoder.0.weight"].flatten(1), state["decoder.0.bias"])
    values = values.unflatten(1, grid).unflatten(3, (channels, stride, stride))  # (B, GH, GW, C, s, s)
    return values.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def reconstruction_loss(pixels: Tensor, reconstruction: Tensor, masked: Tensor, patch: int) -> Tensor:
    """The mean distance over masked pixels (SimMIM, section 3.4); pixels (B, C, H, W), masked (B, H // p, W // p)."""
    mask = masked.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]  # (B, 1, H, W) bool
    distance = ((pixels - reconstruction).abs() * mask).sum()
    return distance / (mask.sum() + 1e-5) / pixels.shape[1]
