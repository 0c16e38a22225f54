"""`freeze`: a snapshot of a model for inference."""

from __future__ import annotations

import copy
import inspect
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.checkpoints import as_device
from vilt_fast.frozen import vilt, visual_bert, vit
from vilt_fast.frozen.blocks import Rows
from vilt_fast.frozen.graphs import Buckets, CudaGraphs, Limits, Spans, bucket_sizes
from vilt_fast.frozen.heads import PatchHead, PhraseHead, PreTrainingHead
from vilt_fast.frozen.planning import HostBatch, HostPlan
from vilt_fast.frozen.weights import Weights, collect, own_class
from vilt_fast.layers.encoder import walk_block
from vilt_fast.models.base import PreTrainedModel
from vilt_fast.models.outputs import ModelOutput
from vilt_fast.models.visual_bert_words import phrases_and_regions
from vilt_fast.packing import Layout
from vilt_fast.pixels import PackedPixels, fold_normalisation

# Tokens of the largest recorded batch: where a GPU's throughput stops growing.
MAX_TOKENS = 49_152
_FOLDED = 8  # normalisations of images whose folded weights are kept
_NOT_KEPT = ("output_attentions", "output_hidden_states")
_FAMILIES = {"vilt": vilt, "vit": vit, "visual_bert": visual_bert}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Stats:
    """What a frozen model has done since it was made or warmed up."""

    calls: int = 0
    pairs: int = 0
    tokens: int = 0
    replayed: int = 0  # calls that a graph answered
    too_large: int = 0  # calls beyond the largest bucket, run without a graph
    bytes_of_bucket: dict[int, int] = field(default_factory=dict)  # tokens -> device memory that recording it took


def freeze(
    model: PreTrainedModel,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    graphs: bool = True,
    *,
    max_tokens: int = MAX_TOKENS,
    max_seqlen: int | None = None,
) -> FrozenModel:
    """A snapshot of a model for inference, as fast as we can make it.

    As in `torch.jit.freeze`, weights become constants: they are copied, cast, and laid out as the kernels want them;
    later changes of the model do not reach the snapshot (`FrozenModel.is_stale` tells). It is not
    `requires_grad_(False)`: the result has no parameters. It always computes as in evaluation mode. Nothing is folded
    into 32-bit weights.

    Args:
        model: any model of this library, with nothing hanging on it.
        dtype: of weights and activations; None: the model's.
        device: None: the model's.
        graphs: whether to record CUDA graphs, one per bucket of lengths, in `warmup` or when each is first wanted; on
            other devices than CUDA there are none.
        max_tokens: of the largest graph, words and patches of a batch; larger batches run without one.
        max_seqlen: tokens of the longest pair in a graph; None: of ViLT, the longest text with the largest image under
            its own rule of resizing; of ViT, an image of `config.image_size`; of VisualBERT, the longest text with
            100 regions.

    Raises:
        ValueError: a module has a hook, an adapter, quantised weights or a forward of its own, or a weight is NaN or
            infinite; names it. Or the device is not there, or an argument is out of range.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"freeze: model: got {type(model).__name__}, wanted a model of vilt_fast")
    if not isinstance(graphs, bool):
        raise ValueError(f"freeze: graphs: got {graphs!r}, wanted True or False")
    for name, value in (("max_tokens", max_tokens), ("max_seqlen", max_seqlen)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"freeze: {name}: got {value!r}, wanted a positive integer")
    found = {parameter.dtype for parameter in model.parameters()}
    if dtype is None and len(found) > 1:
        raise ValueError(
            f"freeze: dtype: the parameters are of {', '.join(sorted(map(str, found)))}; say which is wanted"
        )
    dtype = model.dtype if dtype is None else dtype
    if dtype not in _DTYPES:
        raise ValueError(f"freeze: dtype: got {dtype!r}, wanted one of {', '.join(map(str, _DTYPES))}")
    device = device_for(model, device)
    family = family_of(model)
    limits = Limits(max_tokens, max_seqlen or family.longest(model.config), family.most_words(model.config))
    return FrozenModel(model, collect(model, dtype, device), limits, graphs=graphs)


def family_of(model: Any) -> Any:
    """The file that reads the inputs of a model's family."""
    kinds = [vars(kind).get("model_type") for kind in type(model.config).__mro__]
    return next(_FAMILIES[kind] for kind in kinds if kind in _FAMILIES)


def device_for(model: Any, device: Any) -> torch.device:
    """The device that is meant, None for the model's; the index of "cuda" is that of the current one.

    Raises:
        ValueError: it is not there, or computes nothing.
    """
    found = torch.empty(0, device=as_device(device) or model.device).device
    if found.type == "meta":
        if device is None:
            raise ValueError("model: it is on the meta device, which holds no weights: load them first")
        raise ValueError("device: got meta, wanted one that computes")
    return found


class FrozenModel:
    """What `freeze` returns: called as the model is, with the same arguments, outputs and padded shapes.

    Inputs may be on the host or on the device; from the host, nothing waits for the device. Results are the caller's
    own tensors and have no gradient. Several threads may call it. It can be copied and pickled; graphs are recorded
    anew. NaN or infinite pixels are refused on a CPU; on a GPU, where nothing is read back, they make their pair NaN.
    `labels`, `output_attentions` and `output_hidden_states` are refused.

    Attributes:
        config: a copy of the model's. model_class: its class.
        slots: images per text, where inputs have a dimension of them.
        limits: of recorded batches. graphs: whether they are wanted.
    """

    def __init__(self, model: Any, weights: Weights, limits: Limits, *, graphs: bool) -> None:
        self.config, self.model_class = copy.deepcopy(model.config), own_class(model)
        self.slots: int | None = getattr(model, "slots", None)
        self.weights, self.limits, self.graphs = weights, limits, graphs
        self._start()

    def _start(self) -> None:
        """What is neither copied nor pickled."""
        self._stats, self._lock = Stats(), threading.Lock()
        self._folded: dict[tuple[Any, ...], tuple[Tensor, Tensor, float]] = {}
        self._family = family_of(self)
        # Without a layout: this form makes its own, on the host.
        self._names = [name for name in inspect.signature(self.model_class.forward).parameters if name != "layout"][1:]
        self._row_read = getattr(self.model_class, "row_read", None)
        self._buckets: Buckets | None = None
        # Rows that are encoded in two steps have no one shape.
        if self.weights.additional is None and self.graphs and self.device.type == "cuda":
            self.use_buckets(CudaGraphs(self.device))

    def use_buckets(self, recorder: Any) -> None:
        """Run batches in the shape of buckets from now on, see `vilt_fast.frozen.graphs.Buckets`."""
        width = self.config.hidden_size
        self._buckets = Buckets(self._encode, self.limits, width, self.dtype, self.device, recorder)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.weights.dtype

    @property
    def device(self) -> torch.device:
        """Of weights and results."""
        return self.weights.device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the model's forward.

        Raises:
            ValueError: as the model's forward, and where something is asked for that the frozen form does not keep.
            TypeError: an argument that the model does not have.
        """
        if torch.compiler.is_compiling():  # there is nothing left to compile
            return torch.compiler.disable(self._call)(*args, **kwargs)
        return self._call(*args, **kwargs)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        given = self._bind(args, kwargs)
        return_dict = given.pop("return_dict", None)
        inputs = self._family.read(given, self)
        with torch.no_grad():
            output = self._answer(inputs)
        is_dict = self.config.return_dict if return_dict is None else return_dict
        return output if is_dict else output.plain_tuple()

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, without those that are refused."""
        name = self.model_class.__name__
        if len(args) > len(self._names):
            raise TypeError(f"{name} takes {len(self._names)} arguments, got {len(args)}")
        given = dict(zip(self._names, args, strict=False))
        for argument in kwargs:
            if argument in given or argument not in self._names:
                problem = "multiple values for" if argument in given else "an unexpected"
                raise TypeError(f"{name} got {problem} argument {argument!r}")
        given |= kwargs
        for argument in _NOT_KEPT:
            asked = given.pop(argument, None)
            if getattr(self.config, argument) if asked is None else asked:
                raise ValueError(f"{argument}: the frozen form keeps none; leave it out, or call the live model")
        for argument in ("labels", "sentence_image_labels"):
            if given.pop(argument, None) is not None:
                raise ValueError(
                    f"{argument}: the frozen form computes no loss; leave them out, or call the live model"
                )
        if torch.is_grad_enabled():
            for argument, value in given.items():
                if isinstance(value, Tensor) and value.requires_grad:
                    raise ValueError(f"{argument} requires a gradient, which the frozen form does not have; detach it")
        return given

    def _answer(self, inputs: Any) -> ModelOutput:
        batch = self._family.plan(inputs, self.config)
        if batch is not None:
            if self.device.type == "cpu":
                self._family.check_finite(inputs)
            return self.run(batch)
        checked = self._family.check(inputs, self.config, self.device, self.weights.embeddings)
        layout, pixels, given, head_mask, asked = checked
        size = self._bucket(layout, layout.batch_size, is_masked=head_mask is not None)
        buckets = self._buckets
        if buckets is None or size is None:
            return self._finish(layout, self._launch(layout, pixels, given, head_mask), asked)
        with buckets.exclusively():
            places = layout.cu_seqlens, self._read_rows(layout)
            buckets.write(buckets.places(size, *(place.cpu().numpy() for place in places)))
            result = self._replay(buckets, size, layout, pixels, given)
        return self._finish(layout, result, asked)

    def run(self, batch: HostBatch) -> Any:
        """The output for a batch that is planned; nothing waits for the device. To be called without gradients."""
        plan, buckets = batch.plan, self._buckets
        pixels = None if batch.pixels is None else batch.pixels.to(self.device, non_blocking=True)
        size = self._bucket(plan, plan.pairs)
        if buckets is None or size is None:
            layout, given = batch.send(self.device)
            return self._finish(layout, self._launch(layout, pixels, given), batch.asked)
        places = buckets.places(size, plan.arrays["cu_seqlens"], self._read_rows(plan))
        with buckets.exclusively():
            if self._row_read is not None:
                layout, given = batch.send(self.device, places=places, into=buckets.packet)
            else:  # the layout is read afterwards, when the next batch may have overwritten the packet
                layout, given = batch.send(self.device)
                buckets.write(places)
            result = self._replay(buckets, size, layout, pixels, given)
        return self._finish(layout, result, batch.asked)

    def _read_rows(self, plan: Any) -> Any:
        """(B,): of a `Layout` or a `HostPlan`, the row of each pair that the head reads; any, where it reads all."""
        return getattr(plan, self._row_read or "first")

    def _bucket(self, plan: HostPlan | Layout, pairs: int, is_masked: bool = False) -> int | None:
        """The bucket that a batch goes to, if any; and counts it."""
        buckets = self._buckets
        # Graphs hold kernels without a mask of heads: whoever asks for that, or for the reference, gets no graph.
        if is_masked or ops.is_switched("reference", "layer_norm", "linear", "attention"):
            buckets = None
        size = None if buckets is None else buckets.choose(plan.total_tokens, pairs, plan.max_seqlen)
        with self._lock:
            self._stats.calls += 1
            self._stats.pairs += pairs
            self._stats.tokens += plan.total_tokens
            self._stats.replayed += size is not None
            self._stats.too_large += size is None and buckets is not None
        return size

    def _launch(self, layout: Layout, pixels: Any, given: dict[str, Any], head_mask: Tensor | None = None) -> Tensor:
        """Embed and encode a batch launch by launch: what `_encode` returns."""
        rows = torch.empty(layout.total_tokens, self.config.hidden_size, dtype=self.dtype, device=self.device)
        tokens = self._embed(rows, layout, pixels, given)
        spans = Spans(layout.cu_seqlens, self._read_rows(layout), layout.max_seqlen)
        if self.weights.additional is None or pixels is None:
            return self._encode(tokens, spans, head_mask)
        # Words alone through the blocks, then their rows and the regions through one more.
        words, row = layout.words_alone(), layout.word_row
        their_spans = Spans(words.cu_seqlens, words.first, words.max_seqlen)
        tokens = tokens.index_copy(0, row, self._walk(self.weights.blocks, tokens[row], their_spans, head_mask, False))
        tokens = self._walk((self.weights.additional,), tokens, spans, None, self._row_read is not None)
        return tokens if self._row_read is None else self._score(tokens)

    def _replay(self, buckets: Buckets, size: int, layout: Layout, pixels: Any, given: dict[str, Any]) -> Tensor:
        """Embed a batch and replay its bucket: what `_encode` returns, in memory of its own."""
        rows = buckets.rows(size)[: layout.total_tokens]
        tokens = self._embed(rows, layout, pixels, given)
        if tokens.data_ptr() != rows.data_ptr():  # the reference returns new rows
            rows.copy_(tokens)
        result = buckets.replay(size)
        count = layout.batch_size // (self.slots or 1) if self._row_read is not None else layout.total_tokens
        return result[:count].clone()

    def _embed(self, rows: Tensor, layout: Layout, pixels: Any, given: dict[str, Any]) -> Tensor:
        """Fill `rows` (total_tokens, d), every one of them."""
        if isinstance(pixels, PackedPixels):
            given = given | {"folded": self._fold(pixels)}
        return self.weights.embeddings(rows, layout, pixels, **given)

    def _fold(self, pixels: PackedPixels) -> tuple[Tensor, Tensor, float]:
        """The projection for bytes of this normalisation, made once."""
        key = (pixels.mean, pixels.std, pixels.rescale_factor)
        folded = self._folded.get(key)
        if folded is None:
            if len(self._folded) >= _FOLDED:
                self._folded.clear()
            tables: Any = self.weights.embeddings
            folded = fold_normalisation(tables.patches.weight, tables.patches.bias, *key)
            self._folded[key] = folded
        return folded

    def _encode(self, tokens: Tensor, spans: Spans, head_mask: Tensor | None = None) -> Tensor:
        """All rows (total_tokens, d) after the blocks; or where the head reads one row of each pair, its scores."""
        narrows = self._row_read is not None
        rows = self._walk(self.weights.blocks, tokens, spans, head_mask, narrows)
        return self._score(rows) if narrows else rows

    def _walk(
        self, blocks: tuple[Any, ...], tokens: Tensor, spans: Spans, head_mask: Tensor | None, narrows: bool
    ) -> Tensor:
        """Rows after some blocks: all of them, or those that the head reads."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        span_list = ops.list_spans(spans.cu_seqlens, len(tokens), head_dim, tokens.dtype) if blocks else None
        stream: Any = Rows(tokens, ops.row_moments(tokens)) if self.weights.is_folded and blocks else tokens
        for i, block in enumerate(blocks):
            attend = partial(
                ops.attention,
                cu_seqlens=spans.cu_seqlens,
                num_heads=block.num_heads,
                max_seqlen=spans.max_seqlen,
                head_scale=None if head_mask is None else block.scale_of(head_mask[i]).to(self.dtype),
                span_list=span_list,
            )
            is_last = i + 1 == len(blocks)
            stream = walk_block(block, stream, attend, spans.read if narrows and is_last else None)
        return stream[spans.read] if narrows and not blocks else stream

    def _score(self, rows: Tensor) -> Tensor:
        """What a head makes of one row of each pair."""
        pooled, slots = self._pool(self._normalise(rows)), self.slots or 1
        pooled = pooled[: len(pooled) // slots * slots].view(-1, slots * pooled.shape[1])
        head: Any = self.weights.head
        return pooled if head is None else head(pooled)

    def _normalise(self, rows: Tensor) -> Tensor:
        return rows if self.weights.norm is None else self.weights.norm(rows)

    def _pool(self, rows: Tensor) -> Tensor:
        return rows if self.weights.pooler is None else self.weights.pooler(rows)

    def _finish(self, layout: Layout, result: Tensor, asked: dict[str, Any]) -> ModelOutput:
        """The output, from what `_encode` returned. asked: what the head reads of the call."""
        kind, head = self.model_class.output_class, self.weights.head
        if self._row_read is not None:
            choices = asked.get("choices", 1)
            return kind(logits=result if choices == 1 else result.view(-1, choices))
        if isinstance(head, PatchHead):
            return kind(reconstruction=head(self._normalise(result[layout.patch_row.long()]), layout))
        if isinstance(head, PreTrainingHead):
            relationship = head.sentence(self._pool(result[layout.first]))
            return kind(prediction_logits=layout.unpack(head.words(result)), seq_relationship_logits=relationship)
        if isinstance(head, PhraseHead):
            return kind(logits=head(*phrases_and_regions(layout.unpack(result), layout, asked["chosen"])))
        words: Any = head
        if words is not None:
            return kind(logits=layout.unpack_words(words(self._normalise(result[layout.word_row]))))
        rows = self._normalise(result)
        pooled = None if self.weights.pooler is None else self._pool(rows[layout.first])
        return kind(last_hidden_state=layout.unpack(rows), pooler_output=pooled)

    def is_stale(self, model: PreTrainedModel) -> bool:
        """Whether freezing a model now would give something else, or would be refused. Compares all weights.

        Raises:
            TypeError: it is no model of this library.
        """
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"is_stale: model: got {type(model).__name__}, wanted a model of vilt_fast")
        try:
            settings = self._family.read_at_calls
            if own_class(model) is not self.model_class or settings(model.config) != settings(self.config):
                return True
            now = collect(model, self.dtype, self.device, self.weights.is_folded)
        except ValueError:  # something hangs on it
            return True
        before, after = [*_leaves(self.weights)], [*_leaves(now)]
        return len(before) != len(after) or not all(map(_is_same, before, after))

    def eval(self) -> FrozenModel:
        """Itself: it is always in evaluation mode."""
        return self

    def __repr__(self) -> str:
        return f"FrozenModel({self.model_class.__name__}, {self.dtype}, {self.device}, graphs={self.graphs})"

    def stats(self) -> Stats:
        """Counts so far; a copy."""
        with self._lock:
            recordings = {} if self._buckets is None else dict(self._buckets.recordings)
            return replace(self._stats, bytes_of_bucket={size: made.bytes for size, made in recordings.items()})

    @torch.no_grad()
    def warmup(self) -> float:
        """Compile all that will be launched, record all graphs, and run once; returns the seconds it took.

        Memory by bucket is in `stats` afterwards.
        """
        start = time.perf_counter()
        if self._buckets is not None:
            with self._buckets.exclusively():
                self._buckets.record_all()
        elif self.device.type == "cuda":  # the programs of every size class
            for rows in bucket_sizes(self.limits.tokens):
                tokens = torch.zeros(rows, self.config.hidden_size, dtype=self.dtype, device=self.device)
                spans = torch.tensor([0, 1], dtype=torch.int32, device=self.device)
                self._encode(tokens, Spans(spans, spans[:1], self.limits.max_seqlen))
        for batch in self._family.blanks(self.config, self.slots or 1, self.dtype):
            self.run(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._stats = Stats()
        return time.perf_counter() - start


def _leaves(weights: Any) -> Iterator[Any]:
    """What weights hold, in order: tensors, numbers, names and functions."""
    if is_dataclass(weights):
        for part in fields(weights):
            yield from _leaves(getattr(weights, part.name))
    elif isinstance(weights, tuple):
        for part in weights:
            yield from _leaves(part)
    elif isinstance(weights, nn.Module):  # an activation
        yield repr(weights)
        yield from weights.state_dict().values()
        yield getattr(weights, "function", None)
    else:
        yield weights


def _is_same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return one == other
    # By their bytes: NaN is the same NaN.
    return isinstance(other, Tensor) and torch.equal(*(t.contiguous().view(torch.uint8) for t in (one, other)))
