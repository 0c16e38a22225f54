"""bench/README.md: its example runs, its columns exist, and its commands parse."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from vilt_fast import cli
from vilt_fast.bench import environment, suites
from vilt_fast.bench.contestant import Row

README = Path(__file__).resolve().parents[2] / "bench" / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="not a checkout")


@pytest.fixture(scope="module")
def text() -> str:
    return README.read_text(encoding="utf-8")


def test_example_of_a_contestant_runs(text, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(example, str(README), "exec"), {})
    name, status, median_ms = capsys.readouterr().out.split()
    assert (name, status) == ("mine", "ok") and float(median_ms) > 0


def test_columns_exist(text, run):
    table = text.split("| column | says |")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line]
    named = set(re.findall(r"`(\w+)`", " ".join(cells)))
    assert len(named) > 15
    assert named <= {field.name for field in fields(Row)} | set(run.environment)
    assert set(environment.PACKAGES) <= set(run.environment)


def test_suites_are_all_there(text):
    (listed,) = re.findall(r"^Suites: .*?\. `vilt-fast tune`", text, re.DOTALL | re.MULTILINE)
    assert set(suites.SUITES) <= set(re.findall(r"`([\w-]+)`", listed))


def test_commands_parse(text):
    """Every `vilt-fast` line is one that the command line takes; what it would run is left out."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vilt-fast")]
    assert len(commands) >= 5
    for arguments in commands:
        cli._build_parser().parse_args(arguments)


def test_the_name_of_a_table(text):
    launch = pytest.importorskip("vilt_fast.kernels.launch", reason="the kernels need Triton")
    assert f"`{launch.table_name('NVIDIA H200', '3.7.1')}`" in text
