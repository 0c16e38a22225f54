"""The stages of the pipeline for ViLT: images and texts in, results out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from vilt_fast.engine.images import ImageStages
from vilt_fast.engine.results import match_scores
from vilt_fast.engine.stages import Item
from vilt_fast.engine.texts import TextStages
from vilt_fast.frozen.planning import HostBatch
from vilt_fast.frozen.vilt import plan_pairs
from vilt_fast.models.vilt import (
    ViltForImageAndTextRetrieval,
    ViltForImageTextMatching,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
)
from vilt_fast.pixels import PackedPixels
from vilt_fast.processing.settings import resize_size


class ViltStages(TextStages, ImageStages):
    """See the base classes; the processor is a ViltProcessor."""

    kinds: ClassVar[dict[str, tuple[type, ...]]] = {
        "answer": (ViltForQuestionAnswering,),
        "score": (ViltForImageAndTextRetrieval, ViltForImageTextMatching),
        "fill": (ViltForMaskedLM,),
    }
    is_exclusive = False

    @classmethod
    def settings_of(cls, processor: Any) -> Any:
        """The image processor of a ViltProcessor."""
        settings = getattr(processor, "image_processor", None)
        if not hasattr(settings, "pack"):
            raise ValueError(f"processor: got {type(processor).__name__}, wanted a vilt_fast.ViltProcessor")
        return settings

    @classmethod
    def longest(cls, config: Any, settings: Any) -> int:
        """Of the longest text with the image that has the most patches."""
        return longest_pair(config, settings)

    def _count_patches(self, height: int, width: int) -> int:
        if height % self.patch or width % self.patch:
            raise ValueError(f"image: got {height} x {width} pixels, wanted multiples of the patch, {self.patch}")
        patches, limit = height // self.patch * (width // self.patch), self.config.max_image_length
        return min(patches, limit) if limit >= 0 else patches

    def _beside(self, item: Item) -> int:
        """The CLS of the image and its patches."""
        return 1 + super()._beside(item)

    def _plan(self, items: Sequence[Item], seen: PackedPixels) -> HostBatch:
        return plan_pairs([item.state.ids for item in items], seen, self.config)

    def _reduce(self, items: Sequence[Item], output: Any) -> tuple[Tensor, ...]:
        return (match_scores(output.logits),) if items[0].kind == "score" else super()._reduce(items, output)

    def _read(self, items: Sequence[Item], outputs: tuple[Tensor, ...]) -> list[Any]:
        if items[0].kind == "score":
            return [self._unless_nan(score, score) for score in outputs[0].tolist()]
        return super()._read(items, outputs)


def longest_pair(config: Any, image_processor: Any) -> int:
    """Tokens of the longest text with the image that has the most patches, by the settings of model and processor."""
    edge, divisor = image_processor.size["shortest_edge"], image_processor.size_divisor
    patch = config.patch_shape[0]
    long, short = resize_size(10**6, 1, edge, divisor)[0] // patch, resize_size(edge, edge, edge, divisor)[0] // patch
    limit = config.max_image_length
    return config.max_position_embeddings + 1 + (min(long * short, limit) if limit >= 0 else long * short)
