"""How a frozen VisualBERT reads the inputs of a call; `vilt_fast.frozen.vilt` has the same functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilt_fast.frozen.planning import Checked, HostBatch, Words, host_array, make_plan, usual_words
from vilt_fast.models.checks import refuse_non_finite_rows
from vilt_fast.models.region_inputs import RegionInputs

MOST_REGIONS = 100  # that the usual detectors keep of an image; pairs that are longer with more run without a graph


def read(given: dict[str, Any], model: Any) -> RegionInputs:
    """The inputs of a call as those of pairs, with what the head wants of them."""
    prepare = getattr(getattr(model, "model_class", model), "prepare", None)
    inputs = RegionInputs(**given)
    return inputs if prepare is None else prepare(inputs)


def check_finite(inputs: RegionInputs) -> None:
    """Raise where features on the host are NaN or infinite."""
    if inputs.visual_embeds is not None:
        refuse_non_finite_rows("visual_embeds", inputs.visual_embeds, inputs.visual_attention_mask)


def longest(config: Any) -> int:
    """Tokens of the longest text with the regions of the usual detectors."""
    return config.max_position_embeddings + MOST_REGIONS


def most_words(config: Any) -> int:
    """Of a text."""
    return config.max_position_embeddings


def read_at_calls(config: Any) -> tuple[Any, ...]:
    """The fields of the configuration that a call reads; all else was read when the model was made."""
    return ()


def check(inputs: RegionInputs, config: Any, device: torch.device, embeddings: Any) -> Checked:
    """Inputs that `plan` does not take: planned and refused as the live form does it, on the device."""
    batch = inputs.to(device).check(config)
    given: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "token_type_ids": batch.token_type_ids,
        "position_ids": batch.position_ids,
        "inputs_embeds": batch.inputs_embeds,
    }
    if batch.visual_embeds is not None:
        given["visual_token_type_ids"] = batch.visual_token_type_ids
        given["image_text_alignment"] = batch.image_text_alignment
    asked = {"choices": inputs.choices, "chosen": batch.chosen}
    return Checked(batch.layout(config, []), batch.visual_embeds, given, batch.head_mask, asked)


def blanks(config: Any, slots: int, dtype: torch.dtype) -> list[HostBatch]:
    """Batches of one pair of two words, with a region and without."""
    features = torch.zeros(1, config.visual_embedding_dim, dtype=dtype)
    asked = {"choices": 1, "chosen": torch.zeros(1, 1, dtype=torch.int64)}
    return [plan_regions([[0, 0]], features[:count], [count])._replace(asked=asked) for count in (1, 0)]


def plan_regions(rows: Sequence[Sequence[int]], features: Tensor, counts: Sequence[int]) -> HostBatch:
    """Plan texts, as the ids of their words, and regions that are known to fit the model.

    Args:
        rows: of each pair.
        features: (regions, visual_embedding_dim), those of all pairs one after the other.
        counts: regions of each pair.
    """
    words, number = Words.from_rows(rows), np.asarray(counts)
    return _plan(words, features, np.arange(max(number.max(), 1)) < number[:, None])


def _plan(words: Words, features: Tensor | None, kept: np.ndarray, choices: int = 1) -> HostBatch:
    """kept: (B, V) bool, the regions that become rows."""
    batch, regions = kept.shape
    plan = make_plan(
        words.attention_mask,
        np.tile((1, regions), (batch, 1)),
        (1, regions),
        patch_mask=None if kept.all() else kept[:, None],
        has_cls=False,
    )
    return HostBatch(words, plan, features, asked={"choices": choices})


def plan(inputs: RegionInputs, config: Any) -> HostBatch | None:
    """Plan the inputs of a forward call where they are the usual ones, on the host and right.

    None for everything else, errors included: `RegionInputs.check` then says what is wrong, or plans the unusual.
    """
    unusual = (inputs.inputs_embeds, inputs.position_ids, inputs.head_mask, inputs.image_text_alignment)
    if any(value is not None for value in (*unusual, inputs.region_to_phrase_position)):
        return None
    words = usual_words(inputs, config) if _is_mask(inputs.attention_mask) else None
    kept = None if words is None else _usual_regions(inputs, config, len(words.input_ids))
    if words is None or kept is None:
        return None
    batch = _plan(words, inputs.visual_embeds, kept, inputs.choices)
    return None if batch.plan.arrays["text_count"].min() < inputs.fewest_words else batch


def _usual_regions(inputs: RegionInputs, config: Any, batch: int) -> np.ndarray | None:
    """(B, V) bool, the regions that are not masked; None where they are unusual or wrong."""
    features, mask, types = inputs.visual_embeds, inputs.visual_attention_mask, inputs.visual_token_type_ids
    if features is None:
        return np.zeros((batch, 0), bool) if mask is None and types is None else None
    if not isinstance(features, Tensor) or not features.is_floating_point() or features.requires_grad:
        return None
    if features.ndim != 3 or (features.shape[0], features.shape[2]) != (batch, config.visual_embedding_dim):
        return None
    # Regions are of type 1, where nobody says otherwise.
    if config.type_vocab_size < 2 or types is not None and not _are_ones(types, features.shape[:2]):
        return None
    if mask is None:
        return np.ones(features.shape[:2], bool)
    array = host_array(mask)
    return array != 0 if array is not None and array.shape == features.shape[:2] and _is_mask(mask) else None


def _is_mask(mask: Any) -> bool:
    if mask is None:
        return True
    array = host_array(mask)
    return array is not None and bool(((array == 0) | (array == 1)).all())


def _are_ones(types: Any, shape: torch.Size) -> bool:
    array = host_array(types)
    return array is not None and array.dtype == np.int64 and array.shape == shape and bool((array == 1).all())
