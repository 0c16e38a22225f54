"""The GPU run on a CPU: what breaks costs only itself, and what was finished is in the archive."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast import cli  # noqa: E402
from vilt_fast.bench import contestant, operations, workloads  # noqa: E402
from vilt_fast.bench.case import Case, full_config  # noqa: E402
from vilt_fast.bench.choices import switches  # noqa: E402
from vilt_fast.bench.gpu_run import archive, facts, measure, plan, runner, summary  # noqa: E402
from vilt_fast.bench.gpu_run.__main__ import main  # noqa: E402
from vilt_fast.bench.gpu_run.plan import Step  # noqa: E402


def shell(name: str, script: str, seconds: int = 20, **options) -> Step:
    return Step(name, seconds, ("sh", "-c", script), **options)


def contents(path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read().decode() for entry in tar}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs steps and gives what became of each by name, and the archive's files."""
    monkeypatch.setattr(runner, "_GRACE", 0.3)

    def run(*steps: Step, seconds: float = 60, title: str = ""):
        made = runner.Runner(tmp_path / "work", tmp_path / "part.tar.gz", seconds, {}, title)
        outcomes = {outcome.step: outcome for outcome in made.run(steps)}
        return outcomes, contents(tmp_path / "part.tar.gz")

    return run


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


FACT = json.dumps({"step": "fine", "name": "speed", "value": 2, "unit": "x"})


# --- steps that break -------------------------------------------------------------------------------------------------


def test_what_breaks_costs_only_itself(run, tmp_path):
    pids = tmp_path / "pids"
    record = f'echo $$ >>{pids}; sleep 1000 & echo $! >>{pids}; echo "waiting"; '
    outcomes, files = run(
        shell("fails", "echo bad luck; exit 3"),
        shell("hangs", record + "wait", 1),
        shell("deaf", f"trap '' ABRT TERM; {record} while true; do sleep 0.1; done", 1),
        shell("killed", "echo soon; kill -9 $$"),
        shell("loud", "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo the end"),
        Step("missing", 5, ("no-such-program",)),
        shell("unneeded", "echo never", needs="no-such-program"),
        shell("fine", f"echo '{FACT}' >>$VILT_FAST_FACTS", headline="speed"),
        title="rehearsal",
    )
    status = {name: outcome.status for name, outcome in outcomes.items()}
    assert status["fails"] == "failed" and outcomes["fails"].rc == 3
    assert status["hangs"] == status["deaf"] == "too slow" and outcomes["hangs"].seconds < 9
    assert status["killed"] == "killed" and outcomes["killed"].rc == -signal.SIGKILL
    assert status["loud"] == status["fine"] == "ok" and outcomes["fine"].headline == "speed: 2 x"
    assert status["missing"].startswith("not run: ") and status["unneeded"] == "not run: needs no-such-program"
    assert not any(map(_is_alive, map(int, pids.read_text().split()))), "what a step started goes with it"
    assert files["logs/fails.log"] == "bad luck\n" and "waiting" in files["logs/hangs.log"]
    assert len(files["logs/loud.log"]) < 300_000 and files["logs/loud.log"].endswith("xx\nthe end\n")
    assert [json.loads(line)["step"] for line in files["outcomes.jsonl"].splitlines()] == list(outcomes)
    assert files["summary.txt"].startswith("rehearsal\n") and "bad luck" in files["summary.txt"]


def test_the_time_of_all(run):
    """Steps end with the part, and none begins after it."""
    outcomes, _ = run(shell("long", "sleep 60"), shell("late", "echo late"), seconds=3.5)
    assert outcomes["long"].status == "too slow" and outcomes["long"].seconds < 12
    assert outcomes["late"].status == "not run: no time left"


def test_nothing_in_the_work_folder_ends_the_run(run, tmp_path):
    """Facts that are none, tables that are none, a log and a folder that are gone."""
    lines = ["[1]", "7", '{"name": "x"}', json.dumps({**json.loads(FACT), "value": "fast"})]
    facts_file = tmp_path / "lines"
    facts_file.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n" + FACT.encode() + b"\n")
    configs = "mkdir -p configs/folder.json; echo '[1]' >configs/a.json; echo '{\"entries\": [1]}' >configs/b.json; "
    configs += 'echo \'{"entries": [{"op": "switches"}]}\' >configs/c.json'
    here = f"cd {tmp_path}/work; "
    outcomes, files = run(
        shell("fine", f"cat {facts_file} >>$VILT_FAST_FACTS", headline="speed"),
        shell("tables", here + configs),
        shell("half_a_fact", f"echo '{json.dumps({**json.loads(FACT), 'switch': 1})}' >>$VILT_FAST_FACTS"),
        shell("no_log", here + "rm logs/no_log.log; exit 1"),
        shell("no_folder", f"rm -r {tmp_path}/work; exit 1"),
        shell("last", "echo here"),
    )
    assert [one.status for one in outcomes.values()] == ["ok", "ok", "ok", "failed", "failed", "ok"]
    assert outcomes["fine"].headline == "speed: 2 x" and outcomes["no_log"].headline == "its log is gone"
    assert files["logs/last.log"] == "here\n" and len(files["outcomes.jsonl"].splitlines()) == 6


def test_tables_that_are_none_are_told_in_the_summary(tmp_path):
    (tmp_path / "configs" / "folder.json").mkdir(parents=True)
    for name, content in {"a": "[1]", "b": '{"entries": [{"op": "switches"}]}', "c": '{"entries": [1]}'}.items():
        (tmp_path / "configs" / f"{name}.json").write_text(content)
    text = summary.text([], [], tmp_path)
    assert all(f"{name}.json: not a table" in text for name in ("a", "b", "c", "folder"))


# --- the archive ------------------------------------------------------------------------------------------------------


def test_an_archive_that_cannot_be_written(run, monkeypatch, capsys):
    """A full folder ends nothing; what is missing comes with the next step."""
    real, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(archive.os, "replace", full)
    outcomes, files = run(shell("first", "echo 1"), shell("second", "echo 2"))
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}
    assert "No space left on device" in capsys.readouterr().out
    assert files["logs/first.log"] == "1\n" and files["logs/second.log"] == "2\n"


def test_what_is_too_large_is_left_out(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "small.json").write_text("{}")
    (folder / "large.bin").write_bytes(os.urandom(200_000))
    assert archive.pack(folder, tmp_path / "a.tar.gz", most_bytes=100_000) == ["large.bin"]
    assert list(contents(tmp_path / "a.tar.gz")) == ["small.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "work"], "nothing unfinished stays"


SCRIPT = """
import signal, sys
from pathlib import Path
from vilt_fast.bench.gpu_run.plan import Step
from vilt_fast.bench.gpu_run.runner import Runner
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder = Path(sys.argv[1])
steps = [Step("first", 9, ("echo", "done")), Step("second", 99, ("sh", "-c", "sleep 99 & echo $$ $!; exec sleep 99"))]
Runner(folder / "work", folder / "part.tar.gz", 99, {}).run(steps)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_whole_run_ends_in_the_middle(tmp_path, number):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.DEVNULL)
    log = tmp_path / "work" / "logs" / "second.log"
    _until(lambda: log.is_file() and log.read_text().strip())
    process.send_signal(number)
    process.wait(20)
    files = contents(tmp_path / "part.tar.gz")
    assert files["logs/first.log"] == "done\n" and '"step": "first", "status": "ok"' in files["outcomes.jsonl"]
    assert ("interrupted: SystemExit" in files["outcomes.jsonl"]) == (number == signal.SIGTERM)
    _until(lambda: not any(_is_alive(int(pid)) for pid in log.read_text().split()))


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", plan.PARTS)
def test_parts(part, tmp_path):
    """Every part fits, and every command is one that there is."""
    steps = plan.steps(part, tmp_path, list(switches()))
    names = [step.name for step in steps]
    assert len(set(names)) == len(names) and all(name.replace("_", "").isalnum() for name in names)
    assert sum(step.seconds for step in steps) <= plan.PART_SECONDS
    for step in steps:
        command = [*step.command]
        assert command[0] == sys.executable or step.needs == command[0]
        if "-m" not in command:
            continue
        module, *arguments = command[command.index("-m") + 1 :]
        if module == "vilt_fast.cli":
            cli._build_parser().parse_args(arguments)
        elif module == "vilt_fast.bench.gpu_run.measure":
            assert arguments[0] in measure.STEPS
        elif module == "pytest":
            assert os.path.isdir(arguments[-1]) or not os.path.isdir("tests")
    if part == 3:
        assert {f"switch_{name}" for name in switches()} < set(names)


def test_a_rehearsal_is_tiny_and_never_published(tmp_path):
    filing = [step for part in plan.PARTS for step in plan.steps(part, tmp_path, [], quick=True)]
    filing = [step.command for step in filing if {"bench", "ablate"} & {*step.command}]
    assert len(filing) > 5 and all(command[-1] == "--quick" for command in filing)
    assert not any("--quick" in step.command for part in plan.PARTS for step in plan.steps(part, tmp_path, []))


def test_a_step_that_needs_a_gpu(tmp_path):
    for hidden, status in (("", "not run: needs a GPU"), ("0", "ok")):
        made = runner.Runner(tmp_path / "work", tmp_path / "a.tar.gz", 60, {"CUDA_VISIBLE_DEVICES": hidden})
        assert made.run([shell("tune", "true", needs=plan.GPU)])[0].status == status


def test_the_profiler_finds_the_kernels_of_a_block():
    """By the names that they have on a GPU."""
    from vilt_fast.kernels import attention, layer_norm, linear_tiles

    kernels = [linear_tiles.linear_descriptor, linear_tiles.linear_pointer]
    kernels += [attention.attention_kernel, layer_norm._layer_norm_kernel]
    assert all(re.match(plan.PROFILED, kernel.__name__) for kernel in kernels)
    assert not re.match(plan.PROFILED, "vectorized_elementwise_kernel")


def test_predictions():
    for name, wanted in facts.predictions().items():
        assert set(wanted) == {"value", "unit", "why"} and wanted["value"] > 0 and len(wanted["why"]) > 5, name


# --- rehearsals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    path = tmp_path / "facts.jsonl"
    monkeypatch.setenv(facts.FILE, str(path))
    return lambda: {fact["name"]: fact for fact in facts.read(path)}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("smoke 1", "smoke B=1: operations that agree"),
        ("live", "live B=2: vilt_fast live, reference"),
        ("frozen", "frozen B=2: vilt_fast frozen, reference, packed uint8"),
        ("engine", "engine: vilt_fast Engine"),
        ("compiled", "compiled B=2: ours to the packed rival"),
        ("vit", "vit-mixed B=2: ours to transformers"),
        ("visual_bert", "visual-bert-mixed B=2: ours to transformers"),
    ],
)
def test_steps_that_measure(command, name, recorded):
    assert measure.main(*command.split()) == 0
    assert recorded()[name]["value"] > 0


def test_names_on_a_gpu(recorded, monkeypatch, case):
    """On a pretended GPU: what the summary and the predictions name are facts that steps find."""

    def time(suite, case, contestants):
        rows = [contestant.new_row(suite, case, one, {}) for one in contestants]
        return [dataclasses.replace(row, median_ms=2.0, pairs_per_s=1.0) for row in rows]

    monkeypatch.setattr(measure, "GPU", True)
    monkeypatch.setattr(measure, "DTYPE", torch.bfloat16)
    monkeypatch.setattr(measure, "BATCHES", (256, 64, 8, 1))
    monkeypatch.setattr(measure, "make_run", lambda *_, **options: SimpleNamespace(time=time))
    monkeypatch.setattr(measure, "case_of", lambda run, batch, **options: case)
    monkeypatch.setattr(measure.end_to_end, "ImageCase", lambda like, quick: like)
    steps = ("encoder", "compiled", "live", "frozen", "engine", "vit", "visual_bert")
    assert [measure.main(step) for step in steps] == [0] * len(steps)
    headlines = [step for part in (1, 2, 6, 8, 9) for step in plan.steps(part, Path("work"), [])]
    headlines = {step.headline for step in headlines if step.command[-1] in steps}
    predicted = {name for name in facts.predictions() if name.replace("-", "_").startswith(steps)}
    assert headlines | predicted <= set(recorded()) and len(headlines) == 7 and len(predicted) > 20
    batch = Case(workloads.vqa_mix(256), full_config(workloads.vqa_mix(256)), torch.device("cpu"))
    for name in ("linear", "layer_norm", "attention"):
        for found in operations.timed_cases(name, batch):
            is_predicted = f"{found.operation} B=256, {found.shape}" in facts.predictions()
            assert is_predicted == (found.operation in measure.IN_A_BLOCK)


def test_a_fact_that_cannot_be_found_costs_no_other(recorded, monkeypatch):
    real = measure.case_of
    monkeypatch.setattr(measure, "BATCHES", (1, 2))

    def case_of(run, batch, **options):
        if batch == 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(run, batch, **options)

    monkeypatch.setattr(measure, "case_of", case_of)
    assert measure.main("ops") == 1
    assert recorded()["twelve blocks B=1"]["failed"].startswith("RuntimeError: CUDA error: an illegal memory")
    assert recorded()["twelve blocks B=2"]["value"] > 0


def test_a_part_end_to_end(tmp_path, capsys, monkeypatch):
    """Real processes: a switch, and the table of those that win."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    name = next(name for name, switch in switches().items() if switch.operations == ("attention",))
    chosen = f"switch_{name},choose"
    arguments = ["--rehearse", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    handler = signal.getsignal(signal.SIGTERM)
    assert main(["--part", "3", "--steps", chosen, *arguments]) == 0
    assert signal.getsignal(signal.SIGTERM) == handler
    printed = capsys.readouterr().out
    assert "a rehearsal: the figures mean nothing" in printed and re.search(rf"{name} +encoder +\d", printed)
    files = contents(tmp_path / "out" / "part3.tar.gz")
    assert {f"logs/{step}.log" for step in chosen.split(",")} < set(files)
    (table,) = (path for path in files if path.startswith("configs/"))
    assert json.loads(files[table])["arch"] == "interpreter" and table in printed
    assert len(list((tmp_path / "out").iterdir())) == 1, "a part comes back as one file"


def test_without_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="no CUDA GPU here; --rehearse"):
        main(["--part", "1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--steps: got 'smok', wanted any of env, smoke_1"):
        main(["--part", "1", "--out", str(tmp_path), "--rehearse", "--steps", "smok"])


def test_installing_without_a_network_and_without_pip(tmp_path):
    """The script copies the packages side by side where pip cannot install, and steps find them."""
    script = Path(__file__).resolve().parents[2] / "bench" / "run_gpu.sh"
    if not script.exists() or sys.version_info < (3, 11):
        pytest.skip("needs a checkout, and Python 3.11 for PYTHONSAFEPATH")
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join({str(Path(module.__file__).parents[1]) for module in (torch, triton)}))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = pip ] && exit 1\nexec {tmp_path}/venv/bin/python "$@"\n')
    python.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VILT_FAST_COMMIT")}
    environment = {**kept, "PYTHON": str(python), "TMPDIR": str(tmp_path), "VILT_FAST_COMMIT": "abc123"}
    command = ["bash", str(script), "--part", "1", "--out", str(tmp_path / "out"), "--rehearse", "--steps", "env"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "pip cannot install here" in done.stdout and "commit abc123" in done.stdout
    log = contents(tmp_path / "out" / "part1.tar.gz")["logs/env.log"]
    assert re.search(rf"installed at +{tmp_path}/tmp\.\w+/vilt_fast\n", log), log
