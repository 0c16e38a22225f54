"""What a file of answers was made from, and where the run that continues it has to start.

The record `.<out>.made.json` stands beside the file. Nothing in it depends on when or where a run was made, so that two
equal runs give equal bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

import vilt_fast
from vilt_fast import ops
from vilt_fast.checkpoints.files import read_json, write_atomically
from vilt_fast.commands.loading import DTYPES, printable
from vilt_fast.commands.questions import Entry, Input

_FIRST = b'{"image":'  # how every line of the output starts
_PIECE = 16_384  # bytes of an image's file
_SUBJECT = "model"  # of the record: for the reader alone, as a model may be moved; its weights tell what it is
_NOT_OF_WEIGHTS = ("_name_or_path", "name_or_path", "dtype", "torch_dtype", "transformers_version")
# They decide how a CPU, or PyTorch's own GPU kernels, compute. OMP_NUM_THREADS is told by the number of threads.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY DNNL_DEFAULT_FPMATH_MODE DNNL_MAX_CPU_ISA ONEDNN_DEFAULT_FPMATH_MODE ONEDNN_MAX_CPU_ISA "
    "MKL_CBWR MKL_DEBUG_CPU_TYPE MKL_DOMAIN_NUM_THREADS MKL_DYNAMIC MKL_ENABLE_INSTRUCTIONS MKL_NUM_THREADS "
    "OMP_DYNAMIC OPENBLAS_CORETYPE OPENBLAS_NUM_THREADS "
    "CUBLAS_WORKSPACE_CONFIG NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
).split()
_HINTS = {
    "threads": "OMP_NUM_THREADS={}",
    "environment": "the environment as it was",
    "top": "--top {}",
    "dtype": "--dtype {}",
    "backend": "--backend {}",
}


class Done(NamedTuple):
    """What an earlier run has written."""

    lines: int = 0
    size: int = 0  # bytes of these lines
    errors: int = 0  # lines with an error


def record_path(out: Path) -> Path:
    """The name of the record of a file of answers."""
    return out.with_name(f".{out.name}.made.json")


def what_makes(arguments: argparse.Namespace, model: Any, processor: Any, given: Input) -> dict[str, Any]:
    """All that decides the bytes of the answers."""
    device = model.device.type
    is_on_kernels = device == "cuda" and not ops.is_switched("reference", *ops.OPERATIONS)
    unit = torch.cuda.get_device_name(model.device) if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "versions": f"vilt_fast {vilt_fast.__version__}, torch {torch.__version__}",
        _SUBJECT: arguments.model or "the model that ships with the package",
        "weights": _digest_weights(model),
        "processor": _digest_processor(processor),
        "top": arguments.top,
        "dtype": str(DTYPES[arguments.dtype]).removeprefix("torch."),
        "device": f"{device} ({unit})",
        "backend": "kernels" if is_on_kernels else "reference",
        # On the kernels no sum depends on it.
        "threads": None if is_on_kernels else torch.get_num_threads(),
        "environment": None if is_on_kernels else _environment(),
        "input": _digest_input(given),
    }


def _environment() -> dict[str, str] | None:
    return {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)} or None


def _digest_weights(model: Any) -> str:
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_OF_WEIGHTS}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_processor(processor: Any) -> str:
    if hasattr(processor, "tokenizer"):
        settings = dict(processor.tokenizer.files_to_save())
        if hasattr(processor, "image_processor"):
            settings["image"] = processor.image_processor.to_dict()
    else:
        settings = {"image": processor.to_dict()}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _digest_input(given: Input) -> str:
    """Of all that is asked and of the images' files."""
    digest, images = hashlib.sha256(), dict[Path, str | None]()
    for entry in given.entries():
        if entry.path not in images:
            images[entry.path] = _digest_image(entry.path) if entry.error is None else None
        digest.update(json.dumps([entry.asked, entry.error, images[entry.path]]).encode())
    return digest.hexdigest()


def _digest_image(path: Path) -> str | None:
    """Of a file's size, start, middle and end: to read all of it would take too long. None if it cannot be read."""
    if not os.path.isfile(path):  # not Path.is_file, which raises on too long a name
        return None
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            for start in (0, (size - _PIECE) // 2, size - _PIECE):
                file.seek(max(start, 0))
                digest.update(file.read(_PIECE))
            return digest.hexdigest()
    except OSError:
        return None


def keep_record(out: Path, made: dict[str, Any], done: int) -> None:
    """Write down what makes the file, or, where it has answers, check that the same made them.

    Raises:
        ValueError: something else made them, or nobody knows what did; nothing was changed.
    """
    path = record_path(out)
    if not done:
        write_atomically(path, json.dumps(made, indent=2) + "\n")
        return
    advice = f"give another --out, or delete {out.name!r} to start again"
    if not os.path.lexists(path):
        raise ValueError(
            f"--out: {str(out)!r} has {done} answers, but {path.name} beside it, which says what made them, is missing "
            f"(an earlier version wrote none); {advice}"
        )
    if not path.is_file() or path.is_symlink():
        raise ValueError(f"--out: {path.name!r} beside {str(out)!r} is a link, or no regular file; {advice}")
    try:
        kept = read_json(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"--out: {error}; {advice}") from error
    differing = [name for name in made if name != _SUBJECT and kept.get(name) != made[name]]
    if "dtype" in differing and "weights" in differing:
        differing.remove("weights")  # in another dtype the same weights are other bytes
    if differing:
        found = "; ".join(_difference(name, kept, made) for name in differing)
        again = " and ".join(_HINTS[name].format(kept.get(name)) for name in differing if name in _HINTS)
        repeat = f"repeat it with {again}, " if set(differing) <= set(_HINTS) else ""
        raise ValueError(f"--out: {str(out)!r} was made otherwise: {found}; {repeat}{advice}")


def _difference(name: str, kept: dict[str, Any], made: dict[str, Any]) -> str:
    if name == "weights":
        return f"other weights or another configuration ({kept.get(_SUBJECT)!r}, now {made[_SUBJECT]!r})"
    if name == "processor":
        return "another processor (vocabulary or image settings)"
    if name == "input":
        return "other questions or images"
    if name == "environment":
        return _variables(kept.get(name), made[name])
    return f"{name} {kept.get(name)}, now {made[name]}"


def _variables(kept: Any, made: Any) -> str:
    """The variables of the environment that were set otherwise."""
    before, now = (value if isinstance(value, dict) else {} for value in (kept, made))
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    shown = (f"{name} {before.get(name, 'unset')}, now {now.get(name, 'unset')}" for name in names)
    return "; ".join(shown) or f"environment {kept!r}, now {made!r}"


def already_done(file: BinaryIO, out: Path, entries: Iterator[Entry], result: str = "answer") -> Done:
    """The whole lines that an earlier run has written; one with an error stays as well.

    A line without an end is left out: that run was stopped while it wrote. So are NULs, which a crash of the system
    leaves at the end of a file.

    Args:
        result: what a line with no error has beside its score: "answer" or "label".

    Raises:
        ValueError: the file is something else, the output of another input, or has a damaged line.
    """
    done = kept_bytes = errors = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            rest = line.rstrip(b"\0")
            _check_start(rest, out)
            if rest != line:
                nuls = len(line) - len(rest)
                print(
                    f"{printable(str(out))}: cut off {nuls} NUL bytes that a crash left after line {done}",
                    file=sys.stderr,
                )
            break
        _check_start(line, out, number)
        entry = next(entries, None)
        written = _parse(line, out, number)
        if entry is None or not _is_about(entry, written):
            raise ValueError(
                f"--out: line {number} of {str(out)!r} is about another image or question than the input, wanted the "
                "output of the same input, or another name"
            )
        if not (_is_result(written, result) or isinstance(written.get("error"), str)):
            raise ValueError(_damaged(out, number, f"no {result} and no error in it"))
        done, kept_bytes, errors = number, kept_bytes + len(line), errors + ("error" in written)
    return Done(done, kept_bytes, errors)


def _check_start(line: bytes, out: Path, number: int = 1) -> None:
    if line.startswith(_FIRST[: len(line)]):
        return
    if number > 1:
        raise ValueError(_damaged(out, number, "it does not start as an answer does"))
    raise ValueError(f"--out: {str(out)!r} exists and is not a file of answers, wanted another name")


def _parse(line: bytes, out: Path, number: int) -> dict[str, Any]:
    try:
        written = json.loads(line.decode(errors="surrogatepass"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(_damaged(out, number, str(error))) from error
    if not isinstance(written, dict):
        raise ValueError(_damaged(out, number, "no object"))
    if line.endswith(b"\r\n"):
        raise ValueError(_damaged(out, number, "it ends as lines on Windows do"))
    return written


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _is_about(entry: Entry, written: dict[str, Any]) -> bool:
    asked = json.loads(json.dumps(entry.asked))
    return all(written.get(name) == asked.get(name) for name in {*asked, "question"})


def _is_result(written: dict[str, Any], result: str) -> bool:
    types = {result: str, "score": int | float, "top": list}
    return all(isinstance(written.get(name), kind) for name, kind in types.items())


def _damaged(out: Path, number: int, reason: str) -> str:
    return (
        f"--out: line {number} of {str(out)!r} is damaged ({reason}); nothing was changed: delete that line and all "
        "after it to continue from there, or give another name"
    )
