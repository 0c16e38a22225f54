"""The images in a folder, and what is left out of it, with the reason."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image


@dataclass
class Images:
    """What `find_images` found."""

    paths: list[Path] = field(default_factory=list)
    hidden: int = 0  # images left out because a name starts with a dot (`._a.jpg`, `.cache/`)
    skipped: list[str] = field(default_factory=list)  # folders, links and images that cannot be read, and why


def find_images(folder: Path) -> Images:
    """The images in a folder and in the folders in it, sorted. Links to folders are not followed.

    Raises:
        OSError: the folder cannot be read.
        ValueError: there is no image.
    """
    found, folders = Images(), [folder]
    for place in folders:  # it grows meanwhile
        is_hidden = _is_hidden(place, folder)
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    else:
                        _sort(entry, is_hidden or entry.name.startswith("."), found)
        except OSError as error:
            if place == folder:
                raise OSError(error.errno, f"--images: cannot read {str(folder)!r}: {error.strerror}") from error
            if not is_hidden:
                found.skipped.append(f"{str(place)!r}: {error.strerror}")
    if not found.paths:
        raise ValueError(f"--images: no image in {str(folder)!r}, nor in the folders in it{_and_skipped(found)}")
    found.paths.sort()
    return found


def check_folder(folder: str) -> None:
    """Raise FileNotFoundError for what --images cannot be."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"--images: {_why_no_folder(folder)}: {folder!r}")


def _why_no_folder(folder: str) -> str:
    try:
        os.stat(folder)
    except PermissionError:
        return "cannot be read (permission denied)"
    except (OSError, ValueError):
        return "no such folder"
    return "not a folder"


def _is_hidden(place: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in place.relative_to(folder).parts)


def _sort(entry: os.DirEntry[str], is_hidden: bool, found: Images) -> None:
    """Put what is no folder where it belongs."""
    path = Path(entry.path)
    is_image = path.suffix.lower() in Image.registered_extensions()
    if not is_image and not entry.is_symlink():
        return
    reason = _why_no_file(entry)
    if is_hidden:
        found.hidden += is_image and reason is None
    elif reason is not None:
        found.skipped.append(f"{entry.path!r}: {reason}")
    elif is_image:
        found.paths.append(path)


def _why_no_file(entry: os.DirEntry[str]) -> str | None:
    try:
        mode = os.stat(entry.path).st_mode
    except OSError as error:
        return f"a broken link ({error.strerror})" if entry.is_symlink() else error.strerror
    if stat.S_ISDIR(mode):
        return "a link to a folder, which is not followed"
    return None if stat.S_ISREG(mode) else "a pipe or a device"


def _and_skipped(found: Images) -> str:
    return f" ({describe_skipped(found.skipped)})" if found.skipped else ""


def describe_skipped(skipped: list[str]) -> str:
    """How many were left out, and the first with its reason."""
    first = min(skipped)
    return f"left out {first}" if len(skipped) == 1 else f"left out {len(skipped)}, the first {first}"
