"""The fuzzer: mutated inputs, each of which must be read rightly or refused by name.

    python tests/fuzz/run.py --seed 0 --cases 20000 --jobs 2
    python tests/fuzz/run.py --seed 0 --kind config --case 17       # one again, with its traceback and its files

Cases run in processes of their own, so that one that hangs, takes too much memory or ends the process is named, and
the others go on. It prints what each kind came to, and exits with 1 where a case broke the rule of registry.py.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import registry  # noqa: E402

LIMIT_S, LIMIT_BYTES = 10, 2 * 2**30
_START_S = 120  # imports and the first model, on a busy machine


def main() -> int:
    options = _parser().parse_args()
    os.environ.update(RUST_BACKTRACE="0", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    names = options.kind or [*registry.kinds()]
    if options.case is not None:
        folder = Path(tempfile.mkdtemp(prefix="vilt-fuzz-case-"))
        print(f"files: {folder}")
        print("read" if registry.run_case(names[0], options.seed, options.case, folder) else "refused")
        return 0
    todo = [(names[i % len(names)], i // len(names)) for i in range(options.cases)]
    counts, failures = _run_all(todo, options.seed, options.jobs)
    for name in names:
        found = ", ".join(f"{counts[name, ending]} {ending}" for ending in ("read", "refused", "bad"))
        print(f"{name:18} {found}")
    print(f"{len(failures)} bad of {options.cases} cases, seed {options.seed}")
    return bool(failures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="mutated inputs: read rightly, or refused by name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=500, help="of all kinds together")
    parser.add_argument("--kind", action="append", choices=[*registry.kinds()], help="only this one; may be repeated")
    parser.add_argument("--case", type=int, help="run the case of this number in this process")
    parser.add_argument("--jobs", type=int, default=1)
    return parser


class _Worker:
    """A process that runs one case after another, and the time by which it must answer."""

    def __init__(self, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, seed), daemon=True)
        self.process.start()
        other.close()
        self.case: tuple[str, int] | None = None
        self.deadline = time.monotonic() + _START_S

    def give(self, case: tuple[str, int]) -> None:
        self.case, self.deadline = case, time.monotonic() + LIMIT_S
        self.pipe.send(case)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _run_all(todo: list[tuple[str, int]], seed: int, jobs: int) -> tuple[Counter, list[str]]:
    counts: Counter = Counter()
    failures: list[str] = []
    workers = [_Worker(seed) for _ in range(min(jobs, len(todo)))]
    todo = todo[::-1]
    while workers:
        ready = wait([worker.pipe for worker in workers], timeout=0.2)
        for worker in [*workers]:
            late = time.monotonic() > worker.deadline
            if worker.pipe not in ready and not late:
                continue
            answer = _answer(worker, late)
            if worker.case is not None:
                _note(worker.case, seed, answer, counts, failures)
            if todo and worker.process.is_alive() and not late:
                worker.give(todo.pop())
                continue
            broken = answer is not None and worker.case is None
            worker.end()
            workers.remove(worker)
            if broken and answer.startswith("bad"):
                raise RuntimeError(f"a worker could not start: {answer}")
            if todo:
                workers.append(_Worker(seed))
    return counts, failures


def _answer(worker: _Worker, late: bool) -> str:
    if late and not worker.pipe.poll():
        worker.process.kill()
        return f"bad: no answer in {LIMIT_S} s"
    try:
        return worker.pipe.recv()
    except EOFError:
        worker.process.join()
        return f"bad: the process ended with {worker.process.exitcode}"


def _note(case: tuple[str, int], seed: int, answer: str, counts: Counter, failures: list[str]) -> None:
    name, number = case
    counts[name, answer.split(":")[0]] += 1
    if answer.startswith("bad"):
        failures.append(answer)
        print(f"{answer}\n    again: python tests/fuzz/run.py --seed {seed} --kind {name} --case {number}", flush=True)


def _serve(pipe: Connection, seed: int) -> None:
    """Run cases until the pipe closes; what the process writes to stderr is looked at after each."""
    warnings.simplefilter("ignore")
    errors = tempfile.TemporaryFile()
    os.dup2(errors.fileno(), 2)
    faulthandler.enable(errors)
    registry.kinds()
    import samples
    import torch

    torch.set_num_threads(1)
    samples.saved_model()
    pipe.send("ready")
    while True:
        try:
            name, number = pipe.recv()
        except EOFError:
            return
        pipe.send(_guarded(name, seed, number, errors))


def _guarded(name: str, seed: int, number: int, errors: Any) -> str:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT_BYTES, hard))
    folder = Path(tempfile.mkdtemp(prefix="vilt-fuzz-case-"))
    written = errors.seek(0, os.SEEK_END)
    try:
        ending = "read" if registry.run_case(name, seed, number, folder) else "refused"
    except BaseException as error:
        ending = f"bad: {name} {number}: {type(error).__name__}: {str(error)[:300]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    errors.seek(written)
    if b"panicked" in errors.read():
        ending = f"bad: {name} {number}: a panic on stderr"
    return ending


if __name__ == "__main__":
    sys.exit(main())
