"""What the configurations of the families have in common: a Transformer encoder, and the patches that go into it."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from vilt_fast.configs.base import PreTrainedConfig
from vilt_fast.configs.checks import MOST_LAYERS, check_flag, check_integer, check_number, is_integer, shown

_LARGEST = sys.float_info.max
# A hundred times the largest vision-language models; 4 TB in float32.
MOST_WEIGHTS = 10**12


class EncoderConfig(PreTrainedConfig):
    """The fields of an encoder; a family's class adds what goes into it.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the encoder.
        hidden_act: name in `vilt_fast.layers.activations.ACTIVATIONS`, or a callable.
        hidden_dropout_prob, attention_probs_dropout_prob: in training.
        initializer_range: standard deviation of fresh weights.
        layer_norm_eps: of every normalisation that has no other.
        **kwargs: see `PreTrainedConfig`.

    Raises:
        ValueError: a size is not a positive integer, or hidden_size is not a multiple of num_attention_heads; a number
            is NaN or out of range; the sizes make more weights than any machine holds.
    """

    sizes: ClassVar[tuple[str, ...]] = ("hidden_size", "num_attention_heads", "intermediate_size")  # at least 1
    flags: ClassVar[tuple[str, ...]] = ()
    qkv_bias = True  # whether query, key and value have a bias; a field of the families that leave it open

    def __init__(
        self,
        *,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        hidden_act: Any,
        hidden_dropout_prob: float,
        attention_probs_dropout_prob: float,
        initializer_range: float,
        layer_norm_eps: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps

    def validate(self) -> None:
        """See the base class."""
        super().validate()
        for name in self.sizes:
            check_integer(name, getattr(self, name), 1)
        check_integer("num_hidden_layers", self.num_hidden_layers, 0, MOST_LAYERS)
        for name in self.flags:
            check_flag(name, getattr(self, name))
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            check_number(name, getattr(self, name), "a probability from 0 to 1", 0, 1)
        check_number("initializer_range", self.initializer_range, "a finite number >= 0", 0, _LARGEST)
        check_eps("layer_norm_eps", self.layer_norm_eps)
        if not isinstance(self.hidden_act, str) and not callable(self.hidden_act):
            raise ValueError(f"hidden_act must be a name or a callable, got {shown(self.hidden_act)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got hidden_size={self.hidden_size} "
                f"and num_attention_heads={self.num_attention_heads}"
            )

    def check_memory(self) -> None:
        """Refuse sizes, each possible, that together make weights of several terabytes."""
        count = self.count_weights()
        if count > MOST_WEIGHTS:
            growing = dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", *self.sizes))
            named = ", ".join(f"{name}={getattr(self, name)}" for name in growing)
            raise ValueError(
                f"hidden_size and the other sizes make {count:.1e} weights, wanted at most {MOST_WEIGHTS:.0e}: "
                f"got {named}"
            )

    def layer_widths(self) -> int:
        """Weights of all blocks without their biases, divided by hidden_size."""
        return self.num_hidden_layers * (4 * self.hidden_size + 2 * self.intermediate_size)

    @property
    def block_layer_norm_eps(self) -> float:
        """eps of the encoder's blocks and of the normalisation after them."""
        return self.layer_norm_eps


class PatchConfig(EncoderConfig):
    """The fields of an encoder that reads patches of images.

    Args:
        image_size, patch_size: an int or (height, width); they size the position table. A patch is square.
        num_channels: of an image.
        qkv_bias: whether query, key and value have a bias.
        **kwargs: see `EncoderConfig`.
    """

    sizes: ClassVar[tuple[str, ...]] = (*EncoderConfig.sizes, "num_channels")
    flags: ClassVar[tuple[str, ...]] = ("qkv_bias",)

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_channels: int,
        qkv_bias: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = _pair_or_int(image_size)
        self.patch_size = _pair_or_int(patch_size)
        self.num_channels = num_channels
        self.qkv_bias = qkv_bias

    def validate(self) -> None:
        """See the base class."""
        super().validate()
        height, width = self.patch_shape
        if height != width:
            raise ValueError(f"patch_size must be square, got {self.patch_size!r}")
        if min(self.table_size) < 1:
            raise ValueError(f"image_size must be at least patch_size={self.patch_size!r}, got {self.image_size!r}")

    def patch_widths(self) -> int:
        """Weights of the projection and the position table, divided by hidden_size."""
        rows, columns = self.table_size
        return rows * columns + self.num_channels * self.patch_shape[0] ** 2

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


def check_eps(name: str, value: Any) -> None:
    """Raise ValueError for anything but a finite number above 0."""
    check_number(name, value, "a finite number above 0", 0, _LARGEST, above=True)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _pair_or_int(value: Any) -> int | tuple[int, int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) not in (1, 2) or not all(is_integer(v, 1) for v in values):
        raise ValueError(f"image_size and patch_size must be a positive integer or two of them, got {shown(value)}")
    return value if isinstance(value, int) else (values[0], values[-1])
