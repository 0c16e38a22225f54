"""The settings of the image processor: their names, their order, what each may be, and the sizes that follow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from PIL import Image

# The longer side is limited by COCO's usual shape, 1333 x 800 (ViLT paper, section 4.2).
_LONGER, _SHORTER = 1333, 800
# Of a resized image: 1.2 GB in float32. ViLT's have 250,000.
_MOST_PIXELS = 100_000_000
_LARGEST: Any = sys.float_info.max


def resize_size(height: int, width: int, shortest_edge: int = 384, size_divisor: int = 32) -> tuple[int, int]:
    """The size (height, width) in pixels that an image is resized to.

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


def _check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: got {value!r}, wanted True or False")
    return bool(value)


def _check_size(name: str, value: Any) -> dict[str, int]:
    if isinstance(value, Mapping) and "shortest_edge" in value:
        return {**value, "shortest_edge": _check_edge(f'{name}["shortest_edge"]', value["shortest_edge"])}
    if isinstance(value, Integral) and not isinstance(value, bool):
        return {"shortest_edge": _check_edge(name, value)}
    raise ValueError(f'{name}: got {value!r}, wanted {{"shortest_edge": pixels}} or a number of pixels')


def _check_edge(name: str, value: Any) -> int:
    """A shorter side of which not even a square image is too large."""
    edge = _check_positive(name, value)
    _check_pixels(f"{name}: got {edge}", edge, edge)
    return edge


def _check_pixels(name: str, height: int, width: int) -> None:
    if height * width > _MOST_PIXELS:
        raise ValueError(f"{name}: an image would become {height}x{width} pixels, wanted at most {_MOST_PIXELS}")


def _check_positive(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) < 2**31:
        raise ValueError(f"{name}: got {value!r}, wanted a positive integer below 2**31")
    return int(value)


def _check_resample(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value not in list(Image.Resampling):
        raise ValueError(f"{name}: got {value!r}, wanted a filter of Pillow: {list(Image.Resampling)}")
    return int(value)


def _check_number(name: str, value: Any) -> float:
    # An integer may be beyond any float; it is compared with one all the same.
    if not isinstance(value, Real) or isinstance(value, bool) or not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{name}: got {value!r}, wanted a finite number")
    return int(value) if isinstance(value, Integral) else float(value)


def _check_channels(name: str, value: Any) -> float | list[float]:
    values = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(values, list | tuple):
        if len(values) != 3:
            raise ValueError(f"{name}: got {len(values)} numbers, wanted one or 3 (red, green, blue)")
        checked: Any = [_check_number(name, number) for number in values]
    else:
        checked = _check_number(name, values)
    if name == "image_std" and 0 in (checked if isinstance(checked, list) else [checked]):
        raise ValueError(f"{name}: got {value!r}, wanted numbers other than 0")
    return checked


def _check_pixel_values(settings: Settings) -> None:
    """Refuse settings that are in range each and make infinite pixels together."""
    with np.errstate(all="ignore"):
        values = np.array([[0.0, 255.0]]) * (settings.rescale_factor if settings.do_rescale else 1.0)
        values = values.astype(np.float32)
        if settings.do_normalize:
            mean, std = (
                np.array(value, np.float32).reshape(-1, 1) for value in (settings.image_mean, settings.image_std)
            )
            values = (values - mean) / std
    if not np.isfinite(values).all():
        raise ValueError(
            f"rescale_factor, image_mean, image_std: got {settings.rescale_factor}, {settings.image_mean}, "
            f"{settings.image_std}, which make pixels infinite; wanted values such as 1/255, 0.5, 0.5"
        )


def _setting(default: Any, check: Callable[[str, Any], Any], none_means: Any = None) -> Any:
    return field(default=default, metadata={"check": check, "none_means": none_means})


@dataclass(eq=False, repr=False)
class Settings:
    """All settings, as plain Python values that JSON can hold; see `ViltImageProcessor`.

    Raises:
        ValueError: a value is out of range; the message names the setting.
    """

    # In Hugging Face's order of arguments.
    do_resize: bool = _setting(True, _check_flag)
    size: Any = _setting(None, _check_size, 384)  # {"shortest_edge": pixels}
    size_divisor: int = _setting(32, _check_positive)
    resample: int = _setting(Image.Resampling.BICUBIC, _check_resample)
    do_rescale: bool = _setting(True, _check_flag)
    rescale_factor: float = _setting(1 / 255, _check_number)
    do_normalize: bool = _setting(True, _check_flag)
    image_mean: Any = _setting(None, _check_channels, (0.5, 0.5, 0.5))  # a number, or a list of 3
    image_std: Any = _setting(None, _check_channels, (0.5, 0.5, 0.5))
    do_pad: bool = _setting(True, _check_flag)

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            value = entry.metadata["none_means"] if value is None else value
            setattr(self, entry.name, check_setting(entry.name, value))
        _check_pixel_values(self)


def target_size(settings: Settings, name: str, height: int, width: int) -> tuple[int, int]:
    """`resize_size` of an image, which errors call `name`.

    Raises:
        ValueError: a side would be 0.
    """
    # No method: a preprocessor_config.json may hold a key of any name, which becomes an attribute.
    size = resize_size(height, width, settings.size["shortest_edge"], settings.size_divisor)
    if 0 in size:
        raise ValueError(
            f"{name}: an image of {height}x{width} (height x width) is too elongated: its shorter side becomes 0 when "
            f"the longer one is limited and both are floored to multiples of {settings.size_divisor}; crop or pad it"
        )
    _check_pixels(name, *size)
    return size


SETTINGS = tuple(entry.name for entry in fields(Settings))
_CHECKS = {entry.name: entry.metadata["check"] for entry in fields(Settings)}


def check_setting(name: str, value: Any) -> Any:
    """The value as `Settings` holds it. None is no value: it stands for the default in a constructor alone.

    Raises:
        ValueError: the value is out of range; the message names the setting.
    """
    return _CHECKS[name](name, value)
