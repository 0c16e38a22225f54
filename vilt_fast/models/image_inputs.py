"""The arguments of a forward call on images alone, checked once where they enter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilt_fast.configs.vit import ViTConfig
from vilt_fast.contracts.exporting import always
from vilt_fast.models.arguments import Arguments
from vilt_fast.models.checks import (
    check_head_mask,
    check_packed_images,
    check_pixels,
    check_shape,
    check_tensor,
    refuse_non_finite_pixels,
)
from vilt_fast.packing import Check, Layout
from vilt_fast.padding import lay_out
from vilt_fast.pixels import PackedPixels


@dataclass(kw_only=True)
class ImageInputs(Arguments):
    """What a caller of `ViTModel.forward` gave; see there for shapes and meaning."""

    pixel_values: Tensor | PackedPixels | None = None
    bool_masked_pos: Tensor | None = None
    head_mask: Tensor | None = None
    interpolate_pos_encoding: bool | None = None
    pixel_mask: Tensor | None = None
    patch_mask: Tensor | None = None

    def given(self) -> dict[str, Any]:
        """What a caller gave, as arguments of `ViTModel.forward`."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def batch_size(self) -> int:
        """Images."""
        pixels = self.images()
        return pixels.pairs if isinstance(pixels, PackedPixels) else pixels.shape[0]

    def images(self) -> Tensor | PackedPixels:
        """The pixels; raises where there are none."""
        if self.pixel_values is None:
            raise ValueError("pixel_values must be given, got None")
        if isinstance(self.pixel_values, PackedPixels):
            return self.pixel_values
        return check_tensor("pixel_values", self.pixel_values)

    def check(self, config: ViTConfig, *, has_mask_token: bool) -> ImageBatch:
        """The same batch in one form: every tensor there, of its shape and type; a ValueError says which is not."""
        pixels = self.images()
        if self.bool_masked_pos is not None and not has_mask_token:
            raise ValueError("bool_masked_pos needs a mask token: make the model with use_mask_token=True")
        patch = config.patch_shape[0]
        if isinstance(pixels, PackedPixels):
            check_packed_images(pixels, self.pixel_mask, config)
            shapes = sorted({pixels.sizes[index] for index in pixels.image_of_pair})
            pixels = pixels.cut(patch)
            grid_size = pixels.grid_size(patch)
        else:
            grid_size = check_pixels(pixels, self.pixel_mask, config)
            if pixels.shape[0] == 0:
                raise ValueError("pixel_values must hold at least one image, got none")
            refuse_non_finite_pixels(pixels, self.pixel_mask)
            shapes = [(pixels.shape[2], pixels.shape[3])]
        self._refuse_labels()
        batch, device = self.batch_size, pixels.device
        masked, dropped = self.bool_masked_pos, self.patch_mask
        if masked is not None:
            masked = self._on_grid(masked, batch, grid_size).to(device)
        check_shape("patch_mask", dropped, (batch, *grid_size))
        return ImageBatch(
            pixel_values=pixels,
            pixel_mask=self.pixel_mask,
            masked=masked,
            patch_mask=None if dropped is None else dropped.to(device) != 0,
            head_mask=check_head_mask(self.head_mask, config),
            interpolation=self.interpolation(config, shapes),
            grid_size=grid_size,
            batch_size=batch,
            patch=patch,
        )

    def _refuse_labels(self) -> None:
        """transformers 5 has labels where 4.37 has the head mask: by place, they must not become one."""
        mask = self.head_mask
        if isinstance(mask, Tensor) and not mask.is_floating_point() and mask.dtype != torch.bool:
            raise ValueError(
                f"head_mask must hold floats or truth values, got {mask.dtype}; labels go by name: labels="
            )

    @staticmethod
    def _on_grid(masked: Tensor, batch: int, grid_size: tuple[int, int]) -> Tensor:
        """(B, GH, GW) bool."""
        count = grid_size[0] * grid_size[1]
        wanted = (batch, *grid_size) if check_tensor("bool_masked_pos", masked).ndim == 3 else (batch, count)
        if tuple(masked.shape) != wanted:
            raise ValueError(
                f"bool_masked_pos must have one entry for each patch, shape ({batch}, {count}) for a grid of "
                f"{grid_size[0]} x {grid_size[1]}, got {tuple(masked.shape)}"
            )
        return (masked != 0).view(batch, *grid_size)

    def interpolation(self, config: ViTConfig, shapes: Sequence[tuple[int, int]]) -> str | None:
        """How positions are read; None where every image has as many patches as the table entries.

        Args:
            shapes: (height, width) in pixels of the images, or of the padded batch.

        Raises:
            ValueError: the images are of another size than the model's, and nobody said that they may be.
        """
        interpolates, patch = self.interpolate_pos_encoding, config.patch_shape[0]
        if interpolates is not None and not isinstance(interpolates, bool):
            raise ValueError(f"interpolate_pos_encoding must be True, False or None, got {interpolates!r}")
        packed_or_masked = self.pixel_mask is not None or isinstance(self.pixel_values, PackedPixels)
        if interpolates or (interpolates is None and packed_or_masked):
            if self.pixel_mask is not None:
                return config.interpolation
            is_table = all(_is_size((height // patch, width // patch), config.table_size) for height, width in shapes)
            return None if is_table else config.interpolation
        is_own_size = all(_is_size(shape, config.image_shape) for shape in shapes)
        if is_own_size and self.pixel_mask is None:
            return None
        height, width = config.image_shape
        if not is_own_size:
            got = ", ".join(f"{shape[0]} x {shape[1]}" for shape in shapes[:3])
            raise ValueError(
                f"pixel_values must be {height} x {width} pixels, as config.image_size says, got {got}; pass "
                "interpolate_pos_encoding=True, or let the image processor resize"
            )
        raise ValueError(
            "interpolate_pos_encoding=False goes without pixel_mask: images of several sizes have several grids of "
            "positions"
        )


@dataclass(kw_only=True)
class ImageBatch:
    """Inputs after their check: masks are bool."""

    pixel_values: Tensor | PackedPixels
    pixel_mask: Tensor | None
    masked: Tensor | None  # (B, GH, GW)
    patch_mask: Tensor | None
    head_mask: Tensor | None
    interpolation: str | None
    grid_size: tuple[int, int]
    batch_size: int
    patch: int

    def layout(self, checks: list[Check]) -> Layout:
        """Plan the batch; all checks of values ride on the one read back to the host that this makes."""
        pixels = self.pixel_values
        no_words = torch.ones(self.batch_size, 0, dtype=torch.bool, device=pixels.device)
        grid = None
        if isinstance(pixels, PackedPixels):
            grid = pixels.pair_grid(self.patch)
        elif self.pixel_mask is not None:  # what makes no whole patch is cut off
            mask = self.pixel_mask != 0
            grid = torch.stack((mask[:, :, 0].sum(1), mask[:, 0, :].sum(1)), 1) // self.patch
            small = (grid < 1).any(1) & mask[:, 0, 0]  # one that starts elsewhere is refused for that
            checks = [*checks, (small.any(), lambda: _too_small(int(small.nonzero()[0]), self.patch))]
        return lay_out(no_words, self.pixel_mask, self.patch_mask, self.grid_size, grid=grid, checks=checks)


def _is_size(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    return always(size[0] == wanted[0]) and always(size[1] == wanted[1])


def _too_small(image: int, patch: int) -> str:
    return f"pixel_mask: the valid pixels of image {image} make less than one patch of {patch} x {patch}"
