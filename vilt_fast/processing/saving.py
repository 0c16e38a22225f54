"""Settings in and out: the keywords of from_pretrained, and JSON files that are written together or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vilt_fast.checkpoints import json_files
from vilt_fast.checkpoints.files import directory_path, holds, make_directory, write_together
from vilt_fast.checkpoints.hub import HubOptions, find_file
from vilt_fast.checkpoints.json_files import check_size, read_json

# Arguments of Hugging Face's from_pretrained that mean nothing here: accepted, so that ported calls run.
IGNORED_OPTIONS = (
    "_from_auto backend force_download legacy_format proxies resume_download trust_remote_code use_fast"
).split()
# What every tokenizer reads, in transformers too: with neither vocab.txt nor tokenizer.json that makes an empty one.
_READ_BY_ALL = "tokenizer_config.json"


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the keywords of from_pretrained into those that say where the files are and the rest."""
    options = dict(options)
    if "use_auth_token" in options:  # the old name; it must never be taken for a setting, and saved
        options.setdefault("token", options.pop("use_auth_token"))
    hub, rest = HubOptions.split(options)
    return hub, {name: value for name, value in rest.items() if name not in IGNORED_OPTIONS}


def find_json(name_or_path: str | os.PathLike[str], filename: str, **hub: Any) -> dict[str, Any] | None:
    """The content of one optional JSON file of a directory or hub repository; None where there is none."""
    path = find_file(name_or_path, filename, required=False, **hub)
    return None if path is None else read_json(path)


def to_json(content: Mapping[str, Any]) -> str:
    """JSON text as Hugging Face writes it: sorted keys, two spaces, a newline at the end.

    Raises:
        ValueError: a setting is nothing that JSON can hold; names it.
    """
    return json_files.to_json(content, ensure_ascii=False)


def write_files(directory: str | os.PathLike[str], files: Mapping[str, str]) -> list[str]:
    """Write text files into a directory (made if needed), all or none, and return their paths.

    A process that is killed on the way leaves what loads as the old files, as the new ones, or not at all.

    Raises:
        ValueError: `directory` is a file, or a file could not be read again.
        OSError: a file could not be written; the old files are back, see `vilt_fast.checkpoints.files.write_together`.
    """
    directory = directory_path(directory, "save_directory")
    paths = {directory / name: files[name] for name in sorted(files, key=_READ_BY_ALL.__eq__)}
    for path, text in paths.items():
        check_size(path, len(text.encode(errors="surrogatepass")))
    make_directory(directory, "save_directory")
    changed = {path: text for path, text in paths.items() if not holds(path, text)}
    # New settings must not be found beside an old vocabulary. One file alone is the old one or the new one.
    if len(changed) > 1 and _READ_BY_ALL in files:
        write_together(paths, barred=directory / _READ_BY_ALL, belongs=files.__contains__)
    elif changed:
        write_together(changed, belongs=files.__contains__)
    return [str(directory / name) for name in files]
