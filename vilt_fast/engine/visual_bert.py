"""The stages of the pipeline for VisualBERT: regions and texts in, results out."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilt_fast.checkpoints.files import brief
from vilt_fast.engine.stages import Item
from vilt_fast.engine.texts import TextStages
from vilt_fast.frozen import FrozenModel
from vilt_fast.frozen.planning import HostBatch
from vilt_fast.frozen.visual_bert import longest, plan_regions
from vilt_fast.models.visual_bert import VisualBertForQuestionAnswering, VisualBertForVisualReasoning
from vilt_fast.models.visual_bert_words import VisualBertForPreTraining
from vilt_fast.processing.regions import Regions, as_regions
from vilt_fast.processing.visual_bert import VisualBertProcessor


class Loaded(NamedTuple):
    """The regions of an image in memory."""

    features: np.ndarray  # (regions, visual_embedding_dim) float32
    tokens: int  # regions


class VisualBertStages(TextStages):
    """See the base class; the processor is a VisualBertProcessor, and an image is its regions."""

    kinds: ClassVar[dict[str, tuple[type, ...]]] = {
        "answer": (VisualBertForQuestionAnswering, VisualBertForVisualReasoning),
        "fill": (VisualBertForPreTraining,),
    }
    is_exclusive = True  # both heads are trained with a softmax

    def __init__(self, model: FrozenModel, processor: Any, *, top: int, most: int) -> None:
        super().__init__(model, processor, top=top, most=most)
        self.blank = Regions(np.zeros((1, self.config.visual_embedding_dim), np.float32))

    @classmethod
    def settings_of(cls, processor: Any) -> Any:
        """The processor itself."""
        if not isinstance(processor, VisualBertProcessor):
            raise ValueError(f"processor: got {type(processor).__name__}, wanted a vilt_fast.VisualBertProcessor")
        return processor

    @classmethod
    def longest(cls, config: Any, settings: Any) -> int:
        """Of the longest text with as many regions as detectors keep."""
        return longest(config)

    def is_one(self, given: Any) -> bool:
        """Whether this is one image's regions, and no list or iterator of them."""
        if isinstance(given, np.ndarray | Tensor):
            return given.ndim < 3
        # Bytes are those of a file; an open file would be taken for a list of its lines.
        is_file = isinstance(given, bytes | bytearray | memoryview | io.IOBase)
        return is_file or isinstance(given, Regions | Mapping) or _is_path(given)

    def is_loaded(self, source: Any) -> bool:
        """Whether regions are already read and checked."""
        return isinstance(source, Regions)

    def load(self, source: Any) -> Loaded:
        """Read the regions of an image."""
        regions = as_regions(source)
        check_width(regions, self.config, f"regions: {brief(os.fspath(source))}" if _is_path(source) else "regions")
        return Loaded(regions.features, len(regions))

    def measure(self, items: Sequence[Item]) -> None:
        """Tokenise; a pair that would stall all others, or has no word to read the answer from, is refused."""
        super().measure(items)
        reads_before_last = issubclass(self.model.model_class, VisualBertForQuestionAnswering)
        for item in items:
            if item.error is None and item.tokens > self.most:
                item.error = ValueError(too_many("regions", item.tokens, self.most))
            elif item.error is None and reads_before_last and len(item.state.ids) < 2:
                item.error = ValueError(
                    f"text: got {len(item.state.ids)} token, wanted at least 2: the answer is read from the last but "
                    f"one: {item.asked[:60]!r}"
                )

    def _gather(self, items: Sequence[Item]) -> Tensor:
        """(regions of all pairs, visual_embedding_dim) on the device, in the order of the pairs."""
        parts = [item.picture.value.features for item in items]
        shape = (sum(map(len, parts)), self.config.visual_embedding_dim)
        features = torch.empty(shape, pin_memory=self.device.type == "cuda")
        np.concatenate(parts, out=features.numpy())
        return features.to(self.device, non_blocking=True)

    def _plan(self, items: Sequence[Item], seen: Tensor) -> HostBatch:
        rows = [item.state.ids for item in items]
        return plan_regions(rows, seen, [item.picture.value.tokens for item in items])

    def _logits(self, output: Any) -> Tensor:
        """The pre-training head has two kinds; those of words are meant."""
        return output.prediction_logits if "prediction_logits" in output else output.logits


def check_width(regions: Regions, config: Any, name: str) -> None:
    """Raise ValueError, which names them, for regions of another detector than the model's."""
    got, wanted = regions.features.shape[1], config.visual_embedding_dim
    if got != wanted:
        advice = "; they seem to be transposed: save features.T" if len(regions) == wanted else ""
        raise ValueError(
            f"{name}: got features of width {got}, wanted {wanted} (visual_embedding_dim): those of the detector that "
            f"the model was trained with{advice}"
        )


def too_many(name: str, tokens: int, most: int) -> str:
    """What is said of a pair that is too long."""
    return f"{name}: got {tokens} words and regions, wanted at most {most}: keep fewer regions"


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)
