"""What `vilt-fast ask --images --questions` takes for a question and for an image, and what it says of the rest."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilt_fast import cli
from vilt_fast.commands.questions import read_questions

PAIR = '{"image": "a.png", "question": "what color"}\n'


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current directory: in/a.png."""
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (70, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(models, questions: str, folder: str = "in") -> list[str]:
    return ["ask", "--images", folder, "--questions", questions, "--out", "o.jsonl", "--model", models["ask"]]


# --- files of questions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["q.JSONL", "q.Ndjson"])
def test_an_ending_counts_in_any_case(place, name):
    (place / name).write_text(PAIR)
    (entry,) = read_questions(name, "in").entries()
    assert entry.asked == {"image": "a.png", "question": "what color"} and entry.error is None


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (PAIR, 1),
        ("\ufeff\n\n  " + PAIR, 3),
        ("{\n", 1),
        (f"[{PAIR}]", 1),
        (f"[\n{PAIR}]", 1),
        ('["what color"]', 1),
        ("\n[\n", 2),
    ],
)
@pytest.mark.parametrize("name", ["q.json", "q", "q.txt"])
def test_json_is_not_asked_as_text(fail, models, place, name, content, line):
    (place / name).write_text(content, encoding="utf-8")
    said = fail(*ask(models, name))
    assert f"{name!r}, line {line}: JSON" in said and "named .jsonl" in said and "jq" in said
    assert not list(place.glob("*o.jsonl*"))


def test_a_bracket_alone_is_no_json(place):
    (place / "q.txt").write_text("[MASK] is red ?\n[1] what color\n")
    assert read_questions("q.txt", "in").total == 2


@pytest.mark.parametrize("content", ["", "\n \r\n", "\ufeff\n"])
def test_lines_without_a_question_are_refused(fail, models, place, content):
    (place / "q.jsonl").write_text(content, encoding="utf-8")
    assert "'q.jsonl' has no question in it" in fail(*ask(models, "q.jsonl"))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"image": "a.png", "question": ""}', "got '' as 'question'"),
        ('{"image": "a.png", "question": " "}', "got ' ' as 'question'"),
        ('{"image": "", "question": "a"}', "got '' as 'image'"),
        (f"[{PAIR.strip()}]", "got a list, wanted an object"),
        ("null", "got None, wanted an object"),
        ('{"image": "a.png", "question": "%s"}' % ("a " * 50_001), "got a question of 100002 characters"),
        ('{"image": "a.png", "question": "a", "id": "%s"}' % ("a" * 2**22), "longer than 4194304 bytes"),
    ],
)
def test_a_line_that_asks_nothing_is_its_own_error(place, line, named):
    (place / "q.jsonl").write_text(PAIR + line + "\n" + PAIR)
    first, bad, last = read_questions("q.jsonl", "in").entries()
    assert first == last and first.error is None
    assert bad.error is not None and bad.error.startswith("q.jsonl, line 2: ") and named in bad.error


def deep(levels: int) -> str:
    """A line with this many levels, the line's own included."""
    inner = "[" * (levels - 1) + "]" * (levels - 1)
    return PAIR.replace("}", f', "id": {inner}}}')


@pytest.mark.parametrize("levels", [64, 65, 500, 980, 5000])
def test_how_deep_a_line_may_be_depends_on_nobody(place, levels):
    (place / "q.jsonl").write_text(PAIR + deep(levels))

    def read(frames: int) -> str | None:
        return list(read_questions("q.jsonl", "in").entries())[1].error if frames == 0 else read(frames - 1)

    wanted = None if levels <= 64 else "q.jsonl, line 2: nested deeper than 64 levels"
    assert read(0) == read(sys.getrecursionlimit() // 2) == wanted


def test_a_question_too_long_is_refused_by_its_line(fail, models, place):
    (place / "q.txt").write_text("what color\n\n" + "é" * 100_001 + "\n")
    assert "'q.txt', line 3: got a question of 100001 characters" in fail(*ask(models, "q.txt"))
    (place / "q.txt").write_text("é" * 100_000)
    assert read_questions("q.txt", "in").total == 1


def test_a_file_of_texts_larger_than_any_is_not_read(fail, models, place):
    with open("film.mp4", "wb") as file:
        file.truncate(2**40)
    assert f"'film.mp4' has {2**40} bytes, wanted at most {2**28}" in fail(*ask(models, "film.mp4"))


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["ask", "", "what color"], "IMAGE"),
        (["ask", "in/a.png", ""], "QUESTION"),
        (["ask", "in/a.png", " \t"], "QUESTION"),
        (["ask", "in/a.png", "what", "--model", ""], "--model"),
        (["ask", "in/a.png", "what", "--model", "m", "--processor", ""], "--processor"),
        (["ask", "in/a.png", "what", "--out", ""], "--out"),
        (["ask", "--images", "", "--questions", "what color", "--out", "o.jsonl"], "--images"),
        (["ask", "--images", "in", "--questions", "", "--out", "o.jsonl"], "--questions"),
        (["fill", "in/a.png", "", "--model", "m"], "TEXT"),
        (["match", "in/a.png", "a", "", "--model", "m"], "TEXT"),
        (["nlvr", "in/a.png", "", "a", "--model", "m"], "IMAGE"),
        (["nlvr", "in/a.png", "in/a.png", "", "--model", "m"], "TEXT"),
        (["demo", "--out", ""], "--out"),
    ],
)
def test_what_is_empty_is_refused_by_its_name(fail, place, argv, named):
    assert f"vilt-fast {argv[0]}: {named}: got" in fail(*argv)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["ask", "in/a.png", "is it \udcff ?"], "QUESTION"),
        (["ask", "--images", "in", "--questions", "is it \udcff ?", "--out", "o.jsonl"], "--questions"),
        (["match", "in/a.png", "a", "is it \udcff ?", "--model", "m"], "TEXT"),
    ],
)
def test_a_text_that_is_no_utf8_is_refused_by_its_name(fail, place, argv, named):
    assert f"{named}: got the byte 0xff as character 7 of" in fail(*argv)
    assert not list(place.glob("*o.jsonl*"))


# --- folders --------------------------------------------------------------------------------------------------------


def locked(monkeypatch, name: str) -> None:
    """Nobody may read the folder, not even root."""
    scan = os.scandir

    def scandir(path):
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)


SKIPPED = {
    "a link to nothing": lambda at: (at / "x.png").symlink_to("nothing.png"),
    "a loop": lambda at: (at / "x.png").symlink_to("x.png"),
    "a pipe": lambda at: os.mkfifo(at / "x.png"),
    "a linked folder": lambda at: (at / "x").symlink_to(at),
    "a folder": lambda at: (at / "x").mkdir(),
}


@pytest.mark.parametrize("what", SKIPPED)
def test_what_is_left_out_of_a_folder_is_said_with_its_reason(place, models, capsys, monkeypatch, what):
    reason = {
        "a link to nothing": "a broken link (No such file or directory)",
        "a loop": "a broken link (Too many levels of symbolic links)",
        "a pipe": "a pipe or a device",
        "a linked folder": "a link to a folder",
        "a folder": "Permission denied",
    }[what]
    SKIPPED[what](place / "in")
    locked(monkeypatch, "x")
    assert cli.main(ask(models, "what color")) == 0
    shown = capsys.readouterr()
    assert "1 answered" in shown.out and shown.err.count("\n") == 1
    assert shown.err.startswith("note: --images: left out 'in/x") and reason in shown.err


def test_only_the_first_that_is_left_out_is_named(place, models, capsys):
    for name in ("z.png", "y.png", "x.txt", ".hidden.png"):
        (place / "in" / name).symlink_to("nothing")
    (place / "in" / "b.txt").symlink_to("a.png")  # leads to a file, and is no image by its name
    os.mkfifo(place / "in" / "pipe")
    assert cli.main(ask(models, "what color")) == 0
    assert capsys.readouterr().err == (
        "note: --images: left out 3, the first 'in/x.txt': a broken link (No such file or directory)\n"
    )


def test_a_folder_that_nobody_may_read(fail, models, place, monkeypatch):
    locked(monkeypatch, "in")
    assert "--images: cannot read 'in': Permission denied" in fail(*ask(models, "what color"))
    (place / "out").mkdir()
    (place / "out" / "in").mkdir()
    assert "no image in 'out'" in (said := fail(*ask(models, "what color", "out"))) and "'out/in': Permission" in said


def test_a_folder_in_one_that_nobody_may_enter(fail, models, monkeypatch, place):
    stat = os.stat

    def denied(path, **options):
        if str(path) == "locked/in":
            raise PermissionError(13, "Permission denied", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", denied)
    assert "--images: cannot be read (permission denied): 'locked/in'" in fail(*ask(models, "what color", "locked/in"))
    assert "--images: not a folder: 'in/a.png'" in fail(*ask(models, "what color", "in/a.png"))


# --- the vocabulary -------------------------------------------------------------------------------------------------


def test_the_vocabulary_of_another_model_is_refused(fail, run, models, saved, place):
    """Of 200 rows, 127 without a word may be padding and 128 may not."""
    model = saved(place / "model", "ViltForQuestionAnswering", vocab_size=200, id2label={0: "a"})
    words = [*Path(models["ask"], "vocab.txt").read_text().split("\n")[:-1], *map("word{}".format, range(200))]
    for count in (72, 73):
        processor = place / str(count)
        processor.mkdir()
        (processor / "vocab.txt").write_text("".join(word + "\n" for word in words[:count]))
        settings = Path(models["ask"], "preprocessor_config.json").read_text()
        (processor / "preprocessor_config.json").write_text(settings)
    argv = ["ask", "in/a.png", "what color", "--model", model, "--processor"]
    said = fail(*argv, "72")
    assert "--processor: got a vocabulary of 72 words, wanted that of the model, which has 200" in said
    assert json.loads(run(*argv, "73", "--json"))["answers"]
