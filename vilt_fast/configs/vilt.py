"""The configuration of ViLT."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from vilt_fast.checkpoints.hub import HubOptions, is_directory, local_path
from vilt_fast.configs.checks import LARGEST_SIZE, check_integer, is_integer, shown
from vilt_fast.configs.encoder import PatchConfig, check_eps


class ViltConfig(PatchConfig):
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
    sizes: ClassVar[tuple[str, ...]] = (
        *PatchConfig.sizes,
        *("vocab_size", "type_vocab_size", "modality_type_vocab_size", "max_position_embeddings"),
    )
    flags: ClassVar[tuple[str, ...]] = (*PatchConfig.flags, "tie_word_embeddings")

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
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            hidden_act=hidden_act,
            hidden_dropout_prob=hidden_dropout_prob,
            attention_probs_dropout_prob=attention_probs_dropout_prob,
            initializer_range=initializer_range,
            layer_norm_eps=layer_norm_eps,
            image_size=image_size,
            patch_size=patch_size,
            num_channels=num_channels,
            qkv_bias=qkv_bias,
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
        self.max_image_length = max_image_length
        self.tie_word_embeddings = tie_word_embeddings
        self.num_images = num_images
        self.encoder_layer_norm_eps = encoder_layer_norm_eps
        self.validate()

    def validate(self) -> None:
        """See the base class."""
        super().validate()
        if self.encoder_layer_norm_eps is not None:
            check_eps("encoder_layer_norm_eps", self.encoder_layer_norm_eps)
        if self.num_images != -1:
            check_integer("num_images", self.num_images, 1)
        if not is_integer(self.max_image_length, -LARGEST_SIZE) or self.max_image_length == 0:
            raise ValueError(
                f"max_image_length must be a positive integer, or -1 for all, got {shown(self.max_image_length)}"
            )
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id must be below vocab_size={self.vocab_size}, got {self.pad_token_id}")
        self.check_memory()

    def count_weights(self) -> int:
        """About how many weights a model has, rather less: the tables, the encoder and a classifier, without biases."""
        tables = self.vocab_size + self.type_vocab_size + self.modality_type_vocab_size + self.max_position_embeddings
        widths = tables + self.patch_widths() + self.layer_widths() + self.num_labels
        return (widths + self.hidden_size * max(self.num_images, 0) ** 2) * self.hidden_size

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
