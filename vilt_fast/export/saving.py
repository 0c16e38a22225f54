"""Exported models as files, whole or none, each run beside the live model before it gets its name."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilt_fast.checkpoints.files import brief, write_atomically
from vilt_fast.export.axes import Axis, choose_axes
from vilt_fast.export.checking import Checked, Run, Speed, check, first_line, measure, refuse_non_finite
from vilt_fast.export.metadata import describe
from vilt_fast.export.program import export_axes
from vilt_fast.models.base import PreTrainedModel

# Format -> how its files' names end.
FORMATS = {"torch": ".pt2", "onnx": ".onnx", "aoti": ".pt2"}


@dataclass(frozen=True)
class Report:
    """What `save` wrote.

    Args:
        path, format: of the file.
        size_bytes: of the file.
        difference: the largest one from the live model, and `bound`: what it might be.
        seconds: exporting, writing and checking took.
        timed_sizes: of the batch on which `file_pairs_per_s` and `eager_pairs_per_s` were measured.
        axes: of the inputs, by name.
        metadata: what the file says of itself.
    """

    path: Path
    format: str
    size_bytes: int
    difference: float
    bound: float
    seconds: float
    timed_sizes: dict[str, int]
    file_pairs_per_s: float
    eager_pairs_per_s: float
    axes: dict[str, Axis]
    metadata: dict[str, Any]


def save(
    model: PreTrainedModel,
    path: str | os.PathLike[str],
    *,
    format: str,
    processor: Any = None,
    progress: Callable[[str], None] | None = None,
    batch: int | None = None,
    words: int | None = None,
    image_size: tuple[int, int] | None = None,
    regions: int | None = None,
    choices: int | None = None,
    strict: bool = False,
) -> Report:
    """Export a model into a file, run the file on other sizes beside the live model, and only then give it its name.

    The check takes memory for a second copy of the weights, in float64.

    Args:
        model, batch, words, image_size, regions, choices, strict: as for `to_program`.
        path: the file; in place of an older export or an empty file, but of nothing else.
        format: "torch": a program of torch.export (.pt2); "onnx" (.onnx); "aoti": compiled by AOTInductor (.pt2), which
            runs on processors like this one and takes a C++ compiler.
        processor: whose image settings and vocabulary go into the metadata; None: the file has none.
        progress: called with the name of each step, before it.

    Raises:
        ValueError: as from `to_program`; another format or ending; a model that the format cannot hold; a library or a
            compiler is missing; the file, once run, does not give what the model gives. Nothing is left.
        FileNotFoundError, IsADirectoryError: of `path`. OSError: it cannot be written; the old file stays.
    """
    kind = _format(format)
    sizes = {"batch": batch, "words": words, "image_size": image_size, "regions": regions, "choices": choices}
    axes = choose_axes(model, **sizes)  # type: ignore[arg-type]
    kind.refuse(model)
    path = _destination(path, format)
    about = describe(model, axes, format, processor)
    refuse_non_finite(model, axes)
    say, start = progress or (lambda step: None), time.perf_counter()
    outcome: list[tuple[Checked, Speed]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch about itself
        say("reading the model's graph")
        program = export_axes(model, axes, strict=strict)

        def fill(temporary: Path) -> None:
            with _workshop(temporary, path.suffix) as made:
                say(f"writing {path.name}" + ", which the C++ compiler takes a minute for" * (format == "aoti"))
                kind.write(program, made, about)
                say("running the file beside the model")
                run = _load(kind, made)
                outcome.append((check(run, model, axes), measure(run, model, axes)))

        write_atomically(path, fill)
    checked, speed = outcome[0]
    return Report(
        path=path,
        format=format,
        size_bytes=path.stat().st_size,
        seconds=time.perf_counter() - start,
        axes=axes,
        metadata=about,
        **checked._asdict(),
        **speed._asdict(),
    )


def _format(name: str) -> Any:
    """The module that writes and reads a format."""
    if not isinstance(name, str) or name not in FORMATS:
        raise ValueError(f"format: got {name!r}, wanted {', '.join(FORMATS)}")
    return importlib.import_module(f"vilt_fast.export.{name}_file")


def _destination(path: str | os.PathLike[str], format: str) -> Path:
    """Where to write: a name that ends as the format's do, of nothing or of an older export."""
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path):
        raise ValueError(f"path: got {path!r}, wanted the name of a file")
    named, suffix = Path(path), FORMATS[format]
    if named.suffix != suffix:
        raise ValueError(f"path: got {brief(os.fspath(path))}, wanted a name that ends in {suffix}, as of {format}")
    if named.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"path: {brief(os.fspath(path))} is a directory, wanted a file")
    if not named.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"path: the directory of {brief(os.fspath(path))} does not exist")
    if os.path.lexists(named) and not is_export(named):
        raise ValueError(f"path: {brief(os.fspath(path))} exists and is no export of ours, wanted another name")
    return named


def is_export(path: Path) -> bool:
    """Whether a file, of any of the formats, is one that `save` wrote; an empty one counts."""
    if not path.is_file():
        return False
    if path.stat().st_size == 0:
        return True
    readers = [name for name, suffix in FORMATS.items() if suffix == path.suffix]
    return any(_format(name).read_metadata(path) is not None for name in readers)


def _load(kind: Any, made: Path) -> Run:
    """The file as something to run; a runtime refuses what it has no code for when it loads it."""
    try:
        return kind.load(made)
    except Exception as error:
        raise ValueError(f"the file that was made does not load: {first_line(error)}") from error


@contextmanager
def _workshop(temporary: Path, suffix: str) -> Iterator[Path]:
    """A file to write in a folder of its own, for writers that want its ending or make more; it becomes `temporary`.

    The folder's name is one that the next save takes for a leftover, should this one be killed.
    """
    folder = temporary.with_name(f"{temporary.name}.d")
    folder.mkdir()
    try:
        made = folder / f"model{suffix}"
        yield made
        os.replace(made, temporary)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
