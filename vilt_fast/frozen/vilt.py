"""How a frozen ViLT reads the inputs of a call; the files of the other families have the same functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilt_fast.frozen.planning import (
    Checked,
    HostBatch,
    Words,
    blank_pixels,
    make_plan,
    usual_grids,
    usual_words,
)
from vilt_fast.models.checks import refuse_non_finite_pixels
from vilt_fast.models.inputs import Inputs, check_modality
from vilt_fast.pixels import CHANNELS, PackedPixels


def read(given: dict[str, Any], model: Any) -> Inputs:
    """The inputs of a call; `model.slots` images for each text become as many pairs."""
    check_modality(given.get("image_token_type_idx"))
    inputs, slots = Inputs(**given), getattr(model, "slots", None)
    return inputs if slots is None else inputs.fold_images(slots)


def check_finite(inputs: Inputs) -> None:
    """Raise where pixels on the host are NaN or infinite."""
    refuse_non_finite_pixels(inputs.pixel_values, inputs.pixel_mask)


def longest(config: Any) -> int:
    """Tokens of the longest text with the largest image under ViLT's rule: sides at most as 1333 to 800."""
    short = min(config.table_size)
    cells = short * (short * 1333 // 800)
    limit = config.max_image_length
    return config.max_position_embeddings + 1 + (min(cells, limit) if limit >= 0 else cells)


def most_words(config: Any) -> int:
    """Of a text."""
    return config.max_position_embeddings


def read_at_calls(config: Any) -> tuple[Any, ...]:
    """The fields of the configuration that a call reads; all else was read when the model was made."""
    return (config.max_image_length,)


def check(inputs: Inputs, config: Any, device: torch.device, embeddings: Any) -> Checked:
    """Inputs that `plan` does not take: planned and refused as the live form does it, on the device."""
    checked = inputs.to(device).check(config, device)
    given: dict[str, Any] = {
        "input_ids": checked.input_ids,
        "token_type_ids": checked.token_type_ids,
        "inputs_embeds": checked.inputs_embeds,
        "image_embeds": checked.image_embeds,
        "pair_modality": checked.pair_modality,
    }
    return Checked(checked.layout(config, False, []), checked.pixel_values, given, checked.head_mask)


def blanks(config: Any, slots: int, dtype: torch.dtype) -> list[HostBatch]:
    """Batches of one word and one patch for each of `slots` images."""
    words = Words.from_rows([[0]] * slots)
    plan = make_plan(words.attention_mask, np.ones((slots, 2), np.int64), (1, 1))
    ones = np.ones(slots, np.int64)
    return [HostBatch(words, plan, pixels, ones) for pixels in blank_pixels(config, slots, dtype)]


def plan_pairs(rows: Sequence[Sequence[int]], pixels: PackedPixels, config: Any) -> HostBatch:
    """Plan texts, as the ids of their words, and images that are known to fit the model.

    The draw of `max_image_length` patches is the same for all images of one size, so that it does not depend on what
    else is in the batch.
    """
    words, patch = Words.from_rows(rows), config.patch_shape[0]
    plan = make_plan(
        words.attention_mask,
        np.array(pixels.grids(patch)),
        pixels.grid_size(patch),
        max_patches=config.max_image_length,
        image_index=np.zeros(len(rows), np.int64),
    )
    leaders = None if pixels.picture is None else pixels.leaders()
    return HostBatch(words, plan, pixels, np.ones(len(rows), np.int64), leaders)


def plan(inputs: Inputs, config: Any) -> HostBatch | None:
    """Plan the inputs of a forward call where they are the usual ones, on the host and right.

    None for everything else, errors included: `Inputs.check` then says what is wrong, or plans the unusual.
    """
    unusual = (inputs.inputs_embeds, inputs.image_embeds, inputs.head_mask, inputs.patch_mask, inputs.image_index)
    words = usual_words(inputs, config)
    if words is None or inputs.seed is not None or any(value is not None for value in unusual):
        return None
    pixels, batch, patch = inputs.pixel_values, len(words.input_ids), config.patch_shape[0]
    leaders, image_index = None, None
    if isinstance(pixels, PackedPixels):
        if inputs.pixel_mask is not None or pixels.pairs != batch or config.num_channels != CHANNELS:
            return None
        if any(height % patch or width % patch for height, width in pixels.sizes):
            return None
        grids, grid_size = np.array(pixels.grids(patch)), pixels.grid_size(patch)
        image_index = np.array(pixels.image_of_pair)
        leaders = None if pixels.picture is None else pixels.leaders(inputs.slots)
    else:
        found = usual_grids(pixels, inputs.pixel_mask, batch, config)
        if found is None or not isinstance(pixels, Tensor):
            return None
        grids, grid_size = found
    index = 1 if inputs.image_token_type_idx is None else inputs.image_token_type_idx
    if not isinstance(index, Tensor) and (type(index) is not int or not 0 <= index < config.modality_type_vocab_size):
        return None
    modality = index.numpy() if isinstance(index, Tensor) else np.full(batch, index)
    plan = make_plan(
        words.attention_mask, grids, grid_size, max_patches=config.max_image_length, image_index=image_index
    )
    if plan.arrays["text_count"].min() == 0:
        return None
    return HostBatch(words, plan, pixels, modality, leaders)
