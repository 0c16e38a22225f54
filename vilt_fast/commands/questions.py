"""The pairs that `vilt-fast ask --images --questions` is about: a folder and texts, or a JSON-lines file."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from vilt_fast.processing.encoding import check_unicode

_JSON_LINES = (".jsonl", ".ndjson")
# A text without a space that has a folder or an ending in it, or that ends as files of texts do, is a file's name.
_LOOKS_LIKE_A_FILE = re.compile(r"\S*[/\\]\S*|\S*\w\.\w{1,8}|.*\.(txt|text|csv|tsv|json|jsonl|ndjson|md|list)", re.I)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SAVE_IT = "save it as UTF-8 (iconv -f latin1 -t utf-8, or -f utf-16)"


@dataclass(frozen=True)
class Entry:
    """One pair of the input."""

    asked: dict[str, Any]  # image, question and the id, if any: repeated in the output
    path: Path = Path()
    error: str | None = None  # why the pair cannot be asked


@dataclass(frozen=True)
class Questions:
    """All pairs in their order, read anew and lazily by each call of `entries`."""

    entries: Callable[[], Iterator[Entry]]
    total: int
    file: Path | None  # where the questions are, if not on the command line
    hidden: int = 0  # images that were left out, as their names start with a dot


def read_questions(questions: str, folder: str | None) -> Questions:
    """The pairs of `--questions` and `--images`.

    Raises:
        FileNotFoundError: `questions` looks like the name of a file, and there is none.
        ValueError: a file that is no text in UTF-8, or without a question or image; no folder where one is needed.
    """
    source = Path(questions)
    file = source if os.path.exists(source) else None  # not Path.exists, which raises on too long a text
    _check_source(questions)
    if source.suffix in _JSON_LINES:
        root = source.parent if folder is None else Path(folder)
        return Questions(partial(_from_json_lines, source, root), _count_lines(source), source)
    if folder is None:
        raise ValueError(f"--images: got none, wanted the folder that {questions!r} is about")
    texts = [questions] if file is None else _read_texts(source)
    paths, hidden = _find_images(Path(folder))
    entries = partial(_each_with_each, Path(folder), paths, texts, source.name)
    return Questions(entries, len(paths) * len(texts), file, hidden)


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
    elif _LOOKS_LIKE_A_FILE.fullmatch(questions):
        raise FileNotFoundError(f"--questions: no such file: {questions!r}; {advice} (a question ends in ' ?')")


def _count_lines(source: Path) -> int:
    with open(source, "rb") as file:
        if file.read(2) in _UTF16:
            raise ValueError(f"--questions: {str(source)!r}, line 1: UTF-16; {_SAVE_IT}")
        file.seek(0)
        return sum(bool(line.strip()) for line in file)


def _read_texts(source: Path) -> list[str]:
    """The lines that have text in them; a byte order mark and Windows' ends of lines are no part of them."""
    content = source.read_bytes()
    texts = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        where = f"--questions: {str(source)!r}, line {number}"
        if content[:2] in _UTF16 or b"\0" in line:
            raise ValueError(f"{where}: UTF-16 or no text at all; {_SAVE_IT}")
        try:
            # "surrogatepass", as json.loads reads: a line with half of a surrogate pair is that question's error alone.
            texts.append(line.decode(errors="surrogatepass").strip())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: not UTF-8 (byte {error.start + 1} is {line[error.start]:#x}); {_SAVE_IT}"
            ) from error
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError(f"--questions: {str(source)!r} has no text in it, wanted one question per line")
    return texts


def _find_images(folder: Path) -> tuple[list[Path], int]:
    """The images in a folder and those in it, sorted, and how many hidden ones (`._a.jpg`, `.cache/`) are left out."""
    suffixes = Image.registered_extensions()
    found = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file()]
    paths = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not paths:
        raise ValueError(f"--images: no image in {str(folder)!r}, nor in the folders in it")
    return paths, len(found) - len(paths)


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
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse(line.removeprefix(b"\xef\xbb\xbf"), folder, f"{source.name}, line {number}")


def _parse(line: bytes, folder: Path, where: str) -> Entry:
    try:
        # json.loads would take a line with a NUL for UTF-16 or UTF-32.
        content = json.loads(line.decode(errors="surrogatepass"))
    except UnicodeDecodeError as error:
        return Entry(_NOTHING, error=f"{where}: not UTF-8 (byte {error.start + 1}); {_SAVE_IT}")
    except (ValueError, RecursionError) as error:
        return Entry(_NOTHING, error=f"{where}: not JSON: {error}")
    content = content if isinstance(content, dict) else {}
    asked: dict[str, Any] = {name: content[name] if isinstance(content.get(name), str) else None for name in _NOTHING}
    if "id" in content:
        try:
            json.dumps(content["id"], allow_nan=False)
        except (ValueError, RecursionError):
            return Entry(asked, error=f"{where}: got an 'id' that is no JSON (NaN, an infinity), wanted another")
        asked["id"] = content["id"]
    for name in _NOTHING:
        if asked[name] is None:
            return Entry(asked, error=f"{where}: got {_shown(content.get(name))} as {name!r}, wanted a text")
    if "\0" in asked["image"]:
        return Entry(asked, error=f"{where}: got a NUL in 'image', wanted the name of a file")
    return _entry(asked, folder / asked["image"], where)


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)[:60]


_NOTHING: dict[str, Any] = {"image": None, "question": None}
