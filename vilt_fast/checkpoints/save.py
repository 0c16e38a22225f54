"""Weights out: directories that transformers 4.37 and 5.x read."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vilt_fast.checkpoints.families import family_of, shares_words
from vilt_fast.checkpoints.files import (
    Content,
    brief,
    directory_path,
    holds,
    listing,
    make_directory,
    naming,
    write_together,
)
from vilt_fast.checkpoints.json_files import read_json
from vilt_fast.checkpoints.load import is_finite
from vilt_fast.checkpoints.weight_files import (
    FLOATS,
    SAFE_NAME,
    TORCH_NAME,
    earlier_files,
    is_weight_file,
    other_variants,
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
    failure leaves the old checkpoint whole. A process that is killed leaves the old one or the new one; or, where a
    companion such as config.json changes too, or shards take the names of others, perhaps none that loads: the old
    weights are withdrawn before the first new file comes, and an error says where they are.

    Args:
        model: with Hugging Face's parameter names; a decoder tied to the word table is written once.
        directory: made where it does not exist.
        max_shard_size: bytes, or a text such as "200MB"; larger models are split, with an index.
        safe_serialization: safetensors where True, else PyTorch's .bin.
        companions: further files of the same save, by name: published with the weights or not at all. One that is
            there with the same content stays.
        state_dict: what to write in place of `model.state_dict()`, under the model's names; a warning names what it
            lacks.
        variant: part of the files' names: "fp16" gives model.fp16.safetensors. Those of other variants stay, and
            config.json is theirs too: beside them a variant leaves it as it is.
        save_function: writes a .bin in place of `torch.save`: called with a dictionary of tensors and a path. With
            safetensors it is not called, and a warning says so.

    Returns:
        The names of the files, of the companions too.

    Raises:
        OSError: the disk is full, the directory cannot be written, or one of the files is a directory. ValueError:
            `directory` is a file, `max_shard_size` is no size, tensors have no data, `state_dict` is not of this
            model, weights of other variants there have another configuration, or `save_function` wrote nothing.
    """
    directory = directory_path(directory)
    name, index_name = (
        with_variant((SAFE_NAME if safe_serialization else TORCH_NAME) + suffix, variant)
        for suffix in ("", ".index.json")
    )
    tensors = _to_save(model, state_dict)
    shards = split(tensors, max_shard_size)
    companions = _beside_variants(model, directory, variant, companions or {})
    if save_function is not None and safe_serialization:
        warnings.warn("save_function writes .bin files: it is not called for safetensors", stacklevel=2)
    _warn_of_non_finite(tensors)
    make_directory(directory)
    by_name, old_shards = earlier_files(directory, variant)
    changed = {name: content for name, content in companions.items() if not holds(directory / name, content)}
    write = partial(write_tensors, safe_serialization=safe_serialization, save_function=save_function)
    files = _files(tensors, shards, directory / name, directory / index_name, write, changed)
    # The old weights must not be found beside a new configuration, nor the old index beside new shards of the same
    # names: a process that is killed could put neither back.
    withdrawn = by_name if changed or set(files) & set(old_shards) else []
    superseded = [path for path in [*by_name, *old_shards] if path not in {*files, *withdrawn}]
    write_together(
        files, withdrawn, superseded, belongs=lambda name: name in companions or is_weight_file(name, variant)
    )
    return [*dict.fromkeys([*companions, *(path.name for path in files)])]


def _beside_variants(
    model: Any, directory: Path, variant: str | None, companions: Mapping[str, Content]
) -> Mapping[str, Content]:
    """The companions to write. config.json is one file for all variants, and has to be true of each.

    Raises:
        ValueError: it would not be.
    """
    others, path = other_variants(directory, variant), directory / "config.json"
    if not others or path.name not in companions or not path.is_file():
        return companions
    with naming(path):
        there = type(model.config).from_dict(read_json(path))
    differing = model.config.differing_fields(there)
    if differing:
        raise ValueError(
            f"directory: {directory} holds {listing(others)}, whose config.json differs from the model's in "
            f"{listing(differing)}: save into another directory, or remove them first"
        )
    return companions if variant is None else {name: companions[name] for name in companions if name != path.name}


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
    family = family_of(model)
    decoder = family.DECODER
    given = model.state_dict() if state_dict is None else _checked(state_dict)
    absent = [
        name
        for name, tensor in given.items()
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.layout != torch.strided
    ]
    if absent:
        raise ValueError(
            f"these are no dense tensors with data: {listing(absent)}. Where accelerate keeps them elsewhere, give "
            "state_dict=accelerate.utils.modeling.get_state_dict_offloaded_model(model)"
        )
    tensors = {name: tensor.detach() for name, tensor in given.items()}
    if state_dict is not None and not _is_spread(model):
        _compare(tensors, model)
    # transformers ties again what config.json calls tied. If it does not say so, it is written under both names.
    shared = [decoder] if decoder in tensors and shares_words(model) else []
    shared += [second for second, first in family.SECOND_NAMES.items() if {second, first} <= tensors.keys()]
    for name in shared:
        if getattr(model.config, "tie_word_embeddings", False):
            del tensors[name]
        else:
            tensors[name] = tensors[name].clone()
    return tensors


def _checked(state_dict: Any) -> Mapping[str, Any]:
    """A state dict that is one and not empty. Raises ValueError."""
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        raise ValueError(f"state_dict: got {brief(state_dict)}, wanted a dictionary: name -> tensor")
    if not state_dict:
        raise ValueError("state_dict: got no tensors. Where another process holds them, give is_main_process=False")
    return state_dict


def _is_spread(model: nn.Module) -> bool:
    """Whether the model lies in parts over several processes: its own names and shapes then say nothing."""
    wrapped = any(base.__module__.startswith("torch.distributed.") for m in model.modules() for base in type(m).__mro__)
    return wrapped or any(hasattr(parameter, "ds_id") for parameter in model.parameters())  # of DeepSpeed


def _compare(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Warn of what a state dict lacks. Raises ValueError for what could not be loaded into the model again."""
    own = model.state_dict()
    unexpected = [name for name in tensors if name not in own]
    shaped = [
        f"{name} (got {tuple(tensor.shape)}, wanted {tuple(own[name].shape)})"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    problems = [
        f"{len(wrong)} {kind}: {listing(wrong)}"
        for kind, wrong in (("unexpected", unexpected), ("of another shape", shaped))
        if wrong
    ]
    if problems:
        raise ValueError(f"state_dict does not fit {type(model).__name__}: {'; '.join(problems)}")
    family = family_of(model)
    lacking = [name for name in own if name not in tensors and name not in family.SECOND_NAMES]
    if lacking and not (lacking == [family.DECODER] and shares_words(model)):
        logger.warning("state_dict lacks %d of the model's tensors: %s", len(lacking), listing(lacking))


def _warn_of_non_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """A model that diverged may be looked into; that it will not load is said now, not then."""
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.dtype in FLOATS
        and type(tensor) in (torch.Tensor, nn.Parameter)  # a part elsewhere would be asked for
        if not is_finite(tensor, tensor.dtype)
    ]
    if bad:
        logger.warning(
            "%d tensors are NaN or infinite, and from_pretrained will refuse what is written: %s",
            len(bad),
            listing(bad),
        )
