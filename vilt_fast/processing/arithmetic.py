"""Decoded images -> one array of pixels, in the dtypes and the order of operations of Hugging Face's PIL classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .batch import BatchFeature
from .decoding import Decoded, decode
from .settings import Settings, target_size


class Prepared(NamedTuple):
    """One image ready to be written into the batch."""

    pixels: np.ndarray  # (3, H, W), uint8 where there is a table
    table: np.ndarray | None  # (3, 256): what each channel's byte becomes; None: the pixels are final


def prepare(name: str, source: Any, input_data_format: str | None, settings: Settings) -> Prepared:
    """Decode, resize and cut one image, which errors call `name`; raises as `decode` and `target_size`."""
    decoded = decode(source, input_data_format, name, keep=not settings.do_resize)
    if settings.do_rescale and decoded.is_scaled:
        warnings.warn(_scaled_message(name), stacklevel=5)
    image = decoded.pixels
    if settings.do_resize:
        height, width = target_size(settings, name, *decoded.size)
        image = image if isinstance(image, Image.Image) else Image.fromarray(decoded.array)
        image = image.resize((width, height), resample=settings.resample)
    pixels = np.asarray(image)
    crop = settings._crop()
    if crop is not None:
        whole, pixels = pixels, np.zeros((*crop, 3), pixels.dtype)
        inside, taken = center(whole.shape[:2], crop)
        pixels[inside] = whole[taken]
    pixels = pixels.transpose(2, 0, 1)
    if pixels.dtype != np.uint8:
        return Prepared(_arithmetic(pixels, settings), None)
    # Only 256 values can occur, so the float operations are done on those: exact, and several times as fast.
    bytes_in = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 256))
    table = _arithmetic(settings._rescale(bytes_in, 1 / 255) if decoded.is_unit else bytes_in, settings)
    return Prepared(pixels, None if table is bytes_in else table)


def center(size: Sequence[int], crop: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Which part of a crop is filled with which part of an image, (height, width) each.

    Where the image is smaller it stands in the middle of zeros; an odd number of pixels to spare rounds as in
    Hugging Face's `center_crop`.
    """
    inside, taken = [], []
    for side, wanted in zip(size, crop, strict=True):
        first = (side - wanted) // 2  # below 0: so many zeros come before the image
        length = min(side, wanted)
        inside.append(slice(max(-first, 0), max(-first, 0) + length))
        taken.append(slice(max(first, 0), max(first, 0) + length))
    return tuple(inside), tuple(taken)


def packed_factor(names: Sequence[str], decoded: Sequence[Decoded], settings: Settings) -> float:
    """The one number that takes bytes to pixels, for all images of the batch.

    Raises:
        ValueError: bytes cannot hold an image, or not beside the others.
    """
    for name, item in zip(names, decoded, strict=True):
        if not settings.do_resize and not item.is_exact:
            raise ValueError(
                f"{name}: got floats that are not whole numbers in 0..255, which bytes cannot hold without rounding; "
                "call without device, or with do_resize=True, which rounds them"
            )
        if item.is_unit and settings.do_rescale:
            warnings.warn(_scaled_message(name), stacklevel=4)
        if item.is_unit != decoded[0].is_unit:
            raise ValueError(
                f"{name}, {names[0]}: one is floats in [0, 1], the other 8-bit, which packed images cannot hold side "
                "by side; convert one of them, or call without device"
            )
    factor = settings.rescale_factor if settings.do_rescale else 1.0
    return factor / 255 if decoded[0].is_unit else factor


def _scaled_message(name: str) -> str:
    """What to warn of where floats in [0, 1] are to be rescaled."""
    return f"{name}: the pixels are in [0, 1] already and will be scaled again; pass do_rescale=False"


def _arithmetic(values: np.ndarray, settings: Settings) -> np.ndarray:
    """Rescale and normalise (3, ...) in transformers' order of operations and dtypes."""
    if settings.do_rescale:
        values = settings._rescale(values, settings.rescale_factor)
    if settings.do_normalize:
        if values.dtype.kind != "f":
            values = values.astype(np.float32)
        shape = (-1,) + (1,) * (values.ndim - 1)
        mean, std = (
            np.array(value, dtype=values.dtype).reshape(shape) for value in (settings.image_mean, settings.image_std)
        )
        values = (values - mean) / std
    return values


def assemble(prepared: list[Prepared], do_pad: bool, layout: str, kind: str | None) -> BatchFeature:
    """The images as a batch, see `ViltImageProcessor.preprocess`.

    Raises:
        ValueError: images of several sizes, which form no tensor, or more than fit into memory.
    """
    sizes = [item.pixels.shape[1:] for item in prepared]
    if not do_pad and kind is None:
        return BatchFeature({"pixel_values": [_stack([item], layout)[0] for item in prepared]})
    if not do_pad and len(set(sizes)) > 1:
        raise ValueError(
            f"do_pad: got False with images of {len(set(sizes))} sizes, which form no tensor; pass do_pad=True, or "
            "return_tensors=None for a list, or pack the images with pack()"
        )
    data: dict[str, Any] = {"pixel_values": _stack(prepared, layout)}
    if do_pad:
        data["pixel_mask"] = np.zeros((len(prepared), *np.max(sizes, axis=0)), dtype=np.int64)
        for mask, (height, width) in zip(data["pixel_mask"], sizes, strict=True):
            mask[:height, :width] = 1
    if kind is None:
        data = {key: list(value) for key, value in data.items()}
    return BatchFeature(data, kind)


def _stack(prepared: list[Prepared], layout: str) -> np.ndarray:
    """All images in one array (N, 3, H, W) or (N, H, W, 3), zero where they do not reach."""
    dtype = np.result_type(*((pixels if table is None else table).dtype for pixels, table in prepared))
    height, width = np.max([item.pixels.shape[1:] for item in prepared], axis=0)
    first, count = layout == "channels_first", len(prepared)
    try:
        batch = np.zeros((count, 3, height, width) if first else (count, height, width, 3), dtype=dtype)
    except MemoryError as error:
        size = count * 3 * height * width * dtype.itemsize / 1e9
        raise ValueError(
            f"images: {count}, padded to {height}x{width} pixels (height x width), take {size:.1f} GB, more than there "
            "is; give fewer at once, or smaller ones"
        ) from error
    for (pixels, table), out in zip(prepared, batch if first else batch.transpose(0, 3, 1, 2), strict=True):
        target = out[:, : pixels.shape[1], : pixels.shape[2]]
        if table is None:
            target[...] = pixels
        else:
            for channel, row, bytes_in in zip(target, table, pixels, strict=True):
                np.take(row, bytes_in, out=channel, mode="clip")
    return batch
