"""Weights: safetensors, .bin and the index of shards, read into a model."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from mutate import VALUES, mutate_bytes, mutate_json
from registry import kind
from samples import model, saved_model

import vilt_fast
from vilt_fast import checkpoints

_NUMPY = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


@kind
def safetensors(rng: Random, folder: Path) -> None:
    """A changed header, or changed bytes anywhere: refused, or what the format says is read."""
    content = (saved_model() / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], content[8 + size :]
    choice = rng.random()
    if choice < 0.5:
        header = mutate_json(rng, json.loads(header))
    elif choice < 0.65:
        header = json.dumps(_with_other_tensor(rng, json.loads(header))).encode()
    elif choice < 0.8:
        header = mutate_bytes(rng, header)
    content = (
        struct.pack("<Q", rng.choice((size, 0, 2**63, 10**9)) if rng.random() < 0.05 else len(header)) + header + data
    )
    path = folder / "model.safetensors"
    path.write_bytes(content if choice < 0.8 else mutate_bytes(rng, content))
    read = model()
    checkpoints.load_weights(read, path)
    _check_equal(read.state_dict(), _independent(path))


def _with_other_tensor(rng: Random, header: dict[str, Any]) -> dict[str, Any]:
    """One tensor's dtype, shape or offsets exchanged for another's, or for something near."""
    names = [name for name in header if name != "__metadata__"]
    first, second = rng.sample(names, 2)
    field = rng.choice(("dtype", "shape", "data_offsets", None))
    if field is None:
        header[first], header[second] = header[second], header[first]
    elif field == "dtype":
        header[first][field] = rng.choice(("F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "U8", "C64", "X"))
    else:
        numbers = [*header[rng.choice((first, second))][field]]
        numbers[rng.randrange(len(numbers))] += rng.choice((-4, -1, 1, 4, 2**62))
        header[first][field] = numbers
    return header


def _independent(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, read as its format is described."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    tensors = {}
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] in _NUMPY:
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(content[start:stop], _NUMPY[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _check_equal(state: dict[str, torch.Tensor], wanted: dict[str, np.ndarray]) -> None:
    for name, tensor in state.items():
        assert tensor.isfinite().all(), name
        if name in wanted:
            assert np.array_equal(tensor.numpy(), wanted[name].astype(np.float32)), name


@kind
def torch_bin(rng: Random, folder: Path) -> None:
    """A .bin with changed bytes, or that holds something else than weights."""
    path = folder / "pytorch_model.bin"
    choice = rng.random()
    if choice < 0.4:
        path.write_bytes(mutate_bytes(rng, _bin_bytes(rng.random() < 0.6)))
    elif choice < 0.7:
        path.write_bytes(_mutate_member(rng, _bin_bytes(True)))
    else:
        torch.save(_other_content(rng), path, _use_new_zipfile_serialization=rng.random() < 0.7)
    read = model()
    checkpoints.load_weights(read, path)
    assert all(tensor.isfinite().all() for tensor in read.state_dict().values())


def _mutate_member(rng: Random, content: bytes) -> bytes:
    """One file inside the zip changed, most often its pickle; the zip is whole."""
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        members = {name: source.read(name) for name in source.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    name = name if rng.random() < 0.8 else rng.choice([*members])
    members[name] = mutate_bytes(rng, members[name])
    target = io.BytesIO()
    with zipfile.ZipFile(
        target, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as new:
        for member, data in members.items():
            new.writestr(member, data)
    return target.getvalue()


@kind
def original_checkpoint(rng: Random, folder: Path) -> None:
    """A .ckpt of the original repository with tensors of other shapes, or without some: its sizes are read off them."""
    state: dict[str, Any] = dict(_original_state())
    for name in rng.sample([*state], rng.choice((0, 0, 1, 1, 2))):
        shape = [*state[name].shape]
        action = rng.random()
        if action < 0.2:
            del state[name]
        elif action < 0.6:
            at = rng.randrange(len(shape))
            shape[at] = rng.choice((0, 1, shape[at] + 1, shape[at] * 2))
            state[name] = torch.ones(shape)
        else:
            state[name] = rng.choice(
                (torch.ones(()), torch.ones(1), torch.ones(2, 2, 2, 2, 2), torch.ones(24).long(), 3)
            )
    if rng.random() < 0.1:
        state[rng.choice(("transformer.blocks.999999999.norm1.weight", "transformer.blocks.x.norm1.weight"))] = (
            torch.ones(24)
        )
    hyper = {
        "num_heads": rng.choice((*[2] * 12, 0, -2, 5, "x", None, 10**30)),
        "drop_rate": rng.choice((*[0.1] * 8, -1, "x", float("nan"))),
    }
    content = {
        "state_dict": state,
        "hyper_parameters": rng.choice((*[hyper] * 9, {"config": hyper}, 3, [], None)),
    }
    path = folder / "vilt.ckpt"
    torch.save(content, path)
    read = vilt_fast.ViltForQuestionAnswering.from_pretrained(path)
    assert torch.equal(read.vilt.layernorm.weight, state["transformer.norm.weight"])
    assert all(tensor.isfinite().all() for tensor in read.state_dict().values())


@cache
def _original_state() -> dict[str, torch.Tensor]:
    """The model's weights under the names of the original repository."""
    state = dict(model().state_dict())
    block, layer = "transformer.blocks.0.", "vilt.encoder.layer.0."
    renamed = {}
    for kind_ in ("weight", "bias"):
        parts = [state.pop(f"{layer}attention.attention.{part}.{kind_}") for part in ("query", "key", "value")]
        renamed[f"{block}attn.qkv.{kind_}"] = torch.cat(parts)
    new_names = {
        layer + "layernorm_before": block + "norm1",
        layer + "layernorm_after": block + "norm2",
        layer + "attention.output.dense": block + "attn.proj",
        layer + "intermediate.dense": block + "mlp.fc1",
        layer + "output.dense": block + "mlp.fc2",
        "vilt.layernorm": "transformer.norm",
        "vilt.embeddings.cls_token": "transformer.cls_token",
        "vilt.embeddings.position_embeddings": "transformer.pos_embed",
        "vilt.embeddings.patch_embeddings.projection": "transformer.patch_embed.proj",
        "vilt.embeddings.text_embeddings": "text_embeddings",
        "vilt.embeddings.token_type_embeddings": "token_type_embeddings",
        "vilt.pooler": "pooler",
        "classifier": "vqa_classifier",
    }
    for name, tensor in state.items():
        old = next(old for old in new_names if name.startswith(old))
        renamed[new_names[old] + name[len(old) :]] = tensor
    return renamed


@cache
def _bin_bytes(zipped: bool) -> bytes:
    path = saved_model() / f"{zipped}.bin"
    torch.save(model().state_dict(), path, _use_new_zipfile_serialization=zipped)
    return path.read_bytes()


class _Code:
    """Unpickled by an ordinary `torch.load`, this ends the process."""

    def __reduce__(self) -> Any:
        return eval, ("__import__('os').abort()",)


def _other_content(rng: Random) -> Any:
    """A state dict with one entry that is none, or something else."""
    state: dict[Any, Any] = dict(model().state_dict())
    name = rng.choice([*state])
    tensor = state[name]
    entries = (
        *(
            _Code(),
            torch.nn.Linear(2, 2),
            tensor.to_sparse(),
            tensor.to("meta"),
            tensor.double() * 1e300,
            tensor.half(),
        ),
        *(
            tensor * float("nan"),
            tensor.to(torch.complex64),
            tensor.bool(),
            tensor[..., :0],
            tensor[None],
            {"a": tensor},
        ),
        *(torch.zeros(()).expand(2**40), torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
        *(value for value in VALUES if value != "\ud800"),
    )
    state[rng.choice((name, name, 5, None, ("a",), "new"))] = rng.choice(entries)
    return rng.choice((state, state, state, {"state_dict": state}, {"model": state, "x": _Code()}, [state], entries[0]))


@kind
def shard_index(rng: Random, folder: Path) -> None:
    """A changed index: refused, or the weights as they are."""
    source = _shards()
    for path in source.iterdir():
        shutil.copy(path, folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    names = (
        "../x.safetensors",
        index.name,
        "",
        ".",
        "/dev/zero",
        "x\0",
        folder.name,
        "model-00001-of-00009.safetensors",
    )
    if rng.random() < 0.5:
        content["weight_map"][rng.choice([*content["weight_map"], "new"])] = rng.choice(names)
        index.write_text(json.dumps(content))
    else:
        index.write_bytes(mutate_json(rng, content))
    read = model(seed=1)
    checkpoints.load_weights(read, folder)
    _check_equal(read.state_dict(), {name: tensor.numpy() for name, tensor in model().state_dict().items()})


@cache
def _shards() -> Path:
    folder = saved_model().parent / "shards"
    model().save_pretrained(folder, max_shard_size="20KB")
    return folder
