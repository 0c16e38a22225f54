"""What is timed: batches whose image sizes and question lengths follow a stated distribution, from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vilt_fast.configs.encoder import PatchConfig
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.processing.settings import resize_size

# (height, width) of COCO-like images before resizing, and how many of a hundred have it.
COCO_SIZES = {
    (480, 640): 26, (640, 480): 9, (427, 640): 14, (426, 640): 8, (425, 640): 7, (640, 427): 6, (640, 426): 3,
    (375, 500): 4, (500, 375): 2, (333, 500): 2, (640, 640): 3, (360, 640): 4, (612, 612): 2, (478, 640): 2,
    (640, 478): 1, (424, 640): 3, (640, 360): 1, (457, 640): 1, (480, 600): 1, (500, 333): 1,
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """The shapes of one batch.

    Args:
        name: of the distribution.
        sizes: (height, width) of each image after resizing, in pixels.
        lengths: words of each text, with [CLS] and [SEP].
        max_image_length: at most so many patches of an image are tokens; negative: all.
        pictures: images of each pair; with two (NLVR2), sizes holds twice as many entries as lengths.
    """

    name: str
    sizes: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    max_image_length: int = -1
    pictures: int = 1

    @property
    def batch(self) -> int:
        """Pairs, or triples of two images and a text."""
        return len(self.lengths)

    def sequences(self, patch_size: int = 32) -> list[int]:
        """Tokens of each sequence: words, one CLS, patches; a text runs once with each of its images."""
        limit = self.max_image_length
        counts = [(height // patch_size) * (width // patch_size) for height, width in self.sizes]
        counts = [count if limit < 0 else min(count, limit) for count in counts]
        return [self.lengths[i // self.pictures] + 1 + count for i, count in enumerate(counts)]

    def tokens(self, patch_size: int = 32) -> int:
        """Rows of the packed batch."""
        return sum(self.sequences(patch_size))

    def padded_tokens(self, patch_size: int = 32) -> int:
        """Rows of the same batch padded: every text as long as the longest, every image with the most patches."""
        pictures = [n - self.lengths[i // self.pictures] for i, n in enumerate(self.sequences(patch_size))]
        return len(self.sizes) * (max(self.lengths) + max(pictures))

    def shape(self) -> str:
        """What a result file says of the batch: enough to make it again."""
        heights, widths = zip(*self.sizes, strict=True)
        sizes = f"{min(heights)}..{max(heights)} x {min(widths)}..{max(widths)} px"
        limit = "" if self.max_image_length < 0 else f", at most {self.max_image_length} patches"
        return f"{self.batch} x {self.pictures} pictures {sizes}, {min(self.lengths)}..{max(self.lengths)} words{limit}"

    def inputs(self, config: ViltConfig, seed: int = 0) -> dict[str, Tensor]:
        """Random ids and pixels in the padded form that Hugging Face's models take.

        Returns:
            input_ids, attention_mask (B, L) int64; pixel_values (B, C, H, W) float32; pixel_mask (B, H, W) int64. With
            two images the last two are (B, 2, ...).
        """
        generator = torch.Generator().manual_seed(seed)
        words = self.words(config, generator)
        pixels, pixel_mask = self.images(config, generator)
        if self.pictures > 1:
            pixels, pixel_mask = (x.unflatten(0, (self.batch, self.pictures)) for x in (pixels, pixel_mask))
        return {**words, "pixel_values": pixels, "pixel_mask": pixel_mask}

    def images(self, config: PatchConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random pixels (images, C, H, W) and their mask (images, H, W), padded to the largest height and width."""
        pixel_mask = self.pixel_mask()
        # Normalised bytes, as the image processors give them: so that uint8 contestants can have the same images.
        shape = (len(pixel_mask), config.num_channels, *pixel_mask.shape[1:])
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8).float()
        return pixels.div_(127.5).sub_(1).mul_(pixel_mask[:, None]), pixel_mask

    def words(self, config: ViltConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """Random input_ids and the attention_mask, (B, L) int64."""
        length = max(self.lengths)
        mask = torch.arange(length) < torch.tensor(self.lengths)[:, None]
        ids = torch.randint(1, config.vocab_size, (self.batch, length), generator=generator)
        return {"input_ids": ids * mask, "attention_mask": mask.long()}

    def pixel_mask(self) -> Tensor:
        """(images, H, W) int64: ones where an image is, zeros where it is padded to the largest height and width."""
        height, width = (max(size[axis] for size in self.sizes) for axis in (0, 1))
        pixel_mask = torch.zeros(len(self.sizes), height, width, dtype=torch.int64)
        for mask, (rows, columns) in zip(pixel_mask, self.sizes, strict=True):
            mask[:rows, :columns] = 1
        return pixel_mask


# --- the workloads; all take the batch size and a seed ----------------------------------------------------------------


def coco_sizes(generator: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Sizes before resizing, drawn as often as COCO_SIZES says."""
    share = np.array(list(COCO_SIZES.values())) / 100
    return [list(COCO_SIZES)[i] for i in generator.choice(len(share), count, p=share)]


def _coco(generator: np.random.Generator, count: int) -> tuple[tuple[int, int], ...]:
    return tuple(resize_size(*size) for size in coco_sizes(generator, count))


def _words(generator: np.random.Generator, count: int, mean: float, deviation: float) -> tuple[int, ...]:
    return tuple(int(n) for n in np.clip(generator.normal(mean, deviation, count).astype(int), 5, 40))


def vqa_mix(batch_size: int, seed: int = 0, limit: int = -1) -> Workload:
    """COCO-like images under ViLT's resize rule, questions of normal length (mean 9.5, deviation 2.2, 5 to 40).

    Args:
        limit: at most so many patches per image; negative: all.
    """
    generator = np.random.default_rng(seed)
    sizes = _coco(generator, batch_size)
    name = "vqa-mix" if limit < 0 else f"vqa-mix-{limit}"
    return Workload(name, sizes, _words(generator, batch_size, 9.5, 2.2), limit)


def uniform(batch_size: int, seed: int = 0) -> Workload:
    """Every image 384 x 384 and every text 10 words: nothing to pad, so packing wins nothing."""
    return Workload("uniform-384", ((384, 384),) * batch_size, (10,) * batch_size)


def extreme(batch_size: int, seed: int = 0) -> Workload:
    """Panoramas, towers, squares and thumbnails: sides of 32 to 640 pixels, drawn evenly on a logarithmic scale."""
    generator = np.random.default_rng(seed)
    sides = np.exp(generator.uniform(np.log(32), np.log(672), (batch_size, 2))) // 32 * 32
    sizes = tuple((int(height), int(width)) for height, width in sides)
    return Workload("extreme", sizes, tuple(int(n) for n in generator.integers(5, 41, batch_size)))


def captions(batch_size: int, seed: int = 0) -> Workload:
    """COCO-like images with captions (mean 13, deviation 4) of which one in ten fills all 40 words."""
    generator = np.random.default_rng(seed)
    sizes = _coco(generator, batch_size)
    lengths = np.array(_words(generator, batch_size, 13, 4))
    lengths[generator.random(batch_size) < 0.1] = 40
    return Workload("captions", sizes, tuple(map(int, lengths)))


def nlvr2(batch_size: int, seed: int = 0) -> Workload:
    """Two images and a sentence (mean 17, deviation 5)."""
    generator = np.random.default_rng(seed)
    sizes = _coco(generator, 2 * batch_size)  # images 2 b and 2 b + 1 belong to text b
    return Workload("nlvr2", sizes, _words(generator, batch_size, 17, 5), pictures=2)


def patches(count: int, batch_size: int) -> Workload:
    """Images of one size with `count` patches: the most nearly square grid that has exactly so many."""
    height = next(h for h in range(int(count**0.5), 0, -1) if count % h == 0)
    size = (height * 32, count // height * 32)
    return Workload(f"patches-{count}", (size,) * batch_size, (10,) * batch_size)


def spread(ratio: int, batch_size: int) -> Workload:
    """Images 384 pixels high whose widths differ by a factor of `ratio` and average the same: 1 is no spread.

    Half of the images are narrow and half are wide, so the tokens of the batch do not depend on `ratio`.
    """
    mean = 320
    narrow = max(32, round(2 * mean / (1 + ratio) / 32) * 32)
    widths = [narrow if i % 2 else 2 * mean - narrow for i in range(batch_size)]
    return Workload(f"spread-{ratio}", tuple((384, width) for width in widths), (10,) * batch_size)


WORKLOADS: dict[str, Callable[..., Workload]] = {
    "vqa-mix": vqa_mix,
    "uniform-384": uniform,
    "extreme": extreme,
    "captions": captions,
    "vqa-mix-64": partial(vqa_mix, limit=64),
    "vqa-mix-128": partial(vqa_mix, limit=128),
    "vqa-mix-200": partial(vqa_mix, limit=200),
    "nlvr2": nlvr2,
}


def shrunk(workload: Workload, patch_size: int, side: int = 384) -> Workload:
    """The same mix for a small model: sides divided by 32 / patch_size * side / 384, texts by the same, at least 3."""
    factor = side / 384

    def fit(pixels: int) -> int:
        return max(1, round(pixels / 32 * factor)) * patch_size

    limit = workload.max_image_length
    return replace(
        workload,
        sizes=tuple((fit(height), fit(width)) for height, width in workload.sizes),
        lengths=tuple(max(3, int(n * factor)) for n in workload.lengths),
        max_image_length=limit if limit < 0 else max(2, int(limit * factor**2)),
    )
