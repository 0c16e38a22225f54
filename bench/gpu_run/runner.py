"""Runs steps, each a process with a limit of its own: one may fail, hang or be killed, and only it is lost."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vilt_fast.bench.gpu_run import archive, facts, summary
from vilt_fast.bench.gpu_run.plan import GPU, Step

LACKING = "not run: needs "
_GRACE = 5.0  # seconds that a step has for its last words
_LEAST = 3.0  # with less time left than that, no step starts
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)
# Reads the group of the step that runs; when we are gone, however that came, the pipe ends, and the group with it.
_WATCH = """
import os, signal, sys
group = 0
for line in sys.stdin:
    group = int(line)
if group:
    os.killpg(group, signal.SIGKILL)
"""


@dataclass
class Outcome:
    """What became of a step."""

    step: str
    status: str  # "ok", "failed", "too slow", "killed" or "not run: why"
    seconds: float = 0.0
    rc: int | None = None
    headline: str = ""


class Runner:
    """A part of the run.

    Args:
        work: folder for logs, facts and whatever steps write; all of it goes into the archive.
        archive: the file to write after every step.
        seconds: when all must be over.
        environment: of every step, on top of this process's.
        title: first line of the summary.
    """

    def __init__(
        self, work: Path, archive: Path, seconds: float, environment: Mapping[str, str], title: str = ""
    ) -> None:
        self.work, self.archive, self.title = work, archive, title
        self.deadline = time.monotonic() + seconds
        self.environment = {**os.environ, **environment, facts.FILE: str(self.facts)}
        self.has_gpu = self.environment.get("CUDA_VISIBLE_DEVICES") != ""  # as a rehearsal says
        self.outcomes: list[Outcome] = []
        self.is_packed = False

    @property
    def facts(self) -> Path:
        """The file of measured figures."""
        return self.work / "facts.jsonl"

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """Run steps one after the other; returns what became of each."""
        with subprocess.Popen(
            [sys.executable, "-I", "-c", _WATCH], stdin=subprocess.PIPE, start_new_session=True, text=True
        ) as self._watcher:
            return self._run_all(steps)

    def _run_all(self, steps: Sequence[Step]) -> list[Outcome]:
        for step in steps:
            print(f"=== {step.name} (at most {step.seconds} s)", flush=True)
            try:
                outcome = self._run(step)
            except BaseException as error:  # this process is to end
                self.outcomes.append(Outcome(step.name, f"interrupted: {type(error).__name__}"))
                self._keep()
                raise
            self.outcomes.append(outcome)
            self._keep()
            if outcome.rc:  # what a reader needs first; the whole of it is in the archive
                print(self._tail(step, 12))
            print(f"--- {step.name}: {outcome.status}, {outcome.seconds:.0f} s  {outcome.headline}", flush=True)
        return self.outcomes

    def _run(self, step: Step) -> Outcome:
        left = self.deadline - time.monotonic()
        if left < _LEAST:
            return Outcome(step.name, "not run: no time left")
        if step.needs == GPU and not self.has_gpu:
            return Outcome(step.name, f"{LACKING}{GPU}")
        if step.needs not in ("", GPU) and shutil.which(step.needs) is None:
            return Outcome(step.name, f"{LACKING}{step.needs}")
        started = time.monotonic()
        try:
            self._log(step).parent.mkdir(parents=True, exist_ok=True)  # a step may have removed it
            rc, is_late = self._wait(step, min(step.seconds, left))
        except OSError as error:
            return Outcome(step.name, f"not run: {error}")
        status = "too slow" if is_late else "ok" if rc == 0 else "killed" if rc < 0 else "failed"
        headline = "its log says where it stood" if is_late else self._headline(step)
        return Outcome(step.name, status, time.monotonic() - started, rc, headline)

    def _wait(self, step: Step, limit: float) -> tuple[int, bool]:
        """(exit status, whether it was ended for taking too long)."""
        environment = {**self.environment, **step.environment, facts.STEP: step.name}
        with open(self._log(step), "wb") as log:
            process = subprocess.Popen(
                step.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=_begin,
            )
        is_late = False
        try:
            self._watch(process.pid)
            process.wait(limit)
        except subprocess.TimeoutExpired:
            is_late = True
            # Python's fault handler then says where every thread stands, even one that waits for a GPU.
            os.killpg(process.pid, signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with everything that it has started
            process.wait()
            self._watch(0)
        return process.returncode, is_late

    def _watch(self, group: int) -> None:
        """Tell the watcher what to end when this process is ended."""
        assert self._watcher.stdin is not None
        with contextlib.suppress(OSError):
            self._watcher.stdin.write(f"{group}\n")
            self._watcher.stdin.flush()

    def _keep(self) -> None:
        """Put everything so far into the archive. What cannot be written now may be after the next step."""
        lines = [json.dumps(asdict(outcome)) + "\n" for outcome in self.outcomes]
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            (self.work / "outcomes.jsonl").write_text("".join(lines), encoding="utf-8")
            (self.work / "summary.txt").write_text(self.summary() + "\n", encoding="utf-8")
            left_out = archive.pack(self.work, self.archive)
            self.is_packed = True
        except OSError as error:
            self.is_packed = False
            print(f"{self.archive}: cannot be written ({error}); what was measured is in {self.work}", flush=True)
        else:
            if left_out:
                print(f"too large for the archive: {', '.join(left_out)}", flush=True)

    def summary(self) -> str:
        """Steps, predicted beside measured, and what was chosen, as text."""
        outcomes = [asdict(outcome) for outcome in self.outcomes]
        try:
            text = summary.text(outcomes, facts.read(self.facts), self.work)
        except Exception as error:  # whatever steps wrote, what became of them is told
            text = summary.text(outcomes, [], self.work / "none") + f"\n\nfacts and tables: {error!r}"
        return f"{self.title}\n\n{text}"

    def _log(self, step: Step) -> Path:
        return self.work / "logs" / f"{step.name}.log"

    def _tail(self, step: Step, count: int) -> str:
        if not self._log(step).is_file():
            return "its log is gone"
        with open(self._log(step), "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2**14))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(line[:200] for line in lines[-count:])

    def _headline(self, step: Step) -> str:
        found = [fact for fact in facts.read(self.facts) if fact["step"] == step.name and fact["name"] == step.headline]
        if found and found[-1]["value"] is not None:
            return f"{found[-1]['name']}: {found[-1]['value']:.5g} {found[-1]['unit']}"
        return " ".join(self._tail(step, 1).split())[:80]


def _begin() -> None:
    """In the new process: a group of its own, to be ended with all that it starts; and no life after ours."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
