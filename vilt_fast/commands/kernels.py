"""`vilt-fast check`, `compile` and `tune`: the kernels beside their references, their machine code, their tables."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from vilt_fast.checkpoints.files import directory_path, write_atomically
from vilt_fast.commands.output import output_path, refuse_other_content


def check(arguments: argparse.Namespace) -> None:
    """Print one line per kernel and dtype: its error, the bound, and whether it is within."""
    from vilt_fast.bench.check import check_kernels

    _check_switches()
    rows = []
    if not arguments.json:
        print(f"{'operation':<18}{'dtype':<10}{'error':>11}{'bound':>11}        shape")
    for row in check_kernels(small=arguments.small):
        rows.append(row)
        if not arguments.json:
            verdict = "ok  " if row.passed else "FAIL"
            print(f"{row.operation:<18}{row.dtype:<10}{row.error:>11.2e}{row.bound:>11.2e}  {verdict}  {row.shape}")
    if arguments.json:
        print(json.dumps([{**row.__dict__, "passed": row.passed} for row in rows], indent=2))
    failed = [f"{row.operation} {row.dtype}" for row in rows if not row.passed]
    if failed:
        raise ValueError(f"outside its bound: {', '.join(failed)}")


def compile_kernels(arguments: argparse.Namespace) -> None:
    """Compile shipped configurations for targets that need not be here, and print what came of it."""
    _need_triton()
    from vilt_fast.bench.compile import compile_all
    from vilt_fast.bench.results import table

    targets = _names("--targets", arguments.targets)
    chosen: dict[str, Any] = (
        {} if arguments.operations is None else {"operations": _names("--operations", arguments.operations)}
    )
    files = _row_files(arguments)
    rows = compile_all(targets, counts=arguments.sass, **chosen)
    columns = ["target", "kernel", "config", "registers", "spill_bytes", "shared_bytes", "matrix_instructions"]
    columns += _counts() if arguments.sass else []
    for option, path in files.items():
        write_atomically(path, _as_json(rows, columns) if option == "json" else _as_csv(rows, columns))
    print(table(rows, columns))
    spilling = sorted({f"{r['target']} {r['kernel']}" for r in rows if r["spill_bytes"] and r["target"] in _NO_SPILLS})
    if spilling:
        raise ValueError(f"registers spill: {', '.join(spilling)}")


def _names(option: str, text: str) -> list[str]:
    """Names that an option lists, each once."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{option}: got {text!r}, wanted names with commas between them")
    return list(dict.fromkeys(names))


def _row_files(arguments: argparse.Namespace) -> dict[str, Path]:
    """Where --json and --csv go. Raises before anything is compiled where a file cannot be, or would be lost."""
    files: dict[str, Path] = {}
    for option, start in _STARTS.items():
        name = getattr(arguments, option)
        if name is None:
            continue
        path = output_path(name, (), option=f"--{option}")
        refuse_other_content(path, start, f"{option.upper()} file", f"--{option}")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"--{option}: nothing can be written in the directory of {name!r}")
        if path in files.values():
            raise ValueError(f"--json, --csv: got {name!r} for both, wanted two names")
        files[option] = path
    return files


def _as_json(rows: list[dict[str, Any]], columns: list[str]) -> str:
    return json.dumps([{key: row[key] for key in columns} for row in rows], indent=1) + "\n"


def _as_csv(rows: list[dict[str, Any]], columns: list[str]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _check_switches() -> None:
    """Raises ValueError where $VILT_FAST_SWITCHES names something else, or what is not made for this chip."""
    from vilt_fast.bench import check, choices

    device = check.kernel_device()
    if choices.switches():
        from vilt_fast.kernels import switches

        for name in switches.SWITCHES:
            switches.is_on(name, choices.arch(device))


def _counts() -> list[str]:
    """Columns of `--sass`."""
    from vilt_fast.bench.machine_code import Code, describe

    return [*describe(Code([], {}, set()))]


# How the files of rows start; also with spaces of another program's.
_STARTS = {"json": r"\s*($|\[\s*(\]|\{\s*\"target\"))", "csv": "$|target,kernel,config"}
_NO_SPILLS = ("sm80", "sm90")


def tune(arguments: argparse.Namespace) -> None:
    """Measure a short list of tiles for each kernel on this GPU and write the table that launchers read."""
    _need_triton()
    if arguments.out is not None:
        directory_path(arguments.out, "--out")
    from vilt_fast.bench.tune import tune as measure

    print(measure(directory=arguments.out))


def _need_triton() -> None:
    import importlib.util

    if importlib.util.find_spec("triton") is None:
        raise ValueError("the kernels need Triton, which is not installed: pip install triton")
