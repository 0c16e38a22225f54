"""ViLT that answers questions, exported, on the same clocks: padded programs beside the packed live and frozen form."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from vilt_fast.bench import case as vilt
from vilt_fast.bench import ours, workloads
from vilt_fast.bench.contestant import Calls, Contestant, Unavailable
from vilt_fast.bench.workloads import Workload
from vilt_fast.export import to_program

# --- workloads --------------------------------------------------------------------------------------------------------


def mixed(batch_size: int, seed: int = 0) -> Workload:
    """The sizes and lengths of vqa-mix: images lie and stand, so that padding makes them all large squares."""
    return replace(workloads.vqa_mix(batch_size, seed), name="export-mixed")


def full(batch_size: int, seed: int = 0) -> Workload:
    """The padded batch of `mixed` with nothing to pad: every image as high and as wide, every text as long."""
    work = mixed(batch_size, seed)
    height, width = (max(size[axis] for size in work.sizes) for axis in (0, 1))
    return Workload("export-full", ((height, width),) * batch_size, (max(work.lengths),) * batch_size)


WORKLOADS: dict[str, Callable[..., Workload]] = {"export-mixed": mixed, "export-full": full}


# --- the formats ------------------------------------------------------------------------------------------------------


def program(case: vilt.Case, dtype: torch.dtype) -> ExportedProgram:
    """The case's model for any batch, words, height and width."""

    def make() -> ExportedProgram:
        # Contestants are made in inference mode, whose tensors cannot be traced: the weights are copied.
        with torch.inference_mode(False), torch.no_grad():
            model = type(case.master)(case.config)
            model.load_state_dict(case.master.state_dict())
            return to_program(model.eval().to(case.device, dtype).requires_grad_(False))

    return vilt._shared(f"program {dtype} {case.device} {case.key}", make)


def _inputs(case: vilt.Case, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    return [{**one, "token_type_ids": torch.zeros_like(one["input_ids"])} for one in case.inputs_in(dtype)]


def program_calls(case: vilt.Case, dtype: torch.dtype) -> Calls:
    """The program as torch.export.load gives it back, run by PyTorch."""
    return _answers(program(case, dtype).module(), _inputs(case, dtype))


def onnx_calls(case: vilt.Case, dtype: torch.dtype) -> Calls:
    """The program as ONNX, run by onnxruntime with as many threads as PyTorch has.

    Raises:
        Unavailable: on a GPU, or where a package is missing.
    """
    _need_cpu(case)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx.export imports it late
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed: pip install 'vilt_fast[export]'") from error

    def make() -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
            path = str(Path(folder) / "model.onnx")
            torch.onnx.export(program(case, dtype), (), path, output_names=["logits"], dynamo=True, verbose=False)
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    session = vilt._shared(f"onnx {dtype} {case.key}", make)
    names = [node.name for node in session.get_inputs()]

    def call(one: dict[str, Any]) -> Tensor:
        return torch.from_numpy(session.run(["logits"], one)[0])

    arrays = [{name: one[name].numpy() for name in names} for one in _inputs(case, dtype)]
    return [partial(call, one) for one in arrays]


def inductor_calls(case: vilt.Case, dtype: torch.dtype) -> Calls:
    """The program as an AOTInductor package: compiled C++ for this CPU.

    Raises:
        Unavailable: on a GPU, or without a C++ compiler.
    """
    _need_cpu(case)
    if not any(map(shutil.which, ("g++", "clang++"))):
        raise Unavailable("needs a C++ compiler")

    def make() -> Any:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
            path = str(Path(folder) / "model.pt2")
            torch._inductor.aoti_compile_and_package(program(case, dtype), package_path=path)
            return torch._inductor.aoti_load_package(path)

    return _answers(vilt._shared(f"aoti {dtype} {case.key}", make), _inputs(case, dtype))


def _answers(model: Callable[..., Mapping[str, Tensor]], inputs: list[dict[str, Tensor]]) -> Calls:
    def call(one: dict[str, Tensor]) -> Tensor:
        return model(**one)["logits"]

    return [partial(call, one) for one in inputs]


def _need_cpu(case: vilt.Case) -> None:
    if case.device.type != "cpu":
        raise Unavailable("is written for a CPU here")


# --- the list ---------------------------------------------------------------------------------------------------------


def contestants(dtype: torch.dtype) -> list[Contestant]:
    """The live form, which the others are compared with, the frozen one, and one for each format."""
    live, frozen = (partial(make, dtype=dtype, backend="reference") for make in (ours.model_calls, ours.frozen_calls))
    return [
        Contestant("vilt_fast live, reference", dtype, live, is_ours=True),
        Contestant("vilt_fast frozen, reference", dtype, frozen, is_ours=True),
        Contestant("torch.export program", dtype, partial(program_calls, dtype=dtype), is_ours=True),
        Contestant("ONNX in onnxruntime", dtype, partial(onnx_calls, dtype=dtype), is_ours=True),
        Contestant("AOTInductor package", dtype, partial(inductor_calls, dtype=dtype), is_ours=True, compiles=True),
    ]
