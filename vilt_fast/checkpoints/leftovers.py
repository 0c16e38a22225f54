"""What a killed save leaves: the hidden files that it wrote, and the old ones that it had set aside."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there leftovers stay
    fcntl = None  # type: ignore[assignment]

_HIDDEN = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(tmp|old)(\.d)?")
_TRIES = 50  # of 20 ms: a lock that is held longer is not one of ours that sweeps


def hidden(path: Path, suffix: str) -> Path:
    """A new name beside a file, which no reader looks at; suffix: "tmp" for a file to come, "old" for an old one."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{suffix}")


def recovery(directory: Path) -> str:
    """What to do about a directory whose save was cut short; empty where none was."""
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    found = [(name, match[1]) for name in names if (match := _HIDDEN.fullmatch(name)) and match[2] == "old"]
    if not found:
        return ""
    renamed = ", ".join(f"{name} to {meant}" for name, meant in found[:20])
    return f"; a save was cut short here: save again, or rename {renamed} to have the earlier files"


@contextmanager
def swept(folders: Iterable[Path], belongs: Callable[[str], bool]) -> Iterator[None]:
    """Around a save: once it has succeeded, remove what killed saves of such files left, unless others save here.

    Every save holds a shared lock on its folder while it lasts, and leftovers go under an exclusive one: then no one
    writes there, and who was killed holds nothing any more. Where folders cannot be locked so, leftovers stay.

    Args:
        belongs: whether a file of this name may have been in such a save.
    """
    with ExitStack() as stack:
        locks = {folder: lock for folder in folders if (lock := _lock(folder, stack)) is not None}
        yield
        for folder, lock in locks.items():
            with suppress(OSError):  # another save is under way, or there are no such locks here
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _sweep(folder, belongs)


def _lock(folder: Path, stack: ExitStack) -> int | None:
    """A shared lock on a folder until the stack ends; None: it cannot be had, which is no reason not to save."""
    if fcntl is None:
        return None
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    stack.callback(os.close, lock)
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # a save is sweeping, which takes no time; or it is a lock of someone else's
            time.sleep(0.02)
        except OSError:
            return None
        else:
            stack.callback(_unlock, lock)
            return lock
    return None


def _unlock(lock: int) -> None:
    """By name: a process that was forked meanwhile has the lock too, and closing would leave it that one's."""
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_UN)


def _sweep(folder: Path, belongs: Callable[[str], bool]) -> None:
    for name in os.listdir(folder):
        match = _HIDDEN.fullmatch(name)
        if match and belongs(match[1]):
            if match[3]:
                shutil.rmtree(folder / name, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(folder / name)
