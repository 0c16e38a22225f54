"""The stages of the pipeline for ViT: images in, labels or vectors out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from vilt_fast.engine.images import ImageStages
from vilt_fast.engine.results import label_scores, make_classified
from vilt_fast.engine.stages import Item
from vilt_fast.frozen import FrozenModel
from vilt_fast.frozen.planning import HostBatch
from vilt_fast.frozen.vit import plan_images
from vilt_fast.models.vit import ViTForImageClassification, ViTModel
from vilt_fast.pixels import PackedPixels
from vilt_fast.processing.vit import ViTImageProcessor

POOLS = ("cls", "pooler")
# Where the processor sets no limit, graphs are recorded for images up to so many times the usual; longer ones run
# without.
_USUAL = 4


class ViTStages(ImageStages):
    """See the base class; `Item.asked` is the number of labels of "classify", and the pool of "embed".

    Args:
        model: frozen. processor: a ViTImageProcessor.
        top: labels to report where a call does not say.
    """

    kinds: ClassVar[dict[str, tuple[type, ...]]] = {"classify": (ViTForImageClassification,), "embed": (ViTModel,)}
    reads_texts = False

    def __init__(self, model: FrozenModel, processor: Any, *, top: int, most: int) -> None:
        super().__init__(model, processor, top=top, most=most)
        size, patch = fixed_size(processor), self.patch
        is_table = size is not None and (size[0] // patch, size[1] // patch) == self.config.table_size
        if size is not None and not is_table:
            warnings.warn(describe_size(size, self.config), stacklevel=4)
        # The same for every batch, so that an image's numbers do not depend on the sizes of the others.
        self._interpolation = None if is_table else self.config.interpolation

    @classmethod
    def settings_of(cls, processor: Any) -> Any:
        """The processor itself."""
        if not isinstance(processor, ViTImageProcessor):
            raise ValueError(f"processor: got {type(processor).__name__}, wanted a vilt_fast.ViTImageProcessor")
        return processor

    @classmethod
    def longest(cls, config: Any, settings: Any) -> int:
        """Of the image that has the most patches."""
        return longest_image(config, settings)

    def asked(self, kind: str, text: Any, option: Any = None) -> Any:
        """The number of labels, or the pool; None: the default.

        Raises:
            ValueError: `option` is no number of labels, or a pool that the model lacks, or the model has no labels.
        """
        if kind == "classify":
            if not self.config.num_labels:
                raise ValueError("classify: config.num_labels is 0, wanted a model with labels; its rows are in logits")
            top = self.top if option is None else option
            if not isinstance(top, int) or isinstance(top, bool) or top < 1:
                raise ValueError(f"top: got {top!r}, wanted a positive integer")
            return top
        if kind == "embed":
            has_pooler = self.model.weights.pooler is not None
            pool = ("pooler" if has_pooler else "cls") if option is None else option
            if pool not in POOLS:
                raise ValueError(f"pool: got {pool!r}, wanted {' or '.join(map(repr, POOLS))}")
            if pool == "pooler" and not has_pooler:
                raise ValueError("pool: got 'pooler', but the model was made without one; wanted 'cls'")
            return pool
        return None

    def _count_patches(self, height: int, width: int) -> int:
        """Sides are cut to whole patches."""
        rows, columns = height // self.patch, width // self.patch
        if not rows * columns:
            raise ValueError(
                f"image: becomes {height} x {width} pixels, wanted at least one patch of {self.patch} x {self.patch}"
            )
        return rows * columns

    def measure(self, items: Sequence[Item]) -> None:
        """The patches and the CLS; an image that would stall all others is refused."""
        for item in items:
            item.tokens = 1 + item.picture.value.tokens
            if item.tokens > self.most:
                item.error = ValueError(
                    f"image: makes {item.tokens - 1} patches, wanted at most {self.most - 1}: give the processor a "
                    "size with a longest_edge, or the Engine a larger max_tokens"
                )

    def _pack(self, pictures: list[np.ndarray], picture: list[int] | None, device: Any) -> PackedPixels:
        return super()._pack(pictures, picture, device).cut(self.patch)

    def _plan(self, items: Sequence[Item], seen: PackedPixels) -> HostBatch:
        return plan_images(seen, np.array(seen.grids(self.patch)), seen.grid_size(self.patch), self._interpolation)

    def _reduce(self, items: Sequence[Item], output: Any) -> tuple[Tensor, ...]:
        kind = items[0].kind
        if kind == "embed":
            rows = {"cls": output.last_hidden_state[:, 0], "pooler": output.pooler_output}
            return tuple(rows[pool].float() for pool in POOLS if rows[pool] is not None)
        if kind == "classify":
            top = max(item.asked for item in items)
            return tuple(part[:, :top] for part in label_scores(output.logits, self.config.problem_type))
        return (output.logits.float(),)

    def _read(self, items: Sequence[Item], outputs: tuple[Tensor, ...]) -> list[Any]:
        kind = items[0].kind
        if kind == "logits":
            # A copy each: a row that is kept must not keep its whole batch alive.
            return [row.clone() for row in outputs[0]]
        if kind == "embed":
            chosen = [outputs[POOLS.index(item.asked)][number].clone() for number, item in enumerate(items)]
            return [self._unless_nan(float(row.sum()), row) for row in chosen]
        rows = zip(items, *(part.tolist() for part in outputs), strict=True)
        return [
            self._unless_nan(scores[0], make_classified(self.config.id2label, scores[: item.asked], labels))
            for item, scores, labels in rows
        ]


def fixed_size(settings: Any) -> tuple[int, int] | None:
    """The size (height, width) that a ViTImageProcessor makes of every image; None: it depends on the image."""
    size = settings.crop_size if settings.do_center_crop else settings.size if settings.do_resize else {}
    return (size["height"], size["width"]) if "height" in size else None


def describe_size(size: tuple[int, int], config: Any) -> str:
    """What to say where a processor's images are of another size than the model's table of positions."""
    (height, width), (its_height, its_width) = size, config.image_shape
    return (
        f"processor: makes images of {height} x {width} pixels, the model was made for {its_height} x {its_width}: its "
        "positions are interpolated"
    )


def longest_image(config: Any, settings: Any) -> int:
    """Tokens of the image that has the most patches; a bound where a ViTImageProcessor's settings set one."""
    patch, size = config.patch_shape[0], fixed_size(settings)
    if size is not None:
        height, width = size
    elif not settings.do_resize:
        rows, columns = config.table_size
        return 1 + _USUAL * rows * columns
    elif "max_height" in settings.size:
        height, width = settings.size["max_height"], settings.size["max_width"]
    else:
        edge = settings.size["shortest_edge"]
        width = settings.size.get("longest_edge", _USUAL * edge)
        height = min(edge, width)
    return 1 + height // patch * (width // patch)
