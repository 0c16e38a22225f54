"""What lies beside an output, or behind its name, and what becomes of it meanwhile: nothing of it is lost."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vilt_fast import cli


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current directory: two images and two questions."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (70, 70), "red").save(tmp_path / "in" / name)
    (tmp_path / "q.txt").write_text("what color\nhow many\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(models, *options: str) -> list[str]:
    return ["ask", "--images", "in", "--questions", "q.txt", "--model", models["ask"], "--out", "o.jsonl", *options]


def refused(argv, capsys) -> str:
    """What is said of a command that ends with 2 and one line."""
    capsys.readouterr()
    code = cli.main(argv)
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("make", ["symlink", "hard link", "pipe", "other content", "no number"])
def test_what_is_no_lock_is_not_written(models, place, capsys, make):
    victim, lock = place / "victim.txt", place / ".o.jsonl.lock"
    victim.write_text("keep this, it is longer than a number")
    if make == "symlink":
        lock.symlink_to(victim)
    elif make == "hard link":
        os.link(victim, lock)
    elif make == "pipe":
        os.mkfifo(lock)
    elif make == "no number":
        lock.write_bytes(b"\xff\xfe\x80")
    else:
        shutil.copy(victim, lock)
    said = refused(ask(models), capsys)
    assert ".o.jsonl.lock" in said
    assert victim.read_text() == "keep this, it is longer than a number" and os.path.lexists(lock)
    assert not (place / "o.jsonl").exists()


@pytest.mark.parametrize("name", [".o.jsonl.lock", ".o.jsonl.made.json"])
def test_what_is_kept_beside_is_no_input(models, place, capsys, name):
    (place / name).write_text("what color\n")
    argv = [name if word == "q.txt" else word for word in ask(models)]
    assert "is the same file as the input" in refused(argv, capsys)
    assert (place / name).read_text() == "what color\n"


@pytest.mark.parametrize("make", ["pipe", "link", "directory"])
def test_a_record_that_is_no_file_is_not_read(models, place, capsys, make):
    assert cli.main(ask(models)) == 0
    record = place / ".o.jsonl.made.json"
    content = record.read_bytes()
    record.unlink()
    if make == "pipe":
        os.mkfifo(record)
    elif make == "link":
        record.symlink_to("/dev/zero")
    else:
        record.mkdir()
    assert "is a link, or no regular file" in refused(ask(models), capsys)
    shutil.rmtree(record) if make == "directory" else record.unlink()
    record.write_bytes(content[:30])
    assert "give another --out, or delete 'o.jsonl' to start" in refused(ask(models), capsys)


def test_a_record_of_other_settings(models, place, capsys, tmp_path):
    """Only the configuration changed, not the weights; and the number of threads."""
    assert cli.main(ask(models)) == 0
    shutil.copytree(models["ask"], tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "layer_norm_eps": 1e-3}))
    argv = [str(tmp_path / "other") if word == models["ask"] else word for word in ask(models)]
    assert "other weights or another configuration" in refused(argv, capsys)
    record = place / ".o.jsonl.made.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "threads": 77}))
    assert "OMP_NUM_THREADS=77" in refused(ask(models), capsys)
    record.write_bytes(b"\xff\xfe{")
    said = refused(ask(models), capsys)
    assert ".o.jsonl.made.json: not a valid JSON file" in said and "delete 'o.jsonl' to start again" in said


def test_an_output_is_held_under_all_of_its_names(models, place, capsys):
    import fcntl

    assert cli.main(ask(models)) == 0
    whole = (place / "o.jsonl").read_bytes()
    os.truncate("o.jsonl", len(whole.splitlines(keepends=True)[0]))
    with open("o.jsonl", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is being written by another process" in refused(ask(models), capsys)
    assert cli.main(ask(models)) == 0 and (place / "o.jsonl").read_bytes() == whole


@pytest.mark.parametrize("change", ["remove", "empty"])
def test_an_output_that_is_taken_away_meanwhile(models, place, capsys, monkeypatch, change):
    from vilt_fast.commands import batch

    before = batch._to_json

    def first(line):
        if (place / "o.jsonl").stat().st_size:
            os.unlink("o.jsonl") if change == "remove" else os.truncate("o.jsonl", 0)
            monkeypatch.setattr(batch, "_to_json", before)
        return before(line)

    monkeypatch.setattr(batch, "_to_json", first)
    assert "was removed or changed by somebody else" in refused(ask(models), capsys)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("many", [True, False])
def test_an_output_is_not_where_the_command_prints(models, place, stream, many):
    one = ["ask", "in/a.png", "what color", "--model", models["ask"], "--json", "--out", "o.png"]
    argv = ask(models) if many else one
    with open(argv[argv.index("--out") + 1], "w") as out:
        done = subprocess.run([sys.executable, "-m", "vilt_fast.cli", *argv], **{stream: out})
    assert done.returncode == 2


def test_a_link_that_leads_to_itself(models, place, capsys):
    os.symlink("two.jsonl", "one.jsonl")
    os.symlink("one.jsonl", "two.jsonl")
    argv = ["one.jsonl" if word == "o.jsonl" else word for word in ask(models)]
    assert "is a link that leads to itself" in refused(argv, capsys)
    assert sorted(os.listdir()) == ["in", "one.jsonl", "q.txt", "two.jsonl"]


@pytest.mark.parametrize("damage", ["NaN", "CRLF", "no score"])
def test_a_whole_line_that_no_run_has_written(models, place, capsys, damage):
    assert cli.main(ask(models)) == 0
    lines = (place / "o.jsonl").read_bytes().splitlines(keepends=True)
    answer = json.loads(lines[1])
    changed = {
        "NaN": json.dumps({**answer, "score": float("nan")}).encode() + b"\n",
        "CRLF": lines[1].replace(b"\n", b"\r\n"),
        "no score": json.dumps({key: answer[key] for key in ("image", "question", "answer")}).encode() + b"\n",
    }
    (place / "o.jsonl").write_bytes(lines[0] + changed[damage])
    assert "line 2 of" in refused(ask(models), capsys)
    assert (place / "o.jsonl").read_bytes() == lines[0] + changed[damage]


def test_answers_that_are_not_finite_are_refused(models, place, capsys, tmp_path):
    for command, argv in (
        ("ask", ["what color"]),
        ("fill", ["a [MASK] cat"]),
        ("match", ["a cat", "a dog"]),
        ("nlvr", ["in/b.png", "two cats"]),
    ):
        folder = tmp_path / command
        shutil.copytree(models[command], folder)
        weights = load_file(folder / "model.safetensors")
        huge = {name: torch.where(tensor != 0, tensor.sign() * 1e30, 1e30) for name, tensor in weights.items()}
        save_file(huge, folder / "model.safetensors", metadata={"format": "pt"})
        for options in ([], ["--json"]):
            said = refused([command, "in/a.png", *argv, "--model", str(folder), *options], capsys)
            assert "not finite numbers" in said


def test_a_configuration_nested_deep_is_refused_in_time(models, place, capsys, tmp_path):
    shutil.copytree(models["ask"], tmp_path / "deep")
    (tmp_path / "deep" / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    start = time.perf_counter()
    said = refused(["ask", "in/a.png", "what color", "--model", str(tmp_path / "deep")], capsys)
    assert "config.json" in said and "nested deeper than 64 levels" in said and time.perf_counter() - start < 5
