"""The configuration of ViT."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from vilt_fast.configs.base import Config
from vilt_fast.configs.checks import check_integer, shown
from vilt_fast.configs.encoder import PatchConfig
from vilt_fast.contracts.positions import BICUBIC, BICUBIC_SCALE

_RULES = {"size": BICUBIC, "scale_factor": BICUBIC_SCALE}
_FIRST_BY_SIZE = (4, 45)  # the release of transformers that changed the rule


class ViTConfig(PatchConfig):
    """Every field of Hugging Face's ViTConfig (4.37 and 5.x), and one of ours.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the encoder.
        hidden_act: name in `vilt_fast.layers.activations.ACTIVATIONS`, or a callable.
        hidden_dropout_prob, attention_probs_dropout_prob: in training.
        initializer_range: standard deviation of fresh weights.
        layer_norm_eps: of every normalisation.
        image_size, patch_size: an int or (height, width); they size the position table. A patch is square.
        num_channels: of an image.
        qkv_bias: whether query, key and value have a bias.
        encoder_stride: pixels on a side that the decoder of ViTForMaskedImageModeling makes of a patch.
        pooler_output_size, pooler_act: columns and activation of the pooler; None: hidden_size.
        position_interpolation: how positions are read for an image of another size than `image_size`: "size", as
            transformers does from 4.45 on, or "scale_factor", as before it. None: as the transformers that wrote the
            configuration (`transformers_version`) does, and "size" where none did. Positions are read as they are
            wherever there are as many patches as entries; transformers 4.37 does so for square images alone.
        drop_distillation_token: whether a checkpoint of a distilled DeiT may be read, without its second token.
        id2label, label2id, num_labels: names of the labels; num_labels alone gives LABEL_0, LABEL_1, ...
        output_attentions, output_hidden_states, return_dict: defaults of the forward arguments.
        **kwargs: become attributes, and are written back by `save_pretrained`; see `PreTrainedConfig`.

    Raises:
        ValueError: a size is not a positive integer, or hidden_size is not a multiple of num_attention_heads; a number
            is NaN or out of range; the sizes make more weights than any machine holds.
    """

    model_type = "vit"
    sizes: ClassVar[tuple[str, ...]] = (*PatchConfig.sizes, "encoder_stride", "pooler_output_size")
    flags: ClassVar[tuple[str, ...]] = (*PatchConfig.flags, "drop_distillation_token")

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: Any = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        num_channels: int = 3,
        qkv_bias: bool = True,
        encoder_stride: int = 16,
        *,
        pooler_output_size: int | None = None,
        pooler_act: str = "tanh",
        position_interpolation: str | None = None,
        drop_distillation_token: bool = False,
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
            id2label=id2label,
            label2id=label2id,
            num_labels=num_labels,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            **kwargs,
        )
        self.encoder_stride = encoder_stride
        self.pooler_output_size = hidden_size if pooler_output_size is None else pooler_output_size
        self.pooler_act = pooler_act
        self.position_interpolation = position_interpolation
        self.drop_distillation_token = drop_distillation_token
        self.validate()

    def validate(self) -> None:
        """See the base class."""
        super().validate()
        if not isinstance(self.pooler_act, str):
            raise ValueError(f"pooler_act must be a name, got {shown(self.pooler_act)}")
        if self.position_interpolation not in (None, *_RULES):
            wanted = ", ".join(map(repr, _RULES))
            raise ValueError(
                f"position_interpolation must be one of {wanted} or None, got {shown(self.position_interpolation)}"
            )
        check_integer("encoder_stride", self.encoder_stride, 1, 1024)
        self.check_memory()

    def count_weights(self) -> int:
        """About how many weights a model has, rather less: the tables, the encoder and a classifier, without biases."""
        return (self.patch_widths() + self.layer_widths() + self.num_labels) * self.hidden_size

    @property
    def interpolation(self) -> str:
        """The rule of `position_interpolation` that holds, as `vilt_fast.ops.patch_embed` calls it."""
        rule = self.position_interpolation
        if rule is None:
            written = re.match(r"(\d+)\.(\d+)", str(getattr(self, "transformers_version", "")))
            is_old = written is not None and tuple(map(int, written.groups())) < _FIRST_BY_SIZE
            rule = "scale_factor" if is_old else "size"
        return _RULES[rule]

    @classmethod
    def from_dict(cls: type[Config], config: dict[str, Any], **overrides: Any) -> Config:
        """As in the base class; also of MAE, whose encoder is a ViT, and of a distilled DeiT, where that is wanted.

        Raises:
            ValueError: as there, and for a distilled DeiT without drop_distillation_token=True.
        """
        found = config.get("model_type")
        if found == "deit" and overrides.get("drop_distillation_token") is not True:
            raise ValueError(
                "config.json is of a distilled DeiT, whose second token ViT does not have; "
                "drop_distillation_token=True loads it without that token, which costs accuracy"
            )
        if found in ("deit", "vit_mae"):
            config = {**config, "model_type": "vit"}
        return super().from_dict(config, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json that transformers 4.37 and 5.x read."""
        content = super().to_dict()
        del content["drop_distillation_token"]  # what was read has none
        if self.position_interpolation is None:
            del content["position_interpolation"]
        return content
