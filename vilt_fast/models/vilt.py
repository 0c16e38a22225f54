"""ViLT and its heads (Kim et al. 2021), on packed tokens, with Hugging Face's names, arguments and outputs.

All classes share the arguments of `ViltModel.forward`. What differs from transformers, on purpose:

- Rows of padding are zero, patches come in raster order, and the same call gives the same result.
- The pooler reads the first word that is attended to, also where padding stands on the left.
- Labels at masked words do not count in the loss.
- `patch_mask`, `seed` and `image_index` are new; retrieval has a loss.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.layers.dropout import Dropout
from vilt_fast.layers.embeddings import ViltEmbeddings
from vilt_fast.layers.encoder import Encoder
from vilt_fast.layers.heads import Classifier, MaskedLMHead, MatchingHead, Pooler
from vilt_fast.layers.projection import call_linear
from vilt_fast.layers.untouched import skippable
from vilt_fast.models.checks import check_labels, check_layout
from vilt_fast.models.heads import Seen, ViltWithHead, ViltWithWordHead, either
from vilt_fast.models.inputs import Batch, Inputs, check_modality
from vilt_fast.models.outputs import (
    BaseModelOutputWithPooling,
    Encoded,
    MaskedLMOutput,
    TokenClassifierOutput,
    ViltForImagesAndTextClassificationOutput,
)
from vilt_fast.models.packed import PackedModel, refuse_tracing
from vilt_fast.models.plans import planner
from vilt_fast.packing import Check, Layout, raise_first
from vilt_fast.pixels import PackedPixels


@skippable()
class ViltModel(PackedModel):
    """Text and image in, one contextual row per token and one per pair out.

    Args:
        config: of the model.
        add_pooling_layer: whether there is a pooler.
    """

    config: ViltConfig
    inputs_class = Inputs

    def __init__(self, config: ViltConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = ViltEmbeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.block_layer_norm_eps)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.prune_heads(config.pruned_heads)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The word table."""
        return self.embeddings.text_embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Put another module in the place of the word table."""
        self.embeddings.text_embeddings.word_embeddings = value

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
        image_token_type_idx: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        patch_mask: Tensor | None = None,
        seed: int | None = None,
        image_index: Tensor | None = None,
        layout: Layout | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode pairs of a text and an image.

        Args:
            input_ids: (B, L) integers; or `inputs_embeds`: (B, L, d).
            attention_mask: (B, L), nonzero for real words; None: all.
            token_type_ids: (B, L) integers; None: zeros.
            pixel_values: (B, C, H, W) floats, or PackedPixels, which know their sizes (no `pixel_mask`);
                or `image_embeds`: (B, places, d), which already hold CLS and positions.
            pixel_mask: (B, H, W), nonzero for real pixels: one rectangle at the top left of each image; None: all.
                With `image_embeds`: (B, ...) with `places` entries per image.
            head_mask: (heads,) or (layers, heads), multiplies the attention probabilities of each head.
            image_token_type_idx: row of the modality table for images; None: 1.
            output_attentions, output_hidden_states, return_dict: None: as in the configuration.
            patch_mask: (B, H // patch, W // patch) bool, False drops a patch; the others keep their positions.
            seed: of the patch sample, where `config.max_image_length` limits patches; None: 0 in evaluation, drawn
                from PyTorch's CPU generator in training.
            image_index: (B,) integers, which draw of the seed each image gets; None: its place in the batch, in
                PackedPixels that of the image.
            layout: what `plan` gave for these arguments, so that no value is read or checked: for `torch.compile` with
                fullgraph=True, and for several calls on one batch. Masks, `seed` and `image_index` are in it.

        Raises:
            ValueError: an argument is missing, of another shape, or holds values that mean nothing. (NaN or infinite
                pixels are refused on a CPU; on a GPU they make their pair NaN.)
        """
        check_modality(image_token_type_idx)
        inputs = Inputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            image_embeds=image_embeds,
            image_token_type_idx=image_token_type_idx,
            patch_mask=patch_mask,
            seed=seed,
            image_index=image_index,
            layout=layout,
        )
        inputs = planner(inputs)(self, inputs, None, output_attentions, output_hidden_states)
        encoded = self.encode(inputs, want_attentions=output_attentions, want_hidden_states=output_hidden_states)
        return self._output(encoded, return_dict)

    def check(self, inputs: Inputs, checks: list[Check]) -> tuple[Batch, Layout]:
        """See the base class."""
        # Where the inputs are: parameters may be elsewhere until their module is called, or be no parameters.
        device = inputs.device
        batch = inputs.check(self.config, device)
        if inputs.layout is None:
            return batch, batch.layout(self.config, self.training, checks)
        shape = inputs.text_shape()
        return batch, check_layout(inputs.layout, checks, shape, batch.grid_size, device)

    def encode(
        self,
        inputs: Inputs,
        *,
        want_attentions: bool | None = None,
        want_hidden_states: bool | None = None,
        first_rows_only: bool = False,
        checks: list[Check] | None = None,
    ) -> Encoded:
        """Check, plan, embed and encode a batch, packed.

        Args:
            inputs: of the forward call.
            want_attentions, want_hidden_states: what to keep; None: as in the configuration.
            first_rows_only: whether the caller reads the first word's row of each pair alone.
            checks: the caller's own conditions on values; they ride on the one read back to the host.
        """
        refuse_tracing()
        batch, layout = self.check(inputs, checks or [])
        tokens = self.embeddings(
            layout,
            input_ids=batch.input_ids,
            token_type_ids=batch.token_type_ids,
            inputs_embeds=batch.inputs_embeds,
            pixel_values=batch.pixel_values,
            image_embeds=batch.image_embeds,
            pair_modality=batch.pair_modality,
        )[0]
        only_rows = layout.first if first_rows_only else None
        return self._encode(tokens, layout, batch.head_mask, want_attentions, want_hidden_states, only_rows)


ViltWithHead.base_class = ViltModel


class ViltForMaskedLM(ViltWithWordHead):
    """Masked words. labels (B, L) integers: the word's id, -100 where there is nothing to learn."""

    output_class = MaskedLMOutput
    _tied_weights_keys = {"mlm_score.decoder.weight": "vilt.embeddings.text_embeddings.word_embeddings.weight"}

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.vilt = ViltModel(config)
        self.mlm_score = MaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> Any:
        """The decoder."""
        return self.mlm_score.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Put another module in the place of the decoder."""
        self.mlm_score.decoder = new_embeddings

    def _check_labels(self, labels: Tensor, inputs: Inputs) -> list[Check]:
        return check_labels(labels, inputs.text_shape(), classes=self.config.vocab_size, ignore=True)

    def score(self, rows: Tensor) -> Tensor:
        """(words, d) to (words, vocabulary)."""
        return self.mlm_score(rows)


class ViltForQuestionAnswering(ViltWithHead):
    """Answers to questions about an image. labels (B, num_labels) floats: the score of every answer in 0..1."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vilt = ViltModel(config)
        self.classifier = Classifier(config.hidden_size, config.hidden_size * 2, config.num_labels)
        self.post_init()

    def _check_labels(self, labels: Tensor, inputs: Inputs) -> list[Check]:
        return check_labels(labels, (inputs.text_shape()[0], self.num_labels))

    def score(self, rows: Tensor) -> Tensor:
        """(B, d) to (B, answers)."""
        return self.classifier(rows)

    def _loss(self, logits: Tensor, labels: Tensor, seen: Seen) -> Tensor:
        # Times the number of answers: the sum over answers, not their mean (Kim et al. 2018, bilinear attention).
        # Labels of 32 bits make a loss of 32 bits, also of 16-bit logits.
        labels = labels if labels.is_floating_point() else labels.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, labels) * labels.shape[1]


class ViltForImageAndTextRetrieval(ViltWithHead):
    """One score per pair: how well text and image match. labels (B,) integers: 1 for a match, 0 for none.

    The loss is the margin ranking loss with the original repository's margin of 0.2: the mean over every pair of a
    match and a non-match in the batch of max(0, margin - score(match) + score(non-match)). (That repository sets the
    margin, and trains with the cross-entropy of one match among sixteen: `F.cross_entropy(logits.view(-1, 16), zeros)`
    where every first row is the match.)
    """

    margin = 0.2

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.vilt = ViltModel(config)
        self.rank_output = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def _check_labels(self, labels: Tensor, inputs: Inputs) -> list[Check]:
        checks = check_labels(labels, inputs.text_shape()[:1], classes=2)
        one_sided = (labels == labels[0]).all()
        return [*checks, (one_sided, lambda: "labels must hold at least one match (1) and one non-match (0)")]

    def score(self, rows: Tensor) -> Tensor:
        """(B, d) to (B, 1)."""
        return call_linear(self.rank_output, rows)

    def _loss(self, logits: Tensor, labels: Tensor, seen: Seen) -> Tensor:
        score, match = logits[:, 0], labels.bool()
        excess = F.relu(self.margin - score[:, None] + score)  # (match, non-match)
        pairs = match[:, None] & ~match
        return (excess * pairs).sum() / pairs.sum()


class ViltForImageTextMatching(ViltWithHead):
    """The original repository's ITM head: logits (B, 2); labels (B,) integers: 1 for a match, 0 for none."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.vilt = ViltModel(config)
        self.itm_score = MatchingHead(config)
        self.post_init()

    def _check_labels(self, labels: Tensor, inputs: Inputs) -> list[Check]:
        return check_labels(labels, inputs.text_shape()[:1], classes=2)

    def score(self, rows: Tensor) -> Tensor:
        """(B, d) to (B, 2)."""
        return self.itm_score(rows)


class ViltForImagesAndTextClassification(ViltWithHead):
    """One text about several images (NLVR2). pixel_values (B, num_images, C, H, W), pixel_mask (B, num_images, H, W).

    Or pixel_values as PackedPixels with B * num_images pairs: the images of the first text, then those of the second.

    labels (B,) integers. Every image is one pair with the text, image i with modality row i + 1; all pairs run in
    one packed batch, and the classifier reads their pooled rows side by side.
    """

    output_class = ViltForImagesAndTextClassificationOutput

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        if config.num_images < 1:
            raise ValueError(f"config.num_images must be at least 1, got {config.num_images}")
        if config.modality_type_vocab_size <= config.num_images:
            raise ValueError(
                f"config.modality_type_vocab_size must be at least num_images + 1 = {config.num_images + 1}: one row "
                f"for the text and one per image; got {config.modality_type_vocab_size}"
            )
        self.num_labels = config.num_labels
        self.vilt = ViltModel(config)
        width = config.hidden_size * config.num_images
        self.classifier = Classifier(width, width, config.num_labels)
        self.post_init()

    @property
    def slots(self) -> int:
        """Images per text."""
        return self.config.num_images

    def _check_labels(self, labels: Tensor, inputs: Inputs) -> list[Check]:
        if isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        return check_labels(labels, inputs.text_shape()[:1], classes=self.num_labels, ignore=True)

    def _plan_ahead(self, inputs: Inputs, labels: Any, *wanted: bool | None) -> Inputs:
        names = ("output_attentions", "output_hidden_states")
        asked = [either(value, getattr(self.config, name)) for name, value in zip(names, wanted, strict=True)]
        if self._can_stay_packed() and not any(asked) or not isinstance(self.vilt, ViltModel):
            return super()._plan_ahead(inputs, labels, *wanted)
        raise_first([] if labels is None else self._check_labels(labels, inputs))
        slots = self.config.num_images
        layouts = tuple(self.vilt.check(inputs.image_of_each(slot, slots), [])[1] for slot in range(slots))
        return replace(inputs, slot_layouts=layouts)

    def _call_base(self, inputs: Inputs, wanted: dict[str, bool]) -> Seen:
        """Image by image, as Hugging Face runs it: the i-th images are padded to the longest among them alone."""
        if inputs.layout is not None:
            raise ValueError(
                "layout: with output_attentions, output_hidden_states or a hook on `vilt`, images run one by one, each "
                "with a layout of its own; leave it out"
            )
        slots = self.config.num_images
        call = super()._call_base
        seen = [call(inputs.image_of_each(slot, slots), wanted) for slot in range(slots)]
        return Seen(
            rows=torch.stack([one.rows for one in seen], 1).flatten(0, 1),  # the images of the first text, and so on
            hidden_states=[one.hidden_states for one in seen] if wanted["output_hidden_states"] else None,
            attentions=[one.attentions for one in seen] if wanted["output_attentions"] else None,
        )

    def score(self, rows: Tensor) -> Tensor:
        """(B * num_images, d) to (B, labels)."""
        return self.classifier(rows.reshape(-1, self.config.num_images * rows.shape[1]))


class ViltForTokenClassification(ViltWithWordHead):
    """One label per word. labels (B, L) integers, -100 where there is nothing to learn."""

    output_class = TokenClassifierOutput

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vilt = ViltModel(config, add_pooling_layer=False)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _check_labels(self, labels: Tensor, inputs: Inputs) -> list[Check]:
        return check_labels(labels, inputs.text_shape(), classes=self.num_labels, ignore=True)

    def score(self, rows: Tensor) -> Tensor:
        """(words, d) to (words, labels)."""
        return call_linear(self.classifier, self.dropout(rows))
