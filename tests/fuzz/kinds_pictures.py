"""Pictures of seven formats, decoded as the processor and the Engine do."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
from mutate import mutate_bytes
from PIL import Image, ImageOps
from registry import kind

from vilt_fast.processing.decoding import decode_rgb

# What each can hold, and how it is written.
_FORMATS = {
    "png": ("1 L P RGB RGBA I;16 LA", {}),
    "jpeg": ("L RGB CMYK", {"quality": 80}),
    "gif": ("L P RGB", {}),
    "bmp": ("1 L P RGB", {}),
    "tiff": ("1 L P RGB RGBA I;16 F CMYK", {}),
    "webp": ("RGB RGBA", {}),
    "ppm": ("1 L RGB", {}),
}


def _picture(name: str) -> None:
    def picture(rng: Random, folder: Path) -> None:
        path = folder / f"picture.{name}"
        unchanged = _write(rng, path, name)
        pixels = decode_rgb(path)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            if image.mode == "RGB":
                assert np.array_equal(pixels, np.asarray(ImageOps.exif_transpose(image)))
            if unchanged:
                assert pixels.shape[:2] == image.size[::-1]

    picture.__name__ = f"picture_{name}"
    kind(picture)


def _write(rng: Random, path: Path, name: str) -> bool:
    """A random picture, its bytes changed in most cases; whether they are not."""
    modes, options = _FORMATS[name]
    height, width = rng.randint(1, 40), rng.randint(1, 40)
    values = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mode = rng.choice(modes.split())
    image = Image.fromarray(values)
    image = image.convert("L").convert(mode) if mode in ("I;16", "F", "1", "LA") else image.convert(mode)
    if name == "tiff":
        options = {"compression": rng.choice((None, "tiff_lzw", "tiff_deflate", "packbits"))}
    image.save(path, name.upper(), **options)
    if rng.random() < 0.05:
        return True
    content = path.read_bytes()
    path.write_bytes(
        _mutate_chunk(rng, content) if name == "png" and rng.random() < 0.7 else mutate_bytes(rng, content)
    )
    return False


def _mutate_chunk(rng: Random, content: bytes) -> bytes:
    """One chunk of a PNG changed, with the checksum that goes with it: Pillow stops at one that is wrong."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    chosen = rng.randrange(len(chunks))
    chunks[chosen] = chunks[chosen][0], mutate_bytes(rng, chunks[chosen][1])
    parts = [struct.pack(">I", len(body)) + kind + body + _checksum(kind + body) for kind, body in chunks]
    return content[:8] + b"".join(parts)


def _checksum(content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content))


for _name in _FORMATS:
    _picture(_name)
