"""What the image processors of all families share: one call's settings, packing, and files in and out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vilt_fast import ops
from vilt_fast.checkpoints.arguments import as_device
from vilt_fast.checkpoints.files import directory_path, naming, read_json, write_atomically
from vilt_fast.checkpoints.hub import is_file, local_path
from vilt_fast.pixels import PackedPixels

from .arithmetic import assemble, center, packed_factor, prepare
from .batch import BatchFeature, tensor_kind
from .decoding import check_data_format, decode_all, flatten_images
from .saving import find_json, split_options, to_json, write_files
from .settings import Settings, check_setting, setting_names, target_size, to_save

# What transformers writes into a config beside the settings.
_BOOKKEEPING = (
    "feature_extractor_type image_processor_class image_processor_type name_or_path processor_class"
).split()
# The class that wrote a file, under its newer and its older key.
TYPE_KEYS = ("image_processor_type", "feature_extractor_type")
# The family in a class's name -> our class for its files; and what may follow it there.
_READERS = {"Vilt": "ViltImageProcessor", "ViT": "ViTImageProcessor", "DeiT": "ViTImageProcessor"}
_ENDINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
_PACKED_FILTERS = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}


class ImageProcessor(Settings):
    """A base class: `ViltImageProcessor` and `ViTImageProcessor` add their settings and their signatures."""

    model_input_names = ["pixel_values", "pixel_mask"]

    _settings_class: ClassVar[type[Settings]]
    _reader: ClassVar[str]  # the class name in _READERS, and Hugging Face's
    _without_effect: ClassVar[tuple[str, ...]]  # arguments that Hugging Face's PIL class does not act on either
    _old_names: ClassVar[dict[str, str]] = {}  # of settings

    def __init__(self, settings: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        """Make a processor.

        Args:
            settings: all settings.
            others: what else a preprocessor_config.json holds, which is kept and saved again.
        """
        for key in TYPE_KEYS:  # first: another family's settings would be refused for smaller reasons
            if others.get(key) is not None:
                self._check_type(key, others[key])
        super().__init__(**settings)
        for name, value in others.items():
            if name not in _BOOKKEEPING and not name.startswith("_"):
                if callable(getattr(type(self), name, None)):
                    raise ValueError(f"{name}: is no setting of {type(self).__name__}")
                setattr(self, name, value)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """The same as `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Turn images into model inputs."""
        raise NotImplementedError

    def _preprocess(
        self,
        images: Any,
        given: dict[str, Any],
        return_tensors: str | None,
        data_format: str,
        input_data_format: str | None,
    ) -> BatchFeature:
        """`preprocess` with the settings of the call in a dictionary."""
        chosen = self._settings("preprocess", **given)
        kind = tensor_kind(return_tensors)
        check_data_format(input_data_format, "input_data_format")
        layout = check_data_format(data_format, "data_format") or "channels_first"
        prepared = []
        for name, image in flatten_images(images):  # no comprehension, which would be a step more for warnings
            prepared.append(prepare(name, image, input_data_format, chosen))
        return assemble(prepared, chosen.do_pad, layout, kind)

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
                other than bicubic and bilinear, floats without resizing that are not whole numbers in 0..255, floats
                in [0, 1] beside 8-bit images.
            TypeError: an argument that is no setting.
        """
        settings = self._settings("pack", **overrides)
        device = as_device(device) or torch.device("cpu")
        resample = Image.Resampling(settings.resample)
        if settings.do_resize and resample not in _PACKED_FILTERS:
            raise ValueError(
                f"resample: got {resample.name}, wanted BICUBIC or BILINEAR, the filters that packed images are "
                "resized with; call without device for the others"
            )
        names, decoded = decode_all(images, input_data_format)
        factor = packed_factor(names, decoded, settings)
        arrays, sizes = [item.array for item in decoded], [item.size for item in decoded]
        flat = torch.empty(sum(map(np.size, arrays)), dtype=torch.uint8, pin_memory=device.type == "cuda")
        np.concatenate([array.reshape(-1) for array in arrays], out=flat.numpy())
        data = flat.to(device, non_blocking=True)
        if settings.do_resize:
            sizes = [target_size(settings, name, *size) for name, size in zip(names, sizes, strict=True)]
            shapes = [array.shape for array in arrays]
            data, _ = ops.resize_packed(data, shapes, sizes, resample=_PACKED_FILTERS[resample])
        crop = settings._crop()
        if crop is not None:
            data, sizes = _cut(data, sizes, crop), [crop] * len(sizes)
        mean, std = (settings.image_mean, settings.image_std) if settings.do_normalize else ((0.0,) * 3, (1.0,) * 3)
        return PackedPixels(data, tuple(sizes), mean, std, factor, picture)

    def _settings(self, method: str, **given: Any) -> Settings:
        """The settings of one call, checked: attributes may have been assigned since the constructor."""
        given = {self._old_names.get(name, name): value for name, value in given.items()}
        kind = self._settings_class
        unknown = sorted(set(given) - {*setting_names(kind), *self._without_effect})
        if unknown:
            raise TypeError(f"{method}() got an unexpected keyword argument {unknown[0]!r}")
        chosen = {name: getattr(self, name) if given.get(name) is None else given[name] for name in setting_names(kind)}
        return kind(**{name: check_setting(kind, name, value) for name, value in chosen.items()})

    @classmethod
    def _check_type(cls, key: str, value: Any) -> None:
        """Refuse the settings of another family's class, which may mean something else by the same names."""
        reader = _READERS.get(family_of(value) or "")
        if reader == cls._reader:
            return
        wanted = " or ".join(f"{family}ImageProcessor" for family in _READERS if _READERS[family] == cls._reader)
        advice = f"make a {cls.__name__}(size=..., resample=..., image_mean=..., image_std=...) with its values"
        advice = f"load it with vilt_fast.{reader}" if reader else advice
        raise ValueError(f"{key}: got {value!r}, wanted {wanted}; {advice}")

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
            ValueError: a file is no JSON, or another family's, or a setting is out of range.
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
            ValueError: a setting is out of range, or the settings are another family's.
        """
        if not isinstance(image_processor_dict, Mapping) or "self" in image_processor_dict:
            got = type(image_processor_dict).__name__
            raise ValueError(f"image_processor: got a {got}, wanted a dictionary of settings (none is called self)")
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        names = setting_names(cls._settings_class)
        known = {*names, *cls._without_effect, *image_processor_dict, *cls._old_names}
        unused = {name: value for name, value in kwargs.items() if name not in known}
        if unused and not wants_unused:
            raise TypeError(f"from_dict() got an unexpected keyword argument {min(unused)!r}")
        settings = {**image_processor_dict, **kwargs}
        for old, new in cls._old_names.items():
            if new in kwargs:  # the newer name was overridden, the saved older one must not win
                settings.pop(old, None)
        processor = cls(**{name: value for name, value in settings.items() if name not in unused})
        return (processor, unused) if wants_unused else processor

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, with the class name that Hugging Face looks for."""
        return {**to_save(self), "image_processor_type": self._reader}

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


def family_of(name: Any) -> str | None:
    """The family whose image processor in Hugging Face's library is called `name`; None: none of ours."""
    return next((family for family in _READERS if name in [family + ending for ending in _ENDINGS]), None)


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


def _cut(data: Tensor, sizes: list[tuple[int, int]], crop: tuple[int, int]) -> Tensor:
    """The centres of packed images, one after the other."""
    starts = np.cumsum([0, *(3 * math.prod(size) for size in sizes)]).tolist()
    out = data.new_zeros(len(sizes), *crop, 3)
    for (begin, end), size, target in zip(pairwise(starts), sizes, out, strict=True):
        inside, taken = center(size, crop)
        target[inside] = data[begin:end].view(*size, 3)[taken]
    return out.flatten()
