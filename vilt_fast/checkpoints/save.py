"""Weights out: directories that transformers 4.37 and 5.x read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vilt_fast.checkpoints.families import family_of, shares_words
from vilt_fast.checkpoints.files import Content, write_together
from vilt_fast.checkpoints.weight_files import SAFE_NAME, TORCH_NAME, earlier_files, split, write_tensors


def save_weights(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    companions: Mapping[str, Content] | None = None,
) -> None:
    """Write a model's weights under the names that transformers 4.37 and 5.x read.

    All files are written beside the old ones first and named last, then the weight files of an earlier save go; a
    failure leaves the old checkpoint whole.

    Args:
        model: with Hugging Face's parameter names; a decoder tied to the word table is written once.
        directory: made where it does not exist.
        max_shard_size: bytes, or a text such as "200MB"; larger models are split, with an index.
        safe_serialization: safetensors where True, else PyTorch's .bin.
        companions: further files of the same save, by name: published with the weights or not at all.

    Raises:
        OSError: the disk is full, the directory cannot be written, or one of the files is a directory. ValueError:
            `directory` is a file, or `max_shard_size` is no size.
    """
    directory = Path(directory)
    if directory.is_file():
        raise ValueError(f"directory: got the file {directory}, wanted a directory")
    tensors = _to_save(model)
    name = SAFE_NAME if safe_serialization else TORCH_NAME
    shards = split(tensors, max_shard_size)
    directory.mkdir(parents=True, exist_ok=True)
    earlier = earlier_files(directory)
    files = _files(tensors, shards, directory / name, safe_serialization, companions or {})
    # Shards of an earlier save may bear the new names: without its index they cannot be taken for a whole.
    index = directory / f"{name}.index.json"
    withdrawn = [index] if len(shards) > 1 and set(files) & set(earlier) - {index} else []
    write_together(files, withdrawn, [path for path in earlier if path not in {*files, *withdrawn}])


def _files(
    tensors: dict[str, torch.Tensor], shards: list[list[str]], path: Path, safe: bool, companions: Mapping[str, Content]
) -> dict[Path, Content]:
    """What to write, in the order in which it gets its name: companions, shards, their index."""

    def write(names: list[str], path: Path) -> None:
        write_tensors({name: tensors[name] for name in names}, path, safe_serialization=safe)

    directory = path.parent
    files: dict[Path, Content] = {directory / name: content for name, content in companions.items()}
    if len(shards) == 1:
        return {**files, path: partial(write, shards[0])}
    named = {f"{path.stem}-{i:05d}-of-{len(shards):05d}{path.suffix}": shard for i, shard in enumerate(shards, start=1)}
    files.update((directory / file, partial(write, shard)) for file, shard in named.items())
    index = {
        "metadata": {
            "total_size": sum(t.nbytes for t in tensors.values()),
            "total_parameters": sum(t.numel() for t in tensors.values()),
        },
        "weight_map": {name: file for file, shard in named.items() for name in shard},
    }
    return {**files, directory / f"{path.name}.index.json": json.dumps(index, indent=2, sort_keys=True) + "\n"}


def _to_save(model: nn.Module) -> dict[str, torch.Tensor]:
    decoder = family_of(model).DECODER
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    # transformers ties again what config.json calls tied. If it does not say so, the decoder is written too.
    if shares_words(model) and getattr(model.config, "tie_word_embeddings", False):
        del tensors[decoder]
    elif shares_words(model):
        tensors[decoder] = tensors[decoder].clone()
    return tensors
