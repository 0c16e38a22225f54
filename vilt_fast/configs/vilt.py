"""The configuration of ViLT."""

from __future__ import annotations

import os
import sys
from typing import Any

from vilt_fast.checkpoints.hub import HubOptions, is_directory, local_path
from vilt_fast.configs.base import PreTrainedConfig
from vilt_fast.configs.checks import (
    LARGEST_SIZE,
    MOST_LAYERS,
    check_flag,
    check_integer,
    check_number,
    is_integer,
    shown,
)

_LARGEST = sys.float_info.max
# A hundred times the largest vision-language models; 4 TB in float32.
MOST_WEIGHTS = 10**12
_GROWING = (
    "hidden_size intermediate_size num_hidden_layers vocab_size max_position_embeddings type_vocab_size "
    "modality_type_vocab_size image_size patch_size num_channels num_images"
).split()


class ViltConfig(PreTrainedConfig):
    """Every field of Hugging Face's ViltConfig (4.37 and 5.x), and one of the original repository.

    Args:
        vocab_size, type_vocab_size, max_position_embeddings: sizes of the word, type and position tables.
        modality_type_vocab_size: rows of the modality table: text, first image, second image, ...
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the encoder.
        hidden_act: name in `vilt_fast.layers.activations.ACTIVATIONS`, or a callable.
        hidden_dropout_prob, attention_probs_dropout_prob: in training.
        initializer_range: standard deviation of fresh weights.
        layer_norm_eps: of every normalisation but the classifiers'.
        encoder_layer_norm_eps: of the encoder's blocks and the normalisation after them, where it differs from
            `layer_norm_eps`. The original checkpoints were trained with 1e-6 there; Hugging Face uses 1e-12.
        image_size, patch_size: an int or (height, width); they size the position table. A patch is square.
        num_channels: of an image.
        qkv_bias: whether query, key and value have a bias.
        max_image_length: at most so many patches per image, sampled; -1: all.
        num_images: images per text of ViltForImagesAndTextClassification.
        tie_word_embeddings: whether the masked-word decoder shares the word table.
        id2label, label2id, num_labels: names of the labels; num_labels alone gives LABEL_0, LABEL_1, ...
        output_attentions, output_hidden_states, return_dict: defaults of the forward arguments.
        **kwargs: become attributes, and are written back by `save_pretrained`; see `PreTrainedConfig`.

    Raises:
        ValueError: a size is not a positive integer, or hidden_size is not a multiple of num_attention_heads; a number
            is NaN or out of range; the sizes make more weights than any machine holds.
    """

    model_type = "vilt"

    def __init__(
        self,
        vocab_size: int = 30522,
        type_vocab_size: int = 2,
        modality_type_vocab_size: int = 2,
        max_position_embeddings: int = 40,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: Any = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        image_size: int | tuple[int, int] = 384,
        patch_size: int | tuple[int, int] = 32,
        num_channels: int = 3,
        qkv_bias: bool = True,
        max_image_length: int = -1,
        tie_word_embeddings: bool = False,
        num_images: int = -1,
        *,
        encoder_layer_norm_eps: float | None = None,
        pad_token_id: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        num_labels: int | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            pad_token_id=pad_token_id,
            id2label=id2label,
            label2id=label2id,
            num_labels=num_labels,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            **kwargs,
        )
        self.vocab_size = vocab_size
        self.type_vocab_size = type_vocab_size
        self.modality_type_vocab_size = modality_type_vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.image_size = _pair_or_int(image_size)
        self.patch_size = _pair_or_int(patch_size)
        self.num_channels = num_channels
        self.qkv_bias = qkv_bias
        self.max_image_length = max_image_length
        self.tie_word_embeddings = tie_word_embeddings
        self.num_images = num_images
        self.encoder_layer_norm_eps = encoder_layer_norm_eps
        self.validate()

    def validate(self) -> None:
        """See the base class."""
        super().validate()
        sizes = (
            "vocab_size type_vocab_size modality_type_vocab_size max_position_embeddings hidden_size "
            "num_attention_heads intermediate_size num_channels"
        )
        for name in sizes.split():
            check_integer(name, getattr(self, name), 1)
        check_integer("num_hidden_layers", self.num_hidden_layers, 0, MOST_LAYERS)
        for name in ("qkv_bias", "tie_word_embeddings"):
            check_flag(name, getattr(self, name))
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            check_number(name, getattr(self, name), "a probability from 0 to 1", 0, 1)
        check_number("initializer_range", self.initializer_range, "a finite number >= 0", 0, _LARGEST)
        for name in ("layer_norm_eps", "encoder_layer_norm_eps"):
            if name == "layer_norm_eps" or self.encoder_layer_norm_eps is not None:
                check_number(name, getattr(self, name), "a finite number above 0", 0, _LARGEST, above=True)
        if not isinstance(self.hidden_act, str) and not callable(self.hidden_act):
            raise ValueError(f"hidden_act must be a name or a callable, got {shown(self.hidden_act)}")
        if self.num_images != -1:
            check_integer("num_images", self.num_images, 1)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got hidden_size={self.hidden_size} "
                f"and num_attention_heads={self.num_attention_heads}"
            )
        if not is_integer(self.max_image_length, -LARGEST_SIZE) or self.max_image_length == 0:
            raise ValueError(
                f"max_image_length must be a positive integer, or -1 for all, got {shown(self.max_image_length)}"
            )
        height, width = self.patch_shape
        if height != width:
            raise ValueError(f"patch_size must be square, got {self.patch_size!r}")
        if min(self.table_size) < 1:
            raise ValueError(f"image_size must be at least patch_size={self.patch_size!r}, got {self.image_size!r}")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id must be below vocab_size={self.vocab_size}, got {self.pad_token_id}")
        self._check_memory()

    def _check_memory(self) -> None:
        """Refuse sizes, each possible, that together make weights of several terabytes."""
        count = self.count_weights()
        if count > MOST_WEIGHTS:
            named = ", ".join(f"{name}={getattr(self, name)}" for name in _GROWING)
            raise ValueError(
                f"hidden_size and the other sizes make {count:.1e} weights, wanted at most {MOST_WEIGHTS:.0e}: "
                f"got {named}"
            )

    def count_weights(self) -> int:
        """About how many weights a model has, rather less: the tables, the encoder and a classifier, without biases."""
        rows, columns = self.table_size
        tables = self.vocab_size + self.type_vocab_size + self.modality_type_vocab_size + self.max_position_embeddings
        layer = 4 * self.hidden_size + 2 * self.intermediate_size
        widths = tables + rows * columns + self.num_channels * self.patch_shape[0] ** 2 + self.num_hidden_layers * layer
        return (widths + self.num_labels + self.hidden_size * max(self.num_images, 0) ** 2) * self.hidden_size

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels that the position table stands for."""
        return _pair(self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return _pair(self.patch_size)

    @property
    def table_size(self) -> tuple[int, int]:
        """(rows, columns) of the position table."""
        (height, width), (patch_height, patch_width) = self.image_shape, self.patch_shape
        return height // patch_height, width // patch_width

    @property
    def block_layer_norm_eps(self) -> float:
        """eps of the encoder's blocks and of the normalisation after them."""
        return self.layer_norm_eps if self.encoder_layer_norm_eps is None else self.encoder_layer_norm_eps

    @classmethod
    def get_config_dict(
        cls, name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in the base class; of a `.ckpt` of the original repository, the sizes and the task that it shows.

        Raises:
            FileNotFoundError: there is no config.json or `.ckpt`.
            ValueError: it is not JSON, or not of this architecture; or the checkpoint does not say enough.
        """
        path = local_path(name_or_path)
        if path.suffix != ".ckpt" or is_directory(path):
            return super().get_config_dict(name_or_path, **kwargs)
        from vilt_fast.checkpoints.vilt import read_original_fields  # here, because it needs PyTorch

        return read_original_fields(name_or_path), HubOptions.split(kwargs)[1]

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json that transformers 4.37 and 5.x read."""
        content = super().to_dict()
        if self.encoder_layer_norm_eps is None:
            del content["encoder_layer_norm_eps"]
        return content


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _pair_or_int(value: Any) -> int | tuple[int, int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) not in (1, 2) or not all(is_integer(v, 1) for v in values):
        raise ValueError(f"image_size and patch_size must be a positive integer or two of them, got {shown(value)}")
    return value if isinstance(value, int) else (values[0], values[-1])
