"""Weights out: directories that transformers 4.37 and 5.x read."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vilt_fast.checkpoints.families import family_of, shares_words
from vilt_fast.checkpoints.files import Content, listing, write_together
from vilt_fast.checkpoints.weight_files import (
    SAFE_NAME,
    TORCH_NAME,
    earlier_files,
    split,
    with_variant,
    write_tensors,
)

logger = logging.getLogger(__name__)


def save_weights(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    companions: Mapping[str, Content] | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    variant: str | None = None,
    save_function: Callable[[dict[str, torch.Tensor], Path], Any] | None = None,
) -> list[str]:
    """Write a model's weights under the names that transformers 4.37 and 5.x read.

    All files are written beside the old ones first and named last, then the weight files of an earlier save go; a
    failure leaves the old checkpoint whole.

    Args:
        model: with Hugging Face's parameter names; a decoder tied to the word table is written once.
        directory: made where it does not exist.
        max_shard_size: bytes, or a text such as "200MB"; larger models are split, with an index.
        safe_serialization: safetensors where True, else PyTorch's .bin.
        companions: further files of the same save, by name: published with the weights or not at all.
        state_dict: what to write in place of `model.state_dict()`, under the model's names; a warning names what it
            lacks.
        variant: part of the files' names: "fp16" gives model.fp16.safetensors. Those of other variants stay.
        save_function: writes a .bin in place of `torch.save`: called with a dictionary of tensors and a path.

    Returns:
        The names of the files, of the companions too.

    Raises:
        OSError: the disk is full, the directory cannot be written, or one of the files is a directory. ValueError:
            `directory` is a file, `max_shard_size` is no size, tensors have no data,
            or `save_function` wrote nothing.
    """
    directory = Path(directory)
    if directory.is_file():
        raise ValueError(f"directory: got the file {directory}, wanted a directory")
    tensors = _to_save(model, state_dict)
    name = with_variant(SAFE_NAME if safe_serialization else TORCH_NAME, variant)
    shards = split(tensors, max_shard_size)
    directory.mkdir(parents=True, exist_ok=True)
    earlier = earlier_files(directory, variant)
    write = partial(write_tensors, safe_serialization=safe_serialization, save_function=save_function)
    index = directory / with_variant(f"{SAFE_NAME if safe_serialization else TORCH_NAME}.index.json", variant)
    files = _files(tensors, shards, directory / name, index, write, companions or {})
    # Shards of an earlier save may bear the new names: without its index they cannot be taken for a whole.
    withdrawn = [index] if len(shards) > 1 and set(files) & set(earlier) - {index} else []
    write_together(files, withdrawn, [path for path in earlier if path not in {*files, *withdrawn}])
    return [path.name for path in files]


def _files(
    tensors: dict[str, torch.Tensor],
    shards: list[list[str]],
    path: Path,
    index_path: Path,
    write_tensors: Callable[[dict[str, torch.Tensor], Path], None],
    companions: Mapping[str, Content],
) -> dict[Path, Content]:
    """What to write, in the order in which it gets its name: companions, shards, their index."""

    def write(names: list[str], path: Path) -> None:
        write_tensors({name: tensors[name] for name in names}, path)

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
    return {**files, index_path: json.dumps(index, indent=2, sort_keys=True) + "\n"}


def _to_save(model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    decoder = family_of(model).DECODER
    given = model.state_dict() if state_dict is None else state_dict
    absent = [name for name, tensor in given.items() if not isinstance(tensor, torch.Tensor) or tensor.is_meta]
    if absent:
        raise ValueError(
            f"these are no tensors with data: {listing(absent)}. Where accelerate keeps them elsewhere, give "
            "state_dict=accelerate.utils.modeling.get_state_dict_offloaded_model(model)"
        )
    tensors = {name: tensor.detach() for name, tensor in given.items()}
    lacking = [] if state_dict is None else [name for name in model.state_dict() if name not in tensors]
    if lacking and not (lacking == [decoder] and shares_words(model)):
        logger.warning("state_dict lacks %d of the model's tensors: %s", len(lacking), listing(lacking))
    # transformers ties again what config.json calls tied. If it does not say so, the decoder is written too.
    if decoder in tensors and shares_words(model):
        if getattr(model.config, "tie_word_embeddings", False):
            del tensors[decoder]
        else:
            tensors[decoder] = tensors[decoder].clone()
    return tensors
