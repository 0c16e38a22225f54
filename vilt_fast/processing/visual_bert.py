"""`VisualBertProcessor`: texts and the regions of their images -> the inputs of a VisualBERT."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .batch import BatchEncoding, tensor_kind
from .regions import Regions, as_regions
from .saving import split_options, write_files
from .text import BertTokenizer

_NO_TOKENIZER = (
    "checkpoints of VisualBERT have no vocabulary of their own: they were trained with that of bert-base-uncased, so "
    'VisualBertProcessor(BertTokenizer.from_pretrained("bert-base-uncased"))'
)


class VisualBertProcessor:
    """Texts and the regions of their images -> the inputs of a VisualBERT.

    Args:
        tokenizer: a `BertTokenizer`.

    Raises:
        ValueError: it is something else.
    """

    attributes = ["tokenizer"]
    tokenizer_class = ("BertTokenizer", "BertTokenizerFast")

    def __init__(self, tokenizer: Any) -> None:
        if not hasattr(tokenizer, "tokenize"):
            raise ValueError(f"tokenizer: got {type(tokenizer).__name__}, wanted a BertTokenizer")
        self.tokenizer = tokenizer

    def __call__(
        self,
        text: Any,
        regions: Any = None,
        text_pair: Any = None,
        padding: bool | str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Prepare texts with the regions that each of them is about.

        Args:
            text: as for `BertTokenizer.__call__`.
            regions: those of one image, or a list with those of each text's image: a `Regions`, the path of a file (see
                `read_regions`) or its bytes, an array or a tensor (n, visual_embedding_dim), or a dictionary of
                `features` and `boxes`. None: texts alone.
            text_pair, padding, truncation, max_length, return_tensors, kwargs: as for `BertTokenizer.__call__`. They
                are about words: regions are always padded, with zeros at the end.

        Returns:
            `input_ids`, `token_type_ids`, `attention_mask` (batch, length); `visual_embeds` (batch, regions,
            visual_embedding_dim) float32; `visual_attention_mask` (1: a region) and `visual_token_type_ids` (1), both
            (batch, regions) int64. With return_tensors=None a text that is no list has no batch dimension.

        Raises:
            FileNotFoundError: no such file of regions.
            ValueError: as from the tokenizer and `read_regions`; texts and regions differ in number, or images in the
                width of their regions.
        """
        arguments = {"padding": padding, "truncation": truncation, "max_length": max_length, **kwargs}
        encoded = self.tokenizer(text, text_pair, return_tensors=return_tensors, **arguments)
        if regions is None:
            return encoded
        visual = _pad([as_regions(*item) for item in _each(regions)])
        images, texts = len(visual["visual_embeds"]), len(encoded.encodings or ())
        if images != texts:
            raise ValueError(f"regions: got those of {images} images for {texts} texts, wanted as many of both")
        if tensor_kind(return_tensors) is None and not any(isinstance(row, list) for row in encoded["input_ids"]):
            visual = {name: rows[0] for name, rows in visual.items()}
        return BatchEncoding({**encoded, **visual}, encoded.encodings, return_tensors)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """The names of all inputs, in the order in which they are returned."""
        return [*self.tokenizer.model_input_names, "visual_embeds", "visual_attention_mask", "visual_token_type_ids"]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> VisualBertProcessor:
        """Load what this class or a `BertTokenizer`, here or of transformers, saved.

        Args:
            pretrained_model_name_or_path: a directory or a hub id. The checkpoints of VisualBERT have no such files:
                name bert-base-uncased, whose words they read.
            kwargs: as of `BertTokenizer.from_pretrained`.

        Raises:
            FileNotFoundError: neither a tokenizer.json nor a vocab.txt.
            ValueError: a file is broken, or a setting out of range.
        """
        hub, settings = split_options(kwargs)
        try:
            return cls(BertTokenizer.from_pretrained(pretrained_model_name_or_path, **hub, **settings))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; {_NO_TOKENIZER}") from error

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write the tokenizer's files, which transformers 4.37 and 5.x load; return their paths.

        Raises:
            ValueError: the directory is a file.
            OSError: a file could not be written; every old one stays whole.
        """
        return write_files(save_directory, self.tokenizer.files_to_save())

    def __repr__(self) -> str:
        return f"{type(self).__name__}(\n{self.tokenizer!r})"


def _each(regions: Any) -> list[tuple[Any, str]]:
    """The regions of each image, and what errors call them."""
    if not isinstance(regions, list | tuple):
        return [(regions, "regions")]
    if not regions:
        raise ValueError("regions: got an empty list, wanted those of at least one image")
    return [(one, f"regions[{number}]") for number, one in enumerate(regions)]


def _pad(images: Sequence[Regions]) -> dict[str, np.ndarray]:
    """The regions of several images as arrays, each with as many as the largest has."""
    widths = [one.features.shape[1] for one in images]
    for number, width in enumerate(widths):
        if width != widths[0]:
            raise ValueError(f"regions[{number}]: got features of width {width}, wanted {widths[0]}, as in regions[0]")
    counts = np.array([len(one) for one in images])
    mask = np.arange(counts.max()) < counts[:, None]  # (batch, regions)
    embeds = np.zeros((*mask.shape, widths[0]), np.float32)
    embeds[mask] = np.concatenate([one.features for one in images])
    return {
        "visual_embeds": embeds,
        "visual_attention_mask": mask.astype(np.int64),
        "visual_token_type_ids": np.ones(mask.shape, np.int64),
    }
