"""A program compiled by AOTInductor: machine code for this kind of processor, in a package."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from vilt_fast.export.metadata import KEY, to_text
from vilt_fast.export.torch_file import read_entry


def refuse(model: Any) -> None:
    """Raise ValueError where there is no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        found = shutil.which(get_cpp_compiler())
    except InvalidCxxCompiler:
        found = None
    if found is None:
        raise ValueError(
            "format: aoti compiles C++, and no compiler is found: install g++ (or name one in the variable CXX), or "
            "choose torch or onnx"
        )


def write(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    """Compile a program into a package with its metadata; takes about a minute."""
    buffer = io.BytesIO()  # as in torch_file
    options = {"aot_inductor.metadata": {KEY: to_text(about)}}
    torch._inductor.aoti_compile_and_package(program, package_path=buffer, inductor_configs=options)
    path.write_bytes(buffer.getbuffer())


def load(path: Path) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The program in a package, from inputs to outputs by name."""
    program = torch._inductor.aoti_load_package(str(path))
    return lambda batch: program(**batch)


def read_metadata(path: Path) -> str | None:
    """The metadata of a file of ours, as it was written; None: it is another one's."""
    content = read_entry(path, "wrapper_metadata.json")
    return None if content is None else json.loads(content).get(KEY)
