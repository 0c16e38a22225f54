"""Draws a scene: antialiased shapes with an outline, soft light and a soft shadow, on a textured ground."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .scene import Scene, Thing

RGB = {
    "red": (214, 40, 44),
    "orange": (244, 134, 24),
    "yellow": (250, 216, 44),
    "green": (44, 156, 62),
    "blue": (38, 88, 212),
    "purple": (140, 52, 170),
    "white": (246, 246, 244),
    "black": (26, 26, 30),
}
SUPERSAMPLING = 4


def _regular(points: int, start: float) -> np.ndarray:
    turn = start + 2 * np.pi * np.arange(points) / points
    return np.stack([np.cos(turn), np.sin(turn)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    outline = np.stack([x, y - (y.min() + y.max()) / 2], axis=1)
    return outline / np.hypot(*outline.T).max()


def _star() -> np.ndarray:
    outline = _regular(10, -np.pi / 2)
    outline[1::2] *= 0.46
    return outline


# Unit outlines, whose farthest point is at distance 1 from the middle. (points, 2)
OUTLINES = {
    "circle": _regular(72, 0.0),
    "square": _regular(4, np.pi / 4),
    "triangle": _regular(3, -np.pi / 2),
    "star": _star(),
    "heart": _heart(),
}


def outline(thing: Thing) -> np.ndarray:
    """Corners of a thing relative to its middle, in units of the image's shorter side. (points, 2)"""
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    return OUTLINES[thing.shape] @ np.array([[cos, sin], [-sin, cos]]) * thing.reach


def render(scene: Scene, short_side: int) -> Image.Image:
    """The scene as an RGB image whose shorter side has `short_side` pixels. ValueError if that is below 16."""
    if short_side < 16:
        raise ValueError(f"short_side: got {short_side}, wanted at least 16 pixels")
    width, height = round(scene.width * short_side), round(scene.height * short_side)
    rng = np.random.default_rng(scene.texture_seed)
    picture = _ground(scene.ground, rng, width, height, short_side)
    for thing in scene.things:
        color = np.array(RGB[thing.color], np.float32) + rng.uniform(-9, 9, 3).astype(np.float32)
        _draw_thing(picture, thing, color, short_side)
    return Image.fromarray(np.clip(picture + 0.5, 0, 255).astype(np.uint8), "RGB")


def _ground(kind: str, rng: np.random.Generator, width: int, height: int, unit: int) -> np.ndarray:
    """A muted ground of medium brightness, so that every colour stands out. (height, width, 3) float32"""
    base = rng.uniform(112, 178) + rng.uniform(-16, 16, 3)
    contrast = rng.uniform(8, 20)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / unit
    turn = rng.uniform(0, np.pi)
    along = np.cos(turn) * x + np.sin(turn) * y
    period = rng.uniform(0.08, 0.25)
    if kind == "noise":
        wave = rng.standard_normal((height, width)) * 0.6
    elif kind == "clouds":
        coarse = Image.fromarray(rng.standard_normal((6, 6)).astype(np.float32), "F")
        wave = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    elif kind == "stripes":
        wave = np.clip(np.sin(2 * np.pi * along / period) * 3, -1, 1)
    elif kind == "gradient":
        wave = 2.6 * (along - along.min()) / (along.max() - along.min()) - 1.3
    elif kind == "checks":
        wave = np.clip(np.sin(np.pi * x / period) * np.sin(np.pi * y / period) * 6, -1, 1)
    else:
        wave = np.clip(5 * (np.cos(2 * np.pi * x / period) + np.cos(2 * np.pi * y / period)) - 5, -1, 1)
    tint = 1 + rng.uniform(-0.25, 0.25, 3)
    return (base + contrast * wave[..., None] * tint).astype(np.float32)


def _draw_thing(picture: np.ndarray, thing: Thing, color: np.ndarray, unit: int) -> None:
    """Blend shadow, outline and lit surface of one thing into `picture`, in place."""
    corners = outline(thing) * unit
    middle = np.array([thing.x, thing.y]) * unit
    half = int(np.ceil(thing.reach * unit * 1.15)) + 2
    left, top = int(middle[0]) - half, int(middle[1]) - half
    side = 2 * half
    local = corners + middle - (left, top)
    inner = corners * (1 - 0.022 / thing.size) + middle - (left, top)
    y0, y1 = max(top, 0), min(top + side, picture.shape[0])
    x0, x1 = max(left, 0), min(left + side, picture.shape[1])
    window = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]

    whole, face = _coverage(local, side)[window], _coverage(inner, side)[window]
    shadow = _coverage(local + 0.02 * unit, side, scale=1)[window] * 0.22
    area = picture[y0:y1, x0:x1]
    area *= 1 - shadow[..., None]
    light = 1.1 - 0.22 * (np.arange(y0 - top, y1 - top, dtype=np.float32) / side)  # brighter at the top
    edge = color * 0.62 if color.mean() > 60 else color + 34
    area += whole[..., None] * (edge - area)
    area += face[..., None] * (color * light[:, None, None] - area)


def _coverage(corners: np.ndarray, side: int, scale: int = SUPERSAMPLING) -> np.ndarray:
    """The share of each pixel that lies inside a polygon. (side, side) float32 in 0..1"""
    canvas = Image.new("L", (side * scale, side * scale))
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in (corners * scale).tolist()], fill=255)
    if scale > 1:
        canvas = canvas.reduce(scale)
    return np.asarray(canvas, np.float32) / 255
