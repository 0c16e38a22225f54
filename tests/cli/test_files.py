"""What goes in and out of the command: no input is overwritten, and no file taken for something else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vilt_fast import cli
from vilt_fast.commands.loading import printable

# --- what is written ------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current directory: in/a.png in several names, questions, a pipe, a link to an output elsewhere."""
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (70, 70), "red").save(tmp_path / "in" / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "in" / "a.png")
    os.link(tmp_path / "in" / "a.png", tmp_path / "hard.png")
    (tmp_path / "q.txt").write_text("what color\n")
    (tmp_path / "q.jsonl").write_text(json.dumps({"image": "in/a.png", "question": "what color"}) + "\n")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "out.png").symlink_to("elsewhere/new.png")
    (tmp_path / "out.jsonl").symlink_to("elsewhere/new.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ASK = ("ask", "in/a.png", "what color")
MANY = ("ask", "--images", "in", "--questions")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ((*ASK, "--out", "in/a.png"), "the same file as the input 'in/a.png'"),
        ((*ASK, "--out", "in/../in/a.png"), "the same file"),
        ((*ASK, "--out", "link.png"), "the same file"),
        ((*ASK, "--out", "hard.png"), "the same file"),
        (("ask", "link.png", "a", "--out", "hard.png"), "the same file"),
        ((*MANY, "q.txt", "--out", "q.txt"), "the same file as the input 'q.txt'"),
        (("ask", "--questions", "q.jsonl", "--out", "./q.jsonl"), "the same file as the input 'q.jsonl'"),
        ((*MANY, "what color", "--out", "in/a.png"), "the same file as the input 'in/a.png'"),
        ((*MANY, "what color", "--out", "hard.png"), "the same file"),
        ((*ASK, "--out", "x.jpg"), "got 'x.jpg', wanted a name that ends in .png"),
        ((*ASK, "--out", "x.jsonl"), ".png"),
        (("demo", "--out", "x.jpg"), ".png"),
        ((*ASK, "--out", "pipe.png"), "'pipe.png' is a pipe or a device"),
        ((*ASK, "--out", "/dev/null"), "'/dev/null' is a pipe or a device"),
        ((*MANY, "what color", "--out", "/dev/null"), "'/dev/null' is a pipe or a device"),
        ((*MANY, "what color", "--out", "pipe.png"), "pipe"),
        ((*MANY, "what color", "--out", "in"), "'in' is a directory"),
        ((*MANY, "what color", "--out", "new.png"), "got 'new.png', wanted"),
    ],
)
def test_an_output_that_would_cost_something_is_refused(fail, models, place, argv, named):
    before = {path: path.lstat() for path in place.rglob("*")}
    options = () if argv[0] == "demo" else ("--model", models["ask"])
    assert named in fail(*argv, *options)
    after = {path: path.lstat() for path in place.rglob("*")}
    assert {p: (s.st_mtime_ns, s.st_ino) for p, s in after.items()} == {
        p: (s.st_mtime_ns, s.st_ino) for p, s in before.items()
    }


def test_an_output_goes_through_a_link(run, models, place):
    run(*ASK, "--out", "out.png", "--model", models["ask"])
    run(*MANY, "what color", "--out", "out.jsonl", "--model", models["ask"])
    run(*MANY, "what color", "--out", "elsewhere/new.jsonl", "--model", models["ask"])  # the same file: continues
    assert (place / "out.png").is_symlink() and (place / "out.jsonl").is_symlink()
    with Image.open(place / "elsewhere" / "new.png") as image:
        assert image.format == "PNG"
    assert (place / "elsewhere" / "new.jsonl").read_bytes().count(b"\n") == 1
    assert {p.name for p in (place / "elsewhere").iterdir()} == {"new.png", "new.jsonl", ".new.jsonl.made.json"}


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("questions", "named"),
    [
        ("nofile.txt", "no such file: 'nofile.txt'"),
        ("my questions.txt", "no such file"),
        ("folder/questions", "no such file"),
        ("questions.list", "no such file"),
        ("nofile.ndjson", "no such file"),
        ("qestions", "no such file: 'qestions'"),
        ("qestions ", "no such file: 'qestions '"),
        ("q.txt ", "no such file: 'q.txt '"),
        ("in", "'in' is a directory"),
        ("-", "standard input"),
        ("", "got ''"),
        ("  ", "got ' '"),
        ("pipe.png", "is a pipe"),
        ("/dev/null", "is a pipe or a device"),
    ],
)
def test_what_is_no_file_does_not_become_the_question(fail, models, place, questions, named):
    said = fail(*MANY, questions, "--out", "a.jsonl", "--model", models["ask"])
    assert named in said and "--questions" in said and "wanted a question, or a file" in said
    assert not list(place.glob("*a.jsonl*"))


@pytest.mark.parametrize(
    "question", ["how many cats?", "dog?", "猫か？", "is it 3.5 m long ?", "cat/dog?", "is it No. 5"]
)
def test_what_is_a_question_stays_one(run, models, place, question):
    run(*MANY, question, "--out", "a.jsonl", "--model", models["ask"])
    assert json.loads((place / "a.jsonl").read_text())["question"] == question


@pytest.mark.parametrize("name", ["b.txt", "b.jsonl"])
def test_marks_and_ends_of_windows_are_no_part_of_a_question(run, models, place, name):
    lines = ["what color", "how many é ?"]
    if name.endswith(".jsonl"):
        lines = [json.dumps({"image": "in/a.png", "question": line}, ensure_ascii=False) for line in lines]
    (place / name).write_bytes("\r\n".join(["\ufeff" + lines[0], lines[1], ""]).encode())
    folder = ("--images", "in") if name == "b.txt" else ()
    run("ask", *folder, "--questions", name, "--out", "a.jsonl", "--model", models["ask"])
    written = [json.loads(line) for line in (place / "a.jsonl").read_text().splitlines()]
    assert [line["question"] for line in written] == ["what color", "how many é ?"]
    assert all("answer" in line for line in written)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("b.txt", "what color\nun café ?\n".encode("latin-1"), 2),
        ("b.txt", "what color\nun café ?\n".encode("utf-16"), 1),
        ("b.txt", "what color\n".encode("utf-16-be"), 1),
        ("b.txt", b"what color\n\nhow many\0\n", 3),
        ("b.jsonl", '{"image": "a.png", "question": "a"}\n'.encode("utf-16"), 1),
    ],
)
def test_a_file_of_another_encoding_is_refused_by_its_line(fail, models, place, name, content, line):
    (place / name).write_bytes(content)
    said = fail("ask", "--images", "in", "--questions", name, "--out", "a.jsonl", "--model", models["ask"])
    assert f"{name!r}, line {line}:" in said and "UTF-8" in said and "iconv" in said
    assert not list(place.glob("*a.jsonl*"))


NAN = b'{"image": "in/a.png", "question": "a", "id": %s}'


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (NAN % b"NaN", "'id'"),
        (NAN % b"[1, -Infinity]", "'id'"),
        (NAN % b"1e999", "'id'"),
        (NAN % (b"[" * 100_000 + b"]" * 100_000), "line 2"),
        (NAN % (b"9" * 10_000), "line 2"),
        (b'{"image": NaN, "question": "a", "id": 1}', "'image'"),
        (b'{"image": "in/a.png", "question": {"a": NaN}}', "'question'"),
        (b'{"image": "in/a.png", "question": "caf\xe9"}', "not UTF-8"),
        (b'{"image": "in/\xff.png", "question": "a"}', "not UTF-8"),
        (b'{"image": "in/a.png", "question": "\\ud800"}', "lone surrogate"),
        (b'{"image": "in/\\ud800.png", "question": "a"}', "in/"),
        (b'{"image": "in/a\\u0000.png", "question": "a"}', "NUL"),
        (b'{"image": "' + b"a" * 5000 + b'", "question": "a"}', "aaaa"),
        (b'{"image": "in", "question": "a"}', "directory"),
        (b'{"image": "/dev/zero", "question": "a"}', "device"),
        (b'{"image": "pipe.png", "question": "a"}', "pipe"),
        (b'"image"', "'image'"),
        (b"\xff\xfe\x00", "line 2"),
    ],
)
def test_a_bad_line_is_its_own_error_and_the_output_is_json(run, models, place, line, named):
    good = b'{"image": "in/a.png", "question": "what color", "id": 1}\n'
    (place / "b.jsonl").write_bytes(good + line + b"\n" + good)

    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    for _ in range(2):  # and it continues
        run("ask", "--questions", "b.jsonl", "--out", "a.jsonl", "--model", models["ask"])
        lines = (place / "a.jsonl").read_text(encoding="utf-8").splitlines()
        first, bad, last = (json.loads(one, parse_constant=no_constant) for one in lines)
        assert first == last and "answer" in first and named in bad["error"]
        (place / "a.jsonl").write_text("".join(one + "\n" for one in lines[:2]), encoding="utf-8")


def test_hidden_files_are_left_out_and_counted(run, models, place):
    for name in ("._a.png", ".DS_Store", ".thumbnails/a.png"):
        (place / "in" / name).parent.mkdir(exist_ok=True)
        (place / "in" / name).write_bytes(b"no image")
    shown = run(*MANY, "what color", "--out", "a.jsonl", "--model", models["ask"])
    assert shown == "a.jsonl: 1 answered, 0 with an error, 2 hidden files left out\n"


@pytest.mark.parametrize("name", ["pipe.png", "/dev/zero", "/dev/null"])
def test_a_device_is_no_directory(fail, models, place, name):
    said = fail("ask", name, "what color", "--model", models["ask"])
    assert f"IMAGE: {name!r} is a pipe or a device, wanted an image file" in said


# --- what is shown --------------------------------------------------------------------------------------------------


def test_a_terminal_obeys_no_label_question_or_name(saved, capsys, place):
    evil = "a\x1b[31m\x9b2J\u202eb\x07"
    model = saved(place / "evil", "ViltForQuestionAnswering", id2label={0: evil, 1: "été 👍"})
    assert cli.main(["ask", "in/a.png", evil, "--model", model]) == 0
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown) and shown.count(r"a\x1b[31m\x9b2J\u202eb\x07") == 2
    assert "été 👍" in shown
    assert cli.main(["ask", "in/a.png", evil, "--model", model, "--json"]) == 0
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown) and json.loads(shown)["question"] == evil
    assert cli.main(["ask", evil, "a", "--model", model]) == 2
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().err)


def test_what_is_printable_stays():
    assert printable("été 👩\u200d🚀 \u0646\u200c\u0645") == "été 👩\u200d🚀 \u0646\u200c\u0645"
    assert printable("a\udcff\n") == r"a\udcff\n"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes")
def test_a_name_that_is_no_unicode_is_shown(models, place):
    """As a process, whose output is encoded for real."""
    name = b"\xff\x1b.png"
    (place / os.fsdecode(name)).write_bytes((place / "in" / "a.png").read_bytes())
    argv = [sys.executable, "-m", "vilt_fast.cli", "ask", name, "what color", "--model", models["ask"], "--json"]
    done = subprocess.run(argv, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["image"] == "\udcff\x1b.png"


def test_a_closed_output_is_refused_in_one_line(models, place):
    command = f"exec {sys.executable} -m vilt_fast.cli ask in/a.png 'what color' --model {models['ask']} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "standard output is closed" in done.stderr


def test_an_output_that_is_full_is_refused_in_one_line(models, place):
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        argv = [sys.executable, "-m", "vilt_fast.cli", "ask", "in/a.png", "what color", "--model", models["ask"]]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_demo_on_no_images(fail):
    assert "--evaluate" in fail("demo", "--evaluate", "0")


@pytest.mark.parametrize("options", [(), ("--out", "seen.png")])
def test_a_question_too_long_is_told_what_this_command_can(fail, models, place, options):
    said = fail("ask", "in/a.png", "cat " * 38, "--model", models["ask"], *options)
    assert "40 tokens" in said and "at most 16" in said and "fewer words" in said and "truncation" not in said
