"""Any image a caller may hold, as RGB: the one place where user pixels are opened and checked.

How each kind becomes RGB (Hugging Face's processor crashes on all but RGB; where it works, the bits are its own):
    files           opened with Pillow and turned upright by their EXIF orientation, as Hugging Face 5.x does for paths
    PIL             taken as it is: EXIF orientation is not applied, as in Hugging Face
    1, L, P, CMYK   Pillow's `convert("RGB")`; so are YCbCr, HSV and LAB
    RGBA, LA, PA    the alpha channel is dropped, as `convert("RGB")` does
    16-bit          v -> round(v / 257), so 65535 becomes 255 (Pillow would saturate at 255); "I" counts as 16-bit
                    when a value is above 255
    F               [0, 1] is scaled to 0..255, otherwise 0..255 is rounded
    arrays, tensors (H, W), (H, W, C) or (C, H, W) with 1 (grey), 2 (grey + alpha), 3 or 4 (RGB + alpha) channels;
                    uint16 as 16-bit when a value is above 255, bool as black and white; other integers and floats keep
                    their dtype
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

_CHANNELS = (1, 2, 3, 4)
_DTYPES = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32}
_DTYPES |= {torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEEPEST = 8  # images of pairs in batches are three
_WANTED = "a path, a PIL image, a NumPy array, a torch tensor, or a list of these"


@dataclass(frozen=True)
class Decoded:
    """An RGB image in memory."""

    source: Image.Image | np.ndarray  # as opened
    pixels: Image.Image | np.ndarray  # a PIL image, or (H, W, 3): uint8 unless kept as it was
    is_unit: bool  # whether the bytes stand for floats in [0, 1]

    @cached_property
    def array(self) -> np.ndarray:
        """The pixels, (H, W, 3), C-contiguous."""
        return np.ascontiguousarray(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        pixels = self.pixels
        return pixels.shape[:2] if isinstance(pixels, np.ndarray) else (pixels.height, pixels.width)

    @property
    def is_exact(self) -> bool:
        """Whether the pixels equal the values that came."""
        return self.pixels is self.source or np.array_equal(self.array, np.asarray(self.source))

    @property
    def is_scaled(self) -> bool:
        """Whether the values that came, other than bytes, are all in [0, 1]."""
        source = self.source
        if isinstance(source, Image.Image) or source.dtype == np.uint8:
            return False
        return bool(source.min() >= 0 and source.max() <= 1)


def decode(
    image: Any, input_data_format: str | None = None, name: str = "images", *, keep: bool = False, hint: str = ""
) -> Decoded:
    """Decode one image of any kind, or raise as `decode_rgb`: for the image processor, packed images and the Engine.

    Args:
        image, input_data_format, name: as for `decode_rgb`.
        keep: whether an array keeps its dtype; else it becomes 8-bit.
        hint: what to do about values that do not fit 8 bits, for the error.
    """
    source = load_image(image, input_data_format, name)
    if keep or isinstance(source, Image.Image):
        return Decoded(source, source, False)
    return Decoded(source, *_quantise(source, name, hint))


def flatten_images(images: Any, name: str = "images") -> list[tuple[str, Any]]:
    """All images of an argument in order, each with the name that an error gives it, such as "images[3]".

    One image is a list of one. Nested lists and 4-D arrays are flattened, as Hugging Face does; an empty list is a
    ValueError.
    """
    named = list(_walk(images, name))
    if not named:
        raise ValueError(f"{name}: got an empty {type(images).__name__}, wanted {_WANTED}")
    return named


def _walk(item: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        raise ValueError(f"images: got lists nested deeper than {_DEEPEST} levels, wanted {_WANTED}")
    if isinstance(item, list | tuple) or (isinstance(item, np.ndarray | torch.Tensor) and item.ndim == 4):
        for index, part in enumerate(item):
            yield from _walk(part, f"{name}[{index}]", depth + 1)
    else:
        yield name, item


def decode_all(images: Any, input_data_format: str | None) -> tuple[list[str], list[Decoded]]:
    """What errors call each image of an argument, and its bytes; files and PIL images are decoded on threads."""

    hint = "; packed images are bytes: call without device for this one"

    def decode_one(item: tuple[str, Any]) -> Decoded:
        decoded = decode(item[1], input_data_format, item[0], hint=hint)
        _ = decoded.array  # made here, on the thread
        return decoded

    named = flatten_images(images)
    # Pillow releases the interpreter's lock while it decodes; arrays need no decoding, and threads for one no start.
    coded = sum(not isinstance(image, np.ndarray | torch.Tensor) for _, image in named)
    with ThreadPoolExecutor(min(coded, os.cpu_count() or 1)) if coded > 1 else nullcontext() as pool:
        return [name for name, _ in named], list((pool.map if pool else map)(decode_one, named))


def decode_rgb(image: Any, input_data_format: str | None = None, name: str = "images") -> np.ndarray:
    """Decode one image of any kind into 8-bit RGB.

    Args:
        image: a path, a PIL image, a NumPy array or a torch tensor (see the head of this file).
        input_data_format: "channels_first", "channels_last" or None to infer it; for 3-D arrays only.
        name: what errors call the image.

    Returns:
        uint8 (H, W, 3), C-contiguous. Floats in [0, 1] are scaled to 0..255.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else that keeps it from being an image; the message names it.
    """
    return decode(image, input_data_format, name).array


def load_image(image: Any, input_data_format: str | None = None, name: str = "images") -> Image.Image | np.ndarray:
    """One image of any kind as an RGB PIL image, or an array (H, W, 3) of its own dtype; raises as `decode_rgb`."""
    if isinstance(image, Image.Image):
        return _pil_to_rgb(image, name)
    if isinstance(image, str | os.PathLike):
        return _open(os.fspath(image), name)
    if isinstance(image, torch.Tensor):
        image = _tensor_to_array(image, name)
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, input_data_format, name)
    hint = "; open bytes with PIL.Image.open(io.BytesIO(...))" if isinstance(image, bytes | bytearray) else ""
    raise ValueError(f"{name}: got {type(image).__name__}, wanted {_WANTED}{hint}")


def _quantise(pixels: np.ndarray, name: str, hint: str) -> tuple[np.ndarray, bool]:
    """Pixels of any dtype as uint8, by the rule of Hugging Face's resize.

    Whole numbers in 0..255 are taken as they are; other values in [0, 1] are multiplied by 255 and truncated, and the
    second result is True. Anything else is a ValueError.
    """
    if pixels.dtype == np.uint8:
        return pixels, False
    low, high = pixels.min(), pixels.max()
    if low >= 0 and high <= 255:
        if pixels.dtype.kind in "iu" or np.allclose(pixels, pixels.astype(np.int64)):
            return pixels.astype(np.uint8), False
        if high <= 1:
            # Through float32, and truncated: bit for bit what Hugging Face resizes.
            return (pixels.astype(np.float64) * 255).astype(np.float32).astype(np.uint8), True
    raise ValueError(
        f"{name}: got {pixels.dtype} pixels in [{low}, {high}], which cannot be resized as 8-bit; "
        f"wanted whole numbers in 0..255 or floats in [0, 1] (or do_resize=False){hint}"
    )


def _open(path: str | bytes, name: str) -> Image.Image:
    path = os.fsdecode(path)
    if path.startswith(("http://", "https://", "data:")):
        raise ValueError(f"{name}: got {path[:60]!r}, wanted a local file; download the image first")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name}: no such file: {path!r}")
    if not os.path.isfile(path):
        kind = "directory" if os.path.isdir(path) else "pipe or a device"
        raise ValueError(f"{name}: {path!r} is a {kind}, wanted an image file")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{name}: {path!r} is empty")
    with open(path, "rb") as file:
        content = io.BytesIO(file.read())  # from a file, Pillow takes as much memory as a damaged header asks for
    return _open_file(content, f"{name}: {path!r}")


def open_bytes(content: bytes, name: str = "images") -> Image.Image:
    """The RGB image in the bytes of a file; raises as `decode_rgb`."""
    return _open_file(io.BytesIO(content), f"{name}: a file of {len(content)} bytes")


def _open_file(file: io.BytesIO, where: str) -> Image.Image:
    try:
        image = Image.open(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(_bomb_message(where, str(error).partition(",")[0])) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{where} is not an image that Pillow can read") from error
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # a broken header fails with whatever its format's reader raises
        raise ValueError(f"{where} is damaged or truncated ({error})") from error
    with image:
        _check_pixel_count(image, where)
        _load(image, where)
        return _pil_to_rgb(_turn_upright(image), where)


def _load(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # as in _open; a PIL image is lazy until here
        if "Ghostscript" in str(error):
            raise ValueError(f"{name}: EPS needs Ghostscript, which was not found; convert it to PNG") from error
        raise ValueError(f"{name}: the image is damaged or truncated ({error})") from error


def _check_pixel_count(image: Image.Image, name: str) -> None:
    """Pillow only warns between its limit and twice the limit; a server must not decode such a file by accident."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(_bomb_message(name, f"{image.width}x{image.height} pixels, above {limit}"))


def _bomb_message(name: str, reason: str) -> str:
    return (
        f"{name} could be a decompression bomb ({reason}); "
        "make it smaller, or, if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS in Python (None: no limit)"
    )


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # EXIF blocks are often broken in ways of their own; the pixels are fine without them
        return image
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _pil_to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise ValueError(f"{name}: got an image of size {image.width}x{image.height}, wanted at least 1x1")
    _load(image, name)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_integers_to_bytes(np.asarray(image), name)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_floats_to_bytes(np.asarray(image), name)).convert("RGB")
    if image.mode == "La":  # Pillow has no direct way from premultiplied grey
        image = image.convert("LA")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; the direct way warns about the transparency
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name}: an image of mode {image.mode!r} cannot become RGB ({error})") from error


def _integers_to_bytes(values: np.ndarray, name: str) -> np.ndarray:
    """Modes I and I;16: 16-bit by their type, 32-bit by their largest value."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"{name}: got integer pixels in [{low}, {high}], wanted 0..255 or 0..65535")
    return values.astype(np.uint8) if values.dtype.itemsize > 2 and high <= 255 else _sixteen_to_eight(values)


def _floats_to_bytes(values: np.ndarray, name: str) -> np.ndarray:
    _check_finite(values, name)
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        raise ValueError(f"{name}: got float pixels in [{low}, {high}], wanted [0, 1] or 0..255")
    is_unit = high <= 1 and not np.array_equal(values, np.rint(values))
    return np.rint(values * 255 if is_unit else values).astype(np.uint8)


def _sixteen_to_eight(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # round(v / 257); 257 is odd: no ties


def _tensor_to_array(tensor: torch.Tensor, name: str) -> np.ndarray:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse"
        raise ValueError(f"{name}: got a {kind} tensor, wanted one that holds its values")
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name}: got a tensor of {tensor.dtype}, wanted integers, floats or bool")
    _check_shape(tensor.shape, name)
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16


def _array_to_rgb(array: np.ndarray, input_data_format: str | None, name: str) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name}: got an array of dtype {array.dtype}, wanted integers, floats or bool")
    if array.ndim not in (2, 3):
        raise ValueError(f"{name}: got an array of shape {array.shape}, wanted (H, W), (H, W, C) or (C, H, W)")
    if array.size == 0:
        raise ValueError(f"{name}: got an array of shape {array.shape}, wanted at least one pixel")
    _check_shape(array.shape, name)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 2:
        array = array[:, :, None]
    elif _channel_axis(array.shape, input_data_format, name) == 0:
        array = array.transpose(1, 2, 0)
    if array.shape[2] != 3:
        colours = array[:, :, :1] if array.shape[2] < 3 else array[:, :, :3]
        array = np.broadcast_to(colours, array.shape[:2] + (3,))
    if array.dtype.kind == "f":
        _check_finite(array, name)
    if array.dtype == np.uint16:
        if array.max() > 255:
            return _sixteen_to_eight(array)
        warnings.warn(
            f"{name}: uint16 pixels of at most 255 are taken as 8-bit ones, as Hugging Face does; pass uint8 to say so",
            stacklevel=2,
        )
        return array.astype(np.uint8)
    return array * np.uint8(255) if array.dtype == np.bool_ else array


def _check_shape(shape: Sequence[int], name: str) -> None:
    """An array may be a view that holds less than its shape says, and be copied whole."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and math.prod(shape) > limit * _CHANNELS[-1]:
        raise ValueError(_bomb_message(f"{name}: an array of shape {tuple(shape)}", f"above {limit} pixels"))


def _check_finite(values: np.ndarray, name: str) -> None:
    if not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise ValueError(f"{name}: got {count} NaN or infinite pixel values, wanted finite ones")


def _channel_axis(shape: tuple[int, ...], input_data_format: str | None, name: str) -> int:
    """The channel axis, 0 or 2: given, or inferred (1 or 3 channels before 2 or 4, the first axis before the last)."""
    given = check_data_format(input_data_format, "input_data_format")
    if given is not None:
        axis = 0 if given == "channels_first" else 2
        if shape[axis] not in _CHANNELS:
            raise ValueError(f"{name}: got shape {shape} as {given}, wanted 1, 2, 3 or 4 channels")
        return axis
    for counts in ((1, 3), _CHANNELS):
        first, last = shape[0] in counts, shape[2] in counts
        if first and last:
            warnings.warn(
                f"{name}: shape {shape} may be (C, H, W) or (H, W, C); the first is assumed, as Hugging Face does. "
                "Pass input_data_format to choose.",
                stacklevel=2,
            )
        if first or last:
            return 0 if first else 2
    raise ValueError(f"{name}: got shape {shape}, wanted (H, W, C) or (C, H, W) with 1, 2, 3 or 4 channels")


def check_data_format(value: Any, argument: str) -> str | None:
    """A channel layout as a plain string, or None; "none" (greyscale) counts as None. ValueError for another value."""
    value = getattr(value, "value", value)
    if value not in (None, "channels_first", "channels_last", "none"):
        raise ValueError(f'{argument}: got {value!r}, wanted "channels_first", "channels_last" or None')
    return None if value == "none" else value
