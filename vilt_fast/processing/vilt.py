"""Images -> `pixel_values` and `pixel_mask` of ViLT, bit for bit what Hugging Face's PIL processor gives."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from .batch import BatchFeature
from .image import ImageProcessor
from .settings import Settings, check_flag, check_positive, check_resample, check_shortest_edge, resize_size, setting

# Arguments of Hugging Face's classes that their PIL class of ViLT does not act on either.
WITHOUT_EFFECT = (
    *("crop_size", "default_to_square", "device", "disable_grouping", "do_center_crop", "do_convert_rgb"),
    *("image_seq_length", "pad_size"),
)
_OLD_DO_PAD = "pad_and_return_pixel_mask"


@dataclass(eq=False, repr=False)
class ViltSettings(Settings):
    """See `ViltImageProcessor`."""

    size: Any = setting(None, check_shortest_edge, 384)  # {"shortest_edge": pixels}
    size_divisor: int = setting(32, check_positive)
    resample: int = setting(Image.Resampling.BICUBIC, check_resample)
    do_pad: bool = setting(True, check_flag)

    _zero_side: ClassVar[str] = "the longer one is limited and both are floored to multiples of size_divisor"

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        return resize_size(height, width, self.size["shortest_edge"], self.size_divisor)


class ViltImageProcessor(ImageProcessor, ViltSettings):
    """Resize, rescale, normalise and pad images for ViLT, with the PIL arithmetic of transformers 4.37.

    Output equals transformers' PIL class bit for bit wherever that one accepts the image. Beyond it, greyscale,
    palette, alpha and 16-bit images become RGB (see `vilt_fast.processing.decoding`), and `data_format` is honoured
    as in 4.37 (5.x ignores it).

    Args:
        do_resize: scale the shorter side to `size`, see `resize_size`.
        size: {"shortest_edge": pixels} or the number itself.
        size_divisor: both sides become multiples of it.
        resample: Pillow's filter, 0..5 or `PIL.Image.Resampling`; default bicubic.
        do_rescale: multiply by `rescale_factor` (default 1/255). Floats in [0, 1] need do_rescale=False.
        do_normalize: subtract `image_mean`, divide by `image_std`: a number, or one for each of the 3 channels.
        do_pad: pad with zeros at the bottom and right to the largest image, and return `pixel_mask`.
        pad_and_return_pixel_mask: the old name of `do_pad`.
        kwargs: other settings from a preprocessor_config.json, kept and saved again.

    Raises:
        ValueError: a setting is out of range.
    """

    _settings_class = ViltSettings
    _reader = "ViltImageProcessor"
    _without_effect = WITHOUT_EFFECT
    _old_names = {_OLD_DO_PAD: "do_pad"}

    def __init__(
        self,
        do_resize: bool = True,
        size: int | Mapping[str, int] | None = None,
        size_divisor: int = 32,
        resample: int = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_pad: bool = True,
        **kwargs: Any,
    ) -> None:
        settings = {
            "do_resize": do_resize,
            "size": size,
            "size_divisor": size_divisor,
            "resample": resample,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
            "do_pad": kwargs.pop(_OLD_DO_PAD, do_pad),
        }
        super().__init__(settings, kwargs)

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: int | Mapping[str, int] | None = None,
        size_divisor: int | None = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_pad: bool | None = None,
        return_tensors: str | None = None,
        data_format: str = "channels_first",
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Turn images into model inputs; a setting left None is the processor's own.

        Args:
            images: a path, a PIL image, a NumPy array or torch tensor (H, W), (H, W, C) or (C, H, W), a batch of
                these in four dimensions, or a list of these. Nested lists are flattened, as in transformers 5.x;
                `pixel_values.unflatten(0, (batch, num_images))` gives them back.
            do_resize, ..., do_pad: as for the constructor, for this call.
            return_tensors: "pt", "np", or None for lists of arrays.
            data_format: "channels_first" or "channels_last", the layout of `pixel_values`.
            input_data_format: the layout of 3-D arrays, where it should not be inferred.

        Returns:
            `pixel_values` (N, 3, H, W), float32 by default, and, with do_pad, `pixel_mask` (N, H, W) int64.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: an image cannot be used, named by its index; or a setting is out of range.
        """
        given = {
            "do_resize": do_resize,
            "size": size,
            "size_divisor": size_divisor,
            "resample": resample,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
            "do_pad": do_pad,
            **kwargs,
        }
        return self._preprocess(images, given, return_tensors, data_format, input_data_format)


class ViltFeatureExtractor(ViltImageProcessor):
    """The old name of `ViltImageProcessor`; deprecated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn(
            "ViltFeatureExtractor is deprecated; use ViltImageProcessor instead.", FutureWarning, stacklevel=2
        )
        super().__init__(*args, **kwargs)
