"""The settings of the image processor: their names, their order, and what each may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from PIL import Image


def _check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: got {value!r}, wanted True or False")
    return bool(value)


def _check_size(name: str, value: Any) -> dict[str, int]:
    value = 384 if value is None else value
    if isinstance(value, Mapping) and "shortest_edge" in value:
        return {**value, "shortest_edge": _check_positive(f'{name}["shortest_edge"]', value["shortest_edge"])}
    if isinstance(value, Integral) and not isinstance(value, bool):
        return {"shortest_edge": _check_positive(name, value)}
    raise ValueError(f'{name}: got {value!r}, wanted {{"shortest_edge": pixels}} or a number of pixels')


def _check_positive(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: got {value!r}, wanted a positive integer")
    return int(value)


def _check_resample(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value not in list(Image.Resampling):
        raise ValueError(f"{name}: got {value!r}, wanted a filter of Pillow: {list(Image.Resampling)}")
    return int(value)


def _check_number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name}: got {value!r}, wanted a finite number")
    return int(value) if isinstance(value, Integral) else float(value)


def _check_channels(name: str, value: Any) -> float | list[float]:
    value = (0.5, 0.5, 0.5) if value is None else value
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


def _setting(default: Any, check: Callable[[str, Any], Any]) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(eq=False, repr=False)
class Settings:
    """All settings, as plain Python values that JSON can hold; see `ViltImageProcessor`.

    Raises:
        ValueError: a value is out of range; the message names the setting.
    """

    # In Hugging Face's order of arguments.
    do_resize: bool = _setting(True, _check_flag)
    size: Any = _setting(None, _check_size)  # {"shortest_edge": pixels}
    size_divisor: int = _setting(32, _check_positive)
    resample: int = _setting(Image.Resampling.BICUBIC, _check_resample)
    do_rescale: bool = _setting(True, _check_flag)
    rescale_factor: float = _setting(1 / 255, _check_number)
    do_normalize: bool = _setting(True, _check_flag)
    image_mean: Any = _setting(None, _check_channels)  # a number, or a list of 3
    image_std: Any = _setting(None, _check_channels)
    do_pad: bool = _setting(True, _check_flag)

    def __post_init__(self) -> None:
        for entry in fields(self):
            setattr(self, entry.name, entry.metadata["check"](entry.name, getattr(self, entry.name)))


SETTINGS = tuple(entry.name for entry in fields(Settings))
