"""Weight files as they lie on the disk: safetensors and PyTorch's .bin and .ckpt, whole or in shards.

Weights are data: PyTorch files are opened with `weights_only=True`, and no code from one runs.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vilt_fast.checkpoints.files import brief, listing, read_json
from vilt_fast.checkpoints.hub import HubOptions, find_file, is_file, local_path
from vilt_fast.checkpoints.leftovers import recovery

SAFE_NAME, TORCH_NAME = "model.safetensors", "pytorch_model.bin"
# Weights of transformers' other frameworks, and what 4.37 reads them with.
_OTHERS = {"tf_model.h5": "from_tf", "flax_model.msgpack": "from_flax"}
_CONVERTED = "; {} is converted by transformers 4.37: from_pretrained(..., {}=True), then save_pretrained"
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# A trainer's checkpoint names classes of these packages (PyTorch Lightning: its callbacks). They stay names here.
_TRAINERS = (
    "pytorch_lightning lightning lightning_fabric torchmetrics numpy sacred omegaconf argparse pathlib vilt".split()
)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, read when asked."""

    name: str  # as stored
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    derived: bool = False  # made from another tensor; the file does not name it


@dataclass
class StoredWeights:
    """The tensors of a checkpoint by name, the file that was opened, and what else a trainer put there."""

    path: Path
    tensors: dict[str, StoredTensor]
    extra: dict[str, Any] = field(default_factory=dict)

    def dtype(self) -> torch.dtype:
        """Of the first floating-point tensor; float32 where there is none."""
        return next((t.dtype for t in self.tensors.values() if t.dtype in FLOATS), torch.float32)


def weight_names(use_safetensors: bool | None = None, variant: str | None = None) -> list[str]:
    """The names that weights may have, in the order of transformers: the first that is there holds them.

    Args:
        use_safetensors: True: safetensors alone; False: PyTorch's .bin alone.
        variant: as in model.fp16.safetensors, "fp16".

    Raises:
        ValueError: variant cannot be part of a file's name.
    """
    names = [] if use_safetensors is False else [SAFE_NAME, SAFE_NAME + ".index.json"]
    names += [] if use_safetensors else [TORCH_NAME, TORCH_NAME + ".index.json"]
    return [with_variant(name, variant) for name in names]


def with_variant(name: str, variant: str | None) -> str:
    """model.safetensors to model.fp16.safetensors."""
    if not variant:
        return name
    if not isinstance(variant, str) or not re.fullmatch(r"(?=.{1,100}$)[\w-]+(\.[\w-]+)*", variant, re.ASCII):
        raise ValueError(f"variant: got {brief(variant)}, wanted a part of a file's name, such as 'fp16'")
    stem, suffix = name.rsplit(".", 1)
    return f"{stem}.{variant}.{suffix}"


@contextmanager
def open_weights(
    name_or_path: str | os.PathLike[str], *, use_safetensors: bool | None = None, variant: str | None = None, **hub: Any
) -> Iterator[StoredWeights]:
    """Open the weights of a directory, a hub id or one file; tensors can be read until the context ends.

    Args:
        name_or_path: a directory or hub id that holds one of `weight_names`, or a file (.safetensors, .bin, .ckpt).
        use_safetensors, variant: which of the names, see `weight_names`.
        **hub: those of `HubOptions`.

    Raises:
        FileNotFoundError: nothing there, or a shard that the index names is absent.
        ValueError: a file is truncated or no weight file, or holds Python objects; names the file.
    """
    path = _weight_file(name_or_path, weight_names(use_safetensors, variant), HubOptions(**hub))
    if use_safetensors is not None and path.suffix != ".json" and use_safetensors != (path.suffix == ".safetensors"):
        raise ValueError(f"use_safetensors={use_safetensors}: got the file {path}; leave the argument out to load it")
    with ExitStack() as stack:
        if path.suffix == ".json" and ".index." in path.name:
            where = path.parent if is_file(local_path(name_or_path)) else name_or_path
            yield StoredWeights(path, _open_shards(path, partial(find_file, where, **hub), stack))
        else:
            yield _open_file(path, stack)


def hold_weights(state_dict: Mapping[str, torch.Tensor]) -> StoredWeights:
    """The weights of a state dict, as those of a file.

    Raises:
        ValueError: it is no dictionary of dense tensors.
    """
    path = Path("state_dict")  # what messages name in place of a file
    return StoredWeights(path, *_state_dict(state_dict, path))


def _weight_file(name_or_path: str | os.PathLike[str], names: list[str], hub: HubOptions) -> Path:
    path = local_path(name_or_path)
    if is_file(path):
        return path
    for name in names:
        found = find_file(name_or_path, name, required=False, **vars(hub))
        if found is not None:
            return found
    files = sorted(os.listdir(path)) if path.is_dir() else []
    held = f", which holds: {listing(files) or 'nothing'}" if path.is_dir() else ""
    advice = next((_CONVERTED.format(name, _OTHERS[name]) for name in files if name in _OTHERS), "")
    raise FileNotFoundError(
        f"no weights in {brief(str(name_or_path))}{held} (looked for {', '.join(names)}){recovery(path)}{advice}"
    )


def _open_file(path: Path, stack: ExitStack) -> StoredWeights:
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` where it was cloned")
    if path.suffix == ".safetensors":
        return StoredWeights(path, _open_safetensors(path, stack))
    if path.suffix in TORCH_SUFFIXES:
        content = _load_torch(path, is_zip=head.startswith(b"PK"))
        return StoredWeights(path, *_state_dict(content, path))
    raise ValueError(f"{path}: got a file ending in {path.suffix!r}, wanted .safetensors, {', '.join(TORCH_SUFFIXES)}")


def _open_safetensors(path: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    try:
        file = stack.enter_context(safe_open(path, framework="pt"))
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - the handle is no mapping
            part, read = file.get_slice(name), partial(file.get_tensor, name)
            dtype = _DTYPES.get(part.get_dtype()) or read().dtype
            tensors[name] = StoredTensor(name, tuple(part.get_shape()), dtype, read)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
    return tensors


def _open_shards(index: Path, find: Callable[[str], Path], stack: ExitStack) -> dict[str, StoredTensor]:
    try:
        weight_map = read_json(index)["weight_map"]
        shards: dict[str, list[str]] = {shard: [] for shard in sorted(set(weight_map.values()))}
        for name, shard in weight_map.items():
            shards[shard].append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards (an object with a weight_map): {error}") from error
    tensors: dict[str, StoredTensor] = {}
    for shard, names in shards.items():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard or "\0" in shard:
            raise ValueError(f"{index}: shards must lie beside it, got {shard!r}")
        stored = _open_file(find(shard), stack).tensors
        absent = sorted(set(names) - set(stored))
        if absent:
            raise ValueError(f"{index} places tensors in {shard} that it does not hold: {listing(absent)}")
        tensors.update((name, stored[name]) for name in names)
    return tensors


class _Inert:
    """Stands in for a class or function of a trainer's package: takes anything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict:
    """Stands in for a trainer's kind of dictionary (Lightning's AttributeDict): becomes an ordinary one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:  # a type that PyTorch's unpickler fills
        return OrderedDict()


def _load_torch(path: Path, is_zip: bool) -> Any:
    refused: list[str] = []
    try:
        # Listing reads names only. A name of a trainer's package is given to a class that does nothing.
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
        refused = sorted(name for name in foreign if name.split(".")[0] not in _TRAINERS)
        if not refused:
            stand_ins: list[Any] = [(_InertDict if name.endswith("Dict") else _Inert, name) for name in foreign]
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no PyTorch weight file, or holds Python objects that are not weights and are "
            f"not run: {_first_line(str(error).split('WeightsUnpickler error:')[-1])}"
        ) from error
    except Exception as error:  # a damaged file raises anything, OSError too: it could be opened a moment ago
        reason = _first_line(str(error)) or type(error).__name__
        raise ValueError(f"{path} is truncated or no PyTorch weight file: {reason}") from error
    raise ValueError(f"{path} holds Python objects that are not weights and are not run: {listing(refused)}")


def _first_line(text: str) -> str:
    """PyTorch's advice, there or on the lines below, would have the user run code from the file."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return re.split(r"\.? (?:Please|Re-running|In PyTorch 2\.6) ", line)[0]


def _state_dict(content: Any, path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The tensors of a state dict, and the rest of the trainer's checkpoint around it."""
    extra: dict[str, Any] = {}
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content, extra = content[key], {k: v for k, v in content.items() if k != key}
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: got a {type(content).__name__}, wanted a dictionary of tensors")
    usable = {
        name: tensor
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
        if tensor.layout == torch.strided and not tensor.is_meta
    }
    bad = [str(name) for name in content if name not in usable]
    if bad:
        raise ValueError(f"{path}: entries that are not dense tensors with data: {listing(bad)}")
    return {n: StoredTensor(n, tuple(t.shape), t.dtype, t.detach) for n, t in usable.items()}, extra


def write_tensors(
    tensors: dict[str, torch.Tensor],
    path: Path,
    *,
    safe_serialization: bool,
    save_function: Callable[[dict[str, torch.Tensor], Path], Any] | None = None,
) -> None:
    """Write tensors to one file, as safetensors; or with `torch.save`, or `save_function(tensors, path)` in its place.

    Raises:
        OSError: the file could not be written. ValueError: `save_function` wrote nothing.
    """
    try:
        if safe_serialization:
            _write_safetensors({n: t.contiguous() for n, t in tensors.items()}, path)
        elif save_function is not None:
            save_function({n: _alone(t) for n, t in tensors.items()}, path)
            if not path.is_file() or not path.stat().st_size:
                raise ValueError(f"save_function: it wrote nothing to the path it was given ({path.parent})")
        else:
            with open(path, "wb") as file:
                torch.save({n: _alone(t) for n, t in tensors.items()}, file)
    except (SafetensorError, RuntimeError) as error:
        raise _disk_error(error) from error


def _write_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """In a folder beside the path: safetensors makes a file of a name that no one could tell to be a leftover."""
    folder = path.with_name(f"{path.name}.d")
    try:
        folder.mkdir()
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in a storage of its own: `torch.save` writes the whole storage behind a view."""
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)


def _disk_error(error: BaseException) -> OSError:
    """The system's error that safetensors hides in its message and PyTorch in the context."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    found = re.search(r"(?:os error |code: )(\d+)", str(error))
    number = cause.errno if isinstance(cause, OSError) else int(found.group(1)) if found else None
    return OSError(number, os.strerror(number) if number else str(error).splitlines()[0])


def split(tensors: dict[str, torch.Tensor], max_shard_size: int | str) -> list[list[str]]:
    """Names of the tensors of each shard: in order, each shard at most `max_shard_size` bytes or one tensor."""
    limit, size = _bytes(max_shard_size), 0
    shards: list[list[str]] = [[]]
    for name, tensor in tensors.items():
        size += tensor.nbytes
        if shards[-1] and size > limit:
            shards.append([])
            size = tensor.nbytes
        shards[-1].append(name)
    return shards


def _bytes(size: int | str) -> int:
    found = re.fullmatch(r"\s*(\d+)\s*(?:(?:([KMGT])(I?))?B)?\s*", str(size).upper())
    value = int(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " ") if found else 0
    if value < 1:
        raise ValueError(f"max_shard_size: got {size!r}, wanted a number of bytes or a text such as '200MB'")
    return value


def is_weight_file(name: str, variant: str | None = None) -> bool:
    """Whether a file's name is that of weights of a variant, of their index, or of one of their shards."""
    part = re.escape(f".{variant}") if variant else ""
    shard = rf"(model{part}-\d{{5}}-of-\d{{5}}\.safetensors)|(pytorch_model{part}-\d{{5}}-of-\d{{5}}\.bin)"
    return name in weight_names(variant=variant) or re.fullmatch(shard, name) is not None


def earlier_files(directory: Path, variant: str | None = None) -> tuple[list[Path], list[Path]]:
    """What a directory holds of a variant's weights: files that are looked for by name, and shards.

    Both are in the order in which they can go: what another file is preferred to goes before it, so that it is never
    read in that one's place, and an index goes before its shards. Files of other variants are not among them.
    """
    names = weight_names(variant=variant)
    found = sorted(path for path in directory.iterdir() if is_weight_file(path.name, variant))
    by_name = sorted((path for path in found if path.name in names), key=lambda path: -names.index(path.name))
    return by_name, [path for path in found if path.name not in names]


def other_variants(directory: Path, variant: str | None = None) -> list[str]:
    """Names of the weights and indices of other variants in a directory."""
    whole, index = (
        r"model(\..+)?\.safetensors|pytorch_model(\..+)?\.bin",
        r"(model\.safetensors|pytorch_model\.bin)\.index(\..+)?\.json",
    )
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    return [
        name
        for name in names
        if re.fullmatch(f"{whole}|{index}", name) and not re.search(r"-\d{5}-of-\d{5}\.\w+$", name)
        if not is_weight_file(name, variant)
    ]
