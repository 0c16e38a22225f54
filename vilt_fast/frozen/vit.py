"""How a frozen ViT reads the inputs of a call; `vilt_fast.frozen.vilt` has the same functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilt_fast.frozen.planning import (
    Checked,
    HostBatch,
    blank_pixels,
    host_array,
    make_plan,
    sides_of_mask,
    usual_grids,
)
from vilt_fast.models.checks import refuse_non_finite_pixels
from vilt_fast.models.image_inputs import ImageInputs
from vilt_fast.pixels import CHANNELS, PackedPixels


def read(given: dict[str, Any], model: Any) -> ImageInputs:
    """The inputs of a call."""
    return ImageInputs(**given)


def check_finite(inputs: ImageInputs) -> None:
    """Raise where pixels on the host are NaN or infinite."""
    refuse_non_finite_pixels(inputs.pixel_values, inputs.pixel_mask)


def longest(config: Any) -> int:
    """Tokens of an image of the size that the position table stands for."""
    rows, columns = config.table_size
    return 1 + rows * columns


def most_words(config: Any) -> int:
    """There are none."""
    return 0


def read_at_calls(config: Any) -> tuple[Any, ...]:
    """The fields of the configuration that a call reads; all else was read when the model was made."""
    return config.image_shape, config.interpolation


def check(inputs: ImageInputs, config: Any, device: torch.device, embeddings: Any) -> Checked:
    """Inputs that `plan` does not take: planned and refused as the live form does it, on the device."""
    batch = inputs.to(device).check(config, has_mask_token=embeddings.patches.mask_token is not None)
    given = {"interpolation": batch.interpolation, "masked": batch.masked}
    return Checked(batch.layout([]), batch.pixel_values, given, batch.head_mask)


def blanks(config: Any, slots: int, dtype: torch.dtype) -> list[HostBatch]:
    """Batches of one patch."""
    one = np.ones((slots, 2), np.int64)
    return [plan_images(pixels, one, (1, 1), config.interpolation) for pixels in blank_pixels(config, slots, dtype)]


def plan_images(
    pixels: Tensor | PackedPixels,
    grids: np.ndarray,
    grid_size: tuple[int, int],
    interpolation: str | None,
    patch_mask: np.ndarray | None = None,
) -> HostBatch:
    """Plan images that are known to fit the model, with (B, 2) patches each."""
    no_words = np.ones((len(grids), 0), bool)
    batch = make_plan(no_words, grids, grid_size, patch_mask=patch_mask)
    # Pairs that share an image share its patches, unless a mask drops others of each.
    leaders = None
    if isinstance(pixels, PackedPixels) and pixels.picture is not None and patch_mask is None:
        leaders = pixels.leaders()
    return HostBatch(None, batch, pixels, None, leaders, {"interpolation": interpolation})


def _usual_grids(pixels: Tensor, mask: Tensor | None, config: Any) -> tuple[np.ndarray, tuple[int, int]] | None:
    """(B, 2) whole patches of each image, and (GH, GW); None for pixels and masks that are unusual or wrong."""
    found = usual_grids(pixels, None, len(pixels), config)
    if found is None or mask is None:
        return found
    array = host_array(mask)
    if array is None or array.shape != (len(pixels), *pixels.shape[2:]):
        return None
    sides = sides_of_mask(array)
    if sides is None:
        return None
    grids = np.array(sides) // config.patch_shape[0]
    return None if grids.min() < 1 else (grids, found[1])


def plan(inputs: ImageInputs, config: Any) -> HostBatch | None:
    """Plan the inputs of a forward call where they are the usual ones, on the host and right.

    None for everything else, errors included: `check` then says what is wrong, or plans the unusual.
    """
    if inputs.bool_masked_pos is not None or inputs.head_mask is not None:
        return None
    pixels, mask, patch = inputs.pixel_values, inputs.pixel_mask, config.patch_shape[0]
    if isinstance(pixels, PackedPixels):
        if mask is not None or config.num_channels != CHANNELS:
            return None
        if any(min(size) < patch or size[0] % patch or size[1] % patch for size in pixels.sizes):
            return None
        grids, grid_size = np.array(pixels.grids(patch)), pixels.grid_size(patch)
        shapes = {pixels.sizes[index] for index in pixels.image_of_pair}
    else:
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or len(pixels) == 0:
            return None
        found = _usual_grids(pixels, mask, config)
        if found is None:
            return None
        grids, grid_size = found
        shapes = {(pixels.shape[2], pixels.shape[3])}
    try:
        interpolation = inputs.interpolation(config, sorted(shapes))
    except ValueError:
        return None
    dropped = inputs.patch_mask
    patch_mask = None
    if dropped is not None:
        patch_mask = host_array(dropped)
        if patch_mask is None or patch_mask.shape != (len(grids), *grid_size):
            return None
        patch_mask = patch_mask != 0
    return plan_images(pixels, grids, grid_size, interpolation, patch_mask)
