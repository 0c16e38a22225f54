"""Pictures -> `PackedPixels` on a device: decoded on threads, copied as bytes, resized where the model runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vilt_fast import ops
from vilt_fast.pixels import CHANNELS, PackedPixels

from .pictures import flatten_pictures, load_picture, quantise


class _Decoded(NamedTuple):
    pixels: np.ndarray  # (H, W, 3) uint8
    is_unit: bool  # whether the bytes stand for floats in [0, 1]


def pack_pictures(
    images: Any,
    settings: Mapping[str, Any],
    device: torch.device | str | int,
    *,
    picture: Sequence[int] | None = None,
    input_data_format: str | None = None,
) -> PackedPixels:
    """Decode pictures and resize them on `device`.

    The bytes are those that `ViltImageProcessor.preprocess` normalises; the model folds the normalisation into its
    projection. On a GPU nothing is waited for: the decoded bytes go there in one copy from pinned memory.

    Args:
        images, input_data_format: as for `ViltImageProcessor.preprocess`.
        settings: all of the picture processor's, checked; do_pad has no effect, nothing is padded.
        device: of the result. picture: as in `PackedPixels`.

    Raises:
        FileNotFoundError, ValueError: as from `preprocess`; ValueError also for what bytes cannot hold: a filter other
            than bicubic, floats without resizing that are not whole numbers in 0..255, floats in [0, 1] beside 8-bit
            pictures.
    """
    device = torch.device(device)
    if settings["do_resize"] and settings["resample"] != Image.Resampling.BICUBIC:
        raise ValueError(
            f"resample: got {Image.Resampling(settings['resample']).name}, wanted BICUBIC, the only filter that packed "
            "pictures are resized with; call without device for the others"
        )
    names, decoded = decode_all(images, input_data_format)
    factor = _rescale_factor(names, decoded, settings)
    shapes = [item.pixels.shape for item in decoded]
    sizes = [_size(name, shape, settings) for name, shape in zip(names, shapes, strict=True)]
    data = _flat_bytes([item.pixels for item in decoded], pinned=device.type == "cuda").to(device, non_blocking=True)
    if settings["do_resize"]:
        data, _ = ops.resize_packed(data, shapes, sizes)
    normalize = settings["do_normalize"]
    mean, std = (settings["image_mean"], settings["image_std"]) if normalize else (0.0, 1.0)
    return PackedPixels(data, tuple(sizes), mean, std, factor, picture)


def decode_all(images: Any, input_data_format: str | None = None) -> tuple[list[str], list[_Decoded]]:
    """Every picture of an argument as bytes, and what errors call it; files are decoded on threads."""
    named = flatten_pictures(images)

    def decode(item: tuple[str, Any]) -> _Decoded:
        name, image = item
        picture = load_picture(image, input_data_format, name)
        # Pillow leaves the interpreter's lock only while it decodes, so this belongs on the thread as well.
        return _Decoded(*_to_bytes(np.asarray(picture), name))

    coded = sum(not isinstance(image, np.ndarray | Tensor) for _, image in named)
    if coded < 2:
        decoded = list(map(decode, named))
    else:
        with ThreadPoolExecutor(min(coded, os.cpu_count() or 1)) as pool:
            decoded = list(pool.map(decode, named))
    return [name for name, _ in named], decoded


def _to_bytes(pixels: np.ndarray, name: str) -> tuple[np.ndarray, bool]:
    pixels, is_unit = quantise(pixels, name)
    return np.ascontiguousarray(pixels), is_unit
