"""Images -> `pixel_values` and `pixel_mask`, bit for bit what Hugging Face's PIL processor of ViLT gives."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from vilt_fast import ops
from vilt_fast.checkpoints.arguments import as_device
from vilt_fast.checkpoints.files import directory_path, naming, read_json, write_atomically
from vilt_fast.checkpoints.hub import is_file, local_path
from vilt_fast.pixels import PackedPixels

from .batch import BatchFeature, tensor_kind
from .decoding import Decoded, check_data_format, decode, decode_all, flatten_images
from .saving import find_json, split_options, to_json, write_files
from .settings import SETTINGS, Settings, check_setting, target_size

# Arguments of Hugging Face's classes that their PIL class of ViLT does not act on either.
WITHOUT_EFFECT = (
    "crop_size default_to_square device disable_grouping do_center_crop do_convert_rgb image_seq_length pad_size"
).split()
# What transformers writes into a config beside the settings.
_BOOKKEEPING = (
    "feature_extractor_type image_processor_class image_processor_type name_or_path processor_class"
).split()
_OLD_DO_PAD = "pad_and_return_pixel_mask"


class _Prepared(NamedTuple):
    """One image ready to be written into the batch."""

    pixels: np.ndarray  # (3, H, W), uint8 where there is a table
    table: np.ndarray | None  # (3, 256): what each channel's byte becomes; None: the pixels are final


class ViltImageProcessor(Settings):
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

    model_input_names = ["pixel_values", "pixel_mask"]

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
        super().__init__(
            do_resize=do_resize,
            size=size,
            size_divisor=size_divisor,
            resample=resample,
            do_rescale=do_rescale,
            rescale_factor=rescale_factor,
            do_normalize=do_normalize,
            image_mean=image_mean,
            image_std=image_std,
            do_pad=kwargs.pop(_OLD_DO_PAD, do_pad),
        )
        for name, value in kwargs.items():
            if name not in _BOOKKEEPING and not name.startswith("_"):
                if callable(getattr(type(self), name, None)):
                    raise ValueError(f"{name}: is no setting of {type(self).__name__}")
                setattr(self, name, value)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """The same as `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

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
        chosen = self._settings(
            "preprocess",
            do_resize=do_resize,
            size=size,
            size_divisor=size_divisor,
            resample=resample,
            do_rescale=do_rescale,
            rescale_factor=rescale_factor,
            do_normalize=do_normalize,
            image_mean=image_mean,
            image_std=image_std,
            do_pad=do_pad,
            **kwargs,
        )
        kind = tensor_kind(return_tensors)
        check_data_format(input_data_format, "input_data_format")
        layout = check_data_format(data_format, "data_format") or "channels_first"
        prepared = [_prepare(name, image, input_data_format, chosen) for name, image in flatten_images(images)]
        return _assemble(prepared, chosen.do_pad, layout, kind)

    def pack(
        self,
        images: Any,
        *,
        device: torch.device | str | int = "cpu",
        picture: Any = None,
        input_data_format: str | None = None,
        **overrides: Any,
    ) -> PackedPixels:
        """Turn images into packed bytes on `device`, which a model takes as `pixel_values` without a pixel mask.

        The bytes are those that `preprocess` normalises, bit for bit; the model folds the normalisation into its
        projection. On a GPU nothing is waited for: the decoded bytes go there in one copy from pinned memory.

        Args:
            images, input_data_format: as for `preprocess`.
            device: where the images are resized, and stay.
            picture: which image each pair looks at, where several texts are about one; see `PackedPixels`.
            overrides: settings, as for `preprocess`; do_pad has no effect.

        Raises:
            FileNotFoundError, ValueError: as from `preprocess`; ValueError also for what bytes cannot hold: a filter
                other than bicubic, floats without resizing that are not whole numbers in 0..255, floats in [0, 1]
                beside 8-bit images.
            TypeError: an argument that is no setting.
        """
        settings = self._settings("pack", **overrides)
        device = as_device(device) or torch.device("cpu")
        if settings.do_resize and settings.resample != Image.Resampling.BICUBIC:
            raise ValueError(
                f"resample: got {Image.Resampling(settings.resample).name}, wanted BICUBIC, the only filter that "
                "packed images are resized with; call without device for the others"
            )
        names, decoded = decode_all(images, input_data_format)
        factor = _packed_factor(names, decoded, settings)
        arrays, sizes = [item.array for item in decoded], [item.size for item in decoded]
        flat = torch.empty(sum(map(np.size, arrays)), dtype=torch.uint8, pin_memory=device.type == "cuda")
        np.concatenate([array.reshape(-1) for array in arrays], out=flat.numpy())
        data = flat.to(device, non_blocking=True)
        if settings.do_resize:
            sizes = [target_size(settings, name, *size) for name, size in zip(names, sizes, strict=True)]
            data, _ = ops.resize_packed(data, [array.shape for array in arrays], sizes)
        mean, std = (settings.image_mean, settings.image_std) if settings.do_normalize else ((0.0,) * 3, (1.0,) * 3)
        return PackedPixels(data, tuple(sizes), mean, std, factor, picture)

    def _settings(self, method: str, **given: Any) -> Settings:
        """The settings of one call, checked: attributes may have been assigned since the constructor."""
        if _OLD_DO_PAD in given:
            given["do_pad"] = given.pop(_OLD_DO_PAD)
        unknown = sorted(set(given) - {*SETTINGS, *WITHOUT_EFFECT})
        if unknown:
            raise TypeError(f"{method}() got an unexpected keyword argument {unknown[0]!r}")
        chosen = {name: getattr(self, name) if given.get(name) is None else given[name] for name in SETTINGS}
        return Settings(**{name: check_setting(name, value) for name, value in chosen.items()})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load the settings that transformers 4.37 or 5.x, or this class, saved.

        Args:
            pretrained_model_name_or_path: a directory, a hub id, or the path of a preprocessor_config.json.
            kwargs: settings to override; revision, cache_dir, token, local_files_only as in `find_file`;
                return_unused_kwargs=True returns (processor, keywords that are no settings).

        Raises:
            FileNotFoundError: there is neither processor_config.json (with an image_processor) nor
                preprocessor_config.json.
            ValueError: a file is no JSON, or a setting is out of range.
        """
        hub, overrides = split_options(kwargs)
        source, saved = _find_settings(pretrained_model_name_or_path, hub)
        with naming(source):
            return cls.from_dict(saved, **overrides)

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Make a processor from saved settings, overridden by `kwargs`.

        Raises:
            TypeError: a keyword that is no setting, unless return_unused_kwargs=True returns them.
            ValueError: a setting is out of range.
        """
        if not isinstance(image_processor_dict, Mapping) or "self" in image_processor_dict:
            got = type(image_processor_dict).__name__
            raise ValueError(f"image_processor: got a {got}, wanted a dictionary of settings (none is called self)")
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        known = {*SETTINGS, *WITHOUT_EFFECT, *image_processor_dict, _OLD_DO_PAD}
        unused = {name: value for name, value in kwargs.items() if name not in known}
        if unused and not wants_unused:
            raise TypeError(f"from_dict() got an unexpected keyword argument {min(unused)!r}")
        settings = {**image_processor_dict, **kwargs}
        if "do_pad" in kwargs:  # the newer name was overridden, the saved older one must not win
            settings.pop(_OLD_DO_PAD, None)
        processor = cls(**{name: value for name, value in settings.items() if name not in unused})
        return (processor, unused) if wants_unused else processor

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, with the class name that Hugging Face looks for."""
        return {**copy.deepcopy(self.__dict__), "image_processor_type": "ViltImageProcessor"}

    def to_json_string(self) -> str:
        """The settings as JSON text."""
        return to_json(self.to_dict())

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        """A processor from a JSON file of any name; errors as from `from_dict`, and ValueError where it is no JSON."""
        with naming(json_file):
            return cls.from_dict(read_json(json_file))

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write `to_json_string` into a file, whole or not at all."""
        write_atomically(json_file_path, self.to_json_string())

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write preprocessor_config.json, whole or not at all, and return the path.

        A processor_config.json with an image_processor in the same directory is brought up to date, because every
        reader prefers it.

        Raises:
            ValueError: the directory is a file.
            OSError: the file could not be written; the old one stays.
        """
        return write_files(save_directory, self.files_to_save(save_directory))

    def files_to_save(self, save_directory: str | os.PathLike[str]) -> dict[str, str]:
        """The files of `save_pretrained` (name -> text), for a caller that writes more together with them."""
        files = {"preprocessor_config.json": self.to_json_string()}
        unified = directory_path(save_directory, "save_directory") / "processor_config.json"
        if unified.is_file():
            content = read_json(unified)
            if "image_processor" in content:
                files[unified.name] = to_json({**content, "image_processor": self.to_dict()})
        return files

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


class ViltFeatureExtractor(ViltImageProcessor):
    """The old name of `ViltImageProcessor`; deprecated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn(
            "ViltFeatureExtractor is deprecated; use ViltImageProcessor instead.", FutureWarning, stacklevel=2
        )
        super().__init__(*args, **kwargs)


def _find_settings(name_or_path: str | os.PathLike[str], hub: dict[str, Any]) -> tuple[str, Any]:
    """The file that holds the settings, and the settings."""
    if is_file(local_path(name_or_path)):
        content: Any = read_json(name_or_path)
        return str(name_or_path), content.get("image_processor", content)
    # 5.x nests the settings in processor_config.json and reads that first.
    nested = (find_json(name_or_path, "processor_config.json", **hub) or {}).get("image_processor")
    if nested is not None:
        return f"{name_or_path}/processor_config.json", nested
    saved = find_json(name_or_path, "preprocessor_config.json", **hub)
    if saved is None:
        raise FileNotFoundError(
            f"{name_or_path}: no preprocessor_config.json, and no processor_config.json with an image_processor"
        )
    return f"{name_or_path}/preprocessor_config.json", saved


def _packed_factor(names: Sequence[str], decoded: Sequence[Decoded], settings: Settings) -> float:
    """The one number that takes bytes to pixels, for all images of the batch."""
    for name, item in zip(names, decoded, strict=True):
        if not settings.do_resize and not item.is_exact:
            raise ValueError(
                f"{name}: got floats that are not whole numbers in 0..255, which bytes cannot hold without rounding; "
                "call without device, or with do_resize=True, which rounds them"
            )
        if item.is_unit and settings.do_rescale:
            warnings.warn(_scaled_message(name), stacklevel=4)
        if item.is_unit != decoded[0].is_unit:
            raise ValueError(
                f"{name}, {names[0]}: one is floats in [0, 1], the other 8-bit, which packed images cannot hold side "
                "by side; convert one of them, or call without device"
            )
    factor = settings.rescale_factor if settings.do_rescale else 1.0
    return factor / 255 if decoded[0].is_unit else factor


def _scaled_message(name: str) -> str:
    """What to warn of where floats in [0, 1] are to be rescaled."""
    return f"{name}: the pixels are in [0, 1] already and will be scaled again; pass do_rescale=False"


def _prepare(name: str, source: Any, input_data_format: str | None, settings: Settings) -> _Prepared:
    decoded = decode(source, input_data_format, name, keep=not settings.do_resize)
    if settings.do_rescale and decoded.is_scaled:
        warnings.warn(_scaled_message(name), stacklevel=5)
    image = decoded.pixels
    if settings.do_resize:
        height, width = target_size(settings, name, *decoded.size)
        image = image if isinstance(image, Image.Image) else Image.fromarray(decoded.array)
        image = image.resize((width, height), resample=settings.resample)
    pixels = np.asarray(image).transpose(2, 0, 1)
    if pixels.dtype != np.uint8:
        return _Prepared(_arithmetic(pixels, settings), None)
    # Only 256 values can occur, so the float operations are done on those: exact, and several times as fast.
    bytes_in = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 256))
    table = _arithmetic(_rescale(bytes_in, 1 / 255) if decoded.is_unit else bytes_in, settings)
    return _Prepared(pixels, None if table is bytes_in else table)


def _arithmetic(values: np.ndarray, settings: Settings) -> np.ndarray:
    """Rescale and normalise (3, ...) in transformers' order of operations and dtypes."""
    if settings.do_rescale:
        values = _rescale(values, settings.rescale_factor)
    if settings.do_normalize:
        if values.dtype.kind != "f":
            values = values.astype(np.float32)
        shape = (-1,) + (1,) * (values.ndim - 1)
        mean, std = (
            np.array(value, dtype=values.dtype).reshape(shape) for value in (settings.image_mean, settings.image_std)
        )
        values = (values - mean) / std
    return values


def _rescale(values: np.ndarray, factor: float) -> np.ndarray:
    # 5.x multiplies in float64 and rounds once; 4.37 multiplied float32 input in float32.
    return (values.astype(np.float64) * factor).astype(np.float32)


def _assemble(prepared: list[_Prepared], do_pad: bool, layout: str, kind: str | None) -> BatchFeature:
    sizes = [item.pixels.shape[1:] for item in prepared]
    if not do_pad and kind is None:
        return BatchFeature({"pixel_values": [_stack([item], layout)[0] for item in prepared]})
    if not do_pad and len(set(sizes)) > 1:
        raise ValueError(
            f"do_pad: got False with images of {len(set(sizes))} sizes, which form no tensor; pass do_pad=True, or "
            "return_tensors=None for a list"
        )
    data: dict[str, Any] = {"pixel_values": _stack(prepared, layout)}
    if do_pad:
        data["pixel_mask"] = np.zeros((len(prepared), *np.max(sizes, axis=0)), dtype=np.int64)
        for mask, (height, width) in zip(data["pixel_mask"], sizes, strict=True):
            mask[:height, :width] = 1
    if kind is None:
        data = {key: list(value) for key, value in data.items()}
    return BatchFeature(data, kind)


def _stack(prepared: list[_Prepared], layout: str) -> np.ndarray:
    """All images in one array (N, 3, H, W) or (N, H, W, 3), zero where they do not reach."""
    dtype = np.result_type(*((pixels if table is None else table).dtype for pixels, table in prepared))
    height, width = np.max([item.pixels.shape[1:] for item in prepared], axis=0)
    first, count = layout == "channels_first", len(prepared)
    try:
        batch = np.zeros((count, 3, height, width) if first else (count, height, width, 3), dtype=dtype)
    except MemoryError as error:
        size = count * 3 * height * width * dtype.itemsize / 1e9
        raise ValueError(
            f"images: {count}, padded to {height}x{width} pixels (height x width), take {size:.1f} GB, more than there "
            "is; give fewer at once, or smaller ones"
        ) from error
    for (pixels, table), out in zip(prepared, batch if first else batch.transpose(0, 3, 1, 2), strict=True):
        target = out[:, : pixels.shape[1], : pixels.shape[2]]
        if table is None:
            target[...] = pixels
        else:
            for channel, row, bytes_in in zip(target, table, pixels, strict=True):
                np.take(row, bytes_in, out=channel, mode="clip")
    return batch
