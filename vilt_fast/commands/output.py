"""Where a command writes: a regular file that is none of its inputs, and that one run at a time may write."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_LONGEST_ID = 20  # digits of a process, and nothing else is in a lock
_START = 1000  # bytes of a file that tell its kind


def output_path(
    path: str, suffixes: tuple[str, ...], inputs: Iterable[str | os.PathLike[str]] = (), option: str = "--out"
) -> Path:
    """The file that an option names, links followed, so that what is written goes through them.

    Args:
        suffixes: the endings that its name may have, such as ".png"; none: any.
        inputs: files that the command reads.

    Raises:
        ValueError: another ending, no regular file (a pipe, a device), or one of the inputs.
        IsADirectoryError, FileNotFoundError: it is a directory, or is in none.
    """
    out, wanted = Path(os.path.realpath(path)), "the name of a file" + f" ({' or '.join(suffixes)})" * bool(suffixes)
    if not path:
        raise ValueError(f"{option}: got '', wanted {wanted}")
    for descriptor, stream in ((1, "standard output"), (2, "standard error")):
        if is_same_file(path, descriptor):  # not `out`: to a pipe, /dev/stdout leads by no name
            raise ValueError(
                f"{option}: {path!r} is the file that {stream} goes to, wanted one of its own: what a command prints "
                "goes there without an option"
            )
    if out.is_dir():
        raise IsADirectoryError(f"{option}: {path!r} is a directory, wanted {wanted}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{option}: the directory of {path!r} does not exist")
    if out.is_symlink():
        raise ValueError(f"{option}: {path!r} is a link that leads to itself, wanted the name of a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{option}: {path!r} is a pipe or a device, wanted a regular file")
    for source in inputs:
        if is_same_file(out, source):
            raise ValueError(
                f"{option}: {path!r} is the same file as the input {os.fspath(source)!r}, wanted another name"
            )
    if suffixes and out.suffix.lower() not in suffixes:
        raise ValueError(f"{option}: got {path!r}, wanted a name that ends in {' or '.join(suffixes)}")
    return out


def refuse_other_content(out: Path, start: str, kind: str, option: str) -> None:
    """Keep a file that a command of ours has not written.

    Args:
        out: as `output_path` returns it.
        start: regular expression for how the files of this kind start, all of them; an empty file is one, too.
        kind: what they are, for the message.

    Raises:
        ValueError: it starts otherwise.
    """
    if not out.exists():
        return
    with open(out, "rb") as file:
        if not re.match(start.encode(), file.read(_START)):
            raise ValueError(f"{option}: {str(out)!r} exists and is no {kind} of ours, wanted another name")


def is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str] | int) -> bool:
    """Whether two names (or a name and an open file) lead to one file, be it over links."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them does not exist, or cannot
        return False


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Hold the lock `.<out>.lock`. The system releases it with the process, whatever ends that.

    Windows has no such lock: there, nobody is kept out.

    Raises:
        ValueError: another process holds it; the message has its id.
        OSError: the directory cannot be written.
    """
    if sys.platform == "win32":
        yield
        return
    path = lock_path(out)
    descriptor = _lock(path, out)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that its name is gone
        os.close(descriptor)


def hold(descriptor: int, out: Path) -> None:
    """Hold the output itself as well, which may have another name and so another lock, until it is closed.

    Raises:
        ValueError: another process holds it.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(f"--out: {str(out)!r} is being written by another process, wanted another name") from error
    except OSError:  # a file system without locks
        return


def lock_path(out: Path) -> Path:
    """The name of the lock of an output."""
    return out.with_name(f".{out.name}.lock")


def _lock(path: Path, out: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise OSError(
                error.errno, f"--out: cannot write {path.name!r} beside {str(out)!r}: {error.strerror}"
            ) from error
        try:
            if not _is_lock(descriptor):
                raise OSError(errno.EEXIST, "it is no lock; delete it if nobody needs it, or give another name")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_same_file(path, descriptor):
                return descriptor
        except BlockingIOError as error:
            holder = os.pread(descriptor, _LONGEST_ID, 0).decode() or "unknown"
            os.close(descriptor)
            raise ValueError(
                f"--out: {str(out)!r} is being written by process {holder}; wait for it, stop it, or give another name"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise OSError(error.errno, f"--out: cannot lock {str(path)!r}: {error.strerror}") from error
        os.close(descriptor)  # its holder ended in between, and took the name with it


def _is_lock(descriptor: int) -> bool:
    held = os.fstat(descriptor)
    if not stat.S_ISREG(held.st_mode) or held.st_nlink > 1 or held.st_size > _LONGEST_ID:
        return False
    content = os.pread(descriptor, _LONGEST_ID, 0)
    return not content or content.isdigit()
