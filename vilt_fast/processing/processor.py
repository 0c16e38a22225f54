"""`ViltProcessor`: an image processor and a tokenizer behind one call."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from .batch import BatchEncoding, tensor_kind
from .decoding import check_data_format
from .saving import split_options, to_json, write_files
from .settings import setting_names
from .text import BertTokenizer
from .vilt import WITHOUT_EFFECT, ViltImageProcessor, ViltSettings

_TEXT_ARGUMENTS = frozenset(inspect.signature(BertTokenizer.__call__).parameters) - {"self", "text"}
_IMAGE_SETTINGS = (*setting_names(ViltSettings), "pad_and_return_pixel_mask")
_IMAGE_ARGUMENTS = frozenset([*_IMAGE_SETTINGS, "data_format", "input_data_format"])
# Hugging Face 5.x's way to say which argument is whose, and what each may hold.
_GROUPS = {
    "text_kwargs": _TEXT_ARGUMENTS,
    "images_kwargs": _IMAGE_ARGUMENTS | {*WITHOUT_EFFECT, "return_tensors"},
    "common_kwargs": _TEXT_ARGUMENTS | _IMAGE_ARGUMENTS,
}
# What a tokenizer that was made with them has as attributes, and looks up itself.
_OWN_DEFAULTS = frozenset(["padding_side", "split_special_tokens"])


class ViltProcessor:
    """Images and texts -> the inputs of a ViLT model.

    Args:
        image_processor: a `ViltImageProcessor`.
        tokenizer: a `BertTokenizer`.
        device: where to resize images and leave all results: "cuda", "cpu", ...; None: images are resized with
            Pillow and come padded, as from Hugging Face. Not saved.
        feature_extractor: the old name of `image_processor`; deprecated.

    Raises:
        ValueError: one is missing or of another kind (they may be swapped).
    """

    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "ViltImageProcessor"
    tokenizer_class = ("BertTokenizer", "BertTokenizerFast")

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        device: torch.device | str | int | None = None,
        *,
        feature_extractor: Any = None,
    ) -> None:
        if feature_extractor is not None:
            warnings.warn("feature_extractor is deprecated; use image_processor", FutureWarning, stacklevel=2)
            image_processor = feature_extractor if image_processor is None else image_processor
        for name, value, method, wanted in (
            ("image_processor", image_processor, "preprocess", "a ViltImageProcessor"),
            ("tokenizer", tokenizer, "batch_decode", "a BertTokenizer"),
        ):
            if not hasattr(value, method):
                raise ValueError(f"{name}: got {type(value).__name__}, wanted {wanted}")
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.device = device

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        add_special_tokens: bool | None = None,
        padding: bool | str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool | None = None,
        return_special_tokens_mask: bool | None = None,
        return_offsets_mapping: bool | None = None,
        return_length: bool | None = None,
        verbose: bool | None = None,
        return_tensors: str | None = None,
        device: torch.device | str | int | None = None,
        picture: Any = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Prepare images, texts, or both.

        Args:
            images: as for `ViltImageProcessor.preprocess`; None for text only.
            text: as for `BertTokenizer.__call__`; None for images only.
            device: None: the processor's own. With a device, everything comes as tensors there, and the images as
                bytes without padding, see `ViltImageProcessor.pack`.
            picture: with a device, which image each text is about, (batch,) or (batch, num_images); None: text i is
                about image i. An image is prepared and embedded once, however many texts are about it.
            add_special_tokens, ..., return_tensors: as for `BertTokenizer.__call__`; None: what the tokenizer was made
                with (`BertTokenizer(..., padding="max_length", max_length=40)`), or else that call's own default.
            kwargs: further arguments of either (`size`, `do_resize`, `text_pair`, ...); or `text_kwargs`,
                `images_kwargs` and `common_kwargs`, dictionaries of them, as in transformers 5.x. A keyword goes
                before the common ones, and what the tokenizer was made with comes last.

        Returns:
            `input_ids`, `token_type_ids`, `attention_mask` (batch, length) and `pixel_values` (N, 3, H, W),
            `pixel_mask` (N, H, W), or with a device `pixel_values` as PackedPixels and no mask. Whether the numbers of
            texts and images go together is the model's to say.

        Raises:
            FileNotFoundError, ValueError: as from the two; ValueError also where both inputs are None, or an argument
                is given twice, by keyword and in its group.
            TypeError: an argument that neither has, or not the one whose group holds it.
        """
        device = self.device if device is None else device
        if images is None and text is None:
            raise ValueError("images, text: got neither, wanted at least one")
        arguments = {
            "add_special_tokens": add_special_tokens,
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "stride": stride,
            "pad_to_multiple_of": pad_to_multiple_of,
            "return_token_type_ids": return_token_type_ids,
            "return_attention_mask": return_attention_mask,
            "return_overflowing_tokens": return_overflowing_tokens,
            "return_special_tokens_mask": return_special_tokens_mask,
            "return_offsets_mapping": return_offsets_mapping,
            "return_length": return_length,
            "verbose": verbose,
            "return_tensors": return_tensors,
        }
        made_with = getattr(self.tokenizer, "init_kwargs", {})
        for_text, for_images = _split_arguments({**arguments, **kwargs}, made_with)
        kind = tensor_kind(for_text.get("return_tensors"))
        if device is not None:
            kind = for_text["return_tensors"] = _check_packed(kind, for_images)
        elif picture is not None:
            raise ValueError("picture: goes with a device; without one, repeat the images")
        data: dict[str, Any] = {}
        encodings = None
        if text is not None:
            encoded = self.tokenizer(text, **for_text)
            data.update(encoded)
            encodings = getattr(encoded, "encodings", None)
        if images is not None and device is None:
            data.update(self.image_processor(images, **{"return_tensors": kind, **for_images}))
        elif images is not None:
            data["pixel_values"] = self.image_processor.pack(images, device=device, picture=picture, **for_images)
        batch = BatchEncoding(data, encodings)
        return batch if device is None else batch.to(device, non_blocking=True)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """The names of all inputs, in the order in which they are returned."""
        return list(dict.fromkeys([*self.tokenizer.model_input_names, *self.image_processor.model_input_names]))

    @property
    def feature_extractor(self) -> Any:
        """The old name of `image_processor`; deprecated."""
        warnings.warn("feature_extractor is deprecated; use image_processor", FutureWarning, stacklevel=2)
        return self.image_processor

    @property
    def feature_extractor_class(self) -> str:
        """The old name of `image_processor_class`; deprecated."""
        warnings.warn("feature_extractor_class is deprecated; use image_processor_class", FutureWarning, stacklevel=2)
        return self.image_processor_class

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> ViltProcessor:
        """Load what transformers 4.37 or 5.x, or this class, saved.

        Args:
            pretrained_model_name_or_path: a directory or a hub id.
            kwargs: settings to override, of the image processor or else of the tokenizer; revision, cache_dir,
                token, local_files_only as in `find_file`; device, as for the class.

        Raises:
            FileNotFoundError: a file of one of the two is missing.
            ValueError: a file is broken, or a setting out of range.
        """
        hub, overrides = split_options(kwargs)
        device = overrides.pop("device", None)
        names = [name for name in _IMAGE_SETTINGS if name in overrides]
        for_images = {name: overrides.pop(name) for name in names}
        image_processor = ViltImageProcessor.from_pretrained(pretrained_model_name_or_path, **hub, **for_images)
        tokenizer = BertTokenizer.from_pretrained(pretrained_model_name_or_path, **hub, **overrides)
        return cls(image_processor, tokenizer, device)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write the files of both, which transformers 4.37 and 5.x load; return their paths.

        Raises:
            ValueError: the directory is a file.
            OSError: a file could not be written; every old one stays whole.
        """
        files = {
            **self.image_processor.files_to_save(save_directory),
            **self.tokenizer.files_to_save(type(self).__name__),
        }
        return write_files(save_directory, files)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values; those of the tokenizer are in its own files."""
        return {"processor_class": type(self).__name__, "image_processor": self.image_processor.to_dict()}

    def to_json_string(self) -> str:
        """`to_dict` as JSON text."""
        return to_json(self.to_dict())

    def __repr__(self) -> str:
        return f"{type(self).__name__}(\n{self.image_processor!r},\n{self.tokenizer!r})"


def _check_packed(kind: str | None, for_images: dict[str, Any]) -> str:
    """The kind of tensors that go with packed images; takes what means nothing for them out of `for_images`."""
    layout = for_images.pop("data_format", None)
    if check_data_format(layout, "data_format") == "channels_last":
        raise ValueError('data_format: got "channels_last", which goes with padded images; call without device')
    if kind == "np" or tensor_kind(for_images.pop("return_tensors", None)) == "np":
        raise ValueError('return_tensors: got "np" with a device, wanted "pt"')
    for_images.pop("device", None)  # Hugging Face's, which has no effect in `preprocess` either
    return "pt"


def _split_arguments(
    arguments: Mapping[str, Any], made_with: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tokenizer's arguments and the image processor's, out of flat ones and Hugging Face's groups.

    made_with: what the tokenizer was made with; its arguments of a call are defaults.
    """
    flat = {name: value for name, value in arguments.items() if value is not None}
    groups = {group: _take_group(flat, group) for group in _GROUPS}
    unknown = sorted(flat.keys() - _TEXT_ARGUMENTS - _IMAGE_ARGUMENTS)
    if unknown:
        raise TypeError(f"ViltProcessor() got an unexpected keyword argument {unknown[0]!r}")
    for group in ("text_kwargs", "images_kwargs"):
        twice = sorted(flat.keys() & groups[group].keys())
        if twice:
            raise ValueError(f"{twice[0]}: given twice, by keyword and in {group}; give it once")
    text_group, images_group, common = groups.values()
    defaults = {name: made_with[name] for name in _TEXT_ARGUMENTS - _OWN_DEFAULTS if made_with.get(name) is not None}
    for_text = {**defaults, **_only(_TEXT_ARGUMENTS, common), **text_group, **_only(_TEXT_ARGUMENTS, flat)}
    return for_text, {**_only(_IMAGE_ARGUMENTS, common), **images_group, **_only(_IMAGE_ARGUMENTS, flat)}


def _take_group(flat: dict[str, Any], group: str) -> dict[str, Any]:
    """One of Hugging Face's groups, out of the keywords."""
    given = flat.pop(group, {})
    if not isinstance(given, Mapping):
        raise ValueError(f"{group}: got {type(given).__name__}, wanted a dictionary of arguments")
    unknown = sorted(map(str, given.keys() - _GROUPS[group]))
    if unknown:
        raise TypeError(f"{group}: got an unexpected argument {unknown[0]!r}")
    return {name: value for name, value in given.items() if value is not None}


def _only(names: frozenset[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in names}
