"""`vilt-fast ask` on a folder or a JSON-lines file.

The output has one line per pair, in the order of the input. It is also the record of progress: a line is written and
flushed as soon as its pair and all before it are answered, so that a run that was killed continues where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from tqdm import tqdm

from vilt_fast.commands.loading import check_out, load
from vilt_fast.engine.feeding import in_order
from vilt_fast.engine.results import Answer
from vilt_fast.processing.encoding import check_unicode

_JSON_LINES = (".jsonl", ".ndjson")
_FIRST = b'{"image":'  # how every line of the output starts
_AHEAD = 1000  # pairs that are read before the answers to those in front of them are written
_SYNC_S = 2.0  # the most that a crash of the operating system (not of ours) may cost


@dataclass(frozen=True)
class Entry:
    """One pair of the input."""

    asked: dict[str, Any]  # image, question and the id, if any: repeated in the output
    path: Path = Path()
    error: str | None = None  # why the pair cannot be asked


def ask_many(arguments: argparse.Namespace) -> None:
    """Answer every question of the input; the answers are appended to those of an earlier run."""
    from vilt_fast.engine import Engine

    _check(arguments)
    entries, total = _read_input(arguments)
    out = Path(arguments.out)
    done, kept_bytes = _already_done(out, entries)
    model, processor = load(arguments)
    with open(out, "ab") as file, Engine(model, processor, top=arguments.top) as engine:
        file.truncate(kept_bytes)
        lines = _synced(file, _answer_all(engine, entries))
        bar = tqdm(lines, total=total, initial=done, unit=" pairs", disable=not sys.stderr.isatty())
        count = Counter("errors" if "error" in line else "answered" for line in bar)
    answered, errors = count["answered"], count["errors"]
    if arguments.json:
        print(json.dumps({"out": arguments.out, "answered": answered, "errors": errors, "already_done": done}))
        return
    earlier = f", {done} were there before" if done else ""
    print(f"{arguments.out}: {answered} answered, {errors} with an error{earlier}")


def _check(arguments: argparse.Namespace) -> None:
    if arguments.image is not None or arguments.question is not None:
        raise ValueError("IMAGE, QUESTION: got them beside --images or --questions, wanted one or the other")
    if arguments.questions is None:
        raise ValueError("--questions: got none, wanted a text, a file of texts, or a JSON-lines file")
    if arguments.out is None:
        raise ValueError("--out: got none, wanted the JSON-lines file to write, such as answers.jsonl")
    check_out(arguments.out, "a file")
    if arguments.folder is not None and not Path(arguments.folder).is_dir():
        raise FileNotFoundError(f"--images: no such folder: {arguments.folder!r}")


def _read_input(arguments: argparse.Namespace) -> tuple[Iterator[Entry], int]:
    """All pairs, read lazily, and their number."""
    source = Path(arguments.questions)
    if source.suffix in _JSON_LINES:
        if not source.is_file():
            raise FileNotFoundError(f"--questions: no such file: {arguments.questions!r}")
        folder = source.parent if arguments.folder is None else Path(arguments.folder)
        with open(source, "rb") as file:
            return _from_json_lines(source, folder), sum(bool(line.strip()) for line in file)
    if arguments.folder is None:
        raise ValueError(f"--images: got none, wanted the folder that {arguments.questions!r} is about")
    questions = [arguments.questions]
    if os.path.isfile(source):  # not Path.is_file, which raises on a question too long for a file name
        # "surrogatepass", as json.loads reads: a line with half of a surrogate pair is that line's error alone.
        text = source.read_text(encoding="utf-8", errors="surrogatepass")
        questions = [line.strip() for line in text.splitlines() if line.strip()]
        if not questions:
            raise ValueError(f"--questions: {arguments.questions!r} has no text in it, wanted one per line")
    folder = Path(arguments.folder)
    suffixes = Image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not paths:
        raise ValueError(f"--images: no image in {arguments.folder!r}, nor in the folders in it")
    entries = (
        Entry({"image": path.relative_to(folder).as_posix(), "question": question}, path)
        for path, question in itertools.product(paths, questions)
    )
    return entries, len(paths) * len(questions)


def _from_json_lines(source: Path, folder: Path) -> Iterator[Entry]:
    with open(source, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse(line, folder, f"{source.name}, line {number}")


def _parse(line: bytes, folder: Path, where: str) -> Entry:
    try:
        content = json.loads(line)
    except ValueError as error:
        return Entry({"image": None, "question": None}, error=f"{where}: not JSON: {error}")
    content = content if isinstance(content, dict) else {}
    asked: dict[str, Any] = {name: content.get(name) for name in ("image", "question")}
    asked |= {"id": content["id"]} if "id" in content else {}
    for name in ("image", "question"):
        if not isinstance(asked[name], str):
            return Entry(asked, error=f"{where}: got {asked[name]!r} as {name!r}, wanted a text")
    try:
        check_unicode(asked["question"], "question")
    except ValueError as error:
        return Entry(asked, error=f"{where}: {error}")
    return Entry(asked, folder / asked["image"])


def _already_done(out: Path, entries: Iterator[Entry]) -> tuple[int, int]:
    """How many pairs an earlier run has answered (they are skipped in `entries`), and the bytes of its whole lines.

    Raises:
        ValueError: the file is something else, or the output of another input.
    """
    done = kept_bytes = 0
    if not out.exists():
        return 0, 0
    with open(out, "rb") as file:
        for line in file:
            if not line.startswith(_FIRST[: len(line)]):
                raise ValueError(f"--out: {str(out)!r} exists and is not a file of answers, wanted another name")
            if not line.endswith(b"\n"):
                break  # incomplete: the run was killed while it wrote
            entry = next(entries, None)
            written = json.loads(line)
            if entry is None or {name: written.get(name) for name in entry.asked} != json.loads(_to_json(entry.asked)):
                raise ValueError(
                    f"--out: line {done + 1} of {str(out)!r} is about another image or question than the input, "
                    "wanted the output of the same input, or another name"
                )
            done, kept_bytes = done + 1, kept_bytes + len(line)
    return done, kept_bytes


def _answer_all(engine: Any, entries: Iterator[Entry]) -> Iterator[dict[str, Any]]:
    """The lines of all entries in order."""
    waiting: deque[Entry] = deque()

    def submit(entry: Entry) -> Future:
        waiting.append(entry)
        if entry.error is not None:
            raise ValueError(entry.error)
        return engine.submit(entry.path, entry.asked["question"])

    for result in in_order(submit, zip(entries), _AHEAD, "return"):
        yield {**waiting.popleft().asked, **_outcome(result)}


def _outcome(result: Any) -> dict[str, Any]:
    if not isinstance(result, Answer):
        return {"error": str(result) or type(result).__name__}
    top = [[word, round(chance, 6)] for word, chance in result.top]
    return {"answer": result.answer, "score": round(result.score, 6), "top": top}


def _to_json(line: dict[str, Any]) -> bytes:
    r"""One line in UTF-8. A lone surrogate, which a file's name may hold too, becomes JSON's own escape: \udc80."""
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace")


def _synced(file: BinaryIO, lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Write each line and flush it to the operating system; sync to the disk every few seconds."""
    last = time.monotonic()
    for line in lines:
        file.write(_to_json(line) + b"\n")
        file.flush()
        if time.monotonic() - last > _SYNC_S:
            os.fsync(file.fileno())
            last = time.monotonic()
        yield line
    os.fsync(file.fileno())
