"""Weights in and out: directories of transformers 4.37 to 5.x, hub ids, and the original repository's checkpoints."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vilt_fast.checkpoints import vilt as original
from vilt_fast.checkpoints.files import Content, publish, stage_all
from vilt_fast.checkpoints.weight_files import (
    SAFE_NAME,
    TORCH_NAME,
    WEIGHT_NAMES,
    StoredTensor,
    StoredWeights,
    earlier_files,
    listing,
    open_weights,
    shard_name,
    split,
    write_tensors,
)

logger = logging.getLogger(__name__)

# Heads of known ViLT checkpoints: a model without one leaves its tensors out.
_HEADS = ("classifier.", "mlm_score.", "rank_output.", "itm_score.", "mpp_score.", "vilt.pooler.")
_DECODER, _WORDS = "mlm_score.decoder.weight", "vilt.embeddings.text_embeddings.word_embeddings.weight"
# Tables of constants that old transformers saved.
_CONSTANTS = (".position_ids", ".token_type_ids")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What the names of other architectures look like.
_ARCHITECTURES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"visual_bert\.|(.*\.)?embeddings\.visual_projection\.", "VisualBERT"),
        (r"(text_model|vision_model)\.", "CLIP"),
        (r"(blocks|patch_embed)\.", "a timm vision transformer"),
        (r"(model\.layers|transformer\.h|h|decoder)\.", "a language model"),
        (r"(roberta|distilbert|albert|lxmert|blip|flava|deit|beit|vit)\.", "{0}"),
        (r"(bert\.)?embeddings\.(word_embeddings|LayerNorm)\.", "BERT"),
    )
)


def load_weights(
    model: nn.Module,
    name_or_path: str | os.PathLike[str],
    *,
    strict: bool = True,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> None:
    """Copy the weights of a checkpoint into a model, cast to the dtype and moved to the device of its parameters.

    The masked-word decoder shares the word table where the checkpoint holds no decoder weight, or where
    `config.tie_word_embeddings` says so and the two are equal; otherwise it gets its own.

    Args:
        model: with Hugging Face's parameter names. It is left as it was if anything below is raised.
        name_or_path: a directory or hub id with model.safetensors or pytorch_model.bin, whole or in shards; or one
            .safetensors, .bin or .ckpt file, also of the original repository.
        strict: True: every parameter must be there and every tensor must fit, except those of ViLT heads that the
            model has not (a warning names them). False: what does not fit is left out, and named in a warning.
        revision, cache_dir, token, local_files_only: of the hub.

    Raises:
        FileNotFoundError: no weights there. ValueError: a file is damaged, or tensors are missing, unexpected, of
            another shape or not floating point; it names them.
    """
    hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    with open_weights(name_or_path, **hub) as stored:
        fit = _fit(model, stored)
        fit.refuse(model, stored, strict)
        tied = _is_tied(model, fit)
        if tied is not None:
            _set_tied(model, tied)
        with torch.no_grad():
            for name, parameter in _parameters(model).items():
                if name in fit.tensors and not (tied and name == _DECODER):
                    parameter.copy_(fit.tensors[name].read())


def stored_dtype(name_or_path: str | os.PathLike[str], **hub: Any) -> torch.dtype:
    """The dtype that the first floating-point tensor of a checkpoint is stored in; arguments of `open_weights`."""
    with open_weights(name_or_path, **hub) as stored:
        return next((t.dtype for t in stored.tensors.values() if t.dtype in _FLOATS), torch.float32)


def read_original_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of the configuration that belongs to a `.ckpt` of the original repository, for `ViltConfig(**fields)`.

    Sizes come from its tensors; the number of heads and the dropout from its hyperparameters, or hidden_size / 64
    and 0. The encoder's LayerNorm eps is 1e-6, as it was trained.

    Raises:
        FileNotFoundError: no such file. ValueError: it is no such checkpoint.
    """
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"no checkpoint file {str(path)!r}")
    with open_weights(path) as stored:
        return original.infer_config(stored)


def save_weights(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    companions: Mapping[str, Content] | None = None,
) -> None:
    """Write a model's weights under the names that transformers 4.37 and 5.x read.

    All files are written beside the old ones first and named last, so that a failure leaves the old checkpoint whole;
    then the weight files of an earlier save are removed.

    Args:
        model: with Hugging Face's parameter names; a decoder tied to the word table is written once.
        directory: made where it does not exist.
        max_shard_size: bytes, or a text such as "200MB"; larger models are split, with an index.
        safe_serialization: safetensors where True, else PyTorch's .bin.
        companions: further files of the same save, by name: published with the weights or not at all.

    Raises:
        OSError: the disk is full, or the directory cannot be written. ValueError: `directory` is a file, or
            `max_shard_size` is no size.
    """
    directory = Path(directory)
    if directory.is_file():
        raise ValueError(f"directory: got the file {directory}, wanted a directory")
    tensors = _to_save(model)
    name = SAFE_NAME if safe_serialization else TORCH_NAME
    shards = split(tensors, max_shard_size)
    directory.mkdir(parents=True, exist_ok=True)
    earlier = earlier_files(directory)
    staged = stage_all(_files(tensors, shards, directory / name, safe_serialization, companions or {}))
    # Shards of an earlier save may bear the new names: without its index they cannot be taken for a whole.
    index = directory / f"{name}.index.json"
    publish(staged, [index] if len(shards) > 1 and set(staged) & set(earlier) - {index} else [])
    for path in earlier:
        if path not in staged:
            path.unlink(missing_ok=True)


def _files(
    tensors: dict[str, torch.Tensor], shards: list[list[str]], path: Path, safe: bool, companions: Mapping[str, Content]
) -> list[tuple[Path, Content]]:
    """What to write, in the order in which it gets its name: companions, shards, their index."""
    directory, write = path.parent, partial(_write, tensors, safe)
    files: list[tuple[Path, Content]] = [(directory / name, content) for name, content in companions.items()]
    if len(shards) == 1:
        return [*files, (path, partial(write, shards[0]))]
    named = {shard_name(path.name, i + 1, len(shards)): shard for i, shard in enumerate(shards)}
    files += [(directory / file, partial(write, shard)) for file, shard in named.items()]
    index = {
        "metadata": {
            "total_size": sum(t.nbytes for t in tensors.values()),
            "total_parameters": sum(t.numel() for t in tensors.values()),
        },
        "weight_map": {name: file for file, shard in named.items() for name in shard},
    }
    return [*files, (directory / f"{path.name}.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")]


def _write(tensors: dict[str, torch.Tensor], safe: bool, names: list[str], path: Path) -> None:
    write_tensors({name: tensors[name] for name in names}, path, safe_serialization=safe)


def _to_save(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    # transformers ties again what config.json calls tied. If it does not say so, the decoder is written too.
    if _shares_words(model) and getattr(model.config, "tie_word_embeddings", False):
        del tensors[_DECODER]
    elif _shares_words(model):
        tensors[_DECODER] = tensors[_DECODER].clone()
    return tensors


@dataclass
class _Fit:
    """How the tensors of a checkpoint, under the full names, fit a model's parameters."""

    tensors: dict[str, StoredTensor]  # those that fit
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]
    unusable: list[str]  # not floating point
    skipped: list[str]  # of heads that the model has not
    names: frozenset[str]  # all that the checkpoint holds
    matched: bool  # whether any of the encoder or the embeddings is known

    @property
    def lacks_decoder(self) -> bool:
        """Whether the checkpoint has a masked-word head that borrows the word table."""
        return _DECODER not in self.names and any(name.startswith("mlm_score.") for name in self.names)

    def refuse(self, model: nn.Module, stored: StoredWeights, strict: bool) -> None:
        """Raise or warn, as `load_weights` says."""
        name = type(model).__name__
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.misshapen,
            "not floating point": self.unusable,
        }
        found = {kind: names for kind, names in kinds.items() if names}
        other = _other_architecture(model, stored) if found else None
        if not self.matched or (strict and other):
            raise ValueError(
                f"{stored.path} holds no weights of {name}: it looks like {other or 'something else'} "
                f"({len(stored.tensors)} tensors, such as {listing(sorted(stored.tensors), 3)})"
            )
        text = "; ".join(f"{len(names)} {kind}: {{}}".format(listing(names)) for kind, names in found.items())
        if strict and found:
            raise ValueError(f"{stored.path} does not fit {name}: {text}. strict=False leaves out what does not fit")
        if self.unusable:
            raise ValueError(
                f"{stored.path} does not fit {name}: {len(self.unusable)} not floating point: {listing(self.unusable)}"
            )
        if self.skipped:
            logger.warning("%s: skipped, %s has no such head: %s", stored.path, name, ", ".join(self.skipped))
        for kind, names in found.items():
            kept = "left out" if kind == "unexpected" else "these keep fresh values"
            logger.warning("%s: %d %s, %s: %s", stored.path, len(names), kind, kept, ", ".join(names))


def _fit(model: nn.Module, stored: StoredWeights) -> _Fit:
    wanted, prefix = _parameters(model), _prefix(model)
    meta = [name for name, parameter in wanted.items() if parameter.is_meta]
    if meta:
        raise ValueError(f"model: got parameters on the meta device, wanted memory to load into: {listing(meta)}")
    tensors = _full_names(stored.tensors, prefix)
    matched = any(name in wanted and name.startswith(prefix) for name in tensors)
    fit = _Fit({}, [], [], [], [], [], frozenset(tensors), matched)
    for name, tensor in tensors.items():
        if name not in wanted:
            head = next((head for head in _HEADS if name.startswith(head)), None)
            skip = tensor.derived or head is not None and not any(w.startswith(head) for w in wanted)
            if not tensor.derived:
                (fit.skipped if skip else fit.unexpected).append(tensor.name)
        elif tensor.dtype not in _FLOATS:
            fit.unusable.append(f"{tensor.name} ({str(tensor.dtype).removeprefix('torch.')})")
        elif tensor.shape != tuple(wanted[name].shape):
            fit.misshapen.append(f"{tensor.name} (got {tensor.shape}, wanted {tuple(wanted[name].shape)})")
        else:
            fit.tensors[name] = tensor
    # The name that the model itself uses.
    strip = prefix if not any(name.startswith(prefix) for name in model.state_dict()) else ""
    absent = [name for name in wanted if name not in tensors and not (name == _DECODER and fit.lacks_decoder)]
    fit.missing = [name.removeprefix(strip) for name in absent]
    return fit


def _full_names(stored: dict[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """Tensors under the names of a model with a head, whichever format and model they come from."""
    if original.is_original(stored):
        return original.rename(stored)
    bare = not any(name.startswith(prefix) for name in stored)
    tensors: dict[str, StoredTensor] = {}
    # In this order the decoder's own bias wins over mlm_score.bias, its second name in 4.37.
    for name in sorted(stored, key=lambda name: name != "mlm_score.bias"):
        if name.endswith(_CONSTANTS):
            continue
        full = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        full = "mlm_score.decoder.bias" if full == "mlm_score.bias" else full
        tensors[prefix + full if bare and not full.startswith(_HEADS) else full] = stored[name]
    return tensors


def _prefix(model: nn.Module) -> str:
    return f"{getattr(model, 'base_model_prefix', 'vilt')}."


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters under the full names: those of a model with a head."""
    state, prefix = model.state_dict(keep_vars=True), _prefix(model)
    bare = not any(name.startswith(prefix) for name in state)
    return {(prefix + name if bare else name): parameter for name, parameter in state.items()}


def _other_architecture(model: nn.Module, stored: StoredWeights) -> str | None:
    """What a checkpoint is, if its config.json or its names say that it is not the model's kind."""
    wanted = getattr(getattr(model, "config", None), "model_type", "vilt")
    if stored.path.name in WEIGHT_NAMES:  # else a config.json beside it need not be its own
        with suppress(OSError, ValueError, AttributeError):
            config = json.loads((stored.path.parent / "config.json").read_text(encoding="utf-8"))
            found = config.get("model_type", wanted)
            return None if found == wanted else f"model_type {found!r} by its config.json"
    for pattern, name in _ARCHITECTURES:
        match = next(filter(None, map(pattern.match, stored.tensors)), None)
        if match:
            return name.format(match.group(1))
    return None


def _shares_words(model: nn.Module) -> bool:
    state = model.state_dict(keep_vars=True)
    return _DECODER in state and state[_DECODER] is state.get(_WORDS)


def _is_tied(model: nn.Module, fit: _Fit) -> bool | None:
    """Whether the decoder shall share the word table; None: no such head, or the checkpoint has no say."""
    if _DECODER not in _parameters(model):
        return None
    if _DECODER not in fit.tensors:
        return True if fit.lacks_decoder else None
    if not getattr(model.config, "tie_word_embeddings", False) or _WORDS not in fit.tensors:
        return False
    return torch.equal(fit.tensors[_DECODER].read(), fit.tensors[_WORDS].read())


def _set_tied(model: nn.Module, tied: bool) -> None:
    if tied != _shares_words(model):
        model.tie_weights() if tied else model.untie_weights()
    # What is saved next must say how it is.
    model.config.tie_word_embeddings = tied
