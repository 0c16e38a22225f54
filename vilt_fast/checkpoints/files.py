"""Whole files or none: what is written appears under its name complete, or the old file stays as it was."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

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
    publish(stage_all([(Path(path), content)]))


def stage_all(contents: Iterable[tuple[Path, Content]]) -> dict[Path, Path]:
    """`stage` several files: final path -> temporary path. After an error none is left."""
    staged: dict[Path, Path] = {}
    try:
        for path, content in contents:
            staged[path] = stage(path, content)
    except BaseException:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
        raise
    return staged


def stage(path: Path, content: Content) -> Path:
    """Write the content beside `path`, flushed to the disk, and return that temporary path for `publish`.

    Raises:
        OSError: as for `write_atomically`; the temporary file is removed.
    """
    # Same folder: a rename across file systems would be a copy, which is not atomic.
    temporary = _beside(path, "tmp")
    try:
        _fill(temporary, content)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"could not write {path}: {reason}; nothing was changed") from error
        raise
    return temporary


def publish(staged: Mapping[Path, Path], withdrawn: Iterable[Path] = ()) -> None:
    """Give staged files their names, all or none.

    Args:
        staged: final path -> temporary path, in the order in which they appear.
        withdrawn: old files that go before the first new one comes: an index, while its shards are exchanged.

    Raises:
        OSError: a rename failed; the old files are back and the temporary ones are gone.
    """
    kept: list[tuple[Path, Path]] = []  # (where an old file is kept, where it belongs)
    placed: list[Path] = []
    try:
        for path in withdrawn:
            if path.exists():
                os.replace(path, backup := _beside(path, "old"))
                kept.append((backup, path))
        for path, temporary in staged.items():
            if len(staged) > 1 and path.exists():
                kept.append((_keep(path), path))
            os.replace(temporary, path)
            placed.append(path)
    except BaseException:
        for path in set(placed) - {path for _, path in kept}:
            path.unlink(missing_ok=True)
        for backup, path in reversed(kept):
            os.replace(backup, path)
        raise
    finally:
        for leftover in [*staged.values(), *(backup for backup, _ in kept)]:
            leftover.unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{suffix}")


def _keep(path: Path) -> Path:
    """Keep the old file under a second name, without a moment in which the first is gone where links exist."""
    backup = _beside(path, "old")
    try:
        os.link(path, backup)
    except OSError:
        os.replace(path, backup)
    return backup


def _fill(temporary: Path, content: Content) -> None:
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
