"""What the models with a head share: one forward, and what is done unless a head says otherwise."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.layers.encoder import Encoder
from vilt_fast.layers.projection import normalise
from vilt_fast.layers.untouched import stands_alone
from vilt_fast.models.base import PreTrainedModel
from vilt_fast.models.inputs import Inputs
from vilt_fast.models.outputs import HeadOutput, SequenceClassifierOutput
from vilt_fast.models.plans import planner
from vilt_fast.packing import Check, Layout, place_words, raise_first, take_words
from vilt_fast.pixels import PackedPixels


class Seen(NamedTuple):
    """What a head reads of a batch, and what it passes on."""

    rows: Tensor  # (B, d), pooled; or (words, d), those that `take_words` takes
    kept: Tensor | None = None  # (B, L) bool: which words these are
    hidden_states: Any = None
    attentions: Any = None
    layout: Layout | None = None  # of a head that puts rows at places
    pixels: Tensor | PackedPixels | None = None  # of a loss over them
    pooled: Tensor | None = None  # (B, d), of a head that reads them beside all rows
    inputs: Any = None  # of a head that reads arguments of its own


class WithHead(PreTrainedModel):
    """Base of the heads: one way for all; a head says how logits are made and what its labels are."""

    output_class: Any = SequenceClassifierOutput  # called with a loss, logits, states and attentions
    base_class: type[PreTrainedModel]  # of `_body`
    row_read: str | None = "first"  # the property of `Layout` with the one row of each pair that is read; None: more

    @property
    def _body(self) -> Any:
        """The model below the head."""
        raise NotImplementedError

    def _answer(
        self,
        inputs: Any,
        labels: Any,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
    ) -> Any:
        """What `forward` returns. labels: a tensor, or several with a method `to`."""
        checks = [] if labels is None else self._check_labels(labels, inputs)
        if inputs.layout is not None and torch.compiler.is_compiling():
            checks = []  # whoever made the layout has read them
        wanted = {
            "output_attentions": either(output_attentions, self.config.output_attentions),
            "output_hidden_states": either(output_hidden_states, self.config.output_hidden_states),
        }
        if self._can_stay_packed() and not any(wanted.values()):
            seen = self._stay_packed(inputs, checks)
        else:
            raise_first(checks)
            seen = self._call_base(inputs, wanted)
        logits = self._logits(seen)
        loss = None if labels is None else self._loss(logits, labels.to(logits.device), seen)
        output = self._make_output(loss, logits, seen)
        return output if either(return_dict, self.config.return_dict) else output.plain_tuple()

    def _plan(self, inputs: Any, labels: Any) -> Layout:
        body = self._body
        if not isinstance(body, self.base_class):
            wanted = self.base_class.__name__
            raise ValueError(f"plan: below the head is a {type(body).__name__}, wanted a {wanted}: call its own plan")
        checks = [] if labels is None else self._check_labels(labels, inputs)
        return body.check(self._pairs(inputs), checks)[1]

    def _plan_ahead(self, inputs: Any, labels: Any, *wanted: bool | None) -> Any:
        return super()._plan_ahead(inputs, labels, *wanted) if isinstance(self._body, self.base_class) else inputs

    def _pairs(self, inputs: Any) -> Any:
        """The inputs as those of pairs."""
        return inputs

    def _make_output(self, loss: Tensor | None, logits: Any, seen: Seen) -> Any:
        return self.output_class(loss, logits, seen.hidden_states, seen.attentions)

    def _can_stay_packed(self) -> bool:
        """Whether nobody would miss the call of `_body`, or the rows that are not read."""
        body = self._body
        if not stands_alone(body, self.base_class):
            return False
        norm_is_alone = body.layernorm is None or stands_alone(body.layernorm, nn.LayerNorm)
        return stands_alone(body.encoder, Encoder) and norm_is_alone

    def _stay_packed(self, inputs: Any, checks: list[Check]) -> Seen:
        """What the head reads, without the rows that nobody reads."""
        raise NotImplementedError

    def _call_base(self, inputs: Any, wanted: dict[str, bool]) -> Seen:
        """The same from the output of `_body`, called like any module."""
        raise NotImplementedError

    def _check_labels(self, labels: Any, inputs: Any) -> list[Check]:
        raise NotImplementedError

    def score(self, rows: Tensor) -> Tensor:
        """The head on the rows that it reads: (B, d) to (B, labels), or (words, d) to (words, classes)."""
        raise NotImplementedError

    def _logits(self, seen: Seen) -> Any:
        return self.score(seen.rows)

    def _loss(self, logits: Any, labels: Any, seen: Seen) -> Tensor:
        return F.cross_entropy(logits, labels.flatten().long())


class ViltWithHead(WithHead):
    """Base of ViLT's heads: their arguments."""

    config: ViltConfig
    inputs_class = Inputs
    vilt: Any  # the ViltModel, whose file imports this one

    @property
    def _body(self) -> Any:
        """The ViltModel."""
        return self.vilt

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
        layout: Layout | None = None,
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
            layout=layout,
        )
        inputs = planner(inputs)(self, inputs, labels, output_attentions, output_hidden_states)
        return self._answer(inputs, labels, output_attentions, output_hidden_states, return_dict)

    @property
    def slots(self) -> int | None:
        """Images per text, where inputs have a dimension of them."""
        return None

    def _pairs(self, inputs: Inputs) -> Inputs:
        return inputs if self.slots is None else inputs.fold_images(self.slots)

    def _can_stay_packed(self) -> bool:
        return super()._can_stay_packed() and (self.vilt.pools_first_rows or self.row_read is None)

    def _stay_packed(self, inputs: Inputs, checks: list[Check]) -> Seen:
        """What the head reads, without the rows that nobody reads."""
        encoded = self.vilt.encode(self._pairs(inputs), first_rows_only=True, checks=checks)
        return Seen(self.vilt.pooler(normalise(self.vilt.layernorm, encoded.tokens)))

    def _call_base(self, inputs: Inputs, wanted: dict[str, bool]) -> Seen:
        """The same from the output of `vilt`, called like any module."""
        output = self._output_of_vilt(inputs, wanted)
        return Seen(pooled_rows(output), None, output.hidden_states, output.attentions)

    def _output_of_vilt(self, inputs: Inputs, wanted: dict[str, bool]) -> Any:
        given = inputs.given()
        return self.vilt(given.pop("input_ids", None), **given, **wanted, return_dict=True)


class ViltWithWordHead(ViltWithHead):
    """Base of the heads that read every word. labels (B, L) integers, -100 where there is nothing to learn."""

    row_read = None

    def _stay_packed(self, inputs: Inputs, checks: list[Check]) -> Seen:
        encoded = self.vilt.encode(inputs, checks=checks)
        words = normalise(self.vilt.layernorm, encoded.tokens[encoded.layout.word_row])
        return Seen(words, encoded.layout.text_row >= 0)

    def _call_base(self, inputs: Inputs, wanted: dict[str, bool]) -> Seen:
        output = self._output_of_vilt(inputs, wanted)
        (batch, length), mask = inputs.text_shape(), inputs.attention_mask
        words = output[0][:, :length]
        kept = torch.ones(batch, length, dtype=torch.bool, device=words.device) if mask is None else mask != 0
        layout = inputs.layout  # which knows how many there are
        rows = take_words(words, kept) if layout is None else words.flatten(0, 1)[layout.word_place]
        return Seen(rows, kept, output.hidden_states, output.attentions)

    def _logits(self, seen: Seen) -> Tensor:
        assert seen.kept is not None
        return place_words(self.score(seen.rows), seen.kept)

    def _loss(self, logits: Tensor, labels: Tensor, seen: Seen) -> Tensor:
        assert seen.kept is not None
        return F.cross_entropy(logits.flatten(0, 1), labels.long().masked_fill(~seen.kept, -100).flatten())


def divergence(logits: Tensor, labels: Tensor, kept: Tensor | None = None) -> Tensor:
    """Kullback and Leibler's, of probabilities `labels` from the softmax of logits: the mean over pairs of its sum.

    Labels of 32 bits make a loss of 32 bits, also of 16-bit logits. kept: bool, the labels that count; None: all.
    """
    labels = labels if labels.is_floating_point() else labels.to(logits.dtype)
    labels = labels if kept is None else labels.masked_fill(~kept, 0)
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss = F.kl_div(logits.to(wide).log_softmax(-1), labels.to(wide), reduction="batchmean")
    return loss.to(torch.promote_types(logits.dtype, labels.dtype))


def pooled_rows(output: Any) -> Tensor:
    """What the pooler of a base model gave, (B, d).

    Raises:
        ValueError: there is none.
    """
    if output.pooler_output is None:
        raise ValueError("pooler: the model below the head has none, whose rows the head reads")
    return output.pooler_output


def either(value: bool | None, otherwise: bool) -> bool:
    """The value, unless it is None."""
    return otherwise if value is None else value
