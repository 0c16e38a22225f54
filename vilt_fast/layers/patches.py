"""Images to rows of the packed tensor: the half of the embeddings that the families with patches share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.configs.encoder import PatchConfig
from vilt_fast.contracts.exporting import apart, is_exporting
from vilt_fast.layers.dropout import HiddenDropout
from vilt_fast.layers.untouched import is_untouched, skippable
from vilt_fast.packing import Layout
from vilt_fast.padding import PaddedLayout
from vilt_fast.pixels import PackedPixels, fold_normalisation
from vilt_fast.reference.patch_embed import all_patches, cells, gather_bytes, gather_patches, interpolate


@skippable(projection=nn.Conv2d)
class PatchEmbeddings(nn.Module):
    """The patch projection, held as the convolution it is in a checkpoint."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        patch = config.patch_shape
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, C, p, p), each an image of its own, to (patches, d).

        Raises:
            ValueError: another module stands there, and makes something else of them than one pixel each.
        """
        projection, patch = self.projection, patches.shape[2:]
        if isinstance(projection, nn.Conv2d) and (projection.stride != patch or projection.padding != (0, 0)):
            raise ValueError(
                f"patch_embeddings.projection must not reach over its patch: got stride {projection.stride} and "
                f"padding {projection.padding}, wanted {tuple(patch)} and (0, 0)"
            )
        projected = projection(patches)
        if projected.ndim != 4 or projected.shape[2:] != (1, 1):
            raise ValueError(
                f"patch_embeddings.projection must make (patches, hidden_size, 1, 1) of {tuple(patches.shape)}, one "
                f"patch each, got {tuple(projected.shape)}"
            )
        return projected.flatten(1)


class ImageEmbeddings(nn.Module):
    """CLS, patches and their positions; with modality rows (ViLT), or a token that masked patches become (ViT)."""

    config: PatchConfig
    patch_embeddings: PatchEmbeddings
    cls_token: nn.Parameter  # (1, 1, d)
    position_embeddings: nn.Parameter  # (1, 1 + rows * columns, d)
    dropout: HiddenDropout
    token_type_embeddings: Any  # nn.Embedding, a row per kind of image; None: there are no kinds
    mask_token: nn.Parameter | None  # (1, 1, d)

    @property
    def table_size(self) -> tuple[int, int]:
        """Rows and columns of `position_embeddings`, as the configuration says now.

        Raises:
            ValueError: it says otherwise.
        """
        rows, columns = self.config.table_size
        if self.position_embeddings.shape[1] != rows * columns + 1:
            raise ValueError(
                f"embeddings.position_embeddings has {self.position_embeddings.shape[1]} rows, config.image_size and "
                f"config.patch_size ask for {rows} x {columns} + 1"
            )
        return rows, columns

    def _embed_images(
        self,
        tokens: Tensor,
        layout: Layout,
        pixels: Tensor | PackedPixels,
        *,
        interpolation: str | None,
        pair_modality: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> Tensor:
        """`tokens` with CLS and patches at their rows.

        Args:
            pixels: (B, C, H, W) or PackedPixels. interpolation, pair_modality, masked: of `ops.patch_embed`.
        """
        modality = self.token_type_embeddings
        is_one_step = is_untouched(self.patch_embeddings, PatchEmbeddings)
        is_one_step = is_one_step and is_untouched(self.dropout, HiddenDropout)
        is_one_step = is_one_step and (modality is None or is_untouched(modality, nn.Embedding) and is_table(modality))
        is_one_step = is_one_step and self.patch_embeddings.projection.kernel_size == self.config.patch_shape
        embed = self._embed_images_at_once if is_one_step else self._call_patch_modules
        tokens, copies = embed(tokens, layout, pixels, interpolation, pair_modality, masked), layout.copies
        return tokens if copies is None else tokens.index_copy(0, copies.target, tokens[copies.source])

    def _embed_images_at_once(
        self,
        tokens: Tensor,
        layout: Layout,
        pixels: Tensor | PackedPixels,
        interpolation: str | None,
        pair_modality: Tensor | None,
        masked: Tensor | None,
    ) -> Tensor:
        weight, bias = self.patch_embeddings.projection.weight, self.patch_embeddings.projection.bias
        modality = self.token_type_embeddings
        options: dict[str, Any] = {}
        if isinstance(pixels, PackedPixels):
            packed, pixels = pixels, pixels.data
            # Folded anew in each call: it is one pass over the weight, and nothing goes stale.
            weight, bias, scale = fold_normalisation(weight, bias, packed.mean, packed.std, packed.rescale_factor)
            options = {"grid_size": layout.grid_size, "pixel_offset": packed.pair_offset, "pixel_scale": scale}
        if masked is not None:
            assert self.mask_token is not None
            options |= {"mask_token": self.mask_token[0, 0], "masked": masked}
        patch_index, patch_row = layout.projected_patches
        return ops.patch_embed(
            tokens,
            pixels=pixels,
            weight=weight,
            bias=bias,
            position=self.position_embeddings[0],
            cls_token=self.cls_token[0, 0],
            modality=None if modality is None else modality.weight,
            pair_modality=pair_modality,
            grid=layout.grid,
            patch_index=patch_index,
            patch_row=patch_row,
            cls_row=layout.cls_row,
            table_size=self.table_size,
            interpolation=interpolation,
            **options,
        )

    def _call_patch_modules(
        self,
        tokens: Tensor,
        layout: Layout,
        pixels: Tensor | PackedPixels,
        interpolation: str | None,
        pair_modality: Tensor | None,
        masked: Tensor | None,
    ) -> Tensor:
        """The same as `reference.patch_embed`, each module called, and dropout before the modality rows."""
        patch_index, patch_row = layout.projected_patches
        cls, rows = self._image_rows(patch_index, layout, pixels, interpolation, pair_modality, masked)
        row = torch.cat((layout.cls_row, patch_row)).long()
        return tokens.index_copy(0, row, torch.cat((cls, rows)).to(tokens.dtype))

    def _image_rows(
        self,
        patch_index: Tensor,
        layout: Layout,
        pixels: Tensor | PackedPixels,
        interpolation: str | None,
        pair_modality: Tensor | None,
        masked: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The rows of CLS, (B, d), and of some patches, (patches, d), each module called."""
        (image, y, x), patch = cells(patch_index, layout.grid_size), self.config.patch_shape[0]
        dtype = self.cls_token.dtype
        if isinstance(pixels, PackedPixels):
            places = (pixels.pair_offset[image], layout.grid[image, 1], y, x)
            patches = pixels.normalise(gather_bytes(pixels.data, *places, patch=patch), dtype)
        elif isinstance(layout, PaddedLayout):
            patches = apart(all_patches(pixels, patch=patch)).flatten(0, 2)
        else:
            patches = gather_patches(pixels, image, y, x, patch=patch)
        projected = self._project(patches.to(dtype))
        if masked is not None:
            assert self.mask_token is not None
            projected = torch.where(masked[image, y, x][:, None], self.mask_token[0, 0].to(projected.dtype), projected)
        if isinstance(layout, PaddedLayout) and layout.has_one_grid:  # the positions of one image are those of all
            first = slice(layout.max_patches)
            positions = self._positions(layout, image[first], y[first], x[first], interpolation)
            positions = positions.repeat(layout.batch_size, 1)
        else:
            positions = self._positions(layout, image, y, x, interpolation)
        cls = (self.cls_token[0, 0] + self.position_embeddings[0, 0]).expand(layout.batch_size, -1)
        rows = self.dropout(torch.cat((cls, (projected + positions).to(cls.dtype))))
        if self.token_type_embeddings is not None and pair_modality is not None:
            rows = rows + self.token_type_embeddings(torch.cat((pair_modality, pair_modality[image])))
        return rows[: layout.batch_size], rows[layout.batch_size :]

    def _positions(self, layout: Layout, image: Tensor, y: Tensor, x: Tensor, interpolation: str | None) -> Tensor:
        """(patches, d): the table stretched over each image's grid, read at its cells."""
        return interpolate(self.position_embeddings[0, 1:], self.table_size, layout.grid[image], y, x, interpolation)

    def _project(self, patches: Tensor) -> Tensor:
        """(patches, C, p, p) to (patches, d)."""
        if not is_exporting() or not is_untouched(self.patch_embeddings, PatchEmbeddings):
            return self.patch_embeddings(patches)
        # A runtime takes as many convolutions as there are patches for no product.
        projection = self.patch_embeddings.projection
        return ops.linear(patches.flatten(1), projection.weight.flatten(1), projection.bias)


def is_table(embedding: Any) -> bool:
    """Whether nobody wants a gradient of an untouched nn.Embedding by rules of its own."""
    ruled = embedding.padding_idx is not None or embedding.sparse or embedding.scale_grad_by_freq
    return not (ruled and torch.is_grad_enabled() and embedding.weight.requires_grad)


def fresh_rows(weight: Tensor, layout: Layout) -> Tensor:
    """(total_tokens, d) to be written, where a weight (..., d) of the embeddings is.

    Raises:
        ValueError: the weights are on the meta device, or of 8 bits.
    """
    check_computable(weight)
    # zeros, not empty: the reference differentiates through the rows it overwrites, where garbage could be NaN.
    return weight.new_zeros(layout.total_tokens, weight.shape[-1])


def check_computable(weight: Tensor) -> None:
    """Raise where a weight of a model is on the meta device, or of 8 bits."""
    if weight.is_meta:
        raise ValueError("the model is on the meta device, which holds no weights: load them first")
    if weight.element_size() == 1:
        raise ValueError(
            f"the model is in {weight.dtype}, which is not computed with: .to(torch.bfloat16), or quantise its "
            "products alone, with torchao.quantization.quantize_"
        )
