"""A live model as a `torch.export` program of plain tensors by name."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx.experimental._config as symbols
from torch import Tensor, nn
from torch.export import ExportedProgram

from vilt_fast.export.axes import Axis, choose_axes, input_axes
from vilt_fast.export.inputs import example_sizes, make_batch
from vilt_fast.models.base import PreTrainedModel


def to_program(
    model: PreTrainedModel,
    *,
    batch: int | None = None,
    words: int | None = None,
    image_size: tuple[int, int] | None = None,
    regions: int | None = None,
    choices: int | None = None,
    strict: bool = False,
) -> ExportedProgram:
    """Export a model, of any class, for inputs of any size or of fixed ones.

    Inputs are tensors by name. ViLT: input_ids, attention_mask and token_type_ids (batch, words) int64, pixel_values
    (batch, channels, height, width) in the model's dtype, pixel_mask (batch, height, width) int64; with several images
    per text, those two have a dimension for them behind the batch. ViT: pixel_values. VisualBERT: the three of the
    words, visual_embeds (batch, regions, visual_embedding_dim), visual_attention_mask (batch, regions) int64, all with
    a dimension for choices behind the batch where the head has them; of phrases, region_to_phrase_position
    (batch, phrases) int64. The output is a dict of tensors under Hugging Face's names.

    Args:
        model: the live model; its weights are shared with the program.
        batch, words, regions, choices: None: any number (words: up to config.max_position_embeddings).
        image_size: (height, width), multiples of the patch; None: any. A ViT reads its position table as it is where
            this is config.image_size, else interpolated.
        strict: whether Dynamo reads the model's source (see torch.export.export); slower, and the same program.

    Raises:
        ValueError: an axis that the model lacks, a size that it does not take, or something that cannot be exported: a
            model in training with dropout, a config.max_image_length that would sample, a configuration that asks for
            attentions or hidden states.
    """
    sizes = {"batch": batch, "words": words, "image_size": image_size, "regions": regions, "choices": choices}
    return export_axes(model, choose_axes(model, **sizes), strict=strict)  # type: ignore[arg-type]


def export_axes(model: PreTrainedModel, axes: dict[str, Axis], *, strict: bool = False) -> ExportedProgram:
    """`to_program` with the axes as `choose_axes` makes them."""
    _refuse(model)
    dimensions = {name: axis.dimension() for name, axis in axes.items()}
    dynamic = {
        name: {place: dimensions[axis] for place, axis in enumerate(named) if axis and dimensions[axis] is not None}
        for name, named in input_axes(model).items()
    }
    example = make_batch(model, example_sizes(axes))
    # Or PyTorch takes sizes that follow from others, such as height // patch, for ones that are never 1.
    with torch.no_grad(), symbols.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(named_inputs(model, axes), (), example, dynamic_shapes=dynamic, strict=strict)


def _refuse(model: PreTrainedModel) -> None:
    """Raise ValueError for what torch.export would stumble over, or would export in silence."""
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(model.config, name):
            raise ValueError(
                f"config.{name}: got True; an exported model returns its answer alone: set it to False, or call "
                "torch.export.export yourself"
            )
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"model: {name} is on the meta device, which holds no weights: load them first")
    for name, module in model.named_modules():
        if hasattr(module, "_packed_params"):  # of torch.ao.quantization
            raise ValueError(
                f"model: {name} is a {type(module).__name__}, which torch.export cannot trace; quantise with "
                "torchao.quantization.quantize_, or the ONNX file with onnxruntime.quantization"
            )


def named_inputs(model: PreTrainedModel, axes: dict[str, Axis]) -> nn.Module:
    """The model behind a signature of exactly its inputs, which gives a plain dict."""
    names = input_axes(model)
    if "visual_embeds" in names:
        return _Regions(model)
    if "input_ids" in names:
        return _Pairs(model)
    size = (axes["height"].fixed, axes["width"].fixed)
    return _Images(model, interpolates=size != tuple(model.config.image_shape))


class _Named(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def _call(self, **inputs: Any) -> dict[str, Tensor]:
        return dict(self.model(**inputs, return_dict=True))


class _Pairs(_Named):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        pixel_values: Tensor,
        pixel_mask: Tensor,
    ) -> dict[str, Tensor]:
        return self._call(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
        )


class _Images(_Named):
    def __init__(self, model: nn.Module, *, interpolates: bool) -> None:
        super().__init__(model)
        self.interpolates = interpolates

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return self._call(pixel_values=pixel_values, interpolate_pos_encoding=self.interpolates)


class _Regions(_Named):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        visual_embeds: Tensor,
        visual_attention_mask: Tensor,
        region_to_phrase_position: Tensor | None = None,
    ) -> dict[str, Tensor]:
        phrases = {"region_to_phrase_position": region_to_phrase_position}  # of one head alone
        return self._call(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            visual_embeds=visual_embeds,
            visual_attention_mask=visual_attention_mask,
            **({} if region_to_phrase_position is None else phrases),
        )
