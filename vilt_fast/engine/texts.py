"""What the families that read texts share of the pipeline's stages: words in, answers and filled words out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vilt_fast.engine.base import ModelStages
from vilt_fast.engine.results import Filled, answer_chances, fill_surest, make_answer, word_chances
from vilt_fast.engine.stages import AGAIN, Item
from vilt_fast.processing.encoding import check_unicode


@dataclass
class Words:
    """The text of a pair, and its masks filled so far."""

    ids: list[int]
    open_places: Tensor = field(init=False)  # (L,) bool, where masks are to be filled
    filled: list[tuple[int, float]] = field(default_factory=list)


class TextStages(ModelStages):
    """See the base class; `Item.asked` is the text, and `Item.state` its `Words`."""

    reads_texts = True
    is_exclusive: ClassVar[bool]  # whether a question has one answer: of `answer_chances`

    def asked(self, kind: str, text: Any, option: Any = None) -> str:
        """The text, checked here, where it is this pair's error: texts are tokenised together."""
        if not isinstance(text, str):
            raise ValueError(f"text: got {type(text).__name__}, wanted str")
        check_unicode(text, "text")
        return text

    def measure(self, items: Sequence[Item]) -> None:
        """Tokenise, all texts in one call."""
        fresh = [item for item in items if item.state is None]
        if not fresh:
            return
        rows = self.processor.tokenizer([item.asked for item in fresh])["input_ids"]
        longest, mask = self.config.max_position_embeddings, self.processor.tokenizer.mask_token_id
        for item, ids in zip(fresh, rows, strict=True):
            item.state = words = Words(ids)
            item.tokens = len(ids) + self._beside(item)
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

    def _beside(self, item: Item) -> int:
        """Tokens of a pair beside its words."""
        return item.picture.value.tokens

    def _reduce(self, items: Sequence[Item], output: Any) -> tuple[Tensor, ...]:
        kind, logits = items[0].kind, self._logits(output)
        if kind == "answer":
            return answer_chances(logits, self.top, is_exclusive=self.is_exclusive)
        return word_chances(logits) if kind == "fill" else (logits.float(),)

    def _logits(self, output: Any) -> Tensor:
        return output.logits

    def _read(self, items: Sequence[Item], outputs: tuple[Tensor, ...]) -> list[Any]:
        kind = items[0].kind
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

    def _fill(self, words: Words, chances: Tensor, chosen: Tensor) -> Any:
        length, decode = len(words.ids), self.processor.decode
        words.filled.append(fill_surest(words.ids, words.open_places, chances[:length], chosen[:length]))
        if words.open_places.any():
            return self._unless_nan(words.filled[-1][1], AGAIN)
        text = decode(words.ids, skip_special_tokens=True)
        filled = Filled(text, [(decode([token]), chance) for token, chance in words.filled])
        return self._unless_nan(words.filled[-1][1], filled)
