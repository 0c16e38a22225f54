"""What a continued `vilt-fast ask --out` promises: the bytes of a run that nothing interrupted, or a refusal."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vilt_fast import cli
from vilt_fast.commands import batch
from vilt_fast.engine import Engine

TIMEOUT_S = 120


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    """A folder with 12 pictures, one of them damaged, and pairs.jsonl with 150 pairs, some of which are bad."""
    root, rng = tmp_path_factory.mktemp("task"), np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (*rng.integers(50, 140, 2), 3), np.uint8)).save(root / f"{number:02}.png")
    (root / "11.png").write_bytes((root / "10.png").read_bytes()[:200])
    words = "what color is the red cat on couch ? how many dog".split()
    with open(root / "pairs.jsonl", "w") as file:
        for number in range(150):
            pair = {"image": f"{number % 13:02}.png", "question": " ".join(rng.choice(words, rng.integers(1, 12)))}
            file.write("not JSON\n" if number % 29 == 3 else json.dumps({**pair, "id": number}) + "\n")
    return root


@pytest.fixture(scope="module")
def whole(task, models, tmp_path_factory) -> bytes:
    """What a run writes that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    assert cli.main(command(task, models, out)) == 0
    assert out.read_bytes().count(b"\n") == 150
    return out.read_bytes()


def command(task: Path, models: dict[str, str], out: Path, *options: str) -> list[str]:
    return ["ask", "--questions", str(task / "pairs.jsonl"), "--out", str(out), "--model", models["ask"], *options]


def started(argv: list[str]) -> subprocess.Popen:
    """The command in a process of its own with as many threads as this one."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "vilt_fast.cli", *argv], env=environment, **pipes)


def record_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.made.json")


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- the same bytes -------------------------------------------------------------------------------------------------


def test_cut_anywhere_it_ends_with_the_same_bytes(task, models, whole, tmp_path, capsys):
    out, rng = tmp_path / "answers.jsonl", random.Random(0)
    assert cli.main(command(task, models, out)) == 0
    files = files_in(tmp_path)
    assert set(files) == {"answers.jsonl", ".answers.jsonl.made.json"} and files["answers.jsonl"] == whole
    for cut in (0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(12))):
        out.write_bytes(whole[:cut])
        assert cli.main(command(task, models, out)) == 0
        assert files_in(tmp_path) == files, f"cut at {cut}"
    assert capsys.readouterr().err == ""


def test_a_batch_depends_on_the_place_in_the_list_alone(task, models, monkeypatch, tmp_path, run):
    """Batches begin at multiples of 16, also in a run that continues."""
    seen, submit = [], Engine.submit_batch

    def submit_batch(self, pairs):
        seen.append([(Path(image).name, text) for image, text in pairs])
        return submit(self, pairs)

    monkeypatch.setattr(Engine, "submit_batch", submit_batch)
    out = tmp_path / "answers.jsonl"
    run(*command(task, models, out))
    first = list(seen)
    seen.clear()
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:50]))
    run(*command(task, models, out))
    assert seen == first[50 // batch._BATCH :] and len(first) == -(-150 // batch._BATCH)


def test_no_byte_depends_on_how_the_folder_is_spelled(task, models, tmp_path, monkeypatch, capsys):
    """10.png is right, 11.png is damaged: its error names it as the line does. A line with an error stays."""
    folder, out = tmp_path / "in", tmp_path / "answers.jsonl"
    folder.mkdir()
    for name in ("10.png", "11.png"):
        shutil.copy(task / name, folder)
    monkeypatch.chdir(tmp_path)

    def ask(spelled: str, *options: str) -> str:
        argv = ["ask", "--images", spelled, "--questions", "what color", "--out", str(out), "--model", models["ask"]]
        assert cli.main([*argv, *options]) == 0
        return capsys.readouterr().out

    ask("in")
    files = files_in(tmp_path)
    assert b"'11.png'" in out.read_bytes()
    for spelled in ("./in/", str(folder), "in/../in"):
        out.write_bytes(out.read_bytes().splitlines(keepends=True)[0])
        ask(spelled)
        assert files_in(tmp_path) == files, spelled
    assert "0 with an error, 2 were there before (1 with an error, which stay; to ask again, " in ask("in")
    assert json.loads(ask("in", "--json"))["errors_before"] == 1


def kill_at_random(task: Path, models: dict[str, str], whole: bytes, folder: Path, seed: int) -> int:
    """Kill a run at random lines until one is through; returns the number of kills."""
    out, rng, kills = folder / "answers.jsonl", random.Random(seed), 0
    while True:
        process = started(command(task, models, out))
        before = out.stat().st_size if out.exists() else 0
        goal, deadline = before + rng.randrange(len(whole) // 4, len(whole) // 2), time.monotonic() + TIMEOUT_S
        while process.poll() is None and (out.stat().st_size if out.exists() else 0) < goal:
            assert time.monotonic() < deadline
            time.sleep(0.001 * rng.random())
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, said
            return kills
        kills += 1


def test_killed_at_random_it_ends_with_the_same_bytes(task, models, whole, tmp_path):
    assert kill_at_random(task, models, whole, tmp_path, seed=1) >= 1
    assert (tmp_path / "answers.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_50_random_kills(task, models, whole, tmp_path):
    kills = 0
    for seed in range(100):
        folder = tmp_path / str(seed)
        folder.mkdir()
        kills += kill_at_random(task, models, whole, folder, seed)
        assert (folder / "answers.jsonl").read_bytes() == whole, f"seed {seed}"
        if kills >= 50:
            break
    assert kills >= 50


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB; skipped where it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def test_a_full_disk_five_times(task, models, whole, small_disk, capsys):
    """One line that names the file and says what to do; once there is room, the rest, without a byte lost."""
    out, filler = small_disk / "answers.jsonl", small_disk / "filler"
    page = os.sysconf("SC_PAGE_SIZE")
    assert len(whole) > 5 * page
    for pages in range(1, 6):
        with open(filler, "wb") as file:  # beside it: the answers so far and a page more, the record and the lock
            os.posix_fallocate(file.fileno(), 0, 65536 - (pages + 2) * page)
        code, said = cli.main(command(task, models, out)), capsys.readouterr().err
        assert code == 2 and said.count("\n") == 1 and "No space left" in said and "answers.jsonl" in said, said
        kept = out.read_bytes()
        assert len(kept) == pages * page and whole.startswith(kept)
        filler.unlink()
    assert cli.main(command(task, models, out)) == 0
    assert out.read_bytes() == whole


LIMITED = """
import resource, sys
from vilt_fast import cli
for limit in (2000, 4100, 4101, 8000, 12_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    assert cli.main(sys.argv[1:]) == 2
    print(len(open(sys.argv[sys.argv.index("--out") + 1], "rb").read()))
"""


def test_a_limit_of_the_files_size_five_times(task, models, whole, tmp_path):
    """As a full disk, where none can be mounted: every byte up to the limit is right."""
    out = tmp_path / "answers.jsonl"
    assert len(whole) > 12_000
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    argv = [sys.executable, "-c", LIMITED, *command(task, models, out)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (0, "2000\n4100\n4101\n8000\n12000\n"), done.stderr
    for line in done.stderr.splitlines():
        assert "File too large" in line and "answers.jsonl" in line and "again" in line
    assert done.stderr.count("\n") == 5 and out.read_bytes() == whole[:12_000]
    assert cli.main(command(task, models, out)) == 0
    assert out.read_bytes() == whole


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def half(task, models, whole, tmp_path) -> Path:
    """Half of the answers, with the record of what made them."""
    out = tmp_path / "answers.jsonl"
    assert cli.main(command(task, models, out)) == 0
    out.write_bytes(whole[: len(whole) // 2])
    return out


def test_a_mix_is_refused(task, models, half, tmp_path, fail, capsys, saved, monkeypatch):
    other = saved(tmp_path / "other", "ViltForQuestionAnswering", num_hidden_layers=1)
    base = command(task, models, half)
    for options, named in (
        (("--top", "2"), "top 5, now 2; repeat it with --top 5"),
        (("--dtype", "bfloat16"), "dtype float32, now bfloat16; repeat it with --dtype float32"),
        (("--model", other), f"other weights or another configuration ({models['ask']!r}, now {other!r})"),
    ):
        said = fail_same(fail, capsys, half, [*base, *options])
        assert named in said and "another --out, or delete " in said
    processor = saved(tmp_path / "processor", "ViltForQuestionAnswering")
    settings = Path(processor) / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.5", "0.4"))
    assert "another processor" in fail_same(fail, capsys, half, [*base, "--processor", processor])
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    said = fail_same(fail, capsys, half, base)
    assert f"threads {threads}, now {threads + 1}; repeat it with OMP_NUM_THREADS={threads}" in said


def test_other_variables_of_the_environment_are_refused(task, models, whole, tmp_path, fail, capsys, monkeypatch):
    out = tmp_path / "answers.jsonl"
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert cli.main(command(task, models, out)) == 0
    assert json.loads(record_of(out).read_text())["environment"]["MKL_CBWR"] == "COMPATIBLE"
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:140]))
    monkeypatch.delenv("MKL_CBWR")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    said = fail_same(fail, capsys, out, command(task, models, out))
    assert "ATEN_CPU_CAPABILITY unset, now default; MKL_CBWR COMPATIBLE, now unset" in said
    assert "repeat it with the environment as it was" in said
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert cli.main(command(task, models, out)) == 0
    assert out.read_bytes() == b"".join(lines)


def fail_same(fail, capsys, half: Path, argv: list[str]) -> str:
    """The refusal, which leaves the file and its record as they were, and no other file."""
    capsys.readouterr()
    names = sorted(half.parent.iterdir())
    before = half.read_bytes(), record_of(half).read_bytes()
    said = fail(*argv)
    assert (half.read_bytes(), record_of(half).read_bytes()) == before
    assert sorted(half.parent.iterdir()) == names
    return said


def test_the_same_weights_elsewhere_are_no_mix(task, models, half, whole, tmp_path, run, capsys):
    capsys.readouterr()
    shutil.copytree(models["ask"], tmp_path / "copy")
    run(*command(task, {"ask": str(tmp_path / "copy")}, half))
    assert half.read_bytes() == whole and models["ask"] in record_of(half).read_text()


def test_other_images_or_questions_are_refused(task, models, tmp_path, fail, run, capsys):
    folder, questions, out = tmp_path / "in", tmp_path / "questions.txt", tmp_path / "answers.jsonl"
    folder.mkdir()
    for name in ("00.png", "01.png"):
        shutil.copy(task / name, folder)
    questions.write_text("what color\nhow many\n")
    argv = ["ask", "--images", str(folder), "--questions", str(questions), "--out", str(out), "--model", models["ask"]]
    run(*argv)
    out.write_bytes(out.read_bytes().splitlines(keepends=True)[0])
    shutil.copy(task / "02.png", folder / "01.png")
    assert "other questions or images" in fail_same(fail, capsys, out, argv)
    image = folder / "01.png"
    content = (task / "01.png").read_bytes()
    for place in (1000, len(content) // 2, len(content) - 20):  # of the same size
        image.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert "other questions or images" in fail_same(fail, capsys, out, argv)
    image.write_bytes(content)
    with open(questions, "a") as file:
        file.write("is there a dog ?\n")
    assert "other questions or images" in fail_same(fail, capsys, out, argv)


def test_a_file_of_an_earlier_version_is_refused(task, models, half, whole, fail, run, capsys):
    record_of(half).unlink()
    capsys.readouterr()
    said = fail(*command(task, models, half))
    assert ".answers.jsonl.made.json" in said and "earlier version" in said and "another --out" in said
    assert half.read_bytes() == whole[: len(whole) // 2] and not record_of(half).exists()
    half.write_bytes(b"")  # nothing in it that another model could have said
    run(*command(task, models, half))
    assert half.read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b'"question"', b'"question'),
        lambda line: line[: len(line) // 2] + b"\n",
        lambda line: b"\0" * 40 + line,
        lambda line: b'{"image": "00.png"}\n',
        lambda line: b'{"image":' + b"[" * 100_000 + b"\n",
        lambda line: line.replace(b"0", b"\xff", 1),
        lambda line: b"\n",
    ],
    ids=["quote", "half", "NULs", "no answer", "nested", "no UTF-8", "empty"],
)
def test_a_damaged_line_is_refused_by_its_number(task, models, half, fail, capsys, damage):
    lines = half.read_bytes().splitlines(keepends=True)
    lines[4] = damage(lines[4])
    half.write_bytes(b"".join(lines))
    said = fail_same(fail, capsys, half, command(task, models, half))
    assert "line 5" in said and "answers.jsonl" in said and "another" in said


@pytest.mark.parametrize("kept", [0, 700, "a line"])
def test_nuls_at_the_end_are_cut_off(task, models, half, whole, capsys, kept):
    """What a crash of the system leaves of blocks that were never written."""
    kept = whole.index(b"\n") + 1 if kept == "a line" else kept
    half.write_bytes(whole[:kept] + bytes(4096))
    capsys.readouterr()
    assert cli.main(command(task, models, half)) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cut off 4096 NUL" in said and "answers.jsonl" in said
    assert half.read_bytes() == whole


# --- one writer -----------------------------------------------------------------------------------------------------


def test_a_second_run_is_told_who_holds_the_file(task, models, tmp_path, fail, run):
    out, lock = tmp_path / "answers.jsonl", tmp_path / ".answers.jsonl.lock"
    (tmp_path / "link.jsonl").symlink_to(out)
    code = "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.write(str(os.getpid()))"
    code += "; f.flush(); print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        for name in (out, tmp_path / "link.jsonl"):
            said = fail(*command(task, models, name))
            assert f"process {holder.pid}" in said and "answers.jsonl" in said
        assert not out.exists()
        holder.kill()
    run(*command(task, models, out))  # the lock went with its holder
    assert not lock.exists()


@pytest.mark.slow
def test_two_runs_at_once_write_each_line_once(task, models, whole, tmp_path):
    out = tmp_path / "answers.jsonl"
    runs = [started(command(task, models, out)) for _ in range(2)]
    ends = [(process.communicate(timeout=TIMEOUT_S)[1], process.returncode) for process in runs]
    assert out.read_bytes() == whole
    codes = sorted(code for _, code in ends)
    assert codes in ([0, 0], [0, 2])  # one after the other, or refused
    for said, code in ends:
        assert code == 0 or ("is being written by process" in said and said.count("\n") == 1)


def test_the_lock_is_of_the_file_that_has_the_name(tmp_path):
    """A lock whose name its holder removed while we waited for it is none."""
    from vilt_fast.commands.output import sole_writer

    out, lock = tmp_path / "a.jsonl", tmp_path / ".a.jsonl.lock"
    with sole_writer(out):
        assert lock.read_text() == str(os.getpid())
        with open(lock, "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ValueError, match=f"written by process {os.getpid()}"), sole_writer(out):
            pass
    assert not list(tmp_path.iterdir())
