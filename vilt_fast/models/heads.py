"""What the models with a head share: one forward, and what is done unless a head says otherwise."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.layers.projection import normalise
from vilt_fast.models.base import PreTrainedModel
from vilt_fast.models.inputs import Inputs
from vilt_fast.models.outputs import Encoded, HeadOutput, SequenceClassifierOutput
from vilt_fast.packing import Check, Layout
from vilt_fast.pixels import PackedPixels


class ViltWithHead(PreTrainedModel):
    """Base of the heads: one forward for all; a head says how logits are made and what its labels are."""

    output_class: type[HeadOutput] = SequenceClassifierOutput
    first_rows_only = True  # whether the head reads each pair's first row alone, or the rows of all words

    config: ViltConfig
    vilt: Any  # the ViltModel, whose file imports this one

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | PackedPixels | None = None,
        pixel_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        patch_mask: Tensor | None = None,
        seed: int | None = None,
        image_index: Tensor | None = None,
    ) -> HeadOutput | tuple[Any, ...]:
        """Logits of a batch, and the loss where `labels` are given (shape and meaning: see the class).

        All other arguments are those of `ViltModel.forward`.
        """
        inputs = Inputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            image_embeds=image_embeds,
            patch_mask=patch_mask,
            seed=seed,
            image_index=image_index,
        )
        encoded = self.vilt.encode(
            inputs if self.slots is None else inputs.fold_images(self.slots),
            want_attentions=output_attentions,
            want_hidden_states=output_hidden_states,
            first_rows_only=self.first_rows_only,
            checks=[] if labels is None else self._check_labels(labels, inputs),
        )
        logits = self.logits(encoded)
        loss = None if labels is None else self._loss(logits, labels.to(logits.device), encoded.layout)
        output = self._output(encoded, loss, logits)
        return output if either(return_dict, self.config.return_dict) else output.plain_tuple()

    @property
    def slots(self) -> int | None:
        """Images per text, where inputs have a dimension of them."""
        return None

    def _check_labels(self, labels: Tensor, inputs: Inputs) -> list[Check]:
        raise NotImplementedError

    def logits(self, encoded: Encoded) -> Tensor:
        """The head on an encoded batch: (B, labels), or (B, L, classes) for heads that read every word."""
        raise NotImplementedError

    def _loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        return F.cross_entropy(logits, labels.flatten())

    def _output(self, encoded: Encoded, loss: Tensor | None, logits: Tensor) -> HeadOutput:
        return self.output_class(loss, logits, encoded.hidden_states(), encoded.padded_attentions())


class ViltWithWordHead(ViltWithHead):
    """Base of the heads that read every word. labels (B, L) integers, -100 where there is nothing to learn."""

    first_rows_only = False

    def _score(self, words: Tensor) -> Tensor:
        """(words, d) to (words, classes)."""
        raise NotImplementedError

    def logits(self, encoded: Encoded) -> Tensor:
        words = normalise(self.vilt.layernorm, encoded.tokens[encoded.layout.word_row])
        return encoded.layout.unpack_words(self._score(words))

    def _loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        labels = labels.masked_fill(layout.text_row < 0, -100)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def either(value: bool | None, otherwise: bool) -> bool:
    """The value, unless it is None."""
    return otherwise if value is None else value
