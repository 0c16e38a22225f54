"""One archive for everything, small enough to be carried away."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

MOST_BYTES = 15 * 2**20
_HEAD, _TAIL = 2**16, 3 * 2**16  # bytes kept of a long log


def pack(folder: Path, archive: Path, most_bytes: int = MOST_BYTES) -> list[str]:
    """Write the files below `folder` to `archive`, in place of what was there; all of it or nothing.

    Of a long log the beginning and the end are kept. Where the archive is larger than `most_bytes`, the largest files
    are left out.

    Returns:
        What was left out.

    Raises:
        OSError: the archive cannot be written.
    """
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=_size)
    left_out: list[str] = []
    unfinished = archive.with_name(archive.name + ".unfinished")
    try:
        _write(folder, files, unfinished)
        while unfinished.stat().st_size > most_bytes and files:
            left_out.append(str(files.pop().relative_to(folder)))
            _write(folder, files, unfinished)
        os.replace(unfinished, archive)
    finally:
        unfinished.unlink(missing_ok=True)
    return left_out


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _write(folder: Path, files: list[Path], target: Path) -> None:
    with tarfile.open(target, "w:gz", compresslevel=3) as tar:
        for path in filter(Path.is_file, files):  # what a step left behind may still remove some
            content = path.read_bytes()
            if path.suffix == ".log" and len(content) > _HEAD + _TAIL:
                cut = f"\n... {len(content) - _HEAD - _TAIL} bytes ...\n".encode()
                content = content[:_HEAD] + cut + content[-_TAIL:]
            entry = tarfile.TarInfo(str(path.relative_to(folder)))
            entry.size, entry.mtime = len(content), int(path.stat().st_mtime)
            tar.addfile(entry, io.BytesIO(content))
