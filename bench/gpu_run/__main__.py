"""python -m vilt_fast.bench.gpu_run --part 1 --out OUT"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from vilt_fast.bench import choices, environment
from vilt_fast.bench.gpu_run import plan
from vilt_fast.bench.gpu_run.runner import Runner

CONFIGS = "VILT_FAST_CONFIGS"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a part; 0 if every step that ran went well and the archive was written."""
    arguments = _arguments(argv)
    device = _device(arguments.rehearse)
    steps = plan.steps(arguments.part, arguments.work, choices.available(device), quick=arguments.rehearse)
    names = [step.name for step in steps]
    wanted = arguments.steps.split(",") if arguments.steps else names
    if unknown := [name for name in wanted if name not in names]:
        raise SystemExit(f"--steps: got {unknown[0]!r}, wanted any of {', '.join(names)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    _copy_tables(arguments.work / "configs")
    archive = arguments.out / f"part{arguments.part}.tar.gz"
    where = environment.environment(device)
    (arguments.work / "environment.json").write_text(json.dumps(where, indent=1) + "\n", encoding="utf-8")
    title = f"part {arguments.part}, commit {where['commit']}, {where['device']}, Triton {where['triton']}"
    title += "; a rehearsal: the figures mean nothing" if arguments.rehearse else ""
    given = _environment(arguments.work, where["commit"], arguments.rehearse)
    runner = Runner(arguments.work, archive, 60 * arguments.minutes, given, title)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through the runner, which keeps all
    try:
        # A CPU at a rehearsal is shared with others.
        slack = 4 if arguments.rehearse else 1
        outcomes = runner.run([step._replace(seconds=slack * step.seconds) for step in steps if step.name in wanted])
    finally:
        print("\n" + runner.summary())
        print(
            f"\neverything is in {archive}" if runner.is_packed else f"\nno archive: see {arguments.work}", flush=True
        )
    return int(not runner.is_packed or any(outcome.rc for outcome in outcomes))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parts = "; ".join(f"{part}: {about}" for part, about in plan.PARTS.items())
    parser = argparse.ArgumentParser(prog="python -m vilt_fast.bench.gpu_run", description=parts)
    parser.add_argument("--part", type=int, required=True, choices=tuple(plan.PARTS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the archive, partN.tar.gz")
    parser.add_argument("--work", type=Path, help="folder for logs and results until then (default: a temporary one)")
    parser.add_argument("--steps", help="only these of the part's steps, comma-separated")
    parser.add_argument("--minutes", type=float, default=plan.PART_SECONDS / 60, help="when all is over (default: 9)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU: the figures mean nothing")
    arguments = parser.parse_args(argv)
    arguments.work = (arguments.work or Path(tempfile.mkdtemp(prefix="vilt-fast-gpu-run-"))).resolve()
    return arguments


def _device(rehearse: bool) -> torch.device:
    """Where the run is.

    Raises:
        SystemExit: no GPU, and this is no rehearsal.
    """
    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here; --rehearse runs everything tiny on the CPU")
    return torch.device("cpu" if rehearse else "cuda")


def _copy_tables(target: Path) -> None:
    """Steps read and write tables in the work folder, which starts with those that the caller uses."""
    target.mkdir(parents=True, exist_ok=True)
    for table in Path(os.environ[CONFIGS]).glob("*.json") if os.environ.get(CONFIGS) else ():
        shutil.copy(table, target)


def _environment(work: Path, commit: str, rehearse: bool) -> dict[str, str]:
    """Variables of every step."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    found = {CONFIGS: str(work / "configs"), "VILT_FAST_COMMIT": commit}
    found |= {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "TOKENIZERS_PARALLELISM": "false"}
    return found | ({"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"} if rehearse else {})


if __name__ == "__main__":
    sys.exit(main())
