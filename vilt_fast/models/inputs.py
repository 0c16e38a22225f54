"""The arguments of a forward call, checked once where they enter."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.models.arguments import TextArguments, TextBatch
from vilt_fast.models.checks import (
    check_head_mask,
    check_packed,
    check_pixels,
    check_rows,
    check_shape,
    check_tensor,
    exactly_one,
    integers,
    refuse_non_finite_pixels,
)
from vilt_fast.packing import Check, Layout
from vilt_fast.padding import lay_out
from vilt_fast.pixels import PackedPixels

_OF_HEADS = ("slots", "slot_layouts")


@dataclass(kw_only=True)
class Inputs(TextArguments):
    """What a caller of `ViltModel.forward` gave; see there for shapes and meaning."""

    pixel_values: Tensor | PackedPixels | None = None
    pixel_mask: Tensor | None = None
    head_mask: Tensor | None = None
    image_embeds: Tensor | None = None
    image_token_type_idx: int | Tensor | None = None
    patch_mask: Tensor | None = None
    seed: int | None = None
    image_index: Tensor | None = None
    slots: int = 1  # images per text, after `fold_images`; pair b has modality row b % slots + 1
    slot_layouts: tuple[Layout, ...] | None = None  # of what `image_of_each` gives, where that was planned before

    def given(self) -> dict[str, Any]:
        """What a caller gave, as arguments of `ViltModel.forward`."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _OF_HEADS}
        return {name: value for name, value in values.items() if value is not None}

    def image_of_each(self, slot: int, num_images: int) -> Inputs:
        """The pairs of every text with its image number `slot`, out of (B, num_images, ...)."""
        folded = self.fold_images(num_images)
        pixels, every = folded.pixel_values, slice(slot, None, num_images)
        batch = self.text_shape()[0]
        if isinstance(pixels, PackedPixels):
            pixels = replace(pixels, picture=pixels.image_of_pair[every])
            index = folded.image_index
        else:
            pixels = None if pixels is None else pixels[every]
            index = torch.arange(batch * num_images) if folded.image_index is None else folded.image_index
        return replace(
            self,
            pixel_values=pixels,
            image_embeds=_every(folded.image_embeds, every),
            pixel_mask=_every(folded.pixel_mask, every),
            patch_mask=_every(folded.patch_mask, every),
            image_index=_every(index, every),
            layout=None if self.slot_layouts is None else self.slot_layouts[slot],
            image_token_type_idx=slot + 1,
        )

    def fold_images(self, num_images: int) -> Inputs:
        """(B, num_images, ...) images as B * num_images pairs, the text repeated, image i with modality i + 1.

        PackedPixels have B * num_images pairs: the images of the first text, then those of the second.
        """
        images = exactly_one("pixel_values", self.pixel_values, "image_embeds", self.image_embeds)
        batch, _ = self.text_shape()
        pixel_values, image_embeds = self.pixel_values, self.image_embeds
        if isinstance(images, PackedPixels):
            if images.pairs != batch * num_images:
                raise ValueError(
                    f"pixel_values must have num_images = {num_images} images for each of {batch} texts, "
                    f"{batch * num_images}, got {images.pairs}"
                )
        elif pixel_values is not None:
            pixel_values = _fold_padded("pixel_values", images, 5, batch, num_images)
        else:
            image_embeds = _fold_padded("image_embeds", images, 4, batch, num_images)
        return replace(
            self,
            input_ids=_repeat(self.input_ids, num_images),
            attention_mask=_repeat(self.attention_mask, num_images),
            token_type_ids=_repeat(self.token_type_ids, num_images),
            inputs_embeds=_repeat(self.inputs_embeds, num_images),
            pixel_values=pixel_values,
            image_embeds=image_embeds,
            pixel_mask=_fold("pixel_mask", self.pixel_mask, batch, num_images),
            patch_mask=_fold("patch_mask", self.patch_mask, batch, num_images),
            image_index=_fold("image_index", self.image_index, batch, num_images),
            image_token_type_idx=torch.arange(1, num_images + 1).repeat(batch),
            slots=num_images,
        )

    def check(self, config: ViltConfig, device: torch.device) -> Batch:
        """The same batch in one form: every tensor there, of its shape and type; a ValueError says which is not."""
        words = self.check_words(config)
        batch, _ = self.text_shape()
        grid_size = self._check_images(config, batch, device)
        check_shape("patch_mask", self.patch_mask, (batch, *grid_size))
        return Batch(
            **words,
            pixel_values=self.pixel_values,
            pixel_mask=self.pixel_mask,
            image_embeds=self.image_embeds,
            patch_mask=None if self.patch_mask is None else self.patch_mask.to(device) != 0,
            pair_modality=self._pair_modality(config, batch, device),
            head_mask=check_head_mask(self.head_mask, config),
            grid_size=grid_size,
            seed=_seed(self.seed),
            image_index=self._image_index(batch, device),
            leaders=self._leaders(config),
        )

    def _check_images(self, config: ViltConfig, batch: int, device: torch.device) -> tuple[int, int]:
        """(GH, GW), or (1, places) with image_embeds."""
        images = exactly_one("pixel_values", self.pixel_values, "image_embeds", self.image_embeds)
        if isinstance(images, PackedPixels):
            return check_packed(images, self.pixel_mask, config, batch, device)
        if self.image_embeds is not None:
            if images.ndim != 3 or images.shape[2] != config.hidden_size or images.shape[1] == 0:
                raise ValueError(
                    f"image_embeds must be (batch, places, hidden_size={config.hidden_size}), got {tuple(images.shape)}"
                )
            if self.patch_mask is not None:
                raise ValueError("patch_mask goes with pixel_values; with image_embeds, give pixel_mask")
            mask = self.pixel_mask
            if mask is not None and check_tensor("pixel_mask", mask).flatten(1).shape != images.shape[:2]:
                raise ValueError(
                    f"pixel_mask must have one entry a row of image_embeds, {tuple(images.shape[:2])}, got shape "
                    f"{tuple(mask.shape)}"
                )
            check_rows("image_embeds", images, None if mask is None else mask.flatten(1))
            grid_size = (1, images.shape[1])
        else:
            grid_size = check_pixels(images, self.pixel_mask, config)
        if images.shape[0] != batch:
            name = "image_embeds" if self.pixel_values is None else "pixel_values"
            raise ValueError(f"{name} must have as many rows as the text, {batch}, got {images.shape[0]}")
        if self.pixel_values is not None:
            refuse_non_finite_pixels(images, self.pixel_mask)
        return grid_size

    def _pair_modality(self, config: ViltConfig, batch: int, device: torch.device) -> Tensor:
        index = 1 if self.image_token_type_idx is None else self.image_token_type_idx
        if isinstance(index, Tensor):
            return index.to(device)
        rows = config.modality_type_vocab_size
        if not 0 <= index < rows:
            raise ValueError(f"image_token_type_idx must be in 0..{rows - 1} (modality_type_vocab_size), got {index}")
        return torch.full((batch,), index, dtype=torch.long, device=device)

    def _leaders(self, config: ViltConfig) -> list[int] | None:
        """`PackedPixels.leaders`, where pairs with the same image surely have the same rows; None elsewhere."""
        pixels = self.pixel_values
        if not isinstance(pixels, PackedPixels) or pixels.picture is None or self.patch_mask is not None:
            return None
        limit, patch = config.max_image_length, config.patch_shape[0]
        if self.image_index is not None and limit >= 0 and limit < max(h * w for h, w in pixels.grids(patch)):
            return None  # pairs may draw different patches of one image
        return pixels.leaders(self.slots)

    def _image_index(self, batch: int, device: torch.device) -> Tensor | None:
        if self.image_index is None:
            return self.pixel_values.image_index if isinstance(self.pixel_values, PackedPixels) else None
        index = torch.as_tensor(self.image_index, device=device)
        check_shape("image_index", index, (batch,))
        return integers("image_index", index)


def check_modality(index: Any) -> None:
    """Raises unless a caller's `image_token_type_idx` is an integer or None; a tensor is what `fold_images` makes."""
    if index is not None and not isinstance(index, Integral):
        raise ValueError(f"image_token_type_idx must be an integer, got {index!r}")


@dataclass(kw_only=True)
class Batch(TextBatch):
    """Inputs after their check: masks are bool, indices int64, nothing optional but what excludes each other."""

    pixel_values: Tensor | PackedPixels | None
    pixel_mask: Tensor | None
    image_embeds: Tensor | None
    patch_mask: Tensor | None
    pair_modality: Tensor
    head_mask: Tensor | None
    grid_size: tuple[int, int]
    seed: int | None
    image_index: Tensor | None
    leaders: list[int] | None

    def layout(self, config: ViltConfig, training: bool, checks: list[Check]) -> Layout:
        """Plan the batch; all checks of values ride on the one read back to the host that this makes."""
        checks = [*checks, *self.check_values(config)]
        if self.image_index is not None:
            checks.append(((self.image_index < 0).any(), lambda: "image_index must not be negative"))
        if self.image_embeds is not None:
            places = self.image_embeds.shape[1]
            kept = None
            if self.pixel_mask is not None:
                kept = self.pixel_mask.flatten(1)[:, None, :] != 0
                checks.append(((~kept.any(2)).any(), lambda: "pixel_mask: an image has no valid place"))
            return lay_out(self.attention_mask, None, kept, (1, places), has_cls=False, checks=checks)
        pixels, patch, limit, seed = self.pixel_values, config.patch_shape[0], config.max_image_length, self.seed
        if seed is None:  # only a model in training that samples takes a number from PyTorch's generator
            seed = int(torch.randint(2**63 - 1, ())) if training and limit > 0 else 0
        layout = lay_out(
            self.attention_mask,
            self.pixel_mask,
            self.patch_mask,
            self.grid_size,
            max_patches=limit,
            seed=seed,
            image_index=self.image_index,
            grid=pixels.pair_grid(patch) if isinstance(pixels, PackedPixels) else None,
            checks=checks,
        )
        if self.leaders is None or not isinstance(pixels, PackedPixels):
            return layout
        counts = [height * width for height, width in pixels.grids(patch)]
        return layout.sharing(self.leaders, counts if limit < 0 else [min(count, limit) for count in counts])


def _fold_padded(name: str, images: Tensor, rank: int, batch: int, num_images: int) -> Tensor:
    """(B, num_images, ...) to (B * num_images, ...)."""
    if images.ndim == rank - 1:  # one image per text, without its axis
        images = images[:, None]
    if images.ndim != rank or images.shape[1] != num_images:
        raise ValueError(
            f"{name} must have num_images = {num_images} images per text in dimension 1, got shape "
            f"{tuple(images.shape)}"
        )
    if images.shape[0] != batch:
        raise ValueError(f"{name} must have as many rows as the text, {batch}, got {images.shape[0]}")
    return images.flatten(0, 1)


def _fold(name: str, extra: Tensor | None, batch: int, num_images: int) -> Tensor | None:
    """(B, num_images, ...) to (B * num_images, ...); with one image per text, its axis may be left out."""
    if extra is None:
        return None
    check_tensor(name, extra)
    extra = extra[:, None] if num_images == 1 and extra.shape[:2] != (batch, 1) else extra
    if extra.shape[:2] != (batch, num_images):
        raise ValueError(
            f"{name} must start with (batch, num_images) = ({batch}, {num_images}), got shape {tuple(extra.shape)}"
        )
    return extra.flatten(0, 1)


def _every(tensor: Tensor | None, places: slice) -> Tensor | None:
    return None if tensor is None else tensor[places]


def _repeat(text: Tensor | None, num_images: int) -> Tensor | None:
    return None if text is None else text.repeat_interleave(num_images, 0)


def _seed(seed: int | None) -> int | None:
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer in 0..2**63 - 1, got {seed!r}")
    return int(seed)
