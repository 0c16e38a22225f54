"""Regions that a detector has found in an image, and its files: what VisualBERT reads in place of pixels."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy

from vilt_fast.checkpoints.files import brief, listing

# What detectors' files call the features and the boxes; "arr_0" is numpy.savez's own name for an array without one.
FEATURES = ("features", "feature", "feats", "feat", "roi_features", "image_features", "image_feat", "x", "arr_0")
BOXES = ("boxes", "bbox", "bboxes", "image_bboxes", "pred_boxes")
# How many rows are regions, where the last ones are padding.
COUNTS = ("num_boxes", "num_bbox")
_LARGEST = 2**27  # bytes of a file: the list of a ZIP's members is read whole
_MOST = 2**23  # numbers of an array: 4,096 regions of 2,048; detectors keep 10 to 100
_LONGEST_HEADER = 2**13  # bytes of an array's; NumPy's have 128
_SAVE_IT = "numpy.savez(path, features=features, boxes=boxes)"
_WANTED = (
    "a Regions, the path of an .npz, its bytes, an array or a tensor (regions, visual_embedding_dim), or a dictionary"
)


class Regions:
    """The regions of one image, a copy of what is given.

    Args:
        features: (n, visual_embedding_dim), one row for each region; an array or a tensor of floats, kept as float32.
            A first axis of one image, as transformers' detector returns it, is dropped.
        boxes: (n, 4), the place of each region as the detector says it, kept as float32. No model here reads them.

    Raises:
        ValueError: no region, NaN or an infinity, no floats, or another shape.
    """

    def __init__(self, features: Any, boxes: Any = None) -> None:
        self.features = _rows(features, "features", "f")  # (n, visual_embedding_dim) float32
        self.boxes = None if boxes is None else _rows(boxes, "boxes", "fiu")  # (n, 4) float32
        _check_boxes(self.features, self.boxes)

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        return f"Regions({len(self)} of {self.features.shape[1]} features)"


def read_regions(path: str | os.PathLike[str], name: str = "regions") -> Regions:
    """The regions in a detector's file.

    Args:
        path: an .npz with `features` (n, visual_embedding_dim) and perhaps `boxes` (n, 4), or an .npy of features
            alone. The names that other detectors use are known, too: `FEATURES` and `BOXES`, and `COUNTS` for the
            number of regions where rows of padding follow, which may hold anything. Other arrays are not read.
        name: what errors call it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no features in it, a damaged file, one too large for regions, one that holds Python objects (they
            are not run), two arrays of one name, and as from `Regions`; the message names the file. No path.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise ValueError(f"{name}: got {type(path).__name__}, wanted the path of an .npz file")
    path = os.fsdecode(path)
    where = f"{name}: {brief(path)}"
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name}: no such file: {brief(path)}")
    if not os.path.isfile(path):
        kind = "directory" if os.path.isdir(path) else "pipe or a device"
        raise ValueError(f"{where} is a {kind}, wanted an .npz file")
    with open(path, "rb") as file:
        try:
            return _read(file)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def as_regions(value: Any, name: str = "regions") -> Regions:
    """Regions of any kind: a `Regions`, a file's path or bytes (in a BytesIO, too), an array or a tensor, a dictionary.

    Raises:
        FileNotFoundError, ValueError: as `read_regions`; the message names it.
    """
    if isinstance(value, Regions):
        return value
    if isinstance(value, str | os.PathLike):
        return read_regions(value, name)
    if isinstance(value, bytes | bytearray | memoryview):
        value = io.BytesIO(bytes(value))
    if not isinstance(value, np.ndarray | torch.Tensor | Mapping | io.BytesIO):
        raise ValueError(f"{name}: got {type(value).__name__}, wanted {_WANTED}")
    try:
        if isinstance(value, io.BytesIO):
            return _read(io.BytesIO(value.getvalue()))
        return _choose(value.keys(), value.__getitem__) if isinstance(value, Mapping) else Regions(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _rows(value: Any, name: str, kinds: str) -> np.ndarray:
    """A copy as (n, width) float32, checked; kinds: as of `_matrix`."""
    with np.errstate(over="ignore"):
        rows = np.array(_matrix(value, name, kinds), np.float32, order="C")
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise ValueError(f"{name}: region {bad[0]} holds NaN or an infinity, wanted finite numbers")
    return rows


def _matrix(value: Any, name: str, kinds: str) -> np.ndarray:
    """(n, width) in its own dtype; kinds: NumPy's letters of those that are taken."""
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise ValueError(f"{name}: got a tensor without plain values, wanted a dense one")
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value  # NumPy has none
        value = value.numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        got = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        advice = "; a detector's features are floats" if name == "features" else ""
        raise ValueError(f"{name}: got {got}, wanted an array or a tensor of float32{advice}")
    rows = value[0] if value.ndim == 3 and len(value) == 1 else value
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name}: got shape {value.shape}, wanted (regions, width), with at least one region")
    return rows


def _check_boxes(features: np.ndarray, boxes: np.ndarray | None) -> None:
    """Raise unless there is a box of four numbers for each row of the features."""
    if boxes is not None and boxes.shape != (len(features), 4):
        is_turned = features.shape[1] == len(boxes)
        advice = "; the features seem to be transposed: save features.T" if is_turned else ""
        raise ValueError(f"boxes: got shape {boxes.shape}, wanted ({len(features)}, 4), a row a region{advice}")


def _choose(names: Iterable[str], read: Callable[[str], Any]) -> Regions:
    """Regions from the arrays of these names."""
    held = list(names)
    chosen = [[name for name in known if name in held] for known in (FEATURES, BOXES, COUNTS)]
    for what, found in zip(("features", "boxes", "number of regions"), chosen, strict=True):
        if len(found) > 1:
            raise ValueError(f"got {' and '.join(found)}, wanted one array of the {what}")
    given, box, count = (found[0] if found else None for found in chosen)
    if given is None:
        shown = listing(sorted(map(brief, held))) or "nothing"
        raise ValueError(f"got {shown}, wanted the features, under the name 'features': {_SAVE_IT}")
    features = _matrix(read(given), "features", "f")
    boxes = None if box is None else _matrix(read(box), "boxes", "fiu")
    if count is None:
        return Regions(features, boxes)
    _check_boxes(features, boxes)
    end = _number(read(count), count, len(features))
    return Regions(features[:end], None if boxes is None else boxes[:end])


def _number(count: Any, name: str, rows: int) -> int:
    """How many of the rows are regions; some detectors save a float."""
    number = np.asarray(count)
    is_one = number.size == 1 and number.dtype.kind in "iuf"
    if not is_one or not 1 <= number.item() <= rows or number.item() % 1:
        got = number.item() if number.size == 1 else f"an array of {number.shape}"
        raise ValueError(f"{name}: got {got}, wanted a whole number from 1 to {rows}, a part of the rows")
    return int(number.item())


def _read(file: IO[bytes]) -> Regions:
    """Regions from an open .npz or .npy; ValueError without the file's name."""
    if (size := file.seek(0, os.SEEK_END)) > _LARGEST:
        raise ValueError(f"has {size} bytes, wanted at most {_LARGEST}, the regions of one image: split it")
    file.seek(0)
    start = file.read(len(npy.MAGIC_PREFIX))
    file.seek(0)
    if start == npy.MAGIC_PREFIX:
        return Regions(_read_array(lambda: file, "features"))
    with _damage():
        archive = zipfile.ZipFile(file)
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name in members:
            raise ValueError(f"got two arrays of the name {brief(name)}, wanted one")
        members[name] = entry
    return _choose(members, lambda name: _read_array(partial(_open, archive, members[name]), name))


def _open(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # no limit holds for the others
        raise ValueError(f"{entry.filename}: compressed as no .npz is")
    return archive.open(entry)


def _read_array(open_member: Callable[[], IO[bytes]], name: str) -> np.ndarray:
    """One array; its size is looked at before it takes memory, so that a few bytes cannot ask for all of it."""
    with _damage():
        member = open_member()
        start = io.BytesIO(member.read(_LONGEST_HEADER))
        major, _ = npy.read_magic(start)
        shape, _, dtype = (npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0)(start)
    if dtype.kind not in "fiub":
        reason = "Python objects, which are not run" if dtype.hasobject else f"an array of {dtype}"
        raise ValueError(f"{name}: holds {reason}; wanted plain numbers: {_SAVE_IT}")
    if math.prod(shape) > _MOST:
        raise ValueError(f"{name}: an array of {shape}, wanted at most {_MOST} numbers, the regions of one image")
    with _damage():
        member.seek(0)
        array = npy.read_array(member, allow_pickle=False)
        if member.read(1):  # at its end, a ZIP's member is compared with its checksum
            raise ValueError(f"{name}: goes on after its last number")
    return array


@contextmanager
def _damage() -> Iterator[None]:
    """What a damaged file raises, which is anything, as a ValueError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(f"damaged or no .npz file ({reason}), wanted one as from {_SAVE_IT}") from error
