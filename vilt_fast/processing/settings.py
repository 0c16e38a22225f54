"""What the settings of an image processor may be, those that all have, and the sizes that follow from them.

Each family's own stand with its processor, in vilt.py and vit.py.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from PIL import Image

# The longer side is limited by COCO's usual shape, 1333 x 800 (ViLT paper, section 4.2).
_LONGER, _SHORTER = 1333, 800
# The keys of ViT's sizes that transformers' PIL class can resize to.
_SIZES = (("height", "width"), ("shortest_edge",), ("shortest_edge", "longest_edge"), ("max_height", "max_width"))
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


def aspect_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """The size (height, width) in pixels of an image that keeps its shape, as transformers 5.17 computes it.

    A side may come out 0.

    Args:
        size: {"shortest_edge": pixels} of the shorter side, with "longest_edge" as a limit of the longer; or
            {"max_height": pixels, "max_width": pixels}, of which one is reached.
    """
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    shorter, longer = min(height, width), max(height, width)
    edge: float = size["shortest_edge"]
    new_longer = int(edge * longer / shorter)
    if "longest_edge" in size and longer / shorter * edge > size["longest_edge"]:
        # Rounded for the shorter side, unrounded for the longer, unless the shorter side has that length already.
        edge = size["longest_edge"] * shorter / longer
        new_longer = longer if round(edge) == shorter else int(edge * longer / shorter)
    new_shorter = round(edge)
    return (new_shorter, new_longer) if height <= width else (new_longer, new_shorter)


def check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: got {value!r}, wanted True or False")
    return bool(value)


def check_shortest_edge(name: str, value: Any) -> dict[str, int]:
    """A size of ViLT's: the shorter side."""
    if isinstance(value, Mapping) and "shortest_edge" in value:
        return {**value, "shortest_edge": _check_edge(f'{name}["shortest_edge"]', value["shortest_edge"])}
    if isinstance(value, Integral) and not isinstance(value, bool):
        return {"shortest_edge": _check_edge(name, value)}
    raise ValueError(f'{name}: got {value!r}, wanted {{"shortest_edge": pixels}} or a number of pixels')


def check_any_size(name: str, value: Any) -> dict[str, int]:
    """A size of ViT's: one of _SIZES, a number for a square, or a pair (height, width)."""
    if isinstance(value, Mapping):
        if set(value) not in map(set, _SIZES):
            sizes = "; ".join(", ".join(keys) for keys in _SIZES)
            raise ValueError(f"{name}: got {dict(value)!r}, wanted a dictionary with the keys of one of: {sizes}")
        checked = {key: check_positive(f'{name}["{key}"]', value[key]) for key in value}
        if "shortest_edge" in checked:
            _check_edge(f'{name}["shortest_edge"]', checked["shortest_edge"])
    else:
        checked = _check_rectangle(name, value)
    if "height" in checked:
        _check_pixels(f"{name}: got {value!r}", checked["height"], checked["width"])
    return checked


def check_crop_size(name: str, value: Any) -> dict[str, int]:
    """A number for a square, a pair (height, width), or a dictionary of both."""
    if isinstance(value, Mapping):
        if set(value) != {"height", "width"}:
            raise ValueError(f'{name}: got {dict(value)!r}, wanted {{"height": pixels, "width": pixels}}')
        value = value["height"], value["width"]
    checked = _check_rectangle(name, value)
    _check_pixels(f"{name}: got {value!r}", checked["height"], checked["width"])
    return checked


def _check_rectangle(name: str, value: Any) -> dict[str, int]:
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise ValueError(f"{name}: got {len(value)} numbers, wanted one or 2 (height, width)")
        height, width = value
    else:
        height = width = value
    return {"height": check_positive(name, height), "width": check_positive(name, width)}


def _check_edge(name: str, value: Any) -> int:
    """A shorter side of which not even a square image is too large."""
    edge = check_positive(name, value)
    _check_pixels(f"{name}: got {edge}", edge, edge)
    return edge


def _check_pixels(name: str, height: int, width: int) -> None:
    if height * width > _MOST_PIXELS:
        raise ValueError(f"{name}: an image would become {height}x{width} pixels, wanted at most {_MOST_PIXELS}")


def check_positive(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) < 2**31:
        raise ValueError(f"{name}: got {value!r}, wanted a positive integer below 2**31")
    return int(value)


def check_resample(name: str, value: Any) -> int:
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


def setting(default: Any, check: Callable[[str, Any], Any], none_means: Any = None, is_optional: bool = False) -> Any:
    """A setting.

    Args:
        check: its name and its value -> the value as plain Python, or ValueError.
        none_means: what None in a constructor stands for.
        is_optional: whether None is a value too (for a flag, False), and the default is left out of files.
    """
    metadata = {"check": check, "none_means": none_means, "is_optional": is_optional}
    return field(default=default, metadata=metadata)


@dataclass(eq=False, repr=False)
class Settings:
    """The settings that every family has, as plain Python values that JSON can hold.

    Raises:
        ValueError: a value is out of range; the message names the setting.
    """

    # No other methods without an underscore: a preprocessor_config.json may hold a key of any name, and it is kept.
    do_resize: bool = setting(True, check_flag)
    size: Any = setting(None, check_any_size, 224)
    resample: int = setting(Image.Resampling.BILINEAR, check_resample)
    do_rescale: bool = setting(True, check_flag)
    rescale_factor: float = setting(1 / 255, _check_number)
    do_normalize: bool = setting(True, check_flag)
    image_mean: Any = setting(None, _check_channels, (0.5, 0.5, 0.5))  # a number, or a list of 3
    image_std: Any = setting(None, _check_channels, (0.5, 0.5, 0.5))
    do_pad: bool = setting(False, check_flag, False, is_optional=True)

    _zero_side: ClassVar[str] = "the longer one is limited"

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            value = entry.metadata["none_means"] if value is None else value
            setattr(self, entry.name, check_setting(type(self), entry.name, value))
        _check_pixel_values(self)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The size (height, width) that an image is resized to; a side may come out 0."""
        if "height" in self.size:
            return self.size["height"], self.size["width"]
        return aspect_size(height, width, self.size)

    def _crop(self) -> tuple[int, int] | None:
        """The size (height, width) of the centre that is cut out; None: all stays."""
        return None

    def _rescale(self, values: np.ndarray, factor: float) -> np.ndarray:
        """Pixels times a factor, in float32; 5.x multiplies in float64 and rounds once."""
        return (values.astype(np.float64) * factor).astype(np.float32)


def target_size(settings: Settings, name: str, height: int, width: int) -> tuple[int, int]:
    """The size (height, width) that an image is resized to, which errors call `name`.

    Raises:
        ValueError: a side would be 0, or the image too large.
    """
    size = settings._resized(height, width)
    if 0 in size:
        raise ValueError(
            f"{name}: an image of {height}x{width} (height x width) is too elongated: its shorter side becomes 0 when "
            f"{settings._zero_side}; crop or pad it"
        )
    _check_pixels(name, *size)
    return size


def output_size(settings: Settings, name: str, height: int, width: int) -> tuple[int, int]:
    """The size (height, width) that an image comes out with, resized and cut; raises as `target_size`."""
    resized = target_size(settings, name, height, width) if settings.do_resize else (height, width)
    return settings._crop() or resized


def setting_names(kind: type[Settings]) -> tuple[str, ...]:
    """The settings of a family."""
    return tuple(entry.name for entry in fields(kind))


def check_setting(kind: type[Settings], name: str, value: Any) -> Any:
    """The value as `Settings` holds it. None is no value but for the optional ones: it is a constructor's default.

    Raises:
        ValueError: the value is out of range; the message names the setting.
    """
    about = kind.__dataclass_fields__[name].metadata
    if value is None and about["is_optional"]:
        return about["none_means"]
    return about["check"](name, value)


def to_save(settings: Settings) -> dict[str, Any]:
    """A copy of all attributes, but for optional settings that have their defaults."""
    optional = {entry.name: entry.default for entry in fields(settings) if entry.metadata["is_optional"]}
    every = copy.deepcopy(settings.__dict__)
    return {name: value for name, value in every.items() if name not in optional or value != optional[name]}
