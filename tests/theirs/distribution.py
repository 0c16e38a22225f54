"""The tests that transformers' source distribution carries, of the release that is installed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

CACHE = Path(__file__).parents[2] / "build" / "transformers-tests"
# Of transformers-<version>.tar.gz on PyPI. A new pin in constraints.txt needs a new line, and a new table.
SHA256 = {"5.17.0": "a153be279169b55b92d8000bf4af294aed684503d091cca7804da2dd8a9de000"}


class Unavailable(Exception):
    """The tests cannot be had here; the message says why."""


def tests_folder() -> Path:
    """The folder tests/ of the source distribution, downloaded once and kept in build/.

    Raises:
        Unavailable: no network, or a release whose archive is not recorded.
        ValueError: the archive is not the one that is recorded.
    """
    version = transformers.__version__
    folder = CACHE / version
    if not folder.is_dir():
        if version not in SHA256:
            raise Unavailable(f"tests/theirs/distribution.py has no SHA-256 of transformers {version}")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            archive = _download(version, Path(scratch))
            _check(archive, SHA256[version])
            _unpack(archive, f"transformers-{version}/tests/", Path(scratch))
            try:
                (Path(scratch) / f"transformers-{version}" / "tests").rename(folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
    return folder


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", f"transformers=={version}", "--dest", str(folder), "--quiet"]
    command += ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--disable-pip-version-check"]
    command += ["--no-input", "--retries", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(folder.glob("transformers-*.tar.gz"))
    if done.returncode != 0 or not found:
        reason = (done.stderr.strip().splitlines() or ["pip wrote no archive"])[-1]
        raise Unavailable(f"transformers' source distribution cannot be downloaded: {reason}")
    return found[0]


def _check(archive: Path, wanted: str) -> None:
    got = hashlib.sha256(archive.read_bytes()).hexdigest()
    if got != wanted:
        raise ValueError(f"{archive.name}: got SHA-256 {got}, wanted {wanted}")


def _unpack(archive: Path, prefix: str, folder: Path) -> None:
    """The members below `prefix`: files only, so that no link leads out of the folder."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(prefix) and ".." not in Path(member.name).parts:
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, open(target, "wb") as out:
                    shutil.copyfileobj(source, out)
