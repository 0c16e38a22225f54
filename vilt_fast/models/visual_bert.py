"""VisualBERT and its heads (Li et al. 2019), on packed tokens, with Hugging Face's names, arguments and outputs.

The heads that score words are in `vilt_fast.models.visual_bert_words`. All classes share the arguments of
`VisualBertModel.forward`. What differs from transformers, on purpose:

- Rows of padding are zero; masked words and regions are not computed.
- The pooler reads the first word that is attended to, also where padding stands on the left; question answering the
  word before the last one, without a mask too. Its logits are the same with and without labels.
- Labels at masked places do not count in the loss; labels of the sentence alone give a loss.
- `bypass_transformer` works, and so does `special_visual_initialize`, whose copies transformers overwrites.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vilt_fast.configs.visual_bert import VisualBertConfig
from vilt_fast.layers.dropout import Dropout
from vilt_fast.layers.embeddings import VisualBertEmbeddings
from vilt_fast.layers.encoder import CallsBlocks, Encoder
from vilt_fast.layers.heads import Pooler
from vilt_fast.layers.post_norm import PostNormLayer
from vilt_fast.layers.projection import call_linear
from vilt_fast.layers.untouched import skippable
from vilt_fast.models.checks import check_labels, check_layout, check_probabilities, check_tensor
from vilt_fast.models.heads import Seen, WithHead, divergence, pooled_rows
from vilt_fast.models.outputs import (
    BaseModelOutputWithPooling,
    Encoded,
    HeadOutput,
    MultipleChoiceModelOutput,
)
from vilt_fast.models.packed import PackedModel, refuse_tracing
from vilt_fast.models.plans import planner
from vilt_fast.models.region_inputs import RegionBatch, RegionInputs
from vilt_fast.models.visual_bert_base import VisualBertPreTrainedModel
from vilt_fast.packing import Check, Layout


@skippable()
class VisualBertModel(VisualBertPreTrainedModel, PackedModel, CallsBlocks):
    """Words and regions of an image in, one contextual row for each and one per pair out.

    Args:
        config: of the model.
        add_pooling_layer: whether there is a pooler.
    """

    layernorm = None  # blocks are post-norm

    def __init__(self, config: VisualBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = VisualBertEmbeddings(config)
        self.encoder = Encoder(config, PostNormLayer)
        self.pooler = Pooler(config) if add_pooling_layer else None
        if config.bypass_transformer:
            self.additional_layer = PostNormLayer(config)
        self.prune_heads(config.pruned_heads)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The word table."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Put another module in the place of the word table."""
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        visual_embeds: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        visual_token_type_ids: Tensor | None = None,
        image_text_alignment: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        layout: Layout | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode pairs of a text and the regions of an image.

        Args:
            input_ids: (B, L) integers; or `inputs_embeds`: (B, L, d).
            attention_mask: (B, L), 1 for real words, 0 for others, of any dtype; None: all.
            token_type_ids: (B, L) integers; None: zeros.
            position_ids: (B, L) or (1, L) integers; None: 0, 1, ...
            head_mask: (heads,) or (layers, heads), multiplies the attention probabilities of each head.
            visual_embeds: (B, V, visual_embedding_dim) floats, the features of regions; None: texts alone.
            visual_attention_mask: (B, V), 1 for real regions, 0 for others; None: all.
            visual_token_type_ids: (B, V) integers; None: ones.
            image_text_alignment: (B, V, n) integers, the positions of the words that go with each region, -1 for
                none: their mean is added to the region's position. What is longer than the regions is cut off.
            output_attentions, output_hidden_states, return_dict: None: as in the configuration.
            layout: what `plan` gave for these arguments, so that no value is read or checked: for `torch.compile` with
                fullgraph=True, and for several calls on one batch. Masks are in it.

        Returns:
            Rows are the L words, then the V regions; those that are masked are zero. With `bypass_transformer`, states
            and attentions of the blocks are those of the words alone, and the last ones those of all.

        Raises:
            ValueError: an argument is missing, of another shape, or holds values that mean nothing. (NaN or infinite
                features are refused on a CPU; on a GPU they make their pair NaN.)
        """
        inputs = RegionInputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            visual_embeds=visual_embeds,
            visual_attention_mask=visual_attention_mask,
            visual_token_type_ids=visual_token_type_ids,
            image_text_alignment=image_text_alignment,
            layout=layout,
        )
        inputs = planner(inputs)(self, inputs, None, output_attentions, output_hidden_states)
        encoded = self.encode(inputs, want_attentions=output_attentions, want_hidden_states=output_hidden_states)
        return self._output(encoded, return_dict)

    def check(self, inputs: RegionInputs, checks: list[Check]) -> tuple[RegionBatch, Layout]:
        """See the base class."""
        batch = inputs.check(self.config)
        if inputs.layout is None:
            return batch, batch.layout(self.config, checks)
        grid_size = (1, batch.visual_attention_mask.shape[1])
        return batch, check_layout(inputs.layout, checks, inputs.text_shape(), grid_size, inputs.device)

    def encode(
        self,
        inputs: RegionInputs,
        *,
        want_attentions: bool | None = None,
        want_hidden_states: bool | None = None,
        row_read: str | None = None,
        checks: list[Check] | None = None,
    ) -> Encoded:
        """Check, plan, embed and encode a batch, packed.

        Args:
            inputs: of the forward call.
            want_attentions, want_hidden_states: what to keep; None: as in the configuration.
            row_read: the property of `Layout` that says which row of each pair the caller reads; None: all rows.
            checks: the caller's own conditions on values; they ride on the one read back to the host.
        """
        refuse_tracing()
        batch, layout = self.check(inputs, checks or [])
        tokens = self.embeddings(
            layout,
            input_ids=batch.input_ids,
            token_type_ids=batch.token_type_ids,
            position_ids=batch.position_ids,
            inputs_embeds=batch.inputs_embeds,
            visual_embeds=batch.visual_embeds,
            visual_token_type_ids=batch.visual_token_type_ids,
            image_text_alignment=batch.image_text_alignment,
        )[0]
        only_rows = None if row_read is None else getattr(layout, row_read)
        wanted = (batch.head_mask, want_attentions, want_hidden_states)
        if self.config.bypass_transformer and batch.visual_embeds is not None:
            return self._bypass(tokens, layout, *wanted, only_rows)
        return self._encode(tokens, layout, *wanted, only_rows)

    def _bypass(
        self,
        tokens: Tensor,
        layout: Layout,
        head_mask: Tensor | None,
        want_attentions: bool | None,
        want_hidden_states: bool | None,
        only_rows: Tensor | None,
    ) -> Encoded:
        """The words alone through the encoder, then their rows and the regions through one block more."""
        row = layout.word_row
        words = self._encode(
            tokens[row], layout.words_alone(), head_mask, want_attentions, want_hidden_states, only_rows=None
        )
        tokens = tokens.index_copy(0, row, words.tokens)
        options = {"want_attention": words.attentions is not None}
        tokens, *attention = self._call_layer(self.additional_layer, tokens, layout, options)
        states = words.hidden_states
        if states is not None:
            states = (*states, layout.unpack(tokens))
        attentions = None if words.attentions is None else (*words.attentions, *attention)
        return Encoded(layout, tokens if only_rows is None else tokens[only_rows], states, attentions)


class VisualBertWithHead(WithHead, VisualBertPreTrainedModel):
    """Base of the heads: what those do that read one row of each pair, pooled."""

    base_class = VisualBertModel
    visual_bert: Any  # the VisualBertModel
    reads_pooler = True

    @property
    def _body(self) -> Any:
        return self.visual_bert

    def _can_stay_packed(self) -> bool:
        return super()._can_stay_packed() and (self.visual_bert.pools_first_rows or not self.reads_pooler)

    @staticmethod
    def prepare(inputs: RegionInputs) -> RegionInputs:
        """The inputs as those of pairs, with what the head wants of them."""
        return inputs

    def _answer(self, inputs: RegionInputs, *arguments: Any) -> Any:
        return super()._answer(self.prepare(inputs), *arguments)

    def _plan(self, inputs: RegionInputs, labels: Any) -> Layout:
        return super()._plan(self.prepare(inputs), labels)

    def _encode_read(self, inputs: RegionInputs, checks: list[Check]) -> Encoded:
        return self.visual_bert.encode(inputs, row_read=self.row_read, checks=checks)

    def _stay_packed(self, inputs: RegionInputs, checks: list[Check]) -> Seen:
        return Seen(self.visual_bert.pooler(self._encode_read(inputs, checks).tokens), inputs=inputs)

    def _call_base(self, inputs: RegionInputs, wanted: dict[str, bool]) -> Seen:
        output = self._output_of_base(inputs, wanted)
        return Seen(pooled_rows(output), None, output.hidden_states, output.attentions, inputs=inputs)

    def _output_of_base(self, inputs: RegionInputs, wanted: dict[str, bool]) -> Any:
        given = inputs.given()
        return self.visual_bert(given.pop("input_ids", None), **given, **wanted, return_dict=True)

    def _layout(self, inputs: RegionInputs) -> Layout:
        """Of the batch, where the base model is called as a module and keeps its own."""
        return inputs.check(self.config).layout(self.config, []) if inputs.layout is None else inputs.layout


class VisualBertWithLabels(VisualBertWithHead):
    """Base of the heads that have `labels` alone beside the arguments of `VisualBertModel.forward`."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        visual_embeds: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        visual_token_type_ids: Tensor | None = None,
        image_text_alignment: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        *,
        layout: Layout | None = None,
    ) -> HeadOutput | tuple[Any, ...]:
        """Logits of a batch, and the loss where `labels` are given (shape and meaning: see the class).

        All other arguments are those of `VisualBertModel.forward`.
        """
        inputs = RegionInputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            visual_embeds=visual_embeds,
            visual_attention_mask=visual_attention_mask,
            visual_token_type_ids=visual_token_type_ids,
            image_text_alignment=image_text_alignment,
            layout=layout,
        )
        inputs = planner(inputs)(self, inputs, labels, output_attentions, output_hidden_states)
        return self._answer(inputs, labels, output_attentions, output_hidden_states, return_dict)


class VisualBertForMultipleChoice(VisualBertWithLabels):
    """Which of several texts is right (VCR). All inputs are (B, choices, ...); labels (B,) integers."""

    output_class = MultipleChoiceModelOutput

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.cls = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @staticmethod
    def prepare(inputs: RegionInputs) -> RegionInputs:
        """Each choice is a pair."""
        return inputs.fold_choices()

    def _check_labels(self, labels: Tensor, inputs: RegionInputs) -> list[Check]:
        return check_labels(labels, (inputs.text_shape()[0] // inputs.choices,), classes=inputs.choices, ignore=True)

    def score(self, rows: Tensor) -> Tensor:
        """(B * choices, d) to (B * choices, 1)."""
        return call_linear(self.cls, self.dropout(rows))

    def _logits(self, seen: Seen) -> Tensor:
        return self.score(seen.rows).view(-1, seen.inputs.choices)


class VisualBertForQuestionAnswering(VisualBertWithLabels):
    """Answers to questions about an image. labels (B, num_labels) floats: the probability of every answer.

    The loss is the divergence of Kullback and Leibler.
    """

    row_read = "before_last"
    reads_pooler = False

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.visual_bert = VisualBertModel(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.cls = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _check_labels(self, labels: Tensor, inputs: RegionInputs) -> list[Check]:
        batch = inputs.text_shape()[0]
        return check_probabilities(self._as_rows(labels, batch), (batch, self.num_labels))

    def _as_rows(self, labels: Tensor, batch: int) -> Tensor:
        """(1, B, labels), as in Hugging Face's example, to (B, labels)."""
        is_wrapped = check_tensor("labels", labels).ndim == 3 and labels.shape[:2] == (1, batch)
        return labels[0] if is_wrapped else labels

    @staticmethod
    def prepare(inputs: RegionInputs) -> RegionInputs:
        """A text must have a word before its last one."""
        return replace(inputs, fewest_words=2)

    def _stay_packed(self, inputs: RegionInputs, checks: list[Check]) -> Seen:
        return Seen(self._encode_read(inputs, checks).tokens)

    def _call_base(self, inputs: RegionInputs, wanted: dict[str, bool]) -> Seen:
        layout = self._layout(inputs)
        output = self._output_of_base(inputs, wanted)
        rows = layout.pack(output[0])[layout.before_last]
        return Seen(rows, None, output.hidden_states, output.attentions)

    def score(self, rows: Tensor) -> Tensor:
        """(B, d) to (B, answers)."""
        return call_linear(self.cls, self.dropout(rows))

    def _loss(self, logits: Tensor, labels: Tensor, seen: Seen) -> Tensor:
        return divergence(logits, self._as_rows(labels, len(logits)))


class VisualBertForVisualReasoning(VisualBertWithLabels):
    """Whether a text is true of two images, whose regions come one after the other (NLVR2). labels (B,) integers."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.visual_bert = VisualBertModel(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.cls = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _check_labels(self, labels: Tensor, inputs: RegionInputs) -> list[Check]:
        flat = check_tensor("labels", labels).flatten()
        return check_labels(flat, inputs.text_shape()[:1], classes=self.num_labels, ignore=True)

    def score(self, rows: Tensor) -> Tensor:
        """(B, d) to (B, labels)."""
        return call_linear(self.cls, self.dropout(rows))
