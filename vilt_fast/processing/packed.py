"""The steps of `ViltImageProcessor.pack`: images decoded on threads, and the factor they share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
from torch import Tensor

from .decoding import Decoded, decode, flatten_images, scaled_message
from .settings import Settings

_HINT = "; packed images are bytes: call without device for this one"


def decode_all(images: Any, input_data_format: str | None) -> tuple[list[str], list[Decoded]]:
    """What errors call each image of an argument, and its bytes; files and PIL images are decoded on threads."""

    def decode_one(item: tuple[str, Any]) -> Decoded:
        decoded = decode(item[1], input_data_format, item[0], hint=_HINT)
        _ = decoded.array  # made here, on the thread
        return decoded

    named = flatten_images(images)
    # Pillow releases the interpreter's lock while it decodes; arrays need no decoding, and threads for one no start.
    coded = sum(not isinstance(image, np.ndarray | Tensor) for _, image in named)
    with ThreadPoolExecutor(min(coded, os.cpu_count() or 1)) if coded > 1 else nullcontext() as pool:
        return [name for name, _ in named], list((pool.map if pool else map)(decode_one, named))


def rescale_factor(names: Sequence[str], decoded: Sequence[Decoded], settings: Settings) -> float:
    """The one number that takes bytes to pixels, for all images of the batch."""
    for name, item in zip(names, decoded, strict=True):
        if not settings.do_resize and not item.is_exact:
            raise ValueError(
                f"{name}: got floats that are not whole numbers in 0..255, which bytes cannot hold without rounding; "
                "call without device, or with do_resize=True, which rounds them"
            )
        if item.is_unit and settings.do_rescale:
            warnings.warn(scaled_message(name), stacklevel=4)
        if item.is_unit != decoded[0].is_unit:
            raise ValueError(
                f"{name}, {names[0]}: one is floats in [0, 1], the other 8-bit, which packed images cannot hold side "
                "by side; convert one of them, or call without device"
            )
    factor = settings.rescale_factor if settings.do_rescale else 1.0
    return factor / 255 if decoded[0].is_unit else factor
