"""The stages of the pipeline for ViLT: images and texts in, results out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vilt_fast.engine.images import ImageStages
from vilt_fast.engine.results import Filled, answer_chances, fill_surest, make_answer, match_scores, word_chances
from vilt_fast.engine.stages import AGAIN, Item
from vilt_fast.frozen import FrozenModel
from vilt_fast.frozen.planning import HostBatch
from vilt_fast.frozen.vilt import plan_pairs
from vilt_fast.models.vilt import (
    ViltForImageAndTextRetrieval,
    ViltForImageTextMatching,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
)
from vilt_fast.pixels import PackedPixels
from vilt_fast.processing.encoding import check_unicode
from vilt_fast.processing.settings import resize_size


@dataclass
class _Words:
    """The text of a pair, and its masks filled so far."""

    ids: list[int]
    open_places: Tensor = field(init=False)  # (L,) bool, where masks are to be filled
    filled: list[tuple[int, float]] = field(default_factory=list)


class ViltStages(ImageStages):
    """See the base class; `Item.asked` is the text.

    Args:
        model: frozen. processor: a ViltProcessor.
        top: answers to report.
    """

    kinds: ClassVar[dict[str, tuple[type, ...]]] = {
        "answer": (ViltForQuestionAnswering,),
        "score": (ViltForImageAndTextRetrieval, ViltForImageTextMatching),
        "fill": (ViltForMaskedLM,),
    }
    reads_texts = True

    def __init__(self, model: FrozenModel, processor: Any, *, top: int, most: int) -> None:
        super().__init__(model, processor.image_processor, top=top, most=most)
        self.processor = processor

    @classmethod
    def settings_of(cls, processor: Any) -> Any:
        """The image processor of a ViltProcessor."""
        settings = getattr(processor, "image_processor", None)
        if not hasattr(settings, "pack"):
            raise ValueError(f"processor: got {type(processor).__name__}, wanted a vilt_fast.ViltProcessor")
        return settings

    @classmethod
    def longest(cls, config: Any, image_processor: Any) -> int:
        """Of the longest text with the image that has the most patches."""
        return longest_pair(config, image_processor)

    def asked(self, kind: str, text: Any, option: Any = None) -> str:
        """The text, checked here, where it is this pair's error: texts are tokenised together."""
        if not isinstance(text, str):
            raise ValueError(f"text: got {type(text).__name__}, wanted str")
        check_unicode(text, "text")
        return text

    def _count_patches(self, height: int, width: int) -> int:
        if height % self.patch or width % self.patch:
            raise ValueError(f"image: got {height} x {width} pixels, wanted multiples of the patch, {self.patch}")
        patches, limit = height // self.patch * (width // self.patch), self.config.max_image_length
        return min(patches, limit) if limit >= 0 else patches

    def measure(self, items: Sequence[Item]) -> None:
        """Tokenise, all texts in one call."""
        fresh = [item for item in items if item.state is None]
        if not fresh:
            return
        rows = self.processor.tokenizer([item.asked for item in fresh])["input_ids"]
        longest, mask = self.config.max_position_embeddings, self.processor.tokenizer.mask_token_id
        for item, ids in zip(fresh, rows, strict=True):
            item.state = words = _Words(ids)
            item.tokens = len(ids) + 1 + item.picture.value.tokens
            if not 0 < len(ids) <= longest:
                item.error = ValueError(f"text: got {len(ids)} tokens, wanted 1 to {longest}: {item.asked[:60]!r}")
            elif max(ids) >= self.config.vocab_size:
                item.error = ValueError(
                    f"input_ids must be in 0..{self.config.vocab_size - 1} (vocab_size), got {max(ids)}: the processor "
                    f"has words that the model lacks: {item.asked[:60]!r}"
                )
            elif item.kind == "fill":
                words.open_places = torch.tensor(ids) == mask
                if not words.open_places.any():
                    item.error = ValueError(f"text: got no masked word, wanted at least one [MASK]: {item.asked!r}")

    def _plan(self, items: Sequence[Item], pixels: PackedPixels) -> HostBatch:
        return plan_pairs([item.state.ids for item in items], pixels, self.config)

    def _reduce(self, items: Sequence[Item], output: Any) -> tuple[Tensor, ...]:
        kind, logits = items[0].kind, output.logits
        if kind == "answer":
            return answer_chances(logits, self.top)
        if kind == "fill":
            return word_chances(logits)
        return (match_scores(logits) if kind == "score" else logits.float(),)

    def _read(self, items: Sequence[Item], outputs: tuple[Tensor, ...]) -> list[Any]:
        kind = items[0].kind
        if kind == "score":
            return [self._unless_nan(score, score) for score in outputs[0].tolist()]
        if kind == "logits":
            # A copy each: a row that is kept must not keep its whole batch alive.
            is_text = outputs[0].ndim == 3
            return [
                row[: len(item.state.ids)].clone() if is_text else row.clone()
                for item, row in zip(items, outputs[0], strict=True)
            ]
        if kind == "fill":
            return [self._fill(item.state, *rows) for item, *rows in zip(items, *outputs, strict=True)]
        rows = zip(*(part.tolist() for part in outputs), strict=True)
        return [
            self._unless_nan(chances[0], make_answer(self.config.id2label, chances, labels)) for chances, labels in rows
        ]

    def _fill(self, words: _Words, chances: Tensor, chosen: Tensor) -> Any:
        length, decode = len(words.ids), self.processor.decode
        words.filled.append(fill_surest(words.ids, words.open_places, chances[:length], chosen[:length]))
        if words.open_places.any():
            return self._unless_nan(words.filled[-1][1], AGAIN)
        text = decode(words.ids, skip_special_tokens=True)
        filled = Filled(text, [(decode([token]), chance) for token, chance in words.filled])
        return self._unless_nan(words.filled[-1][1], filled)


def longest_pair(config: Any, image_processor: Any) -> int:
    """Tokens of the longest text with the image that has the most patches, by the settings of model and processor."""
    edge, divisor = image_processor.size["shortest_edge"], image_processor.size_divisor
    patch = config.patch_shape[0]
    long, short = resize_size(10**6, 1, edge, divisor)[0] // patch, resize_size(edge, edge, edge, divisor)[0] // patch
    limit = config.max_image_length
    return config.max_position_embeddings + 1 + (min(long * short, limit) if limit >= 0 else long * short)
