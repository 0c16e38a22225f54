"""What is timed: batches whose picture sizes and question lengths follow a stated distribution, from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vilt_fast.config import ViltConfig
from vilt_fast.processing.image import resize_size

# (height, width) of COCO-like pictures before resizing, and how many of a hundred have it.
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
        sizes: (height, width) of each picture after resizing, in pixels.
        lengths: words of each text, with [CLS] and [SEP].
    """

    name: str
    sizes: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]

    def tokens(self, patch_size: int = 32) -> int:
        """Rows of the packed batch: words, one CLS a picture, patches."""
        patches = sum((height // patch_size) * (width // patch_size) for height, width in self.sizes)
        return sum(self.lengths) + len(self.sizes) + patches

    def inputs(self, config: ViltConfig, seed: int = 0) -> dict[str, Tensor]:
        """Random ids and pixels in the padded form that Hugging Face's models take.

        Returns:
            input_ids, attention_mask (B, L) int64; pixel_values (B, C, H, W) float32; pixel_mask (B, H, W) int64.
        """
        generator = torch.Generator().manual_seed(seed)
        batch, length = len(self.sizes), max(self.lengths)
        height, width = (max(size[axis] for size in self.sizes) for axis in (0, 1))
        mask = torch.arange(length) < torch.tensor(self.lengths)[:, None]
        ids = torch.randint(1, config.vocab_size, (batch, length), generator=generator)
        pixel_mask = torch.zeros(batch, height, width, dtype=torch.int64)
        for picture, (rows, columns) in zip(pixel_mask, self.sizes, strict=True):
            picture[:rows, :columns] = 1
        pixels = torch.randn(batch, config.num_channels, height, width, generator=generator)
        return {
            "input_ids": ids * mask,
            "attention_mask": mask.long(),
            "pixel_values": pixels * pixel_mask[:, None],
            "pixel_mask": pixel_mask,
        }


def vqa_mix(batch_size: int, seed: int = 0) -> Workload:
    """COCO-like pictures under ViLT's resize rule, questions of normal length (mean 9.5, deviation 2.2, 5 to 40)."""
    generator = np.random.default_rng(seed)
    share = np.array(list(COCO_SIZES.values())) / 100
    chosen = generator.choice(len(share), batch_size, p=share)
    sizes = list(COCO_SIZES)
    lengths = np.clip(generator.normal(9.5, 2.2, batch_size).astype(int), 5, 40)
    return Workload("vqa-mix", tuple(resize_size(*sizes[i]) for i in chosen), tuple(map(int, lengths)))
