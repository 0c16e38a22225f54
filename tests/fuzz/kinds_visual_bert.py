"""Files of regions, and those of a VisualBERT: config.json and weights."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from mutate import mutate_bytes, mutate_json
from registry import kind
from safetensors.torch import save_file
from samples import saved_visual_bert, visual_bert

import vilt_fast
from vilt_fast import VisualBertForQuestionAnswering
from vilt_fast.processing.regions import BOXES, COUNTS, FEATURES, read_regions

_SHAPES = ((5, 8), (5, 8), (5, 8), (1, 5, 8), (5, 4), (0, 8), (5, 0), (5,), (), (4, 8), (2, 5, 8), (8, 5))
_DTYPES = ("float32", "float16", "float64", ">f4", "int64", "uint8", "bool", "complex64", "S3", "M8[s]", "object")


@kind
def regions_file(rng: Random, folder: Path) -> None:
    """An .npz or .npy of any arrays: refused, or exactly its features and boxes."""
    arrays = {name: _array(rng, (5, 8)) for name in _names(rng, FEATURES)}
    arrays |= {name: _array(rng, (5, 4)) for name in _names(rng, BOXES)}
    arrays |= {name: np.array(rng.choice((5, 3, 0, 6, -1, 2.0, [3], [1, 2]))) for name in _names(rng, COUNTS, 0.8)}
    arrays |= {name: _array(rng, (3,)) for name in rng.choice(((), ("info",), ("objects_id", "image_w")))}
    path = folder / rng.choice(("regions.npz", "regions.npy"))
    if path.suffix == ".npy":
        arrays = {"features": next(iter(arrays.values()), np.ones(3))}
        np.save(path, arrays["features"], allow_pickle=True)
    else:
        rng.choice((np.savez, np.savez_compressed))(path, **arrays)
    read = read_regions(path)
    (wanted,) = (arrays[name] for name in FEATURES if name in arrays)
    _check(read.features, wanted, arrays)
    boxes = [arrays[name] for name in BOXES if name in arrays]
    assert (read.boxes is None) == (not boxes)
    if boxes:
        _check(read.boxes, boxes[0], arrays)


@kind
def damaged_regions(rng: Random, folder: Path) -> None:
    """Changed bytes of an .npz, of a member in it, or of an .npy: refused, or arrays that are whole numbers of rows."""
    name, (plain, member) = rng.choice(("regions.npz", "regions.npz", "regions.npy")), _samples()
    if name == "regions.npy":
        content = mutate_bytes(rng, member)
    elif rng.random() < 0.5:
        content = mutate_bytes(rng, plain)
    else:  # the archive is right, its checksum too
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            archive.writestr("features.npy", mutate_bytes(rng, member))
        content = file.getvalue()
    (folder / name).write_bytes(content)
    read = read_regions(folder / name)
    assert read.features.ndim == 2 and read.features.dtype == np.float32 and np.isfinite(read.features).all()
    assert 0 < read.features.nbytes <= 2 * len(member)  # float16 has half
    assert read.boxes is None or read.boxes.shape == (len(read), 4)


@kind
def visual_bert_config(rng: Random, folder: Path) -> None:
    """Refused, or a model that answers, live and frozen, and is written and read again as it is."""
    shutil.copy(saved_visual_bert() / "model.safetensors", folder)
    content = json.loads((saved_visual_bert() / "config.json").read_text())
    text = mutate_json(rng, content)
    (folder / "config.json").write_bytes(text)
    read = VisualBertForQuestionAnswering.from_pretrained(folder)
    logits = _answer(read)
    assert logits.shape == (1, read.config.num_labels) and logits.isfinite().all()
    if not (read.config.output_attentions or read.config.output_hidden_states):  # which the frozen form refuses
        assert torch.allclose(_answer(vilt_fast.freeze(read)), logits, atol=1e-5)
    if _says(text, content):
        assert torch.equal(logits, _answer(_unchanged()))
    read.save_pretrained(folder / "again")
    again = VisualBertForQuestionAnswering.from_pretrained(folder / "again")
    assert again.config == read.config and torch.equal(_answer(again), logits)


@kind
def visual_bert_weights(rng: Random, folder: Path) -> None:
    """Tensors of other shapes, missing or too many: refused, or exactly those of the file."""
    state = {name: tensor.clone() for name, tensor in _unchanged().state_dict().items()}
    for name in rng.sample([*state], rng.choice((0, 0, 1, 2))):
        shape = [*state[name].shape]
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 7))
        state[name] = rng.choice((torch.ones(shape), torch.ones(()), torch.full(shape, torch.nan), torch.ones(3).int()))
    if rng.random() < 0.3:
        del state[rng.choice([*state])]
    if rng.random() < 0.2:  # a BERT without visual weights
        state = {
            name.replace("visual_bert.", "bert."): tensor for name, tensor in state.items() if ".visual_" not in name
        }
    save_file(state, folder / "model.safetensors")
    shutil.copy(saved_visual_bert() / "config.json", folder)
    read = VisualBertForQuestionAnswering.from_pretrained(folder)
    for name, tensor in read.state_dict().items():
        assert name not in state or torch.equal(tensor, state[name]), name
    assert _answer(read).isfinite().all()


def _names(rng: Random, known: tuple[str, ...], none: float = 0.1) -> list[str]:
    return [] if rng.random() < none else rng.sample(known, rng.choice((1, 1, 1, 1, 1, 2)))


def _array(rng: Random, usual: tuple[int, ...]) -> np.ndarray:
    """Mostly floats of the usual shape."""
    shape = usual if rng.random() < 0.7 else rng.choice(_SHAPES)
    array = np.random.default_rng(rng.randrange(100)).normal(size=shape)
    if array.size and rng.random() < 0.15:
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, 1e300, 1e30))
    with np.errstate(all="ignore"):
        if rng.random() < 0.8:
            return array.astype("float32")
        dtype = rng.choice(_DTYPES)
        array = array.astype("int64").astype(dtype) if dtype == "M8[s]" else array.astype(dtype)
    return np.asfortranarray(array) if rng.random() < 0.2 else array


def _check(read: np.ndarray, given: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    rows = given[0] if given.ndim == 3 else given
    (count,) = [int(arrays[name].item()) for name in COUNTS if name in arrays] or [len(rows)]
    assert rows.dtype.kind in "fiu" and np.isfinite(rows[:count]).all()
    assert len(read) == count and np.array_equal(read, rows[:count].astype(np.float32))


def _says(text: bytes, content: dict) -> bool:
    try:
        return json.loads(text) == content
    except (ValueError, RecursionError):
        return False


@cache
def _samples() -> tuple[bytes, bytes]:
    """A whole .npz, and the .npy of its features."""
    rng, files = np.random.default_rng(0), (io.BytesIO(), io.BytesIO())
    features = rng.normal(size=(6, 8)).astype(np.float32)
    np.savez(files[0], features=features, boxes=rng.uniform(0, 99, (6, 4)))
    np.save(files[1], features)
    return files[0].getvalue(), files[1].getvalue()


@cache
def _unchanged() -> VisualBertForQuestionAnswering:
    return visual_bert()


@torch.no_grad()
def _answer(model: object) -> torch.Tensor:
    features = torch.ones(1, 3, model.config.visual_embedding_dim) * 0.3
    return model(torch.tensor([[1, 2, 0]]), visual_embeds=features, return_dict=True).logits
