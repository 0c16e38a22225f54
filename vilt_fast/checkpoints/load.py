"""Weights in: directories of transformers 4.37 to 5.x, hub ids, and the original repository's checkpoints."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vilt_fast.checkpoints.families import family_name, family_of, shares_words
from vilt_fast.checkpoints.files import brief, listing, naming, read_json
from vilt_fast.checkpoints.hub import HubOptions
from vilt_fast.checkpoints.memory import check_memory
from vilt_fast.checkpoints.weight_files import FLOATS, StoredTensor, StoredWeights, hold_weights, open_weights

logger = logging.getLogger(__name__)

# What the names of other architectures look like.
_ARCHITECTURES = {
    r"visual_bert\.|(.*\.)?embeddings\.visual_projection\.": "VisualBERT",
    r"(text_model|vision_model)\.": "CLIP",
    r"(blocks|patch_embed)\.": "a timm vision transformer",
    r"(model\.layers|transformer\.h|h|decoder)\.": "a language model",
    r"(roberta|distilbert|albert|lxmert|blip|flava|deit|beit|vit|vilt)\.": "{0}",
    r"(bert\.)?embeddings\.(word_embeddings|LayerNorm)\.": "BERT",
}


def load_weights(
    model: nn.Module,
    name_or_path: str | os.PathLike[str],
    *,
    strict: bool = True,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    force_download: bool = False,
) -> None:
    """Copy the weights of a checkpoint into a model, cast to the dtype and moved to the device of its parameters.

    The masked-word decoder shares the word table where the checkpoint holds no decoder weight, or where
    `config.tie_word_embeddings` says so and the two are equal; otherwise it gets its own.

    Args:
        model: with Hugging Face's parameter names. It is left as it was if anything below is raised.
        name_or_path: a directory or hub id with model.safetensors or pytorch_model.bin, whole or in shards; or one
            .safetensors, .bin or .ckpt file, also of the original repository.
        strict: True: every parameter must be there and every tensor must fit, except those of the family's heads
            that the model lacks (a warning names them). False: what does not fit is left out, and named in a warning.
        revision, cache_dir, token, local_files_only, subfolder, force_download: of the hub, see `HubOptions`.

    Raises:
        FileNotFoundError: no weights there. ValueError: a file is damaged, or tensors are missing, unexpected, of
            another shape, not floating point, or NaN or infinite; it names them.
    """
    hub = HubOptions(revision, cache_dir, token, local_files_only, subfolder, force_download)
    with open_weights(name_or_path, **vars(hub)) as stored:
        fill(model, stored, strict=strict)


def stored_dtype(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    force_download: bool = False,
) -> torch.dtype:
    """The dtype that the first floating-point tensor of a checkpoint is stored in; arguments as for `load_weights`."""
    hub = HubOptions(revision, cache_dir, token, local_files_only, subfolder, force_download)
    with open_weights(name_or_path, **vars(hub)) as stored:
        return stored.dtype()


@contextmanager
def open_source(
    name_or_path: str | os.PathLike[str] | None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    key_mapping: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[StoredWeights]:
    """The weights that a `from_pretrained` is to read: those of `state_dict`, else those of `name_or_path`.

    Args:
        name_or_path, options: as for `open_weights`.
        state_dict: in place of the stored weights.
        key_mapping: regular expression -> replacement, for the names of the tensors.

    Raises:
        ValueError: there is neither; `key_mapping` cannot be applied; and as `open_weights` does.
    """
    with ExitStack() as stack:
        if state_dict is not None:
            stored = hold_weights(state_dict)
        elif name_or_path is not None:
            stored = stack.enter_context(open_weights(name_or_path, **options))
        else:
            raise ValueError("name_or_path is None: give state_dict= and config=, or where the weights are")
        if key_mapping is not None:
            stored.tensors = _renamed(stored.tensors, key_mapping)
        yield stored


def _renamed(tensors: dict[str, StoredTensor], key_mapping: Any) -> dict[str, StoredTensor]:
    """Tensors under the names that `key_mapping` gives them. Raises ValueError."""
    if not isinstance(key_mapping, Mapping) or not all(
        isinstance(text, str) for pair in key_mapping.items() for text in pair
    ):
        raise ValueError(f"key_mapping: got {brief(key_mapping)}, wanted {{regular expression: replacement}}")
    for pattern, new in key_mapping.items():
        try:
            names = {name: re.sub(pattern, new, name) for name in tensors}
        except (re.error, IndexError) as error:
            raise ValueError(
                f"key_mapping: got {pattern!r}: {new!r}, which is no regular expression and its replacement: {error}"
            ) from error
        renamed = {names[name]: tensor for name, tensor in tensors.items()}
        if len(renamed) < len(tensors):
            twice = next(new for new in renamed if list(names.values()).count(new) > 1)
            raise ValueError(f"key_mapping: {pattern!r} makes one name of several: {twice}")
        tensors = renamed
    return tensors


def fill(model: nn.Module, stored: StoredWeights, *, strict: bool) -> dict[str, Any]:
    """Copy opened weights into a model, see `load_weights`.

    Returns:
        What did not fit, as `output_loading_info` of transformers: `missing_keys`, `unexpected_keys` and
        `mismatched_keys` (name, stored shape, wanted shape), sets; and `error_msgs`, an empty list.
    """
    meta = [name for name, parameter in _parameters(model).items() if parameter.is_meta]
    if meta:
        raise ValueError(f"model: got parameters on the meta device, wanted memory to load into: {listing(meta)}")
    fit = _fit(model, stored)
    fit.refuse(model, stored, strict)
    fit.refuse_non_finite(model, stored)
    fit.warn(model, stored)
    _tie(model, fit)
    with torch.no_grad():
        for name, parameter in _parameters(model).items():
            if name in fit.tensors:
                parameter.copy_(fit.tensors[name].read())
    return {
        "missing_keys": {*fit.problems["missing"], *fit.fresh},
        "unexpected_keys": {*fit.problems["unexpected"], *fit.skipped},
        "mismatched_keys": fit.mismatched,
        "error_msgs": [],
    }


@dataclass
class _Fit:
    """How the tensors of a checkpoint, under the full names, fit a model's parameters."""

    lacks_decoder: bool  # whether the checkpoint has a masked-word head that borrows the word table
    matched: bool  # whether any of the encoder or the embeddings is known
    tensors: dict[str, StoredTensor] = field(default_factory=dict)  # those that fit
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # kind -> names
    mismatched: set[tuple] = field(default_factory=set)  # (own name, stored shape, wanted shape)
    skipped: list[str] = field(default_factory=list)  # of heads that the model lacks
    fresh: list[str] = field(default_factory=list)  # of the model, which checkpoints may lack

    def refuse(self, model: nn.Module, stored: StoredWeights, strict: bool) -> None:
        """Raise where something does not fit, as `load_weights` says."""
        name = type(model).__name__
        other = _other_architecture(model, stored) if self.problems else None
        if not self.matched or (strict and other):
            raise ValueError(
                f"{stored.path} holds no weights of {name}: it looks like {other or 'something else'} "
                f"({len(stored.tensors)} tensors, such as {listing(sorted(stored.tensors), 3)})"
            )
        refused = [kind for kind in self.problems if strict or kind == "not floating point"]
        if refused:
            text = "; ".join(f"{len(self.problems[kind])} {kind}: {listing(self.problems[kind])}" for kind in refused)
            advice = ". strict=False leaves out what does not fit" if strict else ""
            raise ValueError(f"{stored.path} does not fit {name}: {text}{advice}")

    def refuse_non_finite(self, model: nn.Module, stored: StoredWeights) -> None:
        """Raise for weights that are NaN or infinite, or become so in the model's dtype."""
        bad = []
        for name, parameter in _parameters(model).items():
            if name in self.tensors and not is_finite(self.tensors[name].read(), parameter.dtype):
                bad.append(self.tensors[name].name)
        if bad:
            dtype = str(next(iter(_parameters(model).values())).dtype).removeprefix("torch.")
            raise ValueError(f"{stored.path}: {len(bad)} tensors are NaN or infinite in {dtype}: {listing(bad)}")

    def warn(self, model: nn.Module, stored: StoredWeights) -> None:
        """Name what was left out, as `load_weights` says."""
        name = type(model).__name__
        if self.skipped:
            logger.warning("%s: skipped, %s has no such head: %s", stored.path, name, ", ".join(self.skipped))
        if self.fresh:
            logger.warning("%s: not there, these keep fresh values: %s", stored.path, ", ".join(self.fresh))
        for kind, names in self.problems.items():
            kept = "left out" if kind == "unexpected" else "these keep fresh values"
            logger.warning("%s: %d %s, %s: %s", stored.path, len(names), kind, kept, ", ".join(names))


def is_finite(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether all values are finite in a dtype too.

    A sum is read off in a tenth of the time of `isfinite`, and NaN or infinite where one of its values is. It can
    overflow of itself as well; then every value is looked at.
    """
    if dtype in FLOATS and torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        tensor = tensor.to(dtype)
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def check_sizes(make: Callable[[], nn.Module], config: Any, stored: StoredWeights, *, strict: bool) -> None:
    """Refuse a configuration whose sizes are not those of the weights, before memory is taken for them.

    Args:
        make: makes the model; called on the meta device.
        config: of the model.
        strict: False: sizes may differ, as far as this machine's memory goes.

    Raises:
        ValueError: as from `fill` with strict=True; or the model is larger than all memory.
    """
    layers = getattr(config, "num_hidden_layers", 0)
    if layers > max(100, len(stored.tensors)):  # so many would take their time on the meta device too
        raise ValueError(
            f"{stored.path} does not fit: its configuration has num_hidden_layers={layers}, but it holds "
            f"{len(stored.tensors)} tensors"
        )
    try:
        with shapes_only():
            model = make()
    except Exception:  # a class whose constructor reads values of its weights is checked once it has them
        return
    if strict:
        _fit(model, stored).refuse(model, stored, strict=True)
    check_memory(
        sum(parameter.nbytes for parameter in model.parameters()),
        f"{stored.path}: a {type(model).__name__} of its configuration",
        f"; correct the sizes in config.json (hidden_size={config.hidden_size}, ...)",
    )


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made within have parameters on the meta device: shapes, and no memory for values."""
    with torch.device("meta"), _NothingDrawn():
        yield


_DRAWS = ("normal_", "uniform_", "fill_", "zero_")


class _NothingDrawn(TorchFunctionMode):
    """Leaves fresh weights as they are. On the meta device the first draw would import PyTorch's compiler: seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _fit(model: nn.Module, stored: StoredWeights) -> _Fit:
    wanted, family = _parameters(model), family_of(model)
    with naming(stored.path):
        named = {family_name(model, name): tensor for name, tensor in stored.tensors.items()}
        tensors = family.full_names(named, getattr(model, "config", None))
    has_words = family.WORD_HEAD is not None and any(name.startswith(family.WORD_HEAD) for name in tensors)
    fit = _Fit(
        lacks_decoder=has_words and family.DECODER not in tensors,
        matched=any(name in wanted and name.startswith(family.PREFIX) for name in tensors),
    )
    own_names = dict(zip(wanted, model.state_dict(), strict=True))
    for name, own_name in own_names.items():
        if name not in tensors and not (name == family.DECODER and fit.lacks_decoder):
            (fit.fresh if name.startswith(family.FRESH) else fit.problems["missing"]).append(own_name)
    for name, tensor in tensors.items():
        if name not in wanted:
            head = next((head for head in family.HEADS if name.startswith(head)), None)
            is_skipped = head is not None and not any(w.startswith(head) for w in wanted)
            if not tensor.derived:
                (fit.skipped if is_skipped else fit.problems["unexpected"]).append(tensor.name)
        elif tensor.dtype not in FLOATS:
            fit.problems["not floating point"].append(f"{tensor.name} ({str(tensor.dtype).removeprefix('torch.')})")
        elif tensor.shape != tuple(wanted[name].shape):
            shapes = tensor.shape, tuple(wanted[name].shape)
            fit.mismatched.add((own_names[name], *shapes))
            fit.problems["of another shape"].append("{} (got {}, wanted {})".format(tensor.name, *shapes))
        else:
            fit.tensors[name] = tensor
    return fit


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters under the full names: those of a model with a head."""
    state = {family_name(model, name): parameter for name, parameter in model.state_dict(keep_vars=True).items()}
    prefix = family_of(model).PREFIX
    bare = not any(name.startswith(prefix) for name in state)
    return {(prefix + name if bare else name): parameter for name, parameter in state.items()}


def _other_architecture(model: nn.Module, stored: StoredWeights) -> str | None:
    """What a checkpoint is, if its config.json or its names say that it is not the model's kind."""
    wanted = getattr(getattr(model, "config", None), "model_type", "vilt")
    family = family_of(model)
    if re.match(r"(pytorch_)?model\.", stored.path.name):  # else a config.json beside it need not be its own
        with suppress(OSError, ValueError):
            config = read_json(stored.path.parent / "config.json")
            found = config.get("model_type", wanted)
            return None if found in (wanted, *family.MODEL_TYPES) else f"model_type {found!r} by its config.json"
    names = [name for name in stored.tensors if not name.startswith((family.PREFIX, *family.HEADS))]
    for pattern, name in _ARCHITECTURES.items():
        match = next(filter(None, (re.match(pattern, tensor) for tensor in names)), None)
        if match:
            return name.format(match.group(1))
    return None


def _tie(model: Any, fit: _Fit) -> None:
    """Let the decoder share the word table, or not, as the checkpoint has it; one that lacks such a head has no say."""
    family = family_of(model)
    decoder, words = family.DECODER, family.WORDS
    if decoder not in _parameters(model) or not (fit.lacks_decoder or decoder in fit.tensors):
        return
    tied = fit.lacks_decoder
    if not tied and getattr(model.config, "tie_word_embeddings", False) and words in fit.tensors:
        tied = torch.equal(fit.tensors[decoder].read(), fit.tensors[words].read())
    # What is saved next must say how it is; and it is what `tie_weights` goes by.
    model.config.tie_word_embeddings = tied
    if tied != shares_words(model):
        (model.tie_weights if tied else model.untie_weights)()
