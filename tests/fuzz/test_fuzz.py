"""500 mutated files: each is read rightly or refused by name; and the fuzzer notices what it is there for."""

import os
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).with_name("run.py")


def _run(*arguments, script=RUN):
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "RUST_BACKTRACE": "0"}
    )


def test_500_cases():
    done = _run("--cases", "500")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 bad of 500 cases, seed 0" in done.stdout


BROKEN = """
import os, sys, time
import numpy
from registry import kind

def end(number, folder):
    print("thread panicked" if number == 5 else "", file=sys.stderr)
    if number == 0: time.sleep(60)
    if number == 1: os._exit(3)
    if number == 2: numpy.zeros(2**32)
    if number == 3: raise KeyError("raw")
    if number == 4: raise ValueError("something, somewhere")
    if number == 6: raise ValueError(f"{folder}: not so")

for n in range(8):
    function = lambda rng, folder, n=n: end(n, folder)
    function.__name__ = f"broken_{n}"
    kind(function)
"""
ENDINGS = [
    "no answer in 2 s",
    "process ended with 3",
    "MemoryError",
    "KeyError: 'raw'",
    "no refusal that names",
    "a panic",
]


def test_what_breaks_the_rule_is_named_with_how_to_run_it_again(tmp_path):
    for path in RUN.parent.glob("*.py"):
        if not path.name.startswith(("kinds_", "test_")):
            text = path.read_text().replace("LIMIT_S, LIMIT_BYTES = 10", "LIMIT_S, LIMIT_BYTES = 2")
            (tmp_path / path.name).write_text(text)
    (tmp_path / "kinds_broken.py").write_text(BROKEN)
    (tmp_path / "samples.py").write_text("def saved_model(): pass")
    done = _run("--cases", "8", "--seed", "7", script=tmp_path / "run.py")
    lines = done.stdout.splitlines()
    for number, ending in enumerate(ENDINGS):
        at = next(i for i, line in enumerate(lines) if f"--seed 7 --kind broken_{number} --case 0" in line)
        assert ending in lines[at - 1]
    assert done.returncode == 1 and "6 bad of 8 cases, seed 7" in done.stdout
    assert "1 refused" in next(line for line in lines if line.startswith("broken_6"))
    assert "1 read" in next(line for line in lines if line.startswith("broken_7"))
    alone = _run("--seed", "7", "--kind", "broken_3", "--case", "0", script=tmp_path / "run.py")
    assert alone.returncode == 1 and "KeyError: 'raw'" in alone.stderr
