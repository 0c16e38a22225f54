"""The settings of the image processor: their names, their order, and what each may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Settings:
    """The settings of one call, as plain Python values that JSON can hold; see `ViltImageProcessor`.

    Raises:
        ValueError: a value is out of range; the message names the setting.
    """

    do_resize: bool
    size: Any  # {"shortest_edge": pixels}
    size_divisor: int
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: Any  # a number, or a list of 3
    image_std: Any
    do_pad: bool

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))


# In Hugging Face's order of arguments.
SETTINGS = tuple(field.name for field in fields(Settings))


def _check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: got {value!r}, wanted True or False")
    return bool(value)


def _check_size(name: str, value: Any) -> dict[str, int]:
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


_CHECKS = {
    "do_resize": _check_flag,
    "size": _check_size,
    "size_divisor": _check_positive,
    "resample": _check_resample,
    "do_rescale": _check_flag,
    "rescale_factor": _check_number,
    "do_normalize": _check_flag,
    "image_mean": _check_channels,
    "image_std": _check_channels,
    "do_pad": _check_flag,
}
