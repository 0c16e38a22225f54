"""The configuration of VisualBERT."""

from __future__ import annotations

from typing import Any, ClassVar

from vilt_fast.configs.base import Config
from vilt_fast.configs.encoder import EncoderConfig


class VisualBertConfig(EncoderConfig):
    """Every field of Hugging Face's VisualBertConfig (4.37 and 5.x).

    Args:
        vocab_size, type_vocab_size, max_position_embeddings: sizes of the word, type and position tables.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the encoder.
        visual_embedding_dim: columns of the features of a region.
        hidden_act: name in `vilt_fast.layers.activations.ACTIVATIONS`, or a callable.
        hidden_dropout_prob, attention_probs_dropout_prob: in training.
        initializer_range: standard deviation of fresh weights.
        layer_norm_eps: of every normalisation.
        bypass_transformer: whether the blocks read words alone, and one block more reads their rows with the regions.
        special_visual_initialize: whether fresh tables of visual types and positions are copies of the words'.
        pad_token_id, bos_token_id, eos_token_id: of the tokenizer; the word table's row of padding gets no gradient.
        tie_word_embeddings: whether the masked-word decoder shares the word table.
        id2label, label2id, num_labels: names of the labels; num_labels alone gives LABEL_0, LABEL_1, ...
        output_attentions, output_hidden_states, return_dict: defaults of the forward arguments.
        **kwargs: become attributes, and are written back by `save_pretrained`; see `PreTrainedConfig`.

    Raises:
        ValueError: a size is not a positive integer, or hidden_size is not a multiple of num_attention_heads; a number
            is NaN or out of range; the sizes make more weights than any machine holds.
    """

    model_type = "visual_bert"
    sizes: ClassVar[tuple[str, ...]] = (
        *EncoderConfig.sizes,
        *("vocab_size", "type_vocab_size", "max_position_embeddings", "visual_embedding_dim"),
    )
    flags: ClassVar[tuple[str, ...]] = (
        *EncoderConfig.flags,
        *("bypass_transformer", "special_visual_initialize", "tie_word_embeddings"),
    )

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        visual_embedding_dim: int = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: Any = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        bypass_transformer: bool = False,
        special_visual_initialize: bool = True,
        pad_token_id: int | None = 1,
        bos_token_id: int | None = 0,
        eos_token_id: int | None = 2,
        *,
        tie_word_embeddings: bool = True,
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
        self.visual_embedding_dim = visual_embedding_dim
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.bypass_transformer = bypass_transformer
        self.special_visual_initialize = special_visual_initialize
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.validate()

    def validate(self) -> None:
        """See the base class."""
        super().validate()
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id must be below vocab_size={self.vocab_size}, got {self.pad_token_id}")
        self.check_memory()

    @classmethod
    def from_dict(cls: type[Config], config: dict[str, Any], **overrides: Any) -> Config:
        """As in the base class; also of a BERT, whose weights are those of the words: the weights say what it lacks."""
        if config.get("model_type") == "bert":
            config = {**config, "model_type": "visual_bert"}
        return super().from_dict(config, **overrides)

    def count_weights(self) -> int:
        """About how many weights a model has, rather less: the tables, the encoder and a classifier, without biases."""
        tables = self.vocab_size + 2 * (self.type_vocab_size + self.max_position_embeddings)
        widths = tables + self.visual_embedding_dim + self.layer_widths() + self.num_labels
        return widths * self.hidden_size
