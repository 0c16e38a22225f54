"""Pictures -> `PackedPixels` on a device: decoded on threads, copied as bytes, resized where the model runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vilt_fast import ops
from vilt_fast.pixels import PackedPixels

from .pictures import Decoded, decode, flatten_pictures
from .settings import Settings
from .sizes import target_size

_HINT = "; packed pictures are bytes: call without device for this one"


def pack_pictures(
    images: Any,
    settings: Settings,
    device: torch.device | str | int,
    *,
    picture: Any = None,
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
    if settings.do_resize and settings.resample != Image.Resampling.BICUBIC:
        raise ValueError(
            f"resample: got {Image.Resampling(settings.resample).name}, wanted BICUBIC, the only filter that packed "
            "pictures are resized with; call without device for the others"
        )
    names, decoded = _decode_all(images, input_data_format)
    factor = _rescale_factor(names, decoded, settings)
    arrays, sizes = [item.array for item in decoded], [item.size for item in decoded]
    flat = torch.empty(sum(map(np.size, arrays)), dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.concatenate([array.reshape(-1) for array in arrays], out=flat.numpy())
    data = flat.to(device, non_blocking=True)
    if settings.do_resize:
        sizes = [target_size(name, *size, settings) for name, size in zip(names, sizes, strict=True)]
        data, _ = ops.resize_packed(data, [array.shape for array in arrays], sizes)
    mean, std = (settings.image_mean, settings.image_std) if settings.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    return PackedPixels(data, tuple(sizes), mean, std, factor, picture)


def _decode_all(images: Any, input_data_format: str | None) -> tuple[list[str], list[Decoded]]:
    """What errors call each picture of an argument, and its bytes; files and PIL images are decoded on threads."""

    def decode_one(item: tuple[str, Any]) -> Decoded:
        decoded = decode(item[1], input_data_format, item[0], hint=_HINT)
        _ = decoded.array  # made here, on the thread
        return decoded

    named = flatten_pictures(images)
    # Pillow releases the interpreter's lock while it decodes; arrays need no decoding, and threads for one no start.
    coded = sum(not isinstance(image, np.ndarray | Tensor) for _, image in named)
    with ThreadPoolExecutor(min(coded, os.cpu_count() or 1)) if coded > 1 else nullcontext() as pool:
        return [name for name, _ in named], list((pool.map if pool else map)(decode_one, named))


def scaled_message(name: str) -> str:
    """What to warn of where floats in [0, 1] are to be rescaled."""
    return f"{name}: the pixels are in [0, 1] already and will be scaled again; pass do_rescale=False"


def _rescale_factor(names: Sequence[str], decoded: Sequence[Decoded], settings: Settings) -> float:
    """The one number that takes bytes to pixels, for all pictures of the batch."""
    for name, item in zip(names, decoded, strict=True):
        if not settings.do_resize and not item.is_exact:
            raise ValueError(
                f"{name}: got floats that are not whole numbers in 0..255, which bytes cannot hold without rounding; "
                "call without device, or with do_resize=True, which rounds them"
            )
        if item.is_unit and settings.do_rescale:
            warnings.warn(scaled_message(name), stacklevel=5)
        if item.is_unit != decoded[0].is_unit:
            raise ValueError(
                f"{name}, {names[0]}: one is floats in [0, 1], the other 8-bit, which packed pictures cannot hold side "
                "by side; convert one of them, or call without device"
            )
    factor = settings.rescale_factor if settings.do_rescale else 1.0
    return factor / 255 if decoded[0].is_unit else factor
