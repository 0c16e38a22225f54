"""Whole files or none: what is written appears under its name complete, or the old file stays as it was."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

# What a file is made from: its bytes, its text (UTF-8), or a function that writes the path it is given.
Content = bytes | str | Callable[[Path], None]


def write_atomically(path: str | os.PathLike[str], content: Content) -> None:
    """Write one file so that a reader, a crash or a full disk never meets half of it.

    Args:
        path: the file to create or replace; its folder must exist.
        content: bytes, text (written as UTF-8), or a function that fills the temporary path it is called with.

    Raises:
        OSError: the file could not be written (disk full, no permission, ...). The old file is untouched and
            no temporary file is left.
    """
    write_together({Path(path): content})


def write_together(contents: Mapping[Path, Content], withdrawn: Iterable[Path] = ()) -> None:
    """Write several files, all or none: every one is on the disk before the first gets its name.

    Args:
        contents: path -> content as for `write_atomically`, in the order in which the files appear.
        withdrawn: old files that go before the first new one comes: an index, while its shards are exchanged.

    Raises:
        OSError: a file could not be written or renamed; the old files are back and the temporary ones are gone.
    """
    with ExitStack() as leftovers, ExitStack() as undo:

        def set_aside(path: Path, *, link: bool) -> None:
            backup = _set_aside(path, link)
            leftovers.callback(backup.unlink, missing_ok=True)
            undo.callback(os.replace, backup, path)

        staged: dict[Path, Path] = {}
        for path, content in contents.items():
            # Same folder: a rename across file systems would be a copy, which is not atomic.
            staged[path] = _beside(path, "tmp")
            leftovers.callback(staged[path].unlink, missing_ok=True)
            _fill(staged[path], content, path)
        for path in filter(Path.exists, withdrawn):
            set_aside(path, link=False)
        for path, temporary in staged.items():
            if not path.exists():
                undo.callback(path.unlink, missing_ok=True)
            elif len(staged) > 1:
                set_aside(path, link=True)
            os.replace(temporary, path)
        undo.pop_all()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{suffix}")


def _set_aside(path: Path, link: bool) -> Path:
    """Give an old file another name; `link`: without a moment in which the first is gone, where links exist."""
    backup = _beside(path, "old")
    if link:
        with suppress(OSError):
            os.link(path, backup)
            return backup
    os.replace(path, backup)
    return backup


def _fill(temporary: Path, content: Content, path: Path) -> None:
    """Write `temporary`, flushed to the disk; an OSError names `path`."""
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if not callable(content):
                file.write(content.encode() if isinstance(content, str) else content)
        if callable(content):
            content(temporary)
            # A writer that makes its own file (safetensors does) leaves it readable by the owner alone.
            os.chmod(temporary, mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"could not write {path}: {reason}; nothing was changed") from error


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: the file is not UTF-8, not JSON, or holds no object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path}: not a valid JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got a JSON {type(content).__name__}, wanted an object")
    return content


def listing(names: list[str], limit: int = 20) -> str:
    """Names for an error message, at most `limit` of them."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
