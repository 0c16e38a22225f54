"""Model configurations that read and write Hugging Face's config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import vilt_fast
from vilt_fast.checkpoints.files import write_atomically
from vilt_fast.checkpoints.hub import find_file

# Keys that transformers writes about itself, not about the model.
_BOOKKEEPING = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures", "model_type")


class ViltConfig:
    """Every field of Hugging Face's ViltConfig (4.37 and 5.x), and one of the original repository.

    Args:
        vocab_size, type_vocab_size, max_position_embeddings: sizes of the word, type and position tables.
        modality_type_vocab_size: rows of the modality table: text, first picture, second picture, ...
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the encoder.
        hidden_act: name in `vilt_fast.layers.activations.ACTIVATIONS`, or a callable.
        hidden_dropout_prob, attention_probs_dropout_prob: in training.
        initializer_range: standard deviation of fresh weights.
        layer_norm_eps: of every normalisation but the classifiers'.
        encoder_layer_norm_eps: of the encoder's blocks and the normalisation after them, where it differs from
            `layer_norm_eps`. The original checkpoints were trained with 1e-6 there; Hugging Face uses 1e-12.
        image_size, patch_size: an int or (height, width); they size the position table. A patch is square.
        num_channels: of a picture.
        qkv_bias: whether query, key and value have a bias.
        max_image_length: at most so many patches a picture, sampled; -1: all.
        num_images: pictures a text of ViltForImagesAndTextClassification.
        tie_word_embeddings: whether the masked-word decoder shares the word table.
        id2label, label2id, num_labels: names of the labels; num_labels alone gives LABEL_0, LABEL_1, ...
        output_attentions, output_hidden_states, return_dict: defaults of the forward arguments.
        **kwargs: kept, and written back by `save_pretrained`.

    Raises:
        ValueError: a size is not a positive integer, or hidden_size is not a multiple of num_attention_heads.
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
        fields = {k: v for k, v in locals().items() if k not in ("self", "kwargs", "num_labels", "__class__")}
        self.__dict__.update(fields)
        self.image_size = _pair_or_int(image_size)
        self.patch_size = _pair_or_int(patch_size)
        self.id2label, self.label2id = _labels(id2label, label2id, num_labels)
        kwargs.pop("model_type", None)
        kwargs.pop("use_return_dict", None)
        self.extra = kwargs
        self._check()

    def _check(self) -> None:
        sizes = (
            "vocab_size type_vocab_size modality_type_vocab_size max_position_embeddings hidden_size "
            "num_attention_heads intermediate_size num_channels"
        )
        for name in sizes.split():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if not isinstance(self.num_hidden_layers, int) or self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must be an integer >= 0, got {self.num_hidden_layers!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got hidden_size={self.hidden_size} "
                f"and num_attention_heads={self.num_attention_heads}"
            )
        if not isinstance(self.max_image_length, int) or self.max_image_length == 0:
            raise ValueError(
                f"max_image_length must be a positive integer, or -1 for all, got {self.max_image_length!r}"
            )
        height, width = self.patch_shape
        if height != width:
            raise ValueError(f"patch_size must be square, got {self.patch_size!r}")
        if min(self.table_size) < 1:
            raise ValueError(f"image_size must be at least patch_size={self.patch_size!r}, got {self.image_size!r}")

    @property
    def num_labels(self) -> int:
        """Number of labels of a classification head."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        self.id2label, self.label2id = _labels(None, None, value)

    @property
    def use_return_dict(self) -> bool:
        """Hugging Face's name for `return_dict`."""
        return self.return_dict

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
    def from_dict(cls, config: dict[str, Any], **overrides: Any) -> ViltConfig:
        """A configuration from the content of a config.json; `overrides` win.

        Raises:
            ValueError: `config` is of another architecture.
        """
        config = dict(config)
        found = config.pop("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(f"config.json must have model_type {cls.model_type!r}, got {found!r}")
        if "num_labels" in overrides:  # 4.37 writes id2label alone; a number given now replaces those names
            for name in ("id2label", "label2id"):
                config.pop(name, None)
        if "id2label" in overrides:
            config.pop("label2id", None)
        config.pop("num_labels", None) if "id2label" in config else None
        return cls(**{**config, **overrides})

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> ViltConfig:
        """Read config.json of a directory or a hub id.

        Args:
            name_or_path: directory or hub id.
            **kwargs: `revision`, `cache_dir`, `token`, `local_files_only`; anything else overrides a field.

        Raises:
            FileNotFoundError: there is no config.json. ValueError: it is not JSON, or not of this architecture.
        """
        hub = {k: kwargs.pop(k) for k in ("revision", "cache_dir", "token", "local_files_only") if k in kwargs}
        path = find_file(name_or_path, "config.json", **hub)
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
        return cls.from_dict(config, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json that transformers 4.37 and 5.x read."""
        fields = {k: v for k, v in self.__dict__.items() if k != "extra"}
        if fields["encoder_layer_norm_eps"] is None:
            del fields["encoder_layer_norm_eps"]
        if not isinstance(fields["hidden_act"], str):
            fields["hidden_act"] = getattr(fields["hidden_act"], "__name__", str(fields["hidden_act"]))
        fields["id2label"] = {str(i): label for i, label in self.id2label.items()}
        return {**self.extra, **fields, "model_type": self.model_type}

    def to_json_string(self, **written: Any) -> str:
        """The text of config.json; `written` are further keys."""
        content = {**self.to_dict(), **written, "vilt_fast_version": vilt_fast.__version__}
        if "torch_dtype" in written:
            content.pop("dtype", None)  # 5.x's name for it, of the file that was read: it may be another by now
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json into `directory`, whole or not at all."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(directory) / "config.json", self.to_json_string())

    def __eq__(self, other: object) -> bool:
        def essence(config: ViltConfig) -> dict[str, Any]:
            return {k: v for k, v in config.to_dict().items() if k not in _BOOKKEEPING and k != "vilt_fast_version"}

        return isinstance(other, ViltConfig) and essence(self) == essence(other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"ViltConfig {json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str)}"


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _pair_or_int(value: Any) -> int | tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    if len(values) not in (1, 2) or not all(isinstance(v, int) and v > 0 for v in values):
        raise ValueError(f"image_size and patch_size must be a positive integer or two of them, got {value!r}")
    return value if isinstance(value, int) else (values[0], values[-1])


def _labels(
    id2label: dict | None, label2id: dict | None, num_labels: int | None
) -> tuple[dict[int, str], dict[str, int]]:
    if id2label is None:
        count = 2 if num_labels is None else num_labels
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"num_labels must be an integer >= 0, got {num_labels!r}")
        id2label = {i: f"LABEL_{i}" for i in range(count)}
    id2label = dict(sorted((int(i), label) for i, label in id2label.items()))
    if num_labels is not None and len(id2label) != num_labels:
        raise ValueError(f"num_labels is {num_labels}, but id2label names {len(id2label)} labels")
    if label2id is None or len(label2id) == 0:
        label2id = {label: i for i, label in id2label.items()}
    return id2label, {label: int(i) for label, i in label2id.items()}
