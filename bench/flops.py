"""How many floating-point operations and bytes the work takes, by formula: a product of (m, k) and (k, n) is 2 m n k.

Counted is what the mathematics needs on packed tokens: matrix products alone (as torch's FlopCounterMode does, which
tests compare with), no padding. So TFLOP/s of a padded contestant is useful work, and never flatters waste.
Bytes are what must move at least: every input read once, every output written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vilt_fast.configs.encoder import EncoderConfig, PatchConfig
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.configs.visual_bert import VisualBertConfig
from vilt_fast.configs.vit import ViTConfig


class Cost(NamedTuple):
    """Floating-point operations and bytes of some work."""

    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def linear(rows: int, inputs: int, outputs: int, itemsize: int, *, residual: bool = False) -> Cost:
    """(rows, inputs) x (outputs, inputs)^T with a bias, and a residual to read where there is one."""
    moved = rows * inputs + outputs * inputs + outputs + rows * outputs * (2 if residual else 1)
    return Cost(2 * rows * inputs * outputs, moved * itemsize)


def attention(lengths: Sequence[int], d: int, itemsize: int) -> Cost:
    """q k^T and p v inside every span: 4 n^2 d; reads (rows, 3 d), writes (rows, d)."""
    return Cost(sum(4 * n * n * d for n in lengths), 4 * sum(lengths) * d * itemsize)


def layer_norm(rows: int, d: int, itemsize: int) -> Cost:
    """No product; a row read and a row written."""
    return Cost(0, (2 * rows * d + 2 * d) * itemsize)


def patch_embed(patches: int, images: int, values: int, d: int, itemsize: int) -> Cost:
    """(patches, values) x (d, values)^T, values = C p p; a CLS row per image is written too."""
    return Cost(2 * patches * values * d, (patches * values + d * values + (patches + images) * d) * itemsize)


def text_embed(words: int, d: int, itemsize: int) -> Cost:
    """A table row read and a row written for each word."""
    return Cost(0, 2 * words * d * itemsize)


def encoder(config: EncoderConfig, lengths: Sequence[int], itemsize: int, read: int | None = None) -> Cost:
    """All blocks (two LayerNorms, four products, one attention each).

    Args:
        read: rows that the last block goes on with after its attention; None: all, as in every other block.
    """
    found, rows, d = Cost(0, 0), sum(lengths), config.hidden_size
    for i in range(config.num_hidden_layers):
        kept = rows if read is None or i + 1 < config.num_hidden_layers else read
        # Post-norm: both norms come after the attention.
        normed = kept if isinstance(config, VisualBertConfig) else rows
        found += layer_norm(normed, d, itemsize) + linear(rows, d, 3 * d, itemsize) + attention(lengths, d, itemsize)
        found += _after_attention(config, kept, itemsize)
    return found


def _after_attention(config: EncoderConfig, rows: int, itemsize: int) -> Cost:
    d, hidden = config.hidden_size, config.intermediate_size
    return (
        linear(rows, d, d, itemsize, residual=True)
        + layer_norm(rows, d, itemsize)
        + linear(rows, d, hidden, itemsize)
        + linear(rows, hidden, d, itemsize, residual=True)
    )


def classifier(config: ViTConfig, images: int, itemsize: int) -> Cost:
    """Final LayerNorm and one product on a row per image: ViT's head."""
    d = config.hidden_size
    return layer_norm(images, d, itemsize) + linear(images, d, config.num_labels, itemsize)


def head(config: ViltConfig, pairs: int, images: int, itemsize: int) -> Cost:
    """Final LayerNorm and pooler on a row per sequence, then the two-layer classifier on a row per pair."""
    d = config.hidden_size
    inputs, inner = d * images, d * max(2, images)
    sequences = pairs * images
    return (
        layer_norm(sequences, d, itemsize)
        + linear(sequences, d, d, itemsize)
        + linear(pairs, inputs, inner, itemsize)
        + linear(pairs, inner, config.num_labels, itemsize)
    )


def model(config: ViltConfig, lengths: Sequence[int], words: int, pairs: int, images: int, itemsize: int) -> Cost:
    """Pixels and ids to logits.

    Args:
        lengths: tokens of every sequence. words: of all sequences.
        pairs: rows of logits. images: sequences per pair.
    """
    return (
        embeddings(config, lengths, words, itemsize)
        + encoder(config, lengths, itemsize)
        + head(config, pairs, images, itemsize)
    )


def visual_bert(config: VisualBertConfig, lengths: Sequence[int], regions: int, pairs: int, itemsize: int) -> Cost:
    """Ids and features of regions to the answers of a VisualBERT, one linear layer on a row per pair.

    Args:
        lengths: words and regions of every pair. regions: of all pairs.
    """
    d, rows = config.hidden_size, sum(lengths)
    projected = linear(regions, config.visual_embedding_dim, d, itemsize)
    embedded = projected + text_embed(rows, d, itemsize)
    return embedded + encoder(config, lengths, itemsize) + linear(pairs, d, config.num_labels, itemsize)


def embeddings(config: PatchConfig, lengths: Sequence[int], words: int, itemsize: int) -> Cost:
    """Pixels and ids to rows; `lengths` and `words` as in `model`."""
    values = config.num_channels * config.patch_shape[0] * config.patch_shape[1]
    patches = sum(lengths) - words - len(lengths)
    embedded = patch_embed(patches, len(lengths), values, config.hidden_size, itemsize)
    return text_embed(words, config.hidden_size, itemsize) + embedded
