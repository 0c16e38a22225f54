"""python -m vilt_fast.bench.gpu_run --part 1 --out OUT"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vilt_fast.bench import choices, environment
from vilt_fast.bench.gpu_run import plan
from vilt_fast.bench.gpu_run.runner import LACKING, Runner

CONFIGS = "VILT_FAST_CONFIGS"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a part; 0 if every step went well and the archive was written. A rehearsal may lack a GPU and profilers."""
    arguments = _arguments(argv)
    device = _device(arguments.rehearse)
    steps = plan.steps(arguments.part, arguments.work, choices.available(device), quick=arguments.rehearse)
    wanted = _wanted(arguments.steps, [step.name for step in steps])
    # A CPU at a rehearsal is shared with others.
    slack = 4 if arguments.rehearse else 1
    steps = [step._replace(seconds=slack * step.seconds) for step in steps if step.name in wanted]
    _copy_tables(arguments.work / "configs")
    archive = _archive(arguments.out, f"part{arguments.part}")
    where = environment.environment(device)
    (arguments.work / "environment.json").write_text(json.dumps(where, indent=1) + "\n", encoding="utf-8")
    title = f"part {arguments.part}, commit {where['commit']}, {where['device']}, Triton {where['triton']}"
    title += "; a rehearsal: the figures mean nothing" if arguments.rehearse else ""
    given = _environment(arguments.work, where["commit"], arguments.rehearse)
    runner = Runner(arguments.work, archive, 60 * arguments.minutes, given, title)
    with _ending_signals():
        try:
            outcomes = runner.run(steps)
        finally:
            where_all_is = f"everything is in {archive}" if runner.is_packed else f"no archive: see {arguments.work}"
            print(f"\n{runner.summary()}\n\n{where_all_is}", flush=True)
    bad = [one for one in outcomes if one.rc != 0 and not (arguments.rehearse and one.status.startswith(LACKING))]
    return int(not runner.is_packed or bool(bad))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parts = "; ".join(f"{part}: {about}" for part, about in plan.PARTS.items())
    parser = argparse.ArgumentParser(prog="python -m vilt_fast.bench.gpu_run", description=parts)
    parser.add_argument("--part", type=int, required=True, choices=tuple(plan.PARTS))
    parser.add_argument("--out", type=_path, required=True, help="folder of the archive, partN.tar.gz")
    parser.add_argument("--work", type=_path, help="folder for logs and results until then (default: a temporary one)")
    parser.add_argument("--steps", help="only these of the part's steps, comma-separated")
    parser.add_argument(
        "--minutes", type=_minutes, default=plan.PART_SECONDS / 60, help="when all is over (default: 9)"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU: the figures mean nothing")
    arguments = parser.parse_args(argv)
    arguments.work = arguments.work or Path(tempfile.mkdtemp(prefix="vilt-fast-gpu-run-")).resolve()
    return arguments


def _path(text: str) -> Path:
    """Relative to where bench/run_gpu.sh was called, which then goes to the checkout."""
    return (Path(os.environ.get("VILT_FAST_CALLED_IN", "")) / text).resolve()


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a positive number")
    return minutes


def _wanted(text: str | None, names: Sequence[str]) -> Sequence[str]:
    """The steps that --steps names.

    Raises:
        SystemExit: it names another, or none.
    """
    wanted = names if text is None else [name.strip() for name in text.split(",")]
    if unknown := [name for name in wanted if name not in names]:
        raise SystemExit(f"--steps: got {unknown[0]!r}, wanted any of {', '.join(names)}")
    return wanted


def _archive(out: Path, name: str) -> Path:
    """A file that is not there yet: what an earlier run brought stays.

    Raises:
        SystemExit: the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise SystemExit(f"--out: cannot write to {out}: {error}") from error
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(path for path in (out / f"{one}.tar.gz" for one in names) if not path.exists())


@contextlib.contextmanager
def _ending_signals() -> Iterator[None]:
    """Signals that end a process do it through the runner, which keeps all; those that are ignored stay so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _device(rehearse: bool) -> torch.device:
    """Where the run is.

    Raises:
        SystemExit: no GPU, and this is no rehearsal.
    """
    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here; --rehearse runs everything tiny on the CPU")
    return torch.device("cpu" if rehearse else "cuda")


def _copy_tables(target: Path) -> None:
    """Steps read and write tables in the work folder, which starts with those that the caller uses.

    Raises:
        SystemExit: one is no table, or there is no such folder.
    """
    from vilt_fast.kernels import launch

    target.mkdir(parents=True, exist_ok=True)
    if not os.environ.get(CONFIGS):
        return
    folder = _path(os.environ[CONFIGS])
    if not folder.is_dir():
        raise SystemExit(f"${CONFIGS}: got {folder}, wanted a folder with tables")
    for table in sorted(folder.glob("*.json")):
        if not table.is_file():
            raise SystemExit(f"{table}: got no file, wanted a table")
        try:
            launch.read_table(table)
        except (ValueError, OSError) as error:
            raise SystemExit(str(error)) from error
        shutil.copy(table, target)


def _environment(work: Path, commit: str, rehearse: bool) -> dict[str, str]:
    """Variables of every step."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    found = {CONFIGS: str(work / "configs"), "VILT_FAST_COMMIT": commit}
    found |= {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not {"TRITON_CACHE_DIR", "TRITON_HOME"} & os.environ.keys():
        # The home folder may not be writable; parts that follow find the kernels compiled.
        found["TRITON_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"vilt-fast-triton-{os.getuid()}")
    return found | ({"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"} if rehearse else {})


if __name__ == "__main__":
    sys.exit(main())
