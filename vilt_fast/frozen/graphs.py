"""Batches that the host has planned: run as they are, or in the shape of a bucket, recorded once as a CUDA graph.

The engine knows all lengths before a batch reaches the model, so the layout is made on the host and copied to the
device without anyone waiting. A recorded graph has one shape: a batch is padded up to the smallest bucket that holds
it. Places past its end do nothing: patches have index -1, pairs have no rows, and what must be written somewhere goes
to one row behind the last one, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast.contracts.plan import Plan
from vilt_fast.models.vilt import Encoded
from vilt_fast.packing import Copies, Layout, top_left_mask
from vilt_fast.pixels import PackedPixels
from vilt_fast.reference.patch_sample import patch_sample

# Buckets per octave: a batch that just misses one computes up to a quarter more than it needs to in the next.
_STEPS = 4
_SMALLEST = 256  # tokens; one pair at ViLT's own resolution
_TOKENS_A_PAIR = 64  # pairs shorter than that on average close a batch by their number
_TENSOR_NAMES = Plan._fields  # of a layout; `word_row` is left out, as nothing in a bucket reads it


@dataclass(frozen=True)
class PlannedBatch:
    """A batch: its layout and words, made on the host and then copied, and its images, on the device."""

    layout: Layout
    input_ids: Tensor  # (B, L) int64
    pixels: PackedPixels

    def map(self, move: Callable[[Tensor], Tensor]) -> PlannedBatch:
        """The batch with every tensor moved that the host made."""
        layout = self.layout
        moved: dict[str, Any] = {name: move(getattr(layout, name)) for name in (*_TENSOR_NAMES, "word_row")}
        copies = None if layout.copies is None else Copies(*map(move, layout.copies))
        return PlannedBatch(replace(layout, **moved, copies=copies), move(self.input_ids), self.pixels)


class Limits(NamedTuple):
    """What no batch exceeds."""

    tokens: int
    words: int  # of a pair
    grid_size: tuple[int, int]  # of an image
    patches: int  # of an image

    @property
    def pairs(self) -> int:
        return max_pairs(self.tokens)

    @property
    def max_seqlen(self) -> int:
        return self.words + 1 + self.patches


class Bucket(NamedTuple):
    """The shape of a batch."""

    tokens: int
    is_sharing: bool  # whether pairs share images

    @property
    def pairs(self) -> int:
        return max_pairs(self.tokens)


def max_pairs(tokens: int) -> int:
    """How many pairs a batch of so many tokens may have."""
    return max(1, tokens // _TOKENS_A_PAIR)


def bucket_sizes(max_tokens: int) -> list[int]:
    """The tokens of all buckets, ascending: a few an octave, and `max_tokens` itself."""
    sizes, size = [], _SMALLEST
    while size < max_tokens:
        sizes += [size + size * step // _STEPS for step in range(_STEPS)]
        size *= 2
    return [size for size in sizes if size < max_tokens] + [max_tokens]


def choose_bucket(sizes: Sequence[int], tokens: int, pairs: int, is_sharing: bool) -> Bucket | None:
    """The smallest bucket that holds such a batch; None if none does."""
    return next((Bucket(t, is_sharing) for t in sizes if tokens <= t and pairs <= max_pairs(t)), None)


def plan_batch(
    ids: Sequence[Sequence[int]], pixels: PackedPixels, config: Any, grid_size: tuple[int, int] | None = None
) -> PlannedBatch:
    """Plan a batch on the host: ids of the words of each pair, images, the model's configuration.

    The draw of `max_image_length` patches is the same for all images of one size, so that it does not depend on what
    else is in the batch. `grid_size` is what patches are counted in; None: the largest image's.
    """
    lengths, patch = torch.tensor([len(row) for row in ids]), config.patch_shape[0]
    columns = torch.arange(int(lengths.max()))
    attention_mask = columns < lengths[:, None]
    input_ids = torch.zeros(attention_mask.shape, dtype=torch.int64)
    input_ids[attention_mask] = torch.tensor([word for row in ids for word in row])
    grid_size = grid_size or pixels.grid_size(patch)
    cells = top_left_mask(torch.tensor(pixels.grids(patch)), grid_size)
    image_index = torch.zeros(len(ids), dtype=torch.int64)
    # The reference, whatever backend was chosen: planning on the host is no choice of where to compute.
    plan = patch_sample(attention_mask, cells, None, grid_size, config.max_image_length, 0, image_index)
    layout = Layout.from_plan(plan, grid_size)
    if pixels.picture is not None:
        layout = layout.sharing(pixels.leaders(), layout.patch_count.tolist())
    return PlannedBatch(layout, input_ids, pixels)


def pad_batch(plan: PlannedBatch, bucket: Bucket, limits: Limits) -> PlannedBatch:
    """The same batch in the shape of `bucket`; all but the images on the host.

    There is one more row, and one more place for a patch, than the bucket has tokens. Models that read other rows than
    each pair's first one have no use for such a plan: it does not say where the words are.
    """
    layout, trash = plan.layout, bucket.tokens
    pairs, words = bucket.pairs - layout.batch_size, limits.words - layout.text_length
    patches = bucket.tokens + 1 - len(layout.patch_index)
    return replace(
        plan,
        input_ids=F.pad(plan.input_ids, (0, words, 0, pairs)),
        layout=replace(
            layout,
            cu_seqlens=F.pad(layout.cu_seqlens, (0, pairs), value=layout.total_tokens),
            text_row=F.pad(layout.text_row, (0, words, 0, pairs), value=-1),
            word_row=layout.word_row[:0],
            cls_row=F.pad(layout.cls_row, (0, pairs), value=trash),
            patch_index=F.pad(layout.patch_index, (0, patches), value=-1),
            patch_row=F.pad(layout.patch_row, (0, patches), value=-1),
            grid=F.pad(layout.grid, (0, 0, 0, pairs), value=1),
            text_count=F.pad(layout.text_count, (0, pairs)),
            patch_count=F.pad(layout.patch_count, (0, pairs)),
            total_tokens=bucket.tokens + 1,
            max_seqlen=limits.max_seqlen,
            max_patches=limits.patches,
            copies=_pad_copies(layout, bucket) if bucket.is_sharing else None,
        ),
    )


def _pad_copies(layout: Layout, bucket: Bucket) -> Copies:
    # The last place for a patch is never used: projecting it does nothing, and the last row may become its own copy.
    last, every = bucket.tokens, torch.arange(len(layout.patch_index))
    copies = layout.copies or Copies(every, every[:0], every[:0])
    return Copies(*(F.pad(part, (0, last - len(part)), value=last) for part in copies))


def compute_logits(model: Any, plan: PlannedBatch) -> Tensor:
    """The logits of a plan that is on the model's device; nothing is read back to the host on the kernels."""
    layout, vilt = plan.layout, model.vilt
    tokens = vilt.embeddings(
        layout,
        input_ids=plan.input_ids,
        token_type_ids=torch.zeros_like(plan.input_ids),
        pixel_values=plan.pixels,
        pair_modality=torch.ones_like(layout.cls_row, dtype=torch.int64),
    )
    tokens, _, _ = vilt.encoder(tokens, layout, first_rows_only=model.first_rows_only)
    return model.logits(Encoded(layout, tokens))


def to_device(plan: PlannedBatch, device: torch.device) -> PlannedBatch:
    """The plan on `device`; the copies are not waited for."""
    if device.type == "cpu":
        return plan

    def move(tensor: Tensor) -> Tensor:
        tensor = tensor.pin_memory() if device.type == "cuda" else tensor
        return tensor.to(device, non_blocking=True)

    return plan.map(move)


class _StaticPixels(PackedPixels):
    """Images whose number and sizes only the device knows."""

    _pair_offset: Tensor

    def __init__(self, data: Tensor, pair_offset: Tensor, like: PackedPixels) -> None:
        super().__init__(data, ((1, 1),), like.mean, like.std, like.rescale_factor)
        object.__setattr__(self, "_pair_offset", pair_offset)

    @property
    def pair_offset(self) -> Tensor:
        return self._pair_offset


def _lengths(tokens: int, pairs: int) -> dict[str, int]:
    """The first dimension of each tensor of a layout in a bucket's shape."""
    odd = {"cu_seqlens": pairs + 1, "patch_index": tokens + 1, "patch_row": tokens + 1}
    return dict.fromkeys(_TENSOR_NAMES, pairs) | odd


class Bucketed:
    """Runs plans in the shape of buckets, all in the same memory; on a GPU by replaying a graph for each.

    Args:
        model: whose head reads each pair's first row. limits: of the batches.
        pixels: any, for the numbers that all have in common.
        is_recording: whether to record graphs; False: run as without them, in the same shapes.
    """

    def __init__(self, model: Any, limits: Limits, pixels: PackedPixels, *, is_recording: bool) -> None:
        self.model, self.limits, self.like, self.is_recording = model, limits, pixels, is_recording
        self.sizes = bucket_sizes(limits.tokens)
        self._graphs: dict[Bucket, tuple[Any, Tensor]] = {}
        self._pool: Any = None
        tokens, pairs, device = limits.tokens, limits.pairs, model.device
        shapes: dict[str, tuple[int, ...]] = {name: (length,) for name, length in _lengths(tokens, pairs).items()}
        shapes |= {"text_row": (pairs, limits.words), "grid": (pairs, 2)}
        self._tensors = {name: torch.zeros(shape, dtype=torch.int32, device=device) for name, shape in shapes.items()}
        self._copies = Copies(*torch.zeros(3, tokens, dtype=torch.int64, device=device))
        self._input_ids = torch.zeros(pairs, limits.words, dtype=torch.int64, device=device)
        self._pair_offset = torch.zeros(pairs, dtype=torch.int64, device=device)
        patch_bytes = 3 * model.config.patch_shape[0] ** 2
        self._data = torch.zeros(tokens * patch_bytes, dtype=torch.uint8, device=device)

    def bucket_of(self, plan: PlannedBatch) -> Bucket | None:
        """The bucket that a plan fits into; None if it is larger than all, or was not planned for buckets."""
        layout = plan.layout
        is_small = layout.max_seqlen <= self.limits.max_seqlen and layout.text_length <= self.limits.words
        if not is_small or layout.grid_size != self.limits.grid_size or plan.pixels.offsets[-1] > len(self._data):
            return None
        is_sharing = layout.copies is not None
        return choose_bucket(self.sizes, layout.total_tokens, layout.batch_size, is_sharing)

    def pad(self, plan: PlannedBatch, bucket: Bucket) -> tuple[PlannedBatch, Tensor]:
        """A plan in the shape of its bucket and the first byte of each pair's image, in pinned memory on a GPU."""
        padded, pixels = pad_batch(plan, bucket, self.limits), plan.pixels
        offsets = torch.zeros(bucket.pairs, dtype=torch.int64)
        offsets[: pixels.pairs] = torch.tensor([pixels.offsets[index] for index in pixels.image_of_pair])
        if self.model.device.type != "cuda":
            return padded, offsets
        return padded.map(Tensor.pin_memory), offsets.pin_memory()

    def run(self, padded: PlannedBatch, offsets: Tensor, bucket: Bucket, pairs: int) -> Tensor:
        """(pairs, ...) logits of what `pad` returned; overwritten by the next call."""
        static = self._static(bucket)
        layout, source = static.layout, padded.layout
        for name in _TENSOR_NAMES:
            getattr(layout, name).copy_(getattr(source, name), non_blocking=True)
        for target, part in zip(layout.copies or (), source.copies or (), strict=True):
            target.copy_(part, non_blocking=True)
        static.input_ids.copy_(padded.input_ids, non_blocking=True)
        self._pair_offset[: bucket.pairs].copy_(offsets, non_blocking=True)
        used = padded.pixels.offsets[-1]
        self._data[:used].copy_(padded.pixels.data[:used], non_blocking=True)
        if not self.is_recording:
            return compute_logits(self.model, static)[:pairs]
        graph, logits = self.record(bucket)
        graph.replay()
        return logits[:pairs]

    def record(self, bucket: Bucket) -> tuple[Any, Tensor]:
        """The graph of a bucket and the logits it writes; recorded with the first call."""
        if bucket not in self._graphs:
            static = self._static(bucket)
            for _ in range(2):  # compile and load what is launched for the first time
                compute_logits(self.model, static)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads go on copying images.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = compute_logits(self.model, static)
            self._pool = graph.pool()
            self._graphs[bucket] = graph, logits
        return self._graphs[bucket]

    def _static(self, bucket: Bucket) -> PlannedBatch:
        """The plan in memory that never moves."""
        limits, tokens, pairs = self.limits, bucket.tokens, bucket.pairs
        layout = Layout(
            **{name: self._tensors[name][:length] for name, length in _lengths(tokens, pairs).items()},
            word_row=self._pair_offset[:0],
            grid_size=limits.grid_size,
            has_cls=True,
            total_tokens=tokens + 1,
            max_seqlen=limits.max_seqlen,
            max_patches=limits.patches,
            copies=Copies(*(part[:tokens] for part in self._copies)) if bucket.is_sharing else None,
        )
        pixels = _StaticPixels(self._data, self._pair_offset[:pairs], self.like)
        return PlannedBatch(layout, self._input_ids[:pairs], pixels)
