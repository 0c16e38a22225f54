"""`vilt-fast ask` on folders and JSON-lines files: order, errors in their place, and resuming after a kill."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """12 pictures, two of them one level down, beside a file that is none."""
    root = tmp_path_factory.mktemp("photos")
    (root / "more").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (*rng.integers(50, 140, 2), 3), np.uint8)
        Image.fromarray(pixels).save(root / ("more" if number > 9 else "") / f"{number:02}.png")
    (root / "notes.txt").write_text("no picture")
    return root


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_folder_and_one_question(run, models, folder, tmp_path):
    out = tmp_path / "answers.jsonl"
    shown = run(
        "ask", "--images", str(folder), "--questions", "what color", "--out", str(out), "--model", models["ask"]
    )
    assert shown == f"{out}: 12 answered, 0 with an error\n"
    lines = lines_of(out)
    assert [line["image"] for line in lines] == [f"{n:02}.png" for n in range(10)] + ["more/10.png", "more/11.png"]
    alone = json.loads(run("ask", str(folder / "03.png"), "what color", "--model", models["ask"], "--json"))
    assert lines[3]["answer"] == alone["answers"][0]["answer"]
    assert lines[3]["score"] == pytest.approx(alone["answers"][0]["probability"], abs=1e-4)
    assert [word for word, _ in lines[3]["top"]] == [entry["answer"] for entry in alone["answers"]]


def test_a_folder_and_a_file_of_questions(run, models, folder, tmp_path):
    questions, out = tmp_path / "questions.txt", tmp_path / "answers.jsonl"
    questions.write_text("what color\n\nhow many cat\n", encoding="utf-8")
    run("ask", "--images", str(folder), "--questions", str(questions), "--out", str(out), "--model", models["ask"])
    asked = [(line["image"], line["question"]) for line in lines_of(out)]
    assert asked[:3] == [("00.png", "what color"), ("00.png", "how many cat"), ("01.png", "what color")]
    assert len(asked) == 24


def write_pairs(path: Path, count: int, folder: Path) -> None:
    """Pairs with an id each; every tenth is bad, in one of four ways."""
    bad = ['{"image": "nowhere.png", "question": "a"}', "not JSON", '{"image": 3, "question": "a"}', '["image"]']
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            pair = {"image": str(folder / f"{number % 10:02}.png"), "question": f"how many {'cat ' * (number % 5)}"}
            line = bad[number // 10 % 4] if number % 10 == 7 else json.dumps({**pair, "id": f"é{number}"})
            file.write(line + "\n")


def test_json_lines_with_errors_in_their_place(run, models, folder, tmp_path):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    write_pairs(pairs, 48, folder)
    shown = run("ask", "--questions", str(pairs), "--out", str(out), "--model", models["ask"], "--json")
    assert json.loads(shown) == {"out": str(out), "answered": 43, "errors": 5, "already_done": 0, "errors_before": 0}
    for number, line in enumerate(lines_of(out)):
        if number % 10 == 7:
            assert "answer" not in line and line["error"]
        else:
            assert line["id"] == f"é{number}" and line["answer"]
    errors = [line["error"] for line in lines_of(out)[7::10]]
    assert "nowhere.png" in errors[0] and "pairs.jsonl, line 18: not JSON" in errors[1] and "got 3" in errors[2]


def test_it_continues_after_an_incomplete_line(run, models, folder, tmp_path):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    write_pairs(pairs, 30, folder)
    command = ("ask", "--questions", str(pairs), "--out", str(out), "--model", models["ask"])
    run(*command)
    whole = out.read_bytes()
    for cut in (0, 5, whole.index(b"\n") + 1, len(whole) // 2, len(whole) - 1):
        out.write_bytes(whole[:cut])
        shown = run(*command)
        assert out.read_bytes() == whole, f"cut at {cut}"
        done = whole[:cut].count(b"\n")
        assert ("were there before" in shown) == (done > 0), f"cut at {cut}"
    assert "30 were there before" in run(*command)
    assert out.read_bytes() == whole


def test_another_file_is_not_overwritten(fail, models, folder, tmp_path, photo):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    write_pairs(pairs, 3, folder)
    command = ("ask", "--questions", str(pairs), "--model", models["ask"], "--out")
    before = Path(photo).read_bytes()
    assert "is not a file of answers" in fail(*command, photo)
    assert Path(photo).read_bytes() == before
    out.write_text('{"image": "other.png", "question": "a", "answer": "b"}\n', encoding="utf-8")
    assert "line 1" in fail(*command, str(out))


def test_questions_that_are_no_unicode_are_errors_in_their_place(run, models, folder, tmp_path):
    """Half of a surrogate pair, escaped and as bytes; a pair as bytes, which JSON reads back as one character."""
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    image = json.dumps(str(folder / "00.png")).encode()
    halves = [rb"\ud800", b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80"]
    texts = [b"what color", *(b"is it " + half for half in halves), b"how many cat"]
    lines = [b'{"image": %s, "question": "%s"}\n' % (image, text) for text in texts]
    lines += [b'{"image": "\\ud800.png", "question": "a"}\n']
    lines += [b'{"image": %s, "question": "a", "id": ["\\ud800"]}\n' % image]
    pairs.write_bytes(b"".join(lines))
    command = ("ask", "--questions", str(pairs), "--out", str(out), "--model", models["ask"])
    assert "3 answered, 4 with an error" in run(*command)
    written = lines_of(out)
    assert ["answer" in line for line in written] == [True, False, False, False, True, False, True]
    for number in (1, 2, 3):
        assert f"pairs.jsonl, line {number + 1}: question: character 6 is a lone surr" in written[number]["error"]
    assert written[1]["question"] == "is it \ud800" and written[6]["id"] == ["\ud800"]
    assert_continues(run, command, out)


def test_a_file_of_questions_with_one_that_is_no_unicode(run, models, folder, tmp_path):
    questions, out = tmp_path / "questions.txt", tmp_path / "answers.jsonl"
    questions.write_bytes(b"what color\nis it \xed\xa0\x80\nis \xed\xa0\xbd\xed\xb8\x80\n")
    command = ("ask", "--images", str(folder), "--questions", str(questions), "--out", str(out))
    command += ("--model", models["ask"])
    assert "12 answered, 24 with an error" in run(*command)
    for number, line in enumerate(lines_of(out)):
        assert ("answer" in line) == (number % 3 == 0)
        assert number % 3 == 0 or "lone surrogate" in line["error"]
    assert_continues(run, command, out)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes")
def test_a_picture_whose_name_is_no_unicode(run, models, folder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"\xff.png")).write_bytes((folder / "00.png").read_bytes())
    out = tmp_path / "answers.jsonl"
    command = ("ask", "--images", str(tmp_path / "in"), "--questions", "what color", "--out", str(out))
    command += ("--model", models["ask"])
    assert "1 answered, 0 with an error" in run(*command)
    assert lines_of(out)[0]["image"] == "\udcff.png"
    assert_continues(run, command, out)


def assert_continues(run, command, out):
    """From the middle and from the end."""
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    run(*command)
    assert out.read_bytes() == whole
    assert "were there before" in run(*command)
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("ask",), "IMAGE"),
        (("ask", "a.png"), "QUESTION"),
        (("ask", "a.png", "b", "--questions", "c", "--out", "d"), "IMAGE"),
        (("ask", "--questions", "what ?", "--out", "d.jsonl"), "--images"),
        (("ask", "--images", "nowhere", "--questions", "what", "--out", "d.jsonl"), "nowhere"),
        (("ask", "--images", "FOLDER", "--out", "d.jsonl"), "--questions"),
        (("ask", "--images", "FOLDER", "--questions", "what"), "--out"),
        (("ask", "--images", "FOLDER", "--questions", "nowhere.jsonl", "--out", "d.jsonl"), "nowhere.jsonl"),
        (("ask", "--images", "FOLDER", "--questions", "what", "--out", "/nowhere/d.jsonl"), "/nowhere"),
        (("ask", "--images", "FOLDER/..", "--questions", "what", "--out", "FOLDER"), "directory"),
    ],
)
def test_wrong_usage(fail, folder, monkeypatch, tmp_path, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert named in fail(*(part.replace("FOLDER", str(folder)) for part in arguments))
    assert not list(tmp_path.iterdir())


def test_folder_without_pictures(fail, tmp_path):
    (tmp_path / "empty").mkdir()
    shown = fail("ask", "--images", str(tmp_path / "empty"), "--questions", "a?", "--out", str(tmp_path / "b.jsonl"))
    assert "no image" in shown
