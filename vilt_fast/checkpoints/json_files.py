"""JSON as the files of a model hold it: read with checks, and never written so that it could not be read again."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vilt_fast.checkpoints.leftovers import recovery

# How deep the JSON files of a model may be nested; the ones that are written here have five levels.
_DEEPEST = 64
# Of a file that is read whole, in bytes: a vocabulary of a million words has 30 MB, the largest known index 10.
MOST_BYTES = 64 * 2**20
# A config.json of 16 MB names a quarter of a million labels; the largest known has 2.
_MOST_BYTES_OF = {"config.json": 16 * 2**20}
# Half of a pair, which JSON can write and UTF-8 cannot.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: the file is too large, not UTF-8, not JSON, or holds no object; a key stands twice in one object, a
            number is NaN or infinite, a text is no Unicode, or it is nested too deep. The message names the file and
            the key.
    """
    check_size(path)
    try:
        content = _parse(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # json.JSONDecodeError and UnicodeError are ValueErrors
        raise ValueError(f"{path}: not a valid JSON file ({error}){recovery(Path(path).parent)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got a JSON {type(content).__name__}, wanted an object")
    return content


def check_size(path: str | os.PathLike[str], size: int | None = None) -> None:
    """Refuse a file that is larger than any model's, before it is read whole.

    Args:
        size: in bytes; None: of the file that is there.

    Raises:
        ValueError: names the file and both sizes.
    """
    size = os.stat(path).st_size if size is None else size
    most = _MOST_BYTES_OF.get(Path(path).name, MOST_BYTES)
    if size > most:
        raise ValueError(
            f"{path}: got a file of {size / 2**20:.1f} MB, wanted at most {most // 2**20}; no model's is so large"
        )


def check_json(path: str | os.PathLike[str], text: str) -> None:
    """Refuse a text that `read_json` would refuse, before it becomes a file.

    Raises:
        ValueError: names the file and, where it can be told, the field.
    """
    try:
        check_size(path, len(text.encode()))
        _parse(text)
    except ValueError as error:
        raise ValueError(f"{path}: was not written, because it could not be read again ({error})") from error


def to_json(fields: Mapping[str, Any], **options: Any) -> str:
    """JSON text as Hugging Face writes it: sorted keys, two spaces, a newline at the end.

    Args:
        options: of `json.dumps`.

    Raises:
        ValueError: a field is nothing that JSON can hold, or nested too deep; names it.
    """
    try:
        return json.dumps(fields, indent=2, sort_keys=True, **options) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        for name, value in fields.items():
            try:
                json.dumps(value, sort_keys=True)
            except (TypeError, ValueError, RecursionError) as reason:
                raise ValueError(f"{name}: got a {type(value).__name__} that JSON cannot hold ({reason})") from error
        raise ValueError(f"got names of fields that are not all texts ({error}): {[*fields][:20]}") from error


def _parse(text: str) -> Any:
    """The content of a JSON text, checked. Raises ValueError."""
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {_DEEPEST} levels") from error
    _check_values(content, has_surrogates=_SURROGATE.search(text) is not None)
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name!r} stands there twice")
            seen.add(name)
    return content


def _check_values(content: Any, has_surrogates: bool) -> None:
    """Refuse what no JSON file of a model needs, and what reads it stumbles over, level by level."""
    level = [("", content)]  # what may hold values, by the name of the nearest key
    for _ in range(_DEEPEST):
        inner = []
        for outer, container in level:
            for name, value in _children(outer, container):
                if isinstance(value, dict | list):
                    inner.append((name, value))
                elif isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{name}: got {value}, wanted a finite number")
                elif has_surrogates:
                    _check_unicode(name, value)
        if not inner:
            return
        level = inner
    raise ValueError(f"{level[0][0]}: nested deeper than {_DEEPEST} levels")


def _children(name: str, container: Any) -> Iterable[tuple[str, Any]]:
    """The values of an object by their keys; those of a list, by the list's."""
    if isinstance(container, dict):
        return container.items()
    return ((name, item) for item in container) if isinstance(container, list) else ()


def _check_unicode(name: str, value: Any) -> None:
    """A lone surrogate can be escaped, but never written again."""
    try:
        f"{name}{value}".encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!a}: {error}") from error
