"""Where the files of a model are: a local directory, or a repository on the Hugging Face hub."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vilt_fast.checkpoints.files import brief, listing
from vilt_fast.checkpoints.leftovers import recovery

# "name" or "namespace/name"; the hub's own rule (huggingface_hub.utils.validate_repo_id), which keeps out
# "./foo", "../foo", "~/foo", "/foo" and "C:\\foo".
_HUB_ID = re.compile(r"(?!.*(--|\.\.))(\w[\w.-]{0,95}/)?\w([\w.-]{0,94}\w)?", re.ASCII)
# A name that ends like a weight file is a mistyped path far more often than a repository.
_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".txt", ".git")


@dataclass(frozen=True)
class HubOptions:
    """Where on the hub a model's files are; Hugging Face's names and defaults.

    Args:
        revision: branch, tag or commit of the repository; unused for a directory.
        cache_dir: the hub's cache; default: huggingface_hub's (HF_HOME, HF_HUB_CACHE).
        token: access token; default: the one huggingface_hub knows.
        local_files_only: look only in the cache (so does HF_HUB_OFFLINE=1). HF_ENDPOINT chooses another hub.
        subfolder: of the directory or repository.
        force_download: whether to download again what is in the cache.
    """

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    subfolder: str | None = None
    force_download: bool = False

    def __post_init__(self) -> None:
        kinds = {"revision": str, "cache_dir": str | os.PathLike, "token": str | bool, "subfolder": str}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"{name}: got {brief(value)}, wanted a text")

    @classmethod
    def split(cls, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The hub's options among the keywords of a from_pretrained, and the others."""
        hub = {field.name: keywords[field.name] for field in fields(cls) if field.name in keywords}
        return hub, {name: value for name, value in keywords.items() if name not in hub}


def find_file(
    name_or_path: str | os.PathLike[str],
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    force_download: bool = False,
    required: bool = True,
) -> Any:
    """Return the `Path` of one file of a model, downloading it into the hub's cache where needed.

    Args:
        name_or_path: a local directory, or a hub id ("namespace/name"). What exists locally is never sent to the
            hub, nor is a `pathlib.Path` or a string that can only be a path ("./model", an absolute path).
        filename: the file's name inside the directory or repository.
        required: False returns None where the model has no such file. A model that does not exist raises either way.
        revision, cache_dir, token, local_files_only, subfolder, force_download: see `HubOptions`.

    Raises:
        FileNotFoundError: no such directory, repository, revision or file, or offline and not in the cache.
        OSError: the hub answered with another error, or the download failed.
    """
    hub = HubOptions(revision, cache_dir, token, local_files_only, subfolder, force_download)
    if subfolder:
        filename = f"{subfolder}/{filename}"
    path = local_path(name_or_path)
    if str(name_or_path) and is_directory(path):
        return _find_in_directory(path, filename, required)
    if is_file(path):
        raise FileNotFoundError(f"{path} is a file; {filename} is looked for in a directory or a hub repository")
    if not is_hub_id(name_or_path):
        raise FileNotFoundError(
            f"no directory {brief(str(name_or_path))} (looked for {filename} in it), "
            f"and it is not a hub id such as 'namespace/name'"
        )
    return _find_on_hub(str(name_or_path), filename, replace(hub, subfolder=None), required)


def local_path(name_or_path: Any) -> Path:
    """What is named, as a path.

    Raises:
        ValueError: it is no name.
    """
    if not isinstance(name_or_path, str | os.PathLike) or isinstance(os.fspath(name_or_path), bytes):
        raise ValueError(f"name_or_path: got {brief(name_or_path)}, wanted a directory or a hub id")
    path = Path(name_or_path)
    with suppress(RuntimeError):  # ~someone who is not known
        return path.expanduser()
    return path


def is_file(path: Path) -> bool:
    """Whether there is such a file; no file has a name that is too long."""
    return _is(path, Path.is_file)


def is_directory(path: Path) -> bool:
    """As `is_file`."""
    return _is(path, Path.is_dir)


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def is_hub_id(name: str | os.PathLike[str]) -> bool:
    """Whether a name could be a repository on the hub; paths, and names that end like a weight file, could not."""
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None and not name.endswith(_FILE_SUFFIXES)


def _find_in_directory(directory: Path, filename: str, required: bool) -> Path | None:
    path = directory / filename
    if is_file(path):
        return path
    if not required:
        return None
    names = listing(sorted(os.listdir(directory))) or "nothing"
    raise FileNotFoundError(
        f"no {brief(filename)[1:-1]} in the directory {directory}, which holds: {names}{recovery(directory)}"
    )


def _find_on_hub(name: str, filename: str, hub: HubOptions, required: bool) -> Path | None:
    # Imported here: it takes longer than the rest of the package, and a local directory does not need it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub import utils as errors

    where = f"the hub repository {name!r}" + (f" at revision {hub.revision!r}" if hub.revision else "")
    try:
        _check_answers(name, filename, hub)
        return Path(hf_hub_download(name, filename, **vars(hub)))
    except errors.LocalEntryNotFoundError as error:
        if not required and _is_known(name, hub.cache_dir):
            return None
        raise FileNotFoundError(
            f"{filename} of {where} is not in the local cache, no directory has that name, and the hub cannot be "
            f"reached ({_reason(error)})"
        ) from error
    except errors.EntryNotFoundError as error:
        if not required:
            return None
        raise FileNotFoundError(f"no {filename} in {where}") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"no revision {hub.revision!r} of the hub repository {name!r} (looked for {filename})"
        ) from error
    except errors.GatedRepoError as error:
        raise FileNotFoundError(f"{where} is gated: ask for access on its page, then pass token=") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"no directory {name!r}, and no hub repository of that name "
            f"(looked for {filename}; a private one needs token=)"
        ) from error
    except errors.HfHubHTTPError as error:
        raise OSError(f"the hub would not give {filename} of {where}: {_reason(error)}") from error


def _check_answers(name: str, filename: str, hub: HubOptions) -> None:
    """Ask once for a file that is not in the cache; `hf_hub_download` asks six times, and waits in between.

    Raises:
        LocalEntryNotFoundError: nobody answers. What the hub answers is not looked at.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub import utils as errors

    if hub.local_files_only or constants.HF_HUB_OFFLINE:
        return
    revision = hub.revision or "main"
    cache = None if hub.cache_dir is None else os.fspath(hub.cache_dir)
    cached = try_to_load_from_cache(name, filename, cache_dir=cache, revision=revision)
    if isinstance(cached, str) and not hub.force_download:
        return
    url = hf_hub_url(name, filename, revision=revision)
    try:
        get_hf_file_metadata(url, token=hub.token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError):
        return
    except Exception as error:  # of the HTTP library, which is another one from huggingface_hub 1.0 on
        raise errors.LocalEntryNotFoundError(str(error)) from error


def _reason(error: BaseException) -> str:
    """The innermost cause, first line: the hub's client wraps it in advice that does not apply here."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_known(name: str, cache_dir: str | os.PathLike[str] | None) -> bool:
    """Whether the hub answered for this repository before: then an absent optional file is no network trouble."""
    from huggingface_hub import constants

    folder = Path(cache_dir or constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    return any((folder / part).is_dir() for part in ("refs", "snapshots", ".no_exist"))
