"""Whole files or none: what is written appears under its name complete, or the old file stays as it was."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

# What a file is made from: its bytes, its text (UTF-8), or a function that writes the path it is given.
Content = bytes | str | Callable[[Path], None]
# How deep the JSON files of a model may be nested; the ones that are written here have five levels.
_DEEPEST = 64


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


def write_together(
    contents: Mapping[Path, Content], withdrawn: Iterable[Path] = (), superseded: Iterable[Path] = ()
) -> None:
    """Write several files, all or none: every one is on the disk before the first gets its name.

    Args:
        contents: path -> content as for `write_atomically`, in the order in which the files appear.
        withdrawn: old files that go before the first new one comes: an index, while its shards are exchanged.
        superseded: old files that go, in this order, after the last new one has come.

    Raises:
        OSError: a file could not be written or renamed; the old files are back and the temporary ones are gone. Where
            an old file cannot be put back either, the error says under which name it is.
        IsADirectoryError: a path is a directory; nothing was changed.
    """
    withdrawn, superseded = list(withdrawn), list(superseded)
    refuse_directories([*contents, *withdrawn, *superseded])
    with _Exchange() as exchange:
        staged = {path: exchange.stage(path, content) for path, content in contents.items()}
        for path in withdrawn:
            exchange.set_aside(path)
        for path, temporary in staged.items():
            # One file that replaces one needs no undo: the rename happens or does not.
            if len(staged) > 1 or withdrawn or superseded or not _exists(path):
                exchange.make_room(path)
            os.replace(temporary, path)
        for path in superseded:
            exchange.set_aside(path)
        exchange.finish()


def refuse_directories(paths: Iterable[Path]) -> None:
    """Raise IsADirectoryError for the first path that is a directory: a file cannot take its place."""
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{path} is a directory, wanted a file; nothing was changed")


class _Exchange:
    """New files in the place of old ones. Unless `finish` is reached, the old ones come back.

    An interrupt may come between any two calls: what undoes a step is registered before the step is taken, and does
    nothing where the step was not taken.
    """

    def __init__(self) -> None:
        self._leftovers, self._undo = ExitStack(), ExitStack()
        self._needed: set[Path] = set()  # backups that may be the only copy of an old file
        self._stuck: list[str] = []  # what could not be undone
        self._undo.push(self._report)  # registered first, called last

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._leftovers:
            self._undo.__exit__(*error)

    def stage(self, path: Path, content: Content) -> Path:
        """Write the content beside its path. The same folder: across file systems a rename would be a copy."""
        temporary = _beside(path, "tmp")
        self._leftovers.callback(self._discard, temporary)
        _fill(temporary, content, path)
        return temporary

    def make_room(self, path: Path) -> None:
        """Prepare for a new file under this name, without a moment in which the name is gone, where links exist."""
        if _exists(path):
            self.set_aside(path, keep_name=not path.is_symlink())
        else:
            self._undo.callback(self._remove, path)

    def set_aside(self, path: Path, *, keep_name: bool = False) -> None:
        """Give an old file another name, if there is one; `keep_name`: a second one, where links exist."""
        if not _exists(path):
            return
        backup = _beside(path, "old")
        self._needed.add(backup)
        self._leftovers.callback(self._discard, backup)
        self._undo.callback(self._put_back, backup, path)
        if keep_name:
            with suppress(OSError):
                os.link(path, backup)
                return
        os.replace(path, backup)

    def finish(self) -> None:
        """Keep the new files and let the old ones go."""
        self._undo.pop_all()
        self._needed.clear()

    def _put_back(self, backup: Path, path: Path) -> None:
        try:
            os.replace(backup, path)
        except FileNotFoundError:
            pass  # it was not set aside
        except OSError as error:
            self._stuck.append(f"{path} could not be put back ({_reason(error)}): its old content is in {backup}")
            return
        # A rename between two names of one file does nothing: the backup may still be there.
        self._needed.discard(backup)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._stuck.append(f"{path} is new and could not be removed ({_reason(error)})")

    def _report(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._stuck:
            message = "; ".join([_reason(error), *self._stuck])
            raise OSError(error.errno, message) if isinstance(error, OSError) else OSError(message)

    def _discard(self, path: Path) -> None:
        if path not in self._needed:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # the files are as they should be: no reason to fail
                warnings.warn(f"{path} is left over and could not be removed: {error}", stacklevel=2)


def _exists(path: Path) -> bool:
    """Whether the name is taken, by a link to nothing too; a folder that cannot be searched raises OSError."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _reason(error: BaseException | None) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{suffix}")


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
        raise OSError(error.errno, f"could not write {path}: {_reason(error)}; nothing was changed") from error


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: the file is not UTF-8, not JSON, or holds no object; a key stands twice in one object, a number is
            NaN or infinite, a text is no Unicode, or it is nested too deep. The message names the file and the key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_object)
        _check_values(content)
        json.dumps(content, ensure_ascii=False).encode()  # a lone surrogate can be escaped, but never written again
    except RecursionError as error:
        raise ValueError(f"{path}: not a valid JSON file (nested deeper than {_DEEPEST} levels)") from error
    except ValueError as error:  # json.JSONDecodeError and UnicodeError are ValueErrors
        raise ValueError(f"{path}: not a valid JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got a JSON {type(content).__name__}, wanted an object")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return content


def _check_values(content: Any) -> None:
    """Refuse what no JSON file of a model needs, and what reads it stumbles over, level by level."""
    level = [("", content)]
    for _ in range(_DEEPEST):
        level = [pair for name, value in level for pair in _children(name, value)]
        for name, value in level:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: got {value}, wanted a finite number")
        if not level:
            return
    raise ValueError(f"nested deeper than {_DEEPEST} levels")


def _children(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """The values of an object by their keys; those of a list, by the list's."""
    if isinstance(value, dict):
        return value.items()
    return ((name, item) for item in value) if isinstance(value, list) else ()


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """A ValueError from within names the file, if it does not."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def listing(names: list[str], limit: int = 20) -> str:
    """Names for an error message, at most `limit` of them."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
