"""A program in an ONNX file."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten

from vilt_fast.export.axes import Axis
from vilt_fast.export.metadata import KEY, to_text

OPSET = 18  # the first that PyTorch writes
_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
_MOST_BYTES = 2**31 - 2**24  # of a protocol buffer, less room for the graph
_SYMBOL = re.compile(r"\bs\d+\b")  # PyTorch's name of a size


def refuse(model: Any) -> None:
    """Raise ValueError for a model that an ONNX file does not hold or a CPU does not run, or without the libraries."""
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise ValueError(f"format: onnx needs {', '.join(missing)}: pip install 'vilt_fast[export]'")
    if model.dtype not in (torch.float32, torch.float16):  # it has no products of bfloat16 and no Erf of float64
        raise ValueError(
            f"model: got {str(model.dtype).removeprefix('torch.')}, which onnxruntime does not run on a CPU; wanted "
            "float32 or float16, or the format torch or aoti"
        )
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > _MOST_BYTES:
        raise ValueError(
            f"model: has {size / 1e9:.1f} GB of weights, more than the 2 GB of one ONNX file; wanted float16, or the "
            "format torch"
        )


def write(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    """Write a program with its metadata; sizes are called as its axes are."""
    import onnx

    outputs = tree_unflatten(program.graph_signature.user_outputs, program.call_spec.out_spec)
    with _quiet():
        made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, output_names=list(outputs), verbose=False)
    assert made is not None
    proto = made.model_proto
    _rename_sizes(proto.graph, about)
    del proto.graph.value_info[:]  # what is known of values between: wrong of some, over which quantisation stumbles
    onnx.helper.set_model_props(proto, {KEY: to_text(about)})
    onnx.save(proto, path)


def load(path: Path) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The model in a file, run by onnxruntime on the CPU, from inputs to outputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of each node of 16 bits that it leaves as it is
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = session.run(names, {name: value.cpu().numpy() for name, value in batch.items()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return run


def read_metadata(path: Path) -> str | None:
    """The metadata of a file of ours, as it was written; None: it is another one's."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(path, load_external_data=False)
    except DecodeError:
        return None
    return {entry.key: entry.value for entry in proto.metadata_props}.get(KEY)


def _rename_sizes(graph: Any, about: Mapping[str, Any]) -> None:
    """In the sizes of inputs and outputs, the names of axes for PyTorch's symbols: 32*rows for 32*s7."""
    symbols = {}
    for value in graph.input:
        for axis, size in zip(about["inputs"][value.name], value.type.tensor_type.shape.dim, strict=True):
            if axis is not None and (found := _SYMBOL.search(size.dim_param)):
                symbols[found[0]] = Axis(axis, **about["axes"][axis]).symbol
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = _SYMBOL.sub(lambda found: symbols.get(found[0], found[0]), size.dim_param)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporter logs of libraries that are not there, such as torchvision."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
