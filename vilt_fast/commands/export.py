"""`vilt-fast export`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import vilt_fast
from vilt_fast.commands.given import check_given
from vilt_fast.commands.loading import DTYPES, PROCESSORS, described, folder_of, parse_device, print_json, printable
from vilt_fast.commands.output import output_path, sole_writer
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.export import FORMATS, Report, save
from vilt_fast.models.base import PreTrainedModel


def export(arguments: argparse.Namespace) -> None:
    """Write a model into a file that runs without this package, and print what the file is."""
    check_given(arguments)
    read = [path for name in (arguments.model, arguments.processor) if name for path in _files(name)]
    out = output_path(arguments.out, (FORMATS[arguments.format],), read)
    model, processor = _load(arguments)
    with sole_writer(out):
        report = save(
            model,
            out,
            format=arguments.format,
            processor=processor,
            progress=_say if sys.stderr.isatty() else None,
            batch=arguments.batch,
            words=arguments.words,
            image_size=arguments.size,
            regions=arguments.region_count,
            choices=arguments.choices,
        )
    if processor is None:
        print("note: no processor is beside the model: no image settings and no words are in the file", file=sys.stderr)
    if arguments.json:
        print_json(arguments, **_to_json(report))
    else:
        _print(report, arguments.out)


def _files(name_or_path: str) -> list[Path]:
    """What is read of a model on this disk."""
    path = Path(name_or_path)
    return list(path.iterdir()) if path.is_dir() else [path]


def _load(arguments: argparse.Namespace) -> tuple[PreTrainedModel, Any]:
    """The model, of the class that config.json names, and its processor; None where it has none."""
    device = parse_device(arguments.device)
    if arguments.dtype not in DTYPES:
        raise ValueError(f"--dtype: got {arguments.dtype!r}, wanted one of {', '.join(DTYPES)}")
    dtype = DTYPES[arguments.dtype]
    if arguments.model is None:
        if arguments.processor is not None:
            raise ValueError(f"--processor: got {arguments.processor!r} without --model, wanted both or neither")
        from vilt_fast import demo

        shipped, processor = demo.load()
        return shipped.to(device=device, dtype=dtype).eval(), processor
    kind = _class_of(arguments.model)
    processor = _processor(getattr(vilt_fast, PROCESSORS[kind.config_class.model_type]), arguments)
    return kind.from_pretrained(arguments.model, dtype=dtype, device=device).eval(), processor


def _class_of(name_or_path: str) -> Any:
    """The class that wrote a checkpoint; for an original .ckpt, the one for its task."""
    if Path(name_or_path).suffix == ".ckpt":
        named = ViltConfig.get_config_dict(name_or_path)[0]["architectures"]
    else:
        named = described(name_or_path)[0]
    for name in named:
        kind = getattr(vilt_fast, name) if name in vilt_fast.__all__ else None
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
            return kind
    got = ", ".join(map(repr, named)) or "none"
    raise ValueError(
        f"--model {name_or_path}: the class in config.json's architectures is to be one of ours, such as "
        f"ViltForQuestionAnswering; got {got}"
    )


def _processor(kind: Any, arguments: argparse.Namespace) -> Any:
    if arguments.processor is not None:
        return kind.from_pretrained(arguments.processor)
    try:
        return kind.from_pretrained(folder_of(arguments.model))
    except FileNotFoundError:
        return None


def _say(step: str) -> None:
    print(f"{step} ...", file=sys.stderr)


def _to_json(report: Report) -> dict[str, Any]:
    fields = {name: value for name, value in vars(report).items() if name not in ("path", "metadata")}
    axes = {name: vars(axis) for name, axis in report.axes.items()}
    return {"out": os.fspath(report.path), **fields, "axes": axes, "model_class": report.metadata["model_class"]}


def _print(report: Report, out: str) -> None:
    about, speed = report.metadata, report.file_pairs_per_s / report.eager_pairs_per_s
    print(
        f"{printable(out)}: {about['model_class']}, {report.format}, {about['dtype']}, "
        f"{report.size_bytes / 1e6:.1f} MB, in {report.seconds:.0f} s"
    )
    print(f"largest difference from the model {report.difference:.1e}, of at most {report.bound:.1e}")
    sizes = ", ".join(f"{name} {size}" for name, size in report.timed_sizes.items())
    print(f"{report.file_pairs_per_s:.4g} pairs/s, {speed:.2f} times the model's here, on a ragged batch ({sizes})")
    for name, axis in report.axes.items():
        print(f"  {name:<8}{axis}")
