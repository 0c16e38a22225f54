"""What `vilt-fast ask --images --questions --out` reads: questions, the answers of an earlier run and their record."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

from mutate import any_value, mutate_bytes, mutate_json
from registry import kind

from vilt_fast.commands.questions import Entry, Input, read_questions
from vilt_fast.commands.resume import already_done, keep_record, record_path

_TEXTS = ["what is it?", "is it red?", "¿qué es?", "これは何ですか", "  how many?  ", ""]
_ENDS = ("\n", "\r\n", "\r")
_MADE = {"weights": "0f" * 32, "model": "a model", "top": 1, "dtype": "float32", "threads": 2, "input": "aa" * 32}
_MADE["environment"] = {"MKL_CBWR": "COMPATIBLE"}
_DEEPEST, _LONGEST = 64, 100_000


@kind
def question_texts(rng: Random, folder: Path) -> None:
    """A file of texts: refused by its name and line, or one pair for each line with text in it."""
    (folder / "a.png").write_bytes(b"")
    path = folder / rng.choice(("questions.txt", "questions", "what is it?"))
    content = rng.choice(_ENDS).join(rng.choices(_TEXTS, k=rng.randint(1, 6)) + ["", "why?"]).encode()
    content = rng.choice((b"", b"\xef\xbb\xbf")) + content
    if rng.random() < 0.1:
        content = content.decode("utf-8-sig").encode(rng.choice(("utf-16", "utf-16-le", "utf-32")))
    elif rng.random() < 0.9:
        content = mutate_bytes(rng, content)
    path.write_bytes(content)
    entries = _read_all(read_questions(str(path), str(folder)))
    try:
        lines = re.split(r"\r\n|\r|\n", content.decode("utf-8-sig"))
    except UnicodeDecodeError:  # half of a surrogate pair is the error of its line
        assert any(entry.error and path.name in entry.error for entry in entries)
        return
    assert [entry.asked["question"] for entry in entries] == [line.strip() for line in lines if line.strip()]
    assert all(entry.path == folder / "a.png" and entry.error is None for entry in entries)


@kind
def question_lines(rng: Random, folder: Path) -> None:
    """A JSON-lines file: an entry for every line that is not blank, and the right ones are asked as they stand."""
    path = folder / "questions.jsonl"
    lines = []
    for number in range(rng.randint(1, 6)):
        asked = {"image": "a.png", "question": rng.choice(_TEXTS[:-1]), "id": number}
        lines.append(mutate_json(rng, asked) if rng.random() < 0.5 else json.dumps(asked).encode())
    content = rng.choice((b"\n", b"\r\n")).join(lines) + rng.choice((b"", b"\n"))
    content = mutate_bytes(rng, content) if rng.random() < 0.3 else content
    path.write_bytes(content)
    entries = _read_all(read_questions(str(path), rng.choice((None, str(folder)))))
    numbered = [(number, line) for number, line in enumerate(content.split(b"\n"), 1)]
    numbered = [(number, line) for number, line in numbered if line.removeprefix(b"\xef\xbb\xbf").strip()]
    assert len(entries) == len(numbered)
    for entry, (number, line) in zip(entries, numbered, strict=True):
        asked = _asked(line)
        assert (asked is None) == (entry.error is not None), (line[:200], entry)
        if asked is None:
            assert entry.error is not None and f"questions.jsonl, line {number}:" in entry.error
        else:
            assert entry.asked == asked and entry.path == folder / asked["image"]


def _asked(line: bytes) -> dict[str, Any] | None:
    """What a line asks; None if it is not right."""
    try:
        content = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
        asked = {name: content[name] for name in ("image", "question", "id") if name in content}
        json.dumps(asked, allow_nan=False)
        assert asked["image"].strip() and asked["question"].strip() and "\0" not in asked["image"]
        assert _depth(content) <= _DEEPEST and len(asked["question"]) <= _LONGEST
        asked["question"].encode()
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, AssertionError):
        return None
    return asked


def _depth(value: Any) -> int:
    """How deep lists and objects are nested."""
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def _read_all(questions: Input) -> list[Entry]:
    """The entries, of which every one can be written, and none names more lines than two."""
    entries = list(questions.entries())
    assert len(entries) == questions.total
    for entry in entries:
        written = json.dumps(entry.asked, allow_nan=False)
        assert json.loads(written) == entry.asked and (entry.error is None or len(entry.error.splitlines()) < 3)
    return entries


@kind
def answers(rng: Random, folder: Path) -> None:
    """The file of an earlier run: refused by its line, or continued after whole lines that are about the input."""
    asked = [{"image": f"{n}.png", "question": rng.choice(_TEXTS[:-1])} for n in range(4)]
    lines = [json.dumps({**one, "answer": "yes", "probability": 0.5}).encode() + b"\n" for one in asked]
    content = mutate_bytes(rng, b"".join(lines[: rng.randint(1, 4)]))
    out = folder / "answers.jsonl"
    out.write_bytes(content)
    with open(out, "rb") as file:
        done, kept, _ = already_done(file, out, iter([Entry(one) for one in asked]))
    assert out.read_bytes() == content
    whole = content[:kept].splitlines(keepends=True)
    assert len(content[:kept].split(b"\n")) == done + 1 and all(line.endswith(b"\n") for line in whole)
    for line, one in zip(content[:kept].split(b"\n"), asked, strict=False):
        assert not line or {**json.loads(line), **one} == json.loads(line)


@kind
def record(rng: Random, folder: Path) -> None:
    """What made the file of an earlier run: refused where it says anything else."""
    out = folder / "answers.jsonl"
    made = dict(_MADE)
    if rng.random() < 0.3:
        made[rng.choice([*made])] = any_value(rng)
    record_path(out).write_bytes(mutate_json(rng, _MADE))
    keep_record(out, made, 3)
    kept = json.loads(record_path(out).read_bytes())
    # What is not there says the same as null: nothing of the kind.
    assert all(kept.get(name) == made[name] for name in made if name != "model")
