"""Whole files or none: what is written appears under its name complete, or the old file stays as it was."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from vilt_fast.checkpoints.json_files import check_json
from vilt_fast.checkpoints.json_files import read_json as read_json  # many read what others write here
from vilt_fast.checkpoints.leftovers import hidden, swept

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


def write_together(
    contents: Mapping[Path, Content],
    withdrawn: Iterable[Path] = (),
    superseded: Iterable[Path] = (),
    barred: Path | None = None,
    belongs: Callable[[str], bool] | None = None,
) -> None:
    """Write several files, all or none: every one is on the disk before the first gets its name.

    A process that is killed on the way can put nothing back. Where readers would take some of the new files and some
    of the old ones for a whole, `withdrawn` names what they cannot do without, or `barred` what they all read.

    Args:
        contents: path -> content as for `write_atomically`, in the order in which the files appear.
        withdrawn: old files that go, in this order, before the first new one comes: an index, while its shards are
            exchanged.
        superseded: old files that go, in this order, after the last new one has come.
        barred: the last of the new ones, a JSON file: until it comes, what bears its name is no JSON.
        belongs: whether a killed save of such files may have left hidden ones for this name; None: the names above.

    Raises:
        ValueError: the text of a .json file could not be read again; nothing was changed.
        OSError: a file could not be written or renamed; the old files are back and the temporary ones are gone. Where
            an old file cannot be put back either, the error says under which name it is.
        IsADirectoryError: a path is a directory; nothing was changed.
    """
    withdrawn, superseded = list(withdrawn), list(superseded)
    touched = [*contents, *withdrawn, *superseded]
    refuse_directories(touched)
    for path, content in contents.items():
        if path.suffix == ".json" and isinstance(content, str):
            check_json(path, content)
    names = {path.name for path in touched}
    with swept({path.parent for path in touched}, belongs or names.__contains__), _Exchange() as exchange:
        staged = {path: exchange.stage(path, content) for path, content in contents.items()}
        bar = barred and exchange.stage(barred, "A save was cut short here.\n")
        for path in withdrawn:
            exchange.set_aside(path)
        if barred and bar:
            exchange.make_room(barred)
            os.replace(bar, barred)
        for path, temporary in staged.items():
            # One file that replaces one needs no undo: the rename happens or does not.
            if path != barred and (len(staged) > 1 or withdrawn or superseded or not _exists(path)):
                exchange.make_room(path)
            os.replace(temporary, path)
        for path in superseded:
            exchange.set_aside(path)
        exchange.finish()


def holds(path: Path, content: Content) -> bool:
    """Whether a file has this content already. What a function would write is not known."""
    if callable(content):
        return False
    data = content.encode() if isinstance(content, str) else content
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def directory_path(directory: Any, name: str = "directory") -> Path:
    """Where to save, as a path.

    Args:
        name: of the argument.

    Raises:
        ValueError: it is no name of a directory, or that of a file.
    """
    try:
        text = os.fspath(directory)
        os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{name}: got {brief(directory)}, wanted where to save")
    path = Path(text)
    try:
        # The nearest that is there: what comes below is made.
        nearest = next(one for one in (path, *path.parents) if os.path.lexists(one))
        if not nearest.is_dir():
            raise ValueError(f"{name}: {nearest} is a file, wanted a directory")
        os.lstat(path)
    except StopIteration:
        pass
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(
                f"{name}: got {brief(directory)}, wanted a name that the system takes: {error.strerror}"
            ) from error
    return path


def make_directory(directory: Any, name: str = "directory") -> Path:
    """Make a directory, and those above it, where they do not exist.

    Raises:
        ValueError: see `directory_path`. OSError: it cannot be made.
    """
    path = directory_path(directory, name)
    path.mkdir(parents=True, exist_ok=True)
    return path


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
        temporary = hidden(path, "tmp")
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
        backup = hidden(path, "old")
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


def brief(value: Any) -> str:
    """A value in a message: a name may have thousands of letters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
