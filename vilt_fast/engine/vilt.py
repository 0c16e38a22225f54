"""The stages of the pipeline for ViLT: images and texts in, results out."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilt_fast.engine.results import Filled, answer_chances, fill_surest, make_answer, match_scores, word_chances
from vilt_fast.engine.stages import AGAIN, Item
from vilt_fast.frozen import FrozenModel
from vilt_fast.frozen.planning import HostBatch, plan_pairs
from vilt_fast.processing.decoding import decode, open_bytes
from vilt_fast.processing.settings import resize_size, target_size


class Loaded(NamedTuple):
    """An image in memory."""

    pixels: np.ndarray  # (H, W, 3) uint8
    tokens: int  # patches the model reads


@dataclass
class _Words:
    """The text of a pair, and its masks filled so far."""

    ids: list[int]
    open_places: Tensor = field(init=False)  # (L,) bool, where masks are to be filled
    filled: list[tuple[int, float]] = field(default_factory=list)


class Prepared(NamedTuple):
    """A batch that is planned on the host, with its images on the device."""

    kind: str
    batch: HostBatch
    copied: Any  # CUDA event: the images are on the device; None without CUDA


class Launched(NamedTuple):
    """Outputs in flight to the host."""

    outputs: tuple[Tensor, ...]
    done: Any  # CUDA event, or None if they have arrived
    prepared: Prepared  # keeps the inputs alive until then


class ViltStages:
    """See `vilt_fast.engine.stages.Stages`.

    Args:
        model: frozen. processor: a ViltProcessor.
        top: answers to report.
    """

    def __init__(self, model: FrozenModel, processor: Any, *, top: int) -> None:
        self.model, self.processor, self.top = model, processor, top
        self.config, self.device = model.config, model.device
        self.patch = self.config.patch_shape[0]
        self.blank = np.zeros((2 * self.patch, 2 * self.patch, 3), np.uint8)
        # Settings that packed images do not support are reported now, not with the first batch.
        self._pack([self.blank], None, self.device)
        is_cuda = self.device.type == "cuda"
        self._copying = torch.cuda.Stream(self.device) if is_cuda else None
        self._computing = torch.cuda.Stream(self.device) if is_cuda else None
        if is_cuda:  # the weights may still be in flight
            torch.cuda.synchronize(self.device)

    def is_loaded(self, source: Any) -> bool:
        """Whether an image is already an array of bytes."""
        return isinstance(source, np.ndarray | Tensor) and source.dtype in (np.uint8, torch.uint8)

    def load(self, source: Any) -> Loaded:
        """Decode an image and compute how many patches it will have."""
        settings = self.processor.image_processor
        if isinstance(source, bytes | bytearray | memoryview | io.BytesIO):
            source = open_bytes(source.getvalue() if isinstance(source, io.BytesIO) else bytes(source), "image")
        decoded = decode(source, name="image")
        if decoded.is_unit:
            # The processor rescales them once more, as Hugging Face's does; nobody who passes them here means that.
            raise ValueError(
                "image: got floats in [0, 1], which the processor would divide by 255 again; wanted 0..255: "
                "(255 * image).round().astype('uint8')"
            )
        size = target_size(settings, "image", *decoded.size) if settings.do_resize else decoded.size
        height, width = size
        if height % self.patch or width % self.patch:
            raise ValueError(f"image: got {height} x {width} pixels, wanted multiples of the patch, {self.patch}")
        patches, limit = height // self.patch * (width // self.patch), self.config.max_image_length
        return Loaded(decoded.array, min(patches, limit) if limit >= 0 else patches)

    def measure(self, items: Sequence[Item]) -> None:
        """Tokenise, all texts in one call."""
        fresh = [item for item in items if item.state is None]
        if not fresh:
            return
        rows = self.processor.tokenizer([item.text for item in fresh])["input_ids"]
        longest, mask = self.config.max_position_embeddings, self.processor.tokenizer.mask_token_id
        for item, ids in zip(fresh, rows, strict=True):
            item.state = words = _Words(ids)
            item.tokens = len(ids) + 1 + item.picture.value.tokens
            if not 0 < len(ids) <= longest:
                item.error = ValueError(f"text: got {len(ids)} tokens, wanted 1 to {longest}: {item.text[:60]!r}")
            elif max(ids) >= self.config.vocab_size:
                item.error = ValueError(
                    f"input_ids must be in 0..{self.config.vocab_size - 1} (vocab_size), got {max(ids)}: the processor "
                    f"has words that the model lacks: {item.text[:60]!r}"
                )
            elif item.kind == "fill":
                words.open_places = torch.tensor(ids) == mask
                if not words.open_places.any():
                    item.error = ValueError(f"text: got no masked word, wanted at least one [MASK]: {item.text!r}")

    def prepare(self, items: Sequence[Item]) -> Prepared:
        """Copy and resize each image once, and plan the batch; on a GPU, while the batch before it is computed."""
        numbers: dict[int, int] = {}
        picture = [numbers.setdefault(id(item.picture), len(numbers)) for item in items]
        pictures = {id(item.picture): item.picture.value.pixels for item in items}
        copied = None
        with self._stream(self._copying):
            is_sharing = len(pictures) < len(items)
            pixels = self._pack(list(pictures.values()), picture if is_sharing else None, self.device)
            if self._copying is not None:
                copied = self._copying.record_event()
        batch = plan_pairs([item.state.ids for item in items], pixels, self.config)
        return Prepared(items[0].kind, batch, copied)

    @torch.inference_mode()
    def launch(self, prepared: Prepared) -> Launched:
        """Start the model and the copies of its outputs to the host."""
        with self._stream(self._computing):
            if self._computing is not None:
                self._computing.wait_event(prepared.copied)
            logits = self.model.run(prepared.batch).logits
            # On a GPU, `to` with non_blocking writes into pinned memory.
            outputs = tuple(part.to("cpu", non_blocking=True) for part in self._reduce(prepared.kind, logits))
            done = None if self._computing is None else self._computing.record_event()
        return Launched(outputs, done, prepared)

    def finish(self, items: Sequence[Item], launched: Launched) -> list[Any]:
        """Wait for the outputs and read them."""
        if launched.done is not None:
            launched.done.synchronize()
        kind, outputs = items[0].kind, launched.outputs
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

    def recover(self) -> None:
        """Return unused memory to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def warm_up(self) -> None:
        """Compile and record; call it in the launching thread."""
        with self._stream(self._computing):
            self.model.warmup()

    def _pack(self, pictures: list[np.ndarray], picture: list[int] | None, device: Any) -> Any:
        return self.processor.image_processor.pack(
            pictures, device=device, picture=picture, input_data_format="channels_last"
        )

    def _stream(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def _reduce(self, kind: str, logits: Tensor) -> tuple[Tensor, ...]:
        """What the host needs from the logits."""
        if kind == "answer":
            return answer_chances(logits, self.top)
        if kind == "fill":
            return word_chances(logits)
        return (match_scores(logits) if kind == "score" else logits.float(),)

    def _unless_nan(self, number: float, result: Any) -> Any:
        """The result, or the error that is the answer where the numbers of the model overflowed."""
        if not math.isnan(number):
            return result
        return ValueError(
            f"dtype: the model's numbers overflow in {self.model.dtype}, its result is NaN; wanted a wider one, as is "
            "torch.float32"
        )

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
