"""ViT and its heads (Dosovitskiy et al. 2021), on packed tokens, with Hugging Face's names, arguments and outputs.

Beyond transformers: images of several sizes in one batch, as PackedPixels or padded with a `pixel_mask`, and
`patch_mask`, which drops patches before the encoder, at a cost that falls with what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast.checkpoints.vit import own_name
from vilt_fast.configs.vit import ViTConfig
from vilt_fast.layers.embeddings import ViTEmbeddings
from vilt_fast.layers.encoder import Encoder
from vilt_fast.layers.heads import Pooler
from vilt_fast.layers.projection import call_layer_norm, call_linear
from vilt_fast.layers.reconstruction import PatchDecoder
from vilt_fast.layers.untouched import skippable
from vilt_fast.models.base import PreTrainedModel
from vilt_fast.models.checks import check_labels, check_layout, check_tensor
from vilt_fast.models.heads import Seen, WithHead
from vilt_fast.models.image_inputs import ImageBatch, ImageInputs
from vilt_fast.models.outputs import (
    BaseModelOutputWithPooling,
    Encoded,
    HeadOutput,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    ViTModelOutput,
)
from vilt_fast.models.packed import PackedModel, refuse_tracing
from vilt_fast.models.plans import planner
from vilt_fast.packing import Check, Layout
from vilt_fast.pixels import PackedPixels


class ViTPreTrainedModel(PreTrainedModel):
    """Base of the classes of this family."""

    config: ViTConfig
    config_class = ViTConfig
    base_model_prefix = "vit"
    inputs_class = ImageInputs
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["ViTEmbeddings", "Layer"]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As nn.Module's; the names may be those of transformers 5's modules.

        The other way, `vilt_fast.checkpoints.vit.names_of_5` gives a state dict those names.
        """
        if isinstance(state_dict, Mapping) and any(own_name(name) != name for name in state_dict):
            state_dict = {own_name(name): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, strict, assign)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights of one module, N(0, initializer_range); of what Hugging Face cuts, beyond 2, there is none."""
        super()._init_weights(module)
        if isinstance(module, ViTEmbeddings):
            module.position_embeddings.normal_(std=self.config.initializer_range)
            module.cls_token.normal_(std=self.config.initializer_range)


@skippable()
class ViTModel(ViTPreTrainedModel, PackedModel):
    """Images in, one contextual row per patch and one per image out.

    Args:
        config: of the model.
        add_pooling_layer: whether there is a pooler.
        use_mask_token: whether there is a token that masked patches become, for `bool_masked_pos`.
    """

    output_class = ViTModelOutput

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config, use_mask_token)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.prune_heads(config.pruned_heads)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The patch projection."""
        return self.embeddings.patch_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Put another module in the place of the patch projection."""
        self.embeddings.patch_embeddings = value

    def forward(
        self,
        pixel_values: Tensor | PackedPixels | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        *,
        pixel_mask: Tensor | None = None,
        patch_mask: Tensor | None = None,
        layout: Layout | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode images.

        Args:
            pixel_values: (B, C, H, W) floats, or PackedPixels, which know their sizes. A side that is no multiple of
                the patch is cut off at the bottom and right.
            bool_masked_pos: (B, patches), nonzero for patches whose projection the mask token replaces. Patches are
                counted in the grid of the whole batch, (B, GH * GW) or (B, GH, GW).
            head_mask: (heads,) or (layers, heads), multiplies the attention probabilities of each head.
            output_attentions, output_hidden_states, return_dict: None: as in the configuration.
            interpolate_pos_encoding: whether images may be of another size than `config.image_size`, their positions
                interpolated from the table as `config.position_interpolation` says. None: PackedPixels and images
                with a pixel mask may.
            pixel_mask: (B, H, W), nonzero for real pixels: one rectangle at the top left of each image; None: all.
            patch_mask: (B, GH, GW), zero drops a patch; the others keep their positions.
            layout: what `plan` gave for these arguments, so that no value is read or checked: for `torch.compile` with
                fullgraph=True, and for several calls on one batch. Masks are in it.

        Returns:
            Rows are the CLS, then the patches that were kept, in raster order: (B, 1 + most patches, d), zero behind
            an image's own.

        Raises:
            ValueError: an argument is missing, of another shape, or holds values that mean nothing. (NaN or infinite
                pixels are refused on a CPU; on a GPU they make their image NaN.)
        """
        inputs = ImageInputs(
            pixel_values=pixel_values,
            bool_masked_pos=bool_masked_pos,
            head_mask=head_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            pixel_mask=pixel_mask,
            patch_mask=patch_mask,
            layout=layout,
        )
        inputs = planner(inputs)(self, inputs, None, output_attentions, output_hidden_states)
        encoded = self.encode(inputs, want_attentions=output_attentions, want_hidden_states=output_hidden_states)
        return self._output(encoded, return_dict)

    def check(self, inputs: ImageInputs, checks: list[Check]) -> tuple[ImageBatch, Layout]:
        """See the base class."""
        batch = inputs.check(self.config, has_mask_token=self.embeddings.mask_token is not None)
        if inputs.layout is None:
            return batch, batch.layout(checks)
        shape, device = (batch.batch_size, 0), batch.pixel_values.device
        return batch, check_layout(inputs.layout, checks, shape, batch.grid_size, device)

    def encode(
        self,
        inputs: ImageInputs,
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
            first_rows_only: whether the caller reads the CLS row of each image alone.
            checks: the caller's own conditions on values; they ride on the one read back to the host.
        """
        refuse_tracing()
        batch, layout = self.check(inputs, checks or [])
        tokens = self.embeddings(
            layout, pixel_values=batch.pixel_values, interpolation=batch.interpolation, masked=batch.masked
        )[0]
        only_rows = layout.first if first_rows_only else None
        return self._encode(tokens, layout, batch.head_mask, want_attentions, want_hidden_states, only_rows)


class ViTWithHead(WithHead, ViTPreTrainedModel):
    """Base of the heads."""

    base_class = ViTModel
    vit: ViTModel

    @property
    def _body(self) -> Any:
        return self.vit

    def _output_of_vit(self, inputs: ImageInputs, wanted: dict[str, bool]) -> Any:
        given = inputs.given()
        return self.vit(given.pop("pixel_values", None), **given, **wanted, return_dict=True)


class ViTForMaskedImageModeling(ViTWithHead):
    """Pixels of masked patches (Xie et al. 2022, SimMIM); the loss comes with `bool_masked_pos`."""

    output_class = MaskedImageModelingOutput
    row_read = None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False, use_mask_token=True)
        self.decoder = PatchDecoder(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | PackedPixels | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        *,
        pixel_mask: Tensor | None = None,
        patch_mask: Tensor | None = None,
        layout: Layout | None = None,
    ) -> MaskedImageModelingOutput | tuple[Any, ...]:
        """The pixels of every patch, and with `bool_masked_pos` the mean error over masked pixels.

        All arguments are those of `ViTModel.forward`.

        Raises:
            ValueError: as from there, and where `bool_masked_pos` comes with an `encoder_stride` that is not the patch.
        """
        inputs = ImageInputs(
            pixel_values=pixel_values,
            bool_masked_pos=bool_masked_pos,
            head_mask=head_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            pixel_mask=pixel_mask,
            patch_mask=patch_mask,
            layout=layout,
        )
        patch, stride = self.config.patch_shape[0], self.config.encoder_stride
        if bool_masked_pos is not None and patch != stride:
            raise ValueError(
                f"bool_masked_pos needs encoder_stride = patch_size, so that the reconstruction is as large as the "
                f"image, got encoder_stride = {stride} and patch_size = {patch}"
            )
        inputs = planner(inputs)(self, inputs, bool_masked_pos, output_attentions, output_hidden_states)
        return self._answer(inputs, bool_masked_pos, output_attentions, output_hidden_states, return_dict)

    def _check_labels(self, labels: Tensor, inputs: ImageInputs) -> list[Check]:
        return []  # the mask that they are is checked with the inputs

    def _stay_packed(self, inputs: ImageInputs, checks: list[Check]) -> Seen:
        encoded = self.vit.encode(inputs, checks=checks)
        rows = encoded.tokens[encoded.layout.patch_row.long()]
        rows = call_layer_norm(self.vit.layernorm, rows)
        return Seen(rows, layout=encoded.layout, pixels=inputs.pixel_values)

    def _call_base(self, inputs: ImageInputs, wanted: dict[str, bool]) -> Seen:
        output = self._output_of_vit(inputs, wanted)
        layout = inputs.layout
        if layout is None:
            layout = inputs.check(self.config, has_mask_token=True).layout([])
        rows = layout.pack(output[0])[layout.patch_row.long()]
        return Seen(rows, None, output.hidden_states, output.attentions, layout, inputs.pixel_values)

    def _logits(self, seen: Seen) -> Tensor:
        assert seen.layout is not None
        return self.decoder(seen.rows, seen.layout)

    def _loss(self, logits: Tensor, labels: Tensor, seen: Seen) -> Tensor:
        """The L1 distance over the pixels of masked patches, as Hugging Face weighs it."""
        layout, pixels, patch = seen.layout, seen.pixels, self.config.patch_shape[0]
        assert layout is not None and pixels is not None
        (rows, columns), masked = layout.grid_size, (labels != 0).long().view(-1, 1)  # onnxruntime chooses no bools
        # Of the patches that stood there: padding and dropped patches do not count.
        mask = layout.unpack_patches(masked[layout.patch_index.long()]).view(-1, 1, rows, columns)
        mask = mask.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        if isinstance(pixels, PackedPixels):
            pixels = pixels.cut(patch).padded(logits.dtype)
        distance = F.l1_loss(logits, pixels[:, :, : rows * patch, : columns * patch].to(logits), reduction="none")
        return distance.masked_fill(mask == 0, 0).sum() / (mask.sum() + 1e-5) / self.config.num_channels


class ViTForImageClassification(ViTWithHead):
    """Labels of an image. What the loss is follows from `config.problem_type`.

    labels: "regression": (B, num_labels) floats, or (B,) with one label, mean squared error.
    "single_label_classification": (B,) integers, -100 where there is nothing to learn, cross-entropy.
    "multi_label_classification": (B, num_labels) floats in 0..1, binary cross-entropy.
    Where it is None: regression with one label, else by the dtype of the labels: integers or floats.
    """

    output_class = ImageClassifierOutput

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = ViTModel(config, add_pooling_layer=False)
        labels = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, labels) if labels > 0 else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | PackedPixels | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        *,
        pixel_mask: Tensor | None = None,
        patch_mask: Tensor | None = None,
        layout: Layout | None = None,
    ) -> HeadOutput | tuple[Any, ...]:
        """Logits of a batch, and the loss where `labels` are given (see the class).

        All other arguments are those of `ViTModel.forward`.
        """
        inputs = ImageInputs(
            pixel_values=pixel_values,
            head_mask=head_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            pixel_mask=pixel_mask,
            patch_mask=patch_mask,
            layout=layout,
        )
        inputs = planner(inputs)(self, inputs, labels, output_attentions, output_hidden_states)
        return self._answer(inputs, labels, output_attentions, output_hidden_states, return_dict)

    def _stay_packed(self, inputs: ImageInputs, checks: list[Check]) -> Seen:
        encoded = self.vit.encode(inputs, first_rows_only=True, checks=checks)
        return Seen(call_layer_norm(self.vit.layernorm, encoded.tokens))

    def _call_base(self, inputs: ImageInputs, wanted: dict[str, bool]) -> Seen:
        output = self._output_of_vit(inputs, wanted)
        return Seen(output[0][:, 0], None, output.hidden_states, output.attentions)

    def score(self, rows: Tensor) -> Tensor:
        """(B, d) to (B, labels)."""
        return call_linear(self.classifier, rows)

    def _problem(self, labels: Tensor) -> str:
        if self.config.problem_type is not None:
            return self.config.problem_type
        if self.num_labels == 1:
            return "regression"
        is_class = not (labels.is_floating_point() or labels.dtype == torch.bool)
        return "single_label_classification" if is_class else "multi_label_classification"

    def _check_labels(self, labels: Tensor, inputs: ImageInputs) -> list[Check]:
        batch, count = inputs.batch_size, self.num_labels
        if count == 0:
            raise ValueError("labels: config.num_labels is 0, there is nothing to learn")
        problem = self._problem(check_tensor("labels", labels))
        flat = labels.flatten() if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if problem == "single_label_classification":
            return check_labels(flat, (batch,), classes=count, ignore=True)
        if problem == "regression" and count == 1:
            return check_labels(flat, (batch,))
        return check_labels(labels, (batch, count))

    def _loss(self, logits: Tensor, labels: Tensor, seen: Seen) -> Tensor:
        problem = self._problem(labels)
        if problem == "single_label_classification":
            return F.cross_entropy(logits, labels.flatten().long())
        labels = labels if labels.is_floating_point() else labels.to(logits.dtype)
        if problem == "regression":
            return F.mse_loss(logits, labels.view_as(logits))
        return F.binary_cross_entropy_with_logits(logits, labels)
