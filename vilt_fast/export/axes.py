"""The axes of an exported model's inputs: their names, and which sizes each may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.export import Dim

from vilt_fast.models.base import PreTrainedModel
from vilt_fast.models.visual_bert import VisualBertForMultipleChoice, VisualBertForQuestionAnswering
from vilt_fast.models.visual_bert_words import VisualBertForRegionToPhraseAlignment

# The dimensions of every input, named after their axis; what has no axis is of one size.
_TEXT = {name: ("batch", "words") for name in ("input_ids", "attention_mask", "token_type_ids")}
_REGIONS = {"visual_embeds": ("batch", "regions", None), "visual_attention_mask": ("batch", "regions")}
_IMAGE = {"pixel_values": ("batch", None, "height", "width")}
_PAIR = {**_TEXT, **_IMAGE, "pixel_mask": ("batch", "height", "width")}
# What the dynamic sizes of an image are multiples of, times the patch.
_PATCHES = {"height": "rows", "width": "columns"}


@dataclass(frozen=True)
class Axis:
    """The sizes that an axis takes: the multiples of `multiple` from `least` to `most`; None: any from `least` on."""

    name: str
    least: int
    most: int | None
    multiple: int = 1

    @property
    def fixed(self) -> int | None:
        """The one size of an axis that has one."""
        return self.least if self.least == self.most else None

    @property
    def symbol(self) -> str:
        """What varies: the axis itself, or the rows or columns of patches that its size is a multiple of."""
        return self.name if self.multiple == 1 else _PATCHES[self.name]

    def dimension(self) -> Any:
        """What torch.export calls it; None: it is fixed."""
        if self.fixed is not None:
            return None
        most = None if self.most is None else self.most // self.multiple
        counted = Dim(self.symbol, min=self.least // self.multiple, max=most)
        return counted if self.multiple == 1 else self.multiple * counted

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"{self.fixed}"
        sizes = f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"
        return sizes if self.multiple == 1 else f"{sizes}, multiples of {self.multiple}"


def input_axes(model: PreTrainedModel) -> dict[str, tuple[str | None, ...]]:
    """Input -> its dimensions, each by the name of its axis; None: of one size.

    Raises:
        ValueError: it is no live model of ours.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"model: got a {type(model).__name__}, wanted a live model of vilt_fast, such as ViltModel; of a "
            "PeftModel, merge_and_unload()"
        )
    kind = model.config.model_type
    if kind == "vit":
        return dict(_IMAGE)
    if kind == "vilt":
        if getattr(model, "slots", None) is None:
            return dict(_PAIR)
        return {name: axes if name in _TEXT else (axes[0], None, *axes[1:]) for name, axes in _PAIR.items()}
    words_and_regions = {**_TEXT, **_REGIONS}
    if isinstance(model, VisualBertForMultipleChoice):
        return {name: (axes[0], "choices", *axes[1:]) for name, axes in words_and_regions.items()}
    if isinstance(model, VisualBertForRegionToPhraseAlignment):
        words_and_regions["region_to_phrase_position"] = ("batch", "phrases")
    return words_and_regions


def choose_axes(
    model: PreTrainedModel,
    *,
    batch: int | None = None,
    words: int | None = None,
    image_size: tuple[int, int] | None = None,
    regions: int | None = None,
    choices: int | None = None,
) -> dict[str, Axis]:
    """The axes of a model by name, those with a number fixed to it.

    Raises:
        ValueError: an axis that the model lacks, or a size that it does not take.
    """
    possible = {axis.name: axis for axis in _possible(model)}
    height, width = _sides(image_size)
    given = {"batch": batch, "words": words, "height": height, "width": width, "regions": regions, "choices": choices}
    for name, size in given.items():
        if size is None:
            continue
        shown = "image_size" if name in _PATCHES else name
        if name not in possible:
            raise ValueError(
                f"{shown}: got {size}, but a {type(model).__name__} has no such axis; it has {', '.join(possible)}"
            )
        possible[name] = _fix(possible[name], size, shown)
    return possible


def _possible(model: PreTrainedModel) -> list[Axis]:
    """All axes, dynamic, in the order in which inputs name them."""
    names = dict.fromkeys(name for axes in input_axes(model).values() for name in axes if name is not None)
    config, least, most, multiple = model.config, {}, {}, {}
    if "words" in names:
        # This head reads the word before the last one; and a block that reads words alone is traced for more than one.
        reads_two = isinstance(model, VisualBertForQuestionAnswering) or getattr(config, "bypass_transformer", False)
        least["words"] = 2 if reads_two else 1
        most["words"] = config.max_position_embeddings
    if "height" in names:
        least = {**least, **dict(zip(_PATCHES, config.patch_shape, strict=True))}
        multiple = dict(zip(_PATCHES, config.patch_shape, strict=True))
    if most.get("words", least.get("words", 0)) < least.get("words", 0):
        raise ValueError(
            f"config.max_position_embeddings: got {most['words']}, wanted {least['words']}: this model is exported for "
            "texts of two words or more"
        )
    return [Axis(name, least.get(name, 1), most.get(name), multiple.get(name, 1)) for name in names]


def _sides(image_size: tuple[int, int] | None) -> tuple[int | None, int | None]:
    if image_size is None:
        return None, None
    if not isinstance(image_size, tuple | list) or len(image_size) != 2:
        raise ValueError(f"image_size: got {image_size!r}, wanted (height, width), or None for any")
    return image_size[0], image_size[1]


def _fix(axis: Axis, size: int, shown: str) -> Axis:
    if isinstance(size, bool) or not isinstance(size, int):
        raise ValueError(f"{shown}: got {size!r} for the {axis.name}, wanted an integer, or None for any")
    is_inside = size >= axis.least and (axis.most is None or size <= axis.most)
    if is_inside and size % axis.multiple == 0:
        return Axis(axis.name, size, size, axis.multiple)
    why = " (the patch)" if axis.multiple > 1 else " (config.max_position_embeddings)" * (axis.most is not None)
    raise ValueError(f"{shown}: got {size} for the {axis.name}, wanted {axis}{why}")
