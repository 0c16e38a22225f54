"""The pairs that `vilt-fast ask --images --questions` is about: a folder and texts, or a JSON-lines file."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from vilt_fast.commands.folder import IMAGES, Kind, find_images
from vilt_fast.commands.given import check_utf8
from vilt_fast.processing.encoding import check_unicode

_JSON_LINES = (".jsonl", ".ndjson")
# One word that does not end as a question does (in any script), or what ends as files of texts do, is a file's name.
_LOOKS_LIKE_A_FILE = re.compile(r"\S*[^\s?\uff1f\u061f]|.*\.(txt|text|csv|tsv|json|jsonl|ndjson|md|list)", re.I)
# How JSON starts, and no question: an object, or a list of objects, lists or strings.
_JSON = re.compile(rb'\s*(\{|\[\s*([\[{"]|\Z))')
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SAVE_IT = "save it as UTF-8 (iconv -f latin1 -t utf-8, or -f utf-16)"
_LONGEST = 100_000  # characters of a question: a tokenizer takes 400 bytes for each, a model reads a few hundred
_LARGEST = 2**28  # bytes of a file of texts, which is read whole; one of JSON lines is not
_LONGEST_LINE = 4 * 2**20  # bytes of a line of JSON, which may escape each character and hold an id
_DEEPEST = 64  # levels of a line of JSON; Python's own limit depends on who calls


@dataclass(frozen=True)
class Entry:
    """One pair of the input, or an image alone."""

    asked: dict[str, Any]  # image, and question and id, if any: repeated in the output
    path: Path = Path()
    error: str | None = None  # why the pair cannot be asked


@dataclass(frozen=True)
class Input:
    """All pairs, or images alone, in their order, read anew and lazily by each call of `entries`."""

    entries: Callable[[], Iterator[Entry]]
    total: int
    file: Path | None  # where the questions are, if not on the command line
    hidden: int = 0  # images that were left out, as their names start with a dot
    skipped: list[str] = field(default_factory=list)  # what else was left out of the folder, and why


def read_questions(questions: str, folder: str | None, kind: Kind = IMAGES) -> Input:
    """The pairs of `--questions` and `--images`, or `--regions`.

    Raises:
        FileNotFoundError: `questions` looks like the name of a file, and there is none.
        ValueError: a file that is no text in UTF-8, or without a question or image; no folder where one is needed.
    """
    source = Path(questions)
    file = source if os.path.exists(source) else None  # not Path.exists, which raises on too long a text
    _check_source(questions)
    if file is not None and source.suffix.lower() in _JSON_LINES:
        root = source.parent if folder is None else Path(folder)
        return Input(partial(_from_json_lines, source, root), _count_lines(source), source)
    if folder is None:
        raise ValueError(f"--images: got none, wanted the folder that {questions!r} is about")
    texts = [questions] if file is None else _read_texts(source)
    found = find_images(Path(folder), kind)
    entries = partial(_each_with_each, Path(folder), found.paths, texts, source.name)
    return Input(entries, len(found.paths) * len(texts), file, found.hidden, found.skipped)


def _check_source(questions: str) -> None:
    """Refuse what is neither a question nor a file of questions."""
    advice = "wanted a question, or a file with one per line"
    if questions == "-":
        raise ValueError(f"--questions: got '-', but standard input cannot be read again to continue; {advice}")
    if not questions.strip():
        raise ValueError(f"--questions: got {questions!r}, {advice}")
    if os.path.isdir(questions):
        raise ValueError(f"--questions: {questions!r} is a directory, {advice}")
    if os.path.exists(questions):
        if not os.path.isfile(questions):
            raise ValueError(f"--questions: {questions!r} is a pipe or a device, which cannot be read again; {advice}")
        return
    if _LOOKS_LIKE_A_FILE.fullmatch(questions.strip()):
        hint = "a question has spaces in it, or ends in '?'"
        raise FileNotFoundError(f"--questions: no such file: {questions!r}; {advice} ({hint})")
    check_utf8(questions, "--questions")


def _count_lines(source: Path) -> int:
    with open(source, "rb") as file:
        if file.read(2) in _UTF16:
            raise ValueError(f"--questions: {str(source)!r}, line 1: UTF-16; {_SAVE_IT}")
        file.seek(0)
        count = sum(1 for _ in _numbered(file))
    if not count:
        raise ValueError(f"--questions: {str(source)!r} has no question in it, wanted one JSON object per line")
    return count


def _numbered(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers; of a line that is too long its first bytes."""
    for number in itertools.count(1):
        line = part = file.readline(_LONGEST_LINE)
        if not line:
            return
        while len(part) == _LONGEST_LINE and not part.endswith(b"\n"):
            part = file.readline(_LONGEST_LINE)
        line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def _read_texts(source: Path) -> list[str]:
    """The lines that have text in them; a byte order mark and Windows' ends of lines are no part of them."""
    size = os.stat(source).st_size
    if size > _LARGEST:
        raise ValueError(f"--questions: {str(source)!r} has {size} bytes, wanted at most {_LARGEST} of plain questions")
    content = source.read_bytes().removeprefix(b"\xef\xbb\xbf")
    _check_no_json(source, content)
    texts = []
    for number, line in enumerate(content.splitlines(), 1):
        where = f"--questions: {str(source)!r}, line {number}"
        if content[:2] in _UTF16 or b"\0" in line:
            raise ValueError(f"{where}: UTF-16 or no text at all; {_SAVE_IT}")
        try:
            # "surrogatepass", as json.loads reads: a line with half of a surrogate pair is that question's error alone.
            text = line.decode(errors="surrogatepass").strip()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: not UTF-8 (byte {error.start + 1} is {line[error.start]:#x}); {_SAVE_IT}"
            ) from error
        if len(text) > _LONGEST:
            raise ValueError(f"{where}: {_too_long(text)}")
        if text:
            texts.append(text)
    if not texts:
        raise ValueError(f"--questions: {str(source)!r} has no text in it, wanted one question per line")
    return texts


def _check_no_json(source: Path, content: bytes) -> None:
    """Refuse to ask JSON as if it were words."""
    match = _JSON.match(content)
    if match:
        number = content[: match.start(1)].count(b"\n") + 1
        raise ValueError(
            f"--questions: {str(source)!r}, line {number}: JSON, wanted one question per line, or one JSON object per "
            "line in a file that is named .jsonl: rename it (a list: jq -c '.[]' FILE > FILE.jsonl)"
        )


def _too_long(text: str) -> str:
    return f"got a question of {len(text)} characters, wanted at most {_LONGEST}"


def _each_with_each(folder: Path, paths: list[Path], texts: list[str], name: str) -> Iterator[Entry]:
    for path, text in itertools.product(paths, texts):
        yield _entry({"image": path.relative_to(folder).as_posix(), "question": text}, path, name)


def _entry(asked: dict[str, Any], path: Path, where: str) -> Entry:
    try:
        check_unicode(asked["question"], "question")
    except ValueError as error:
        return Entry(asked, path, error=f"{where}: {error}")
    return Entry(asked, path)


def _from_json_lines(source: Path, folder: Path) -> Iterator[Entry]:
    with open(source, "rb") as file:
        for number, line in _numbered(file):
            yield _parse(line, folder, f"{source.name}, line {number}")


def _parse(line: bytes, folder: Path, where: str) -> Entry:
    if len(line) >= _LONGEST_LINE:
        return Entry(_NOTHING, error=f"{where}: longer than {_LONGEST_LINE} bytes")
    try:
        # json.loads would take a line with a NUL for UTF-16 or UTF-32.
        content = json.loads(line.decode(errors="surrogatepass"))
    except UnicodeDecodeError as error:
        return Entry(_NOTHING, error=f"{where}: not UTF-8 (byte {error.start + 1}); {_SAVE_IT}")
    except ValueError as error:
        return Entry(_NOTHING, error=f"{where}: not JSON: {error}")
    except RecursionError:
        return _too_deep(where)
    if _is_too_deep(content):
        return _too_deep(where)
    if not isinstance(content, dict):
        return Entry(_NOTHING, error=f"{where}: got {_shown(content)}, wanted an object with 'image' and 'question'")
    return _pair(content, folder, where)


def _pair(content: dict[str, Any], folder: Path, where: str) -> Entry:
    asked: dict[str, Any] = {name: content[name] if isinstance(content.get(name), str) else None for name in _NOTHING}
    if "id" in content:
        try:
            json.dumps(content["id"], allow_nan=False)
        except ValueError:
            return Entry(asked, error=f"{where}: got an 'id' that is no JSON (NaN, an infinity), wanted another")
        asked["id"] = content["id"]
    if len(asked["question"] or "") > _LONGEST:
        return Entry({**asked, "question": None}, error=f"{where}: {_too_long(asked['question'])}")
    for name in _NOTHING:
        if not (asked[name] or "").strip():
            return Entry(asked, error=f"{where}: got {_shown(content.get(name))} as {name!r}, wanted a text")
    if "\0" in asked["image"]:
        return Entry(asked, error=f"{where}: got a NUL in 'image', wanted the name of a file")
    return _entry(asked, folder / asked["image"], where)


def _too_deep(where: str) -> Entry:
    return Entry(_NOTHING, error=f"{where}: nested deeper than {_DEEPEST} levels")


def _is_too_deep(content: Any) -> bool:
    level = [content] if isinstance(content, list | dict) else []
    for _ in range(_DEEPEST):
        items = itertools.chain.from_iterable(one.values() if isinstance(one, dict) else one for one in level)
        level = [item for item in items if isinstance(item, list | dict)]
        if not level:
            return False
    return True


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)[:60]


_NOTHING: dict[str, Any] = {"image": None, "question": None}
