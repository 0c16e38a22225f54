"""From the rows of patches back to pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.configs.vit import ViTConfig
from vilt_fast.layers.untouched import is_untouched
from vilt_fast.packing import Layout


class PatchDecoder(nn.Sequential):
    """A 1 x 1 convolution to the pixels of a patch, and their places (Xie et al. 2022, SimMIM's one-layer head)."""

    def __init__(self, config: ViTConfig) -> None:
        pixels = config.encoder_stride**2 * config.num_channels
        super().__init__(nn.Conv2d(config.hidden_size, pixels, kernel_size=1), nn.PixelShuffle(config.encoder_stride))

    def forward(self, rows: Tensor, layout: Layout) -> Tensor:  # type: ignore[override]
        """(patches, d), one row for each of `layout.patch_index`, to (B, C, GH * stride, GW * stride).

        Pixels are zero where no patch stood.
        """
        convolution: Any
        shuffle: Any
        convolution, shuffle = self
        if is_untouched(convolution, nn.Conv2d):
            values = ops.linear(rows, convolution.weight.flatten(1), convolution.bias)
        else:
            values = convolution(rows[:, :, None, None]).flatten(1)
        return shuffle(layout.unpack_patches(values).permute(0, 3, 1, 2))
