"""A program in the file of `torch.export.save`."""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from vilt_fast.export.metadata import KEY, to_text

_ENTRY = f"{KEY}.json"


def refuse(model: Any) -> None:
    """Raise ValueError for a model that such a file does not hold: there is none."""


def write(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    """Write a program with its metadata."""
    program = copy.copy(program)
    program.example_inputs = None  # or the file would hold that batch
    buffer = io.BytesIO()  # PyTorch's own writer of files ends the process where the disk is full
    torch.export.save(program, buffer, extra_files={_ENTRY: to_text(about)})
    path.write_bytes(buffer.getbuffer())


def load(path: Path) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The program in a file, from inputs to outputs by name."""
    program = torch.export.load(path).module()
    return lambda batch: program(**batch)


def read_metadata(path: Path) -> str | None:
    """The metadata of a file of ours, as it was written; None: it is another one's."""
    return read_entry(path, f"/extra/{_ENTRY}")


def read_entry(path: Path, ending: str) -> str | None:
    """The text of the entry in a zip archive whose name ends so; None: it is none, or there is no such entry."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith(ending)), None)
            return None if name is None else archive.read(name).decode()
    except (zipfile.BadZipFile, UnicodeDecodeError):  # damaged
        return None
