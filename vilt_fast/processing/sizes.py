"""What size a picture is resized to."""

from __future__ import annotations

from typing import Any

# The longer side is limited by COCO's usual shape, 1333 x 800 (ViLT paper, section 4.2).
_LONGER, _SHORTER = 1333, 800


def resize_size(height: int, width: int, shortest_edge: int = 384, size_divisor: int = 32) -> tuple[int, int]:
    """The size (height, width) in pixels that a picture is resized to.

    The shorter side becomes `shortest_edge`; if the longer one then exceeds int(1333 / 800 * shortest_edge), it
    becomes that; both are rounded and floored to multiples of `size_divisor`. A side may come out 0. The order of the
    float operations is that of transformers 4.37 (and of the PIL class of 5.x): it decides between two sizes.
    """
    longest = int(_LONGER / _SHORTER * shortest_edge)
    scale = shortest_edge / min(height, width)
    new_height: float = shortest_edge if height < width else scale * height
    new_width: float = scale * width if height < width else shortest_edge
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = scale * new_height, scale * new_width
    height, width = (int(side + 0.5) // size_divisor * size_divisor for side in (new_height, new_width))
    return height, width


def target_size(name: str, height: int, width: int, settings: Any) -> tuple[int, int]:
    """`resize_size` by an image processor's settings. ValueError, which calls the image `name`, where a side is 0."""
    size = resize_size(height, width, settings.size["shortest_edge"], settings.size_divisor)
    if 0 in size:
        raise ValueError(
            f"{name}: a picture of {height}x{width} (height x width) is too elongated: its shorter side becomes 0 when "
            f"the longer one is limited and both are floored to multiples of {settings.size_divisor}; crop or pad it"
        )
    return size
