"""Settings in and out: the keywords of from_pretrained, and JSON files that are written together or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vilt_fast.checkpoints.files import read_json, write_together
from vilt_fast.checkpoints.hub import HubOptions, find_file

# Arguments of Hugging Face's from_pretrained that mean nothing here: accepted, so that ported calls run.
IGNORED_OPTIONS = (
    "_from_auto backend force_download legacy_format proxies resume_download trust_remote_code use_fast"
).split()


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
    """JSON text as Hugging Face writes it: sorted keys, two spaces, a newline at the end."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_files(directory: str | os.PathLike[str], files: Mapping[str, str]) -> list[str]:
    """Write text files into a directory (made if needed), all or none, and return their paths.

    Raises:
        ValueError: `directory` is a file.
        OSError: a file could not be written; the old files are back, see `vilt_fast.checkpoints.files.write_together`.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"save_directory: {directory} is a file, wanted a directory")
    directory.mkdir(parents=True, exist_ok=True)
    paths = {directory / name: text for name, text in files.items()}
    write_together(paths)
    return [str(path) for path in paths]
