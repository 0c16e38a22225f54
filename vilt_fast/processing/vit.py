"""Images -> `pixel_values` of ViT and DeiT, bit for bit what Hugging Face's PIL processors give."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .batch import BatchFeature
from .image import TYPE_KEYS, ImageProcessor, family_of
from .settings import Settings, check_crop_size, check_flag, setting

# What a file of DeiT's means where it does not say.
_DEIT = {"size": 256, "resample": Image.Resampling.BICUBIC, "do_center_crop": True, "crop_size": 224}


def _check_convert_rgb(name: str, value: Any) -> bool:
    if not check_flag(name, value):
        warnings.warn(f"{name}: got False, but every image becomes RGB, which ViT takes", stacklevel=2)
    return bool(value)


@dataclass(eq=False, repr=False)
class ViTSettings(Settings):
    """See `ViTImageProcessor`."""

    do_convert_rgb: bool | None = setting(None, _check_convert_rgb, None, is_optional=True)
    do_center_crop: bool = setting(False, check_flag, False, is_optional=True)
    crop_size: Any = setting(None, check_crop_size, None, is_optional=True)  # {"height": pixels, "width": pixels}
    rescale_in_float64: bool = setting(True, check_flag, True, is_optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.do_center_crop and self.crop_size is None:
            raise ValueError("crop_size: got None with do_center_crop=True, wanted pixels or (height, width)")

    def _crop(self) -> tuple[int, int] | None:
        return (self.crop_size["height"], self.crop_size["width"]) if self.do_center_crop else None

    def _rescale(self, values: np.ndarray, factor: float) -> np.ndarray:
        if self.rescale_in_float64:
            return super()._rescale(values, factor)
        return (values * float(factor)).astype(np.float32)  # in float64 all the same for integers


class ViTImageProcessor(ImageProcessor, ViTSettings):
    """Resize, rescale and normalise images for ViT, with the PIL arithmetic of transformers 5.17.

    Output equals transformers' PIL classes of ViT and DeiT bit for bit for every RGB image. Beyond them, greyscale,
    palette, alpha and 16-bit images become RGB (see `vilt_fast.processing.decoding`), and `data_format` is honoured as
    in 4.37 (5.x ignores it).

    Args:
        do_resize: resize to `size`.
        size: {"height": pixels, "width": pixels}; a number for a square; a pair (height, width); or, for images that
            keep their shape, {"shortest_edge": pixels}, {"shortest_edge": pixels, "longest_edge": at most} or
            {"max_height": pixels, "max_width": pixels}. Default 224 x 224.
        resample: Pillow's filter, 0..5 or `PIL.Image.Resampling`; default bilinear.
        do_rescale: multiply by `rescale_factor` (default 1/255). Floats in [0, 1] need do_rescale=False.
        do_normalize: subtract `image_mean`, divide by `image_std`: a number, or one for each of the 3 channels; 0.5.
        do_convert_rgb: every image becomes RGB, whatever this says; False is warned of.
        do_center_crop: cut the centre of `crop_size` out after resizing, as DeiT does; zeros where there is no image
            (of which 4.37 has one too few where an odd number is missing).
        crop_size: a number for a square, a pair (height, width), or {"height": pixels, "width": pixels}.
        do_pad: pad with zeros at the bottom and right to the largest image, and return `pixel_mask`. transformers
            returns no mask.
        rescale_in_float64: as 5.x; False: in the image's own dtype, as 4.37, which differs in the last bits for
            float16 and float32 arrays that are not resized, and for nothing else but floats in [0, 1] rescaled again.
        default_to_square: whether a number as `size` means a square, and not the shorter side.
        kwargs: other settings from a preprocessor_config.json, kept and saved again.

    Raises:
        ValueError: a setting is out of range, or the settings are those of another family's class.
    """

    model_input_names = ["pixel_values"]

    _settings_class = ViTSettings
    _reader = "ViTImageProcessor"
    _without_effect = ("device", "disable_grouping", "image_seq_length")  # for Hugging Face's PIL class as well

    def __init__(
        self,
        do_resize: bool = True,
        size: int | Sequence[int] | Mapping[str, int] | None = None,
        resample: int | None = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        *,
        do_convert_rgb: bool | None = None,
        do_center_crop: bool | None = False,
        crop_size: int | Sequence[int] | Mapping[str, int] | None = None,
        do_pad: bool | None = False,
        rescale_in_float64: bool = True,
        default_to_square: bool | None = True,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("pad_size") is not None:
            raise ValueError(f"pad_size: got {kwargs['pad_size']!r}, wanted None: do_pad pads to the largest image")
        settings = {
            "do_resize": do_resize,
            "size": _meant_size(size, default_to_square),
            "resample": Image.Resampling.BILINEAR if resample is None else resample,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
            "do_convert_rgb": do_convert_rgb,
            "do_center_crop": do_center_crop,
            "crop_size": crop_size,
            "do_pad": do_pad,
            "rescale_in_float64": rescale_in_float64,
        }
        super().__init__(settings, kwargs)

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: int | Sequence[int] | Mapping[str, int] | None = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        return_tensors: str | None = None,
        data_format: str = "channels_first",
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Turn images into model inputs; a setting left None is the processor's own.

        Args:
            images: a path, a PIL image, a NumPy array or torch tensor (H, W), (H, W, C) or (C, H, W), a batch of
                these in four dimensions, or a list of these, nested or not.
            do_resize, ..., image_std: as for the constructor, for this call.
            return_tensors: "pt", "np", or None for lists of arrays.
            data_format: "channels_first" or "channels_last", the layout of `pixel_values`.
            input_data_format: the layout of 3-D arrays, where it should not be inferred.
            kwargs: the constructor's other settings, for this call.

        Returns:
            `pixel_values` (N, 3, H, W), float32 by default, and, with do_pad, `pixel_mask` (N, H, W) int64.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: an image cannot be used, named by its index; a setting is out of range; or images come out in
                several sizes, which form no tensor: with do_pad they do, and `pack` takes them as they are.
        """
        given = {
            "do_resize": do_resize,
            "size": size,
            "resample": resample,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
            **kwargs,
        }
        return self._preprocess(images, given, return_tensors, data_format, input_data_format)

    def _settings(self, method: str, **given: Any) -> Settings:
        default_to_square = given.pop("default_to_square", None)
        return super()._settings(method, **{**given, "size": _meant_size(given.get("size"), default_to_square)})

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Make a processor from saved settings, overridden by `kwargs`; DeiT's keep their meaning.

        Raises:
            TypeError: a keyword that is no setting, unless return_unused_kwargs=True returns them.
            ValueError: a setting is out of range, or the settings are another family's.
        """
        if isinstance(image_processor_dict, Mapping) and "DeiT" in map(
            family_of, map(image_processor_dict.get, TYPE_KEYS)
        ):
            unsaid = {name: value for name, value in _DEIT.items() if image_processor_dict.get(name) is None}
            image_processor_dict = {**image_processor_dict, **unsaid}
        return super().from_dict(image_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, with the class name that Hugging Face looks for: 4.37's ViT cuts nothing."""
        name = "DeiTImageProcessor" if self.do_center_crop else "ViTImageProcessor"
        return {**super().to_dict(), "image_processor_type": name}


class ViTFeatureExtractor(ViTImageProcessor):
    """The old name of `ViTImageProcessor`; deprecated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("ViTFeatureExtractor is deprecated; use ViTImageProcessor instead.", FutureWarning, stacklevel=2)
        super().__init__(*args, **kwargs)


def _meant_size(size: Any, default_to_square: Any) -> Any:
    """A size by itself: {"shortest_edge": size} for a number that is to be no square."""
    if default_to_square is None or check_flag("default_to_square", default_to_square):
        return size
    is_number = size is not None and not isinstance(size, Mapping | list | tuple)
    return {"shortest_edge": size} if is_number else size
