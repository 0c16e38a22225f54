"""The images in a folder, or the files of regions, and what is left out of it, with the reason."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vilt_fast.checkpoints.files import brief
from vilt_fast.commands.given import REGION_FILES


class Kind(NamedTuple):
    """What is looked for in a folder."""

    option: str  # that names the folder
    name: str
    suffixes: frozenset[str] | None  # of the files; None: those of images
    aside: str | None = None  # how a name ends that is none of them, whatever its suffix


IMAGES = Kind("--images", "image", None)
# MMF writes a dictionary beside the features of each image, which only pickle reads.
REGIONS = Kind("--regions", ".npz or .npy", frozenset(REGION_FILES), "_info.npy")


@dataclass
class Images:
    """What `find_images` found."""

    paths: list[Path] = field(default_factory=list)
    hidden: int = 0  # images left out because a name starts with a dot (`._a.jpg`, `.cache/`)
    skipped: list[str] = field(default_factory=list)  # folders, links and images that cannot be read, and why


def find_images(folder: Path, kind: Kind = IMAGES) -> Images:
    """The images, or files of another kind, in a folder and in the folders in it, sorted.

    Links to folders are not followed.

    Raises:
        OSError: the folder cannot be read.
        ValueError: there is none.
    """
    found, folders = Images(), [folder]
    suffixes = frozenset(Image.registered_extensions()) if kind.suffixes is None else kind.suffixes
    for place in folders:  # it grows meanwhile
        is_hidden = _is_hidden(place, folder)
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    else:
                        _sort(entry, is_hidden or entry.name.startswith("."), suffixes, kind.aside, found)
        except OSError as error:
            if place == folder:
                raise OSError(error.errno, f"{kind.option}: cannot read {str(folder)!r}: {error.strerror}") from error
            if not is_hidden:
                found.skipped.append(f"{str(place)!r}: {error.strerror}")
    if not found.paths:
        raise ValueError(
            f"{kind.option}: no {kind.name} in {str(folder)!r}, nor in the folders in it{_and_skipped(found)}"
        )
    found.paths.sort()
    return found


def check_folder(folder: str, kind: Kind = IMAGES) -> None:
    """Raise FileNotFoundError for what --images, or its like, cannot be."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{kind.option}: {_why_no_folder(folder)}: {brief(folder)}")


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


def _sort(entry: os.DirEntry[str], is_hidden: bool, suffixes: frozenset[str], aside: str | None, found: Images) -> None:
    """Put what is no folder where it belongs."""
    path = Path(entry.path)
    is_wanted = path.suffix.lower() in suffixes
    if not is_wanted and not entry.is_symlink():
        return
    reason = _why_no_file(entry)
    if reason is None and aside and entry.name.endswith(aside):
        reason = f"{aside} is what is known about the features, not the features"
    if is_hidden:
        found.hidden += is_wanted and reason is None
    elif reason is not None:
        found.skipped.append(f"{entry.path!r}: {reason}")
    elif is_wanted:
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
