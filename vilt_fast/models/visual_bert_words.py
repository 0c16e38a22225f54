"""VisualBERT's heads with a decoder of words: pre-training, and phrases to regions (Li et al. 2019, section 3.3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast.configs.visual_bert import VisualBertConfig
from vilt_fast.contracts.exporting import apart
from vilt_fast.layers.dropout import Dropout
from vilt_fast.layers.heads import PreTrainingHeads, RegionToPhraseAttention
from vilt_fast.models.checks import check_labels, check_probabilities, check_tensor
from vilt_fast.models.heads import Seen, divergence, pooled_rows
from vilt_fast.models.outputs import HeadOutput, VisualBertForPreTrainingOutput
from vilt_fast.models.plans import planner
from vilt_fast.models.region_inputs import RegionInputs
from vilt_fast.models.visual_bert import VisualBertModel, VisualBertWithHead
from vilt_fast.packing import Check, Layout


class VisualBertWithDecoder(VisualBertWithHead):
    """Base of the heads whose decoder may share the word table."""

    row_read = None
    cls: PreTrainingHeads
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "visual_bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def get_output_embeddings(self) -> Any:
        """The decoder."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Put another module in the place of the decoder, and its bias in the place of the bias."""
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    def tie_weights(self) -> None:
        """See the base class; the decoder's bias is one parameter with the head's, whatever the configuration says."""
        super().tie_weights()
        self.cls.predictions.bias = self.cls.predictions.decoder.bias

    def resize_token_embeddings(self, *arguments: Any, **options: Any) -> nn.Module:
        """See the base class; the decoder's bias stays one parameter with the head's."""
        words = super().resize_token_embeddings(*arguments, **options)
        self.tie_weights()
        return words


class VisualBertForPreTraining(VisualBertWithDecoder):
    """Masked words, and whether text and image belong together.

    labels (B, L + V) integers: the word's id, -100 where there is nothing to learn. sentence_image_labels (B,)
    integers: 0 for a text of this image, 1 for one of another. The loss is the sum of those that are given.
    """

    output_class = VisualBertForPreTrainingOutput

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.cls = PreTrainingHeads(config)
        self.post_init()

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
        sentence_image_labels: Tensor | None = None,
        *,
        layout: Layout | None = None,
    ) -> VisualBertForPreTrainingOutput | tuple[Any, ...]:
        """Scores of every word and region over the vocabulary, and of the pair; the loss where labels are given.

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
        both = _Labels.of(labels, sentence_image_labels)
        inputs = planner(inputs)(self, inputs, both, output_attentions, output_hidden_states)
        return self._answer(inputs, both, output_attentions, output_hidden_states, return_dict)

    def _labels(self, arguments: dict[str, Any]) -> _Labels | None:
        return _Labels.of(arguments.get("labels"), arguments.get("sentence_image_labels"))

    def _check_labels(self, labels: Any, inputs: RegionInputs) -> list[Check]:
        (batch, length), checks = inputs.text_shape(), []
        if labels.words is not None:
            shape = (batch, length + inputs.check_regions(self.config, batch))
            checks += check_labels(labels.words, shape, classes=self.config.vocab_size, ignore=True)
        if labels.sentence is not None:
            name = "sentence_image_labels"
            flat = check_tensor(name, labels.sentence).flatten()
            checks += check_labels(flat, (batch,), classes=2, ignore=True, name=name)
        return checks

    def _stay_packed(self, inputs: RegionInputs, checks: list[Check]) -> Seen:
        encoded = self._encode_read(inputs, checks)
        pooled = self.visual_bert.pooler(encoded.tokens[encoded.layout.first])
        return Seen(encoded.tokens, layout=encoded.layout, pooled=pooled)

    def _call_base(self, inputs: RegionInputs, wanted: dict[str, bool]) -> Seen:
        output, layout = self._output_of_base(inputs, wanted), self._layout(inputs)
        states = {"hidden_states": output.hidden_states, "attentions": output.attentions}
        return Seen(layout.pack(output[0]), layout=layout, pooled=pooled_rows(output), **states)

    def _logits(self, seen: Seen) -> Any:
        assert seen.layout is not None
        scores, relationship = self.cls(seen.rows, seen.pooled)
        return _Logits(seen.layout.unpack(scores), relationship)

    def _loss(self, logits: Any, labels: Any, seen: Seen) -> Tensor:
        assert seen.layout is not None
        losses = []
        if labels.words is not None:
            learned = labels.words.long().masked_fill(seen.layout.padded_row < 0, -100)
            losses.append(F.cross_entropy(logits.words.flatten(0, 1), learned.flatten()))
        if labels.sentence is not None:
            losses.append(F.cross_entropy(logits.sentence, labels.sentence.flatten().long()))
        return sum(losses[1:], losses[0])

    def _make_output(self, loss: Tensor | None, logits: Any, seen: Seen) -> Any:
        return self.output_class(loss, logits.words, logits.sentence, seen.hidden_states, seen.attentions)


class _Logits(NamedTuple):
    """What `VisualBertForPreTraining` scores."""

    words: Tensor  # (B, L + V, vocabulary)
    sentence: Tensor  # (B, 2)

    @property
    def device(self) -> torch.device:
        return self.words.device


class _Labels(NamedTuple):
    """What `VisualBertForPreTraining` learns."""

    words: Tensor | None
    sentence: Tensor | None

    @classmethod
    def of(cls, words: Tensor | None, sentence: Tensor | None) -> _Labels | None:
        return None if words is None and sentence is None else cls(words, sentence)

    def to(self, device: torch.device) -> _Labels:
        return _Labels(*(None if label is None else label.to(device) for label in self))


class VisualBertForRegionToPhraseAlignment(VisualBertWithDecoder):
    """Which region a phrase is about (Flickr30K Entities): logits (B, S, V), of S chosen places and all regions.

    labels (B, S, V) floats: the probability of each region; of one that is masked it does not count. The loss is the
    divergence of Kullback and Leibler. Regions that are masked score the least number of the dtype.
    """

    reads_pooler = False

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.visual_bert = VisualBertModel(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.cls = PreTrainingHeads(config)
        self.attention = RegionToPhraseAttention(config)
        self.post_init()

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
        region_to_phrase_position: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        layout: Layout | None = None,
    ) -> HeadOutput | tuple[Any, ...]:
        """Scores of every chosen place and region, and the loss where `labels` are given (see the class).

        All other arguments are those of `VisualBertModel.forward`.

        Args:
            region_to_phrase_position: (B, S) whole numbers, the places in 0..L + V - 1 that are chosen; -1 is place 0.
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
            region_to_phrase_position=region_to_phrase_position,
            layout=layout,
        )
        inputs = planner(inputs)(self, inputs, labels, output_attentions, output_hidden_states)
        return self._answer(inputs, labels, output_attentions, output_hidden_states, return_dict)

    @staticmethod
    def prepare(inputs: RegionInputs) -> RegionInputs:
        """There must be regions, and places (B, S) to compare them with."""
        chosen, name = inputs.region_to_phrase_position, "region_to_phrase_position"
        if chosen is None:
            raise ValueError(f"{name} must be given, got None")
        if inputs.visual_embeds is None:
            raise ValueError("visual_embeds must be given, got None: there is no region to choose")
        batch = inputs.text_shape()[0]
        if check_tensor(name, chosen).ndim != 2 or chosen.shape[0] != batch:
            raise ValueError(f"{name} must be (batch={batch}, places), got shape {tuple(chosen.shape)}")
        return inputs

    def _check_labels(self, labels: Tensor, inputs: RegionInputs) -> list[Check]:
        chosen = inputs.region_to_phrase_position
        assert chosen is not None
        return check_probabilities(labels, (*chosen.shape, inputs.check_regions(self.config, chosen.shape[0])))

    def _stay_packed(self, inputs: RegionInputs, checks: list[Check]) -> Seen:
        encoded = self._encode_read(inputs, checks)
        return Seen(encoded.layout.unpack(encoded.tokens), layout=encoded.layout, inputs=inputs)

    def _call_base(self, inputs: RegionInputs, wanted: dict[str, bool]) -> Seen:
        layout, output = self._layout(inputs), self._output_of_base(inputs, wanted)
        return Seen(output[0], None, output.hidden_states, output.attentions, layout, inputs=inputs)

    def _logits(self, seen: Seen) -> Tensor:
        assert seen.layout is not None
        return self.attention(*phrases_and_regions(seen.rows, seen.layout, seen.inputs.region_to_phrase_position))

    def _loss(self, logits: Tensor, labels: Tensor, seen: Seen) -> Tensor:
        return divergence(logits, labels, logits != torch.finfo(logits.dtype).min)


def phrases_and_regions(states: Tensor, layout: Layout, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L + V, d) and (B, S), the places that are chosen, to (B, S, d), (B, V, d), and (B, V): the regions there are.

    A place of -1 is place 0.
    """
    index = places.to(states.device).long().clamp(min=0)
    chosen = states.gather(1, index[:, :, None].expand(-1, -1, states.shape[2]))
    return chosen, apart(states[:, layout.text_length :]), layout.padded_row[:, layout.text_length :] >= 0
