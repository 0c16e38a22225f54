"""`Engine`: what a batch job or a server calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from vilt_fast.engine.base import MAX_TOKENS_ELSEWHERE, ModelStages, default_tokens
from vilt_fast.engine.feeding import in_order, pair_up, with_bar
from vilt_fast.engine.futures import Process
from vilt_fast.engine.pipeline import Pipeline
from vilt_fast.engine.stages import Counts, Ticket
from vilt_fast.engine.vilt import ViltStages
from vilt_fast.engine.visual_bert import VisualBertStages
from vilt_fast.engine.vit import ViTStages
from vilt_fast.frozen.graphs import max_pairs
from vilt_fast.frozen.model import FrozenModel, device_for, freeze

_FAMILIES: tuple[type[ModelStages], ...] = (ViltStages, ViTStages, VisualBertStages)
# (kind of request, family, models)
_HEADS = [(kind, family, models) for family in _FAMILIES for kind, models in family.kinds.items()]
_MODELS = tuple(model for _, _, models in _HEADS for model in models)
_WITH_LOGITS = tuple(model for kind, _, models in _HEADS if kind != "embed" for model in models)
_NO_TEXT = ""  # of an image alone
_LONGEST_WAIT_MS = 86_400_000  # a day


@dataclass(frozen=True)
class Stats:
    """What an engine has done since it was made or warmed up."""

    pairs: int  # answered
    failed: int  # answered with an error
    batches: int
    tokens: int
    seconds: float  # from the first pair to the last answer
    pairs_per_s: float
    tokens_per_s: float
    fill: float  # 0..1: tokens of the batches over what they could have held
    queue_ms: float  # a pair's mean wait from submission to the model
    stall_s: float  # that the model waited for a batch


class Engine:
    """Answers questions about images, or classifies or embeds them, many at a time, from lists, iterators or threads.

    A result does not depend on what else is asked at the same time: bit for bit on the kernels, and up to the order of
    sums on the CPU (not even that in `submit_batch`). Images are whatever `vilt_fast.processing.decoding` reads (a
    path, a PIL image, an array of 0..255), or the bytes of an image's file, in a BytesIO too. Pending pairs that name
    the same object or the same path share the image: it is decoded once, and embedded once per batch. An image must
    not be modified before the results that depend on it are there. With a VisualBERT an image is its regions: a
    `Regions`, the path or the bytes of an .npz, an array or a tensor (regions, visual_embedding_dim), or a dictionary.
    An engine that is still open when Python shuts down answers what was submitted, unless an error brought the end;
    after that it refuses all calls.

    Args:
        model: ViltForQuestionAnswering (`answer`), ViltForImageAndTextRetrieval or ViltForImageTextMatching (`score`),
            ViltForMaskedLM (`fill`), ViTForImageClassification (`classify`), ViTModel (`embed`),
            VisualBertForQuestionAnswering or VisualBertForVisualReasoning (`answer`), VisualBertForPreTraining
            (`fill`); or one of these frozen by the caller, whose graphs are then as it was frozen. A ViT's item is an
            image, not a pair.
        processor: a ViltProcessor; of a VisualBERT, a VisualBertProcessor; of a ViT, a ViTImageProcessor. Where that
            keeps the shapes of images, a batch holds several sizes, and sides are cut to whole patches.
        max_tokens: per batch, words and patches or regions; None for 49,152 on a GPU and 4,096 elsewhere. A
            VisualBERT's pair with more of them is refused, if it has more than 4,096.
        dtype, device: None for the model's. The model is frozen (`vilt_fast.freeze`): the engine has a copy of its own.
        cuda_graphs: whether to record CUDA graphs, one per bucket of lengths, on first use or in `warmup`.
        workers: threads that decode images; None for one per core.
        max_wait_ms: how long a pair waits for others to share a batch with while the model is idle; at most a day.
        top: number of answers in `Answer.top`, and of labels in `Classified.top` where the call does not say.

    Raises:
        ValueError: an argument is out of range or of the wrong type, or the model cannot be frozen.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        cuda_graphs: bool = True,
        workers: int | None = None,
        max_wait_ms: float = 5.0,
        top: int = 5,
    ) -> None:
        kind = model.model_class if isinstance(model, FrozenModel) else type(model)
        if not issubclass(kind, _MODELS):
            wanted = ", ".join(kind.__name__ for kind in _MODELS)
            raise ValueError(f"model: got {kind.__name__}, wanted one of {wanted}")
        if isinstance(model, FrozenModel) and not (dtype is device is None and cuda_graphs):
            raise ValueError("dtype, device, cuda_graphs: a frozen model has its own; give them to freeze()")
        self._kind, family = next((name, family) for name, family, models in _HEADS if issubclass(kind, models))
        settings = family.settings_of(processor)
        _check_numbers(max_wait_ms, top, max_tokens=max_tokens, workers=workers)
        _check_form(dtype, cuda_graphs)
        where = device_for(model, device)
        max_tokens = max_tokens or default_tokens(where)
        longest = family.longest(model.config, settings)
        largest = max(max_tokens, longest)  # the longest pair has a batch of its own
        if isinstance(model, FrozenModel):
            self.model = model
        else:
            self.model = freeze(model, dtype, device, cuda_graphs, max_tokens=largest, max_seqlen=longest)
        self._stages = family(self.model, processor, top=top, most=max(largest, MAX_TOKENS_ELSEWHERE))
        self._pipeline = pipeline = Pipeline(
            self._stages,
            max_tokens=max_tokens,
            max_pairs=max_pairs(max_tokens, longest),
            max_wait_ms=max_wait_ms,
            workers=workers,
            # Enough for the five batches that can be in flight at ViLT's usual 211 tokens per pair, and for decoding.
            max_pending=max(64, max_tokens // 32),
        )
        # An engine that is forgotten, not closed, answers what is pending and ends its threads.
        self._forgotten = weakref.finalize(self, _close_later, pipeline)
        self._forgotten.atexit = False

    def __reduce__(self) -> Any:
        """Refuse to be copied or pickled: threads cannot be.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "an Engine has threads and cannot be pickled or copied: send the model and the processor (or the frozen "
            "model, engine.model), and make an Engine of them there"
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(finish=error is None)

    def answer(self, images: Any, questions: Any, *, on_error: str = "raise", progress: bool | None = None) -> Any:
        """Answer questions about images, each question about the image in its place.

        Args:
            images: a list of images, an iterator of them (endless, if need be), or one image for all questions; with a
                VisualBERT, of their regions. An array or a tensor of one axis more than an image has is a list.
            questions: a list of texts, an iterator of them, or one text for all images.
            on_error: what a pair that cannot be answered yields: "raise": its error, with the pair's number; "return":
                the error in place of the result. Other pairs are unaffected.
            progress: whether to draw a progress bar; None: for a long list on a terminal.

        Returns:
            `Answer`s in order: a list; a generator if an argument is an iterator, which a thread reads ahead by a
            bounded number of pairs; or a single one if both arguments are single.

        Raises:
            ValueError: the model is for another task, or images and questions differ in number.
            RuntimeError: the engine is closed, was made before a fork, or is called in a future's callback.
        """
        return self._many("answer", images, questions, on_error, progress)

    def score(self, images: Any, texts: Any, *, on_error: str = "raise", progress: bool | None = None) -> Any:
        """How well each text fits its image, as floats: the ranking head's logit, or the matching head's probability.

        Arguments and order are those of `answer`.
        """
        return self._many("score", images, texts, on_error, progress)

    def fill(self, images: Any, texts: Any, *, on_error: str = "raise", progress: bool | None = None) -> Any:
        """Fill the [MASK]s of each text, one by one, the surest first: `Filled`s.

        Arguments and order are those of `answer`.
        """
        return self._many("fill", images, texts, on_error, progress)

    def classify(
        self, images: Any, *, top: int | None = None, on_error: str = "raise", progress: bool | None = None
    ) -> Any:
        """The labels of each image, as `Classified`s; scores are those of transformers' image-classification pipeline.

        Args:
            images, on_error, progress: as of `answer`.
            top: labels to report, at most those that the model has; None: the engine's.

        Raises:
            ValueError: the model is for another task or has no labels, or `top` is no positive integer.
            RuntimeError: as of `answer`.
        """
        return self._many("classify", images, _NO_TEXT, on_error, progress, top)

    def embed(
        self, images: Any, *, pool: str | None = None, on_error: str = "raise", progress: bool | None = None
    ) -> Any:
        """One vector of each image, float32 (d,), by a ViTModel; that of a classifier is `model.vit`.

        Args:
            images, on_error, progress: as of `answer`.
            pool: "pooler": the pooler's output; "cls": the CLS row of `last_hidden_state`; None: the first where the
                model has a pooler. One that its checkpoint lacked has random weights: "cls" then.

        Raises:
            ValueError: the model is for another task, or `pool` is neither.
            RuntimeError: as of `answer`.
        """
        return self._many("embed", images, _NO_TEXT, on_error, progress, pool)

    def logits(self, images: Any, texts: Any = None, *, on_error: str = "raise", progress: bool | None = None) -> Any:
        """The logits of the model's head for each pair: float32 (labels,), or (words, vocabulary) for `fill`'s models.

        Arguments and order are those of `answer`; with a ViT there are no texts.
        """
        self._check_kind("logits")
        return self._many("logits", images, self._text("texts", texts), on_error, progress)

    def submit(self, image: Any, question: str | None = None, *, kind: str | None = None) -> Future:
        """Enqueue one pair, from any thread; the future gives what `answer` (or the model's own method) gives.

        A future can be cancelled until its batch is formed. Blocks while too many pairs are pending. Callbacks of
        futures run in the engine's threads: they should be quick, and they cannot wait for other answers (nor by
        `concurrent.futures.wait`).

        Args:
            question: a text; with a ViT there is none.
            kind: "answer", "score", "fill", "classify", "embed" or "logits"; None for the model's own.

        Raises:
            ValueError: the question is not a text, or the model is of another kind.
            RuntimeError: the engine is closed.
        """
        kind = self._kind if kind is None else kind
        self._check_kind(kind)
        return self._pipeline.submit(kind, image, self._stages.asked(kind, self._text("question", question)))

    def submit_batch(self, pairs: Sequence[Any]) -> Sequence[Future]:
        """Enqueue pairs of an image and a text (of a ViT, images) as one batch: these, in this order, and no other.

        What is asked at the same time then changes no bit of the results on a CPU either, where sums are rounded
        otherwise in another batch. Not for `fill`'s models, whose pairs need several batches.

        Raises:
            ValueError: `pairs` is no list of pairs, a question is not a text, or the model is of another kind.
            RuntimeError: the engine is closed.
        """
        if self._kind == "fill":
            raise ValueError(f"submit_batch: got {self.model.model_class.__name__}, wanted a model for answer or score")
        reads_texts, kind = self._stages.reads_texts, self._kind
        wanted = "pairs (image, text)" if reads_texts else "images"
        if not isinstance(pairs, Sequence) or isinstance(pairs, str | bytes):
            raise ValueError(f"pairs: got {type(pairs).__name__}, wanted a list of {wanted}")
        if not reads_texts:
            pairs = [(image, _NO_TEXT) for image in pairs]
        for number, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(f"pairs[{number}]: got {_short(pair)}, wanted a pair (image, text)")
        return self._pipeline.submit_batch(kind, [(image, self._stages.asked(kind, text)) for image, text in pairs])

    def warmup(self) -> None:
        """Run the model once and record all CUDA graphs, so that no later pair waits for that; reset `stats`."""
        self._pipeline.call(self._stages.warm_up)
        kind = "embed" if self._kind == "embed" else "logits"
        self._pipeline.submit(kind, self._stages.blank, self._stages.asked(kind, _NO_TEXT)).result()
        self._pipeline.counts = Counts()

    def stats(self) -> Stats:
        """Counts and rates so far."""
        counts = self._pipeline.counts
        seconds = 0.0 if counts.first is None or counts.last is None else counts.last - counts.first
        return Stats(
            pairs=counts.pairs,
            failed=counts.failed,
            batches=counts.batches,
            tokens=counts.tokens,
            seconds=seconds,
            pairs_per_s=counts.pairs / seconds if seconds else 0.0,
            tokens_per_s=counts.tokens / seconds if seconds else 0.0,
            fill=counts.tokens / max(counts.capacity, 1),
            queue_ms=1000 * counts.queue_s / max(counts.launched, 1),
            stall_s=counts.stall_s,
        )

    @property
    def max_tokens(self) -> int:
        """Per batch; less than was asked for once memory has run out."""
        return self._pipeline.max_tokens

    def close(self, finish: bool = True) -> None:
        """Accept no more pairs, and end the threads.

        Args:
            finish: True: answer all pending pairs. False: only those whose batch is formed; the futures of the others
                get a RuntimeError. The end of a `with` block finishes, unless it is left by an error.
        """
        self._pipeline.close(finish)
        self._forgotten.detach()

    def _text(self, name: str, given: Any) -> Any:
        """What was given, or `_NO_TEXT`; ValueError where nobody would read it."""
        if self._stages.reads_texts:
            return given
        if given is not None:
            got, model = type(given).__name__, self.model.model_class.__name__
            raise ValueError(f"{name}: got {got}, wanted none: {model} reads images alone")
        return _NO_TEXT

    def _check_kind(self, kind: str) -> None:
        wanted = tuple(model for name, _, models in _HEADS if name == kind for model in models)
        wanted = _WITH_LOGITS if kind == "logits" else wanted
        if not issubclass(self.model.model_class, wanted):
            kinds = dict.fromkeys(name for name, _, _ in _HEADS)
            names = " or ".join(model.__name__ for model in wanted) or f"one of {', '.join(kinds)}, logits"
            advice = "; of a ViT with a head, that is model.vit" if kind == "embed" else ""
            raise ValueError(f"{kind}: got {self.model.model_class.__name__}, wanted {names}{advice}")

    def _many(
        self, kind: str, images: Any, texts: Any, on_error: str, progress: bool | None, option: Any = None
    ) -> Any:
        self._check_kind(kind)
        self._pipeline.home.check_wait(f"{kind}()")
        if on_error not in ("raise", "return"):
            raise ValueError(f'on_error: got {on_error!r}, wanted "raise" or "return"')
        if not self._stages.reads_texts:
            self._stages.asked(kind, _NO_TEXT, option)  # wrong for one is wrong for all
        pairs, length, is_single = pair_up(images, texts, self._stages.is_one)

        def submit(image: Any, text: Any) -> Ticket:
            return self._pipeline.ticket(kind, image, self._stages.asked(kind, text, option))

        ordered = in_order(submit, pairs, self._pipeline.max_pending, on_error)
        results = with_bar(ordered, length, progress, "pairs" if self._stages.reads_texts else "images")
        if length is None:
            return results
        return list(results)[0] if is_single else list(results)


def _short(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def _check_numbers(max_wait_ms: Any, top: Any, **optional: Any) -> None:
    counts = {"top": top, **{name: value for name, value in optional.items() if value is not None}}
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: got {value!r}, wanted a positive integer")
    is_number = isinstance(max_wait_ms, int | float) and not isinstance(max_wait_ms, bool)
    if not is_number or not 0 <= max_wait_ms <= _LONGEST_WAIT_MS:
        raise ValueError(f"max_wait_ms: got {max_wait_ms!r}, wanted milliseconds, 0 to {_LONGEST_WAIT_MS} (a day)")


def _check_form(dtype: Any, cuda_graphs: Any) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype: got {dtype!r}, wanted a floating torch.dtype, such as torch.bfloat16")
    if not isinstance(cuda_graphs, bool):
        raise ValueError(f"cuda_graphs: got {cuda_graphs!r}, wanted True or False")


def _close_later(pipeline: Pipeline) -> None:
    """Close it in a thread: this may be any thread, at any moment."""
    if not Process.is_ending:  # else it is being closed
        threading.Thread(target=pipeline.close, name="vilt-close", daemon=True).start()
