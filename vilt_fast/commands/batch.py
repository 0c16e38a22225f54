"""`vilt-fast ask` on a folder or a JSON-lines file, and `vilt-fast classify --out`.

The output has one line per pair or image, in the order of the input. It is also the record of progress: a line is
written and flushed as soon as its own and all before it are answered, so that a run that was killed continues where it
stopped. A run that was interrupted ends with the bytes of one that was not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from vilt_fast.checkpoints.files import brief
from vilt_fast.commands.folder import IMAGES, REGIONS, Kind, check_folder, describe_skipped
from vilt_fast.commands.loading import load, note_shipped_model, note_size, printable
from vilt_fast.commands.output import hold, is_same_file, lock_path, output_path, sole_writer
from vilt_fast.commands.questions import Entry, Input, read_questions
from vilt_fast.commands.resume import Done, already_done, keep_record, record_path, what_makes
from vilt_fast.engine.feeding import in_order
from vilt_fast.engine.results import Answer, Classified

_AHEAD = 1000  # pairs that are read before the answers to those in front of them are written
_SYNC_S = 2.0  # the most that a crash of the operating system (not of ours) may cost
# Pairs of a batch where rounding depends on the batch: those of the list from a multiple of it to the next. A run that
# continues starts with the first pair of a batch; on a CPU larger batches are no faster.
_BATCH = 16


class _Task(NamedTuple):
    """What a command writes."""

    kind: type[Answer] | type[Classified]  # of a result of the engine
    name: str  # its first field, which the lines have too
    done: str  # what became of an entry
    unit: str


_TASKS = {
    "ask": _Task(Answer, "answer", "answered", "pairs"),
    "classify": _Task(Classified, "label", "classified", "images"),
}


def ask_many(arguments: argparse.Namespace) -> None:
    """Answer every question of the input."""
    folder, kind = _folder(arguments)
    _check(arguments, folder, kind)
    out = output_path(arguments.out, ())
    answer_all(arguments, out, read_questions(arguments.questions, folder, kind))


def answer_all(arguments: argparse.Namespace, out: Path, given: Input) -> None:
    """Answer, or classify, all entries; the lines are appended to those of an earlier run."""
    from vilt_fast.engine import Engine

    task = _TASKS[arguments.command]
    _check_inputs(arguments.out, out, given)
    with sole_writer(out):
        done = Done()
        if out.exists():
            with open(out, "rb") as file:
                done = already_done(file, out, given.entries(), task.name)
        model, processor = load(arguments)
        made = what_makes(arguments, model, processor, given)
        keep_record(out, made, done.lines)
        if arguments.command == "classify":
            note_size(model.config, processor)
        if given.skipped:
            print(
                printable(f"note: {_folder(arguments)[1].option}: {describe_skipped(given.skipped)}"), file=sys.stderr
            )
        batch = _BATCH if made["backend"] == "reference" else None
        with _Lines(out, done.size) as file, Engine(model, processor, top=arguments.top) as engine:
            lines = file.write_all(_lines_of(engine, given.entries(), done.lines, batch, task))
            is_shown, unit = sys.stderr.isatty(), f" {task.unit}"
            bar = tqdm(lines, total=given.total, initial=done.lines, unit=unit, disable=not is_shown)
            count = Counter("errors" if "error" in line else task.done for line in bar)
    _report(arguments, count, done, given.hidden)


def _report(arguments: argparse.Namespace, count: Counter[str], done: Done, hidden: int) -> None:
    name = _TASKS[arguments.command].done
    answered, errors = count[name], count["errors"]
    if answered:
        note_shipped_model(arguments)
    if arguments.json:
        counts = {name: answered, "errors": errors, "already_done": done.lines, "errors_before": done.errors}
        print(json.dumps({"out": arguments.out, **counts}))
        return
    earlier = f", {done.lines} were there before" if done.lines else ""
    if done.errors:
        earlier += f" ({done.errors} with an error, which stay; to ask again, delete the file or give another --out)"
    left_out = f", {hidden} hidden file{'s' * (hidden > 1)} left out" if hidden else ""
    print(f"{printable(arguments.out)}: {answered} {name}, {errors} with an error{earlier}{left_out}")


def _folder(arguments: argparse.Namespace) -> tuple[str | None, Kind]:
    """The folder of the images or of the files of regions, and which it is."""
    regions = getattr(arguments, "regions", None)
    return (arguments.folder, IMAGES) if regions is None else (regions, REGIONS)


def _check(arguments: argparse.Namespace, folder: str | None, kind: Kind) -> None:
    if arguments.image is not None or arguments.question is not None:
        raise ValueError("IMAGE, QUESTION: got them beside --images or --questions, wanted one or the other")
    if arguments.folder is not None and kind is REGIONS:
        raise ValueError("--images: got it beside --regions, wanted one or the other")
    if arguments.questions is None:
        raise ValueError("--questions: got none, wanted a text, a file of texts, or a JSON-lines file")
    if arguments.out is None:
        raise ValueError("--out: got none, wanted the JSON-lines file to write, such as answers.jsonl")
    if folder is not None:
        check_folder(folder, kind)


def _check_inputs(name: str, out: Path, given: Input) -> None:
    """Refuse to write over the questions or over an image that is asked about, and under the name of an image."""
    if not out.exists() and out.suffix.lower() in Image.registered_extensions():
        raise ValueError(f"--out: got {name!r}, wanted a file for JSON lines, such as answers.jsonl")
    written = [path for path in (out, lock_path(out), record_path(out)) if path.exists()]
    sources = itertools.chain([given.file or Path()], (entry.path for entry in given.entries()))
    for source in dict.fromkeys(sources) if written else ():
        if any(is_same_file(path, source) for path in written):
            raise ValueError(
                f"--out: {name!r}, or what is kept beside it, is the same file as the input {str(source)!r}, wanted "
                "another name"
            )


def _lines_of(
    engine: Any, entries: Iterator[Entry], done: int, batch: int | None, task: _Task
) -> Iterator[dict[str, Any]]:
    """The lines of all entries from number `done` on, in order; `batch`: as `_BATCH`, None: any."""
    start = done - done % (batch or 1)
    wanted, asked = itertools.tee(itertools.islice(entries, start, None))
    futures = _submitted(engine, asked, batch)
    results = in_order(lambda future: future, zip(futures), _AHEAD, "return")
    for number, (entry, result) in enumerate(zip(wanted, results, strict=True), start):
        if number >= done:
            yield {**entry.asked, **_outcome(result, entry, task)}


def _submitted(engine: Any, entries: Iterator[Entry], batch: int | None) -> Iterator[Future]:
    while block := list(itertools.islice(entries, batch or _AHEAD)):
        good = [entry for entry in block if entry.error is None]
        if batch is None:
            futures = iter([engine.submit(entry.path, entry.asked.get("question")) for entry in good])
        else:
            futures = iter(engine.submit_batch([_item(entry) for entry in good]))
        for entry in block:
            yield next(futures) if entry.error is None else _failed(entry.error)


def _item(entry: Entry) -> Any:
    return (entry.path, entry.asked["question"]) if "question" in entry.asked else entry.path


def _failed(error: str) -> Future:
    future: Future = Future()
    future.set_exception(ValueError(error))
    return future


def _outcome(result: Any, entry: Entry, task: _Task) -> dict[str, Any]:
    if not isinstance(result, task.kind):
        error = str(result) or type(result).__name__
        if entry.error is None:  # the image as the line names it: no byte depends on how --images is spelled
            for shown in (repr, brief):
                error = error.replace(shown(str(entry.path)), shown(entry.asked["image"]))
        return {"error": error}
    top = [[word, round(chance, 6)] for word, chance in result.top]
    return {task.name: getattr(result, task.name), "score": round(result.score, 6), "top": top}


def _to_json(line: dict[str, Any]) -> bytes:
    r"""One line in UTF-8. A lone surrogate, which a file's name may hold too, becomes JSON's own escape: \udc80."""
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")


class _Lines:
    """The output, open behind its whole lines. An error of the disk names it and says what to do."""

    def __init__(self, out: Path, kept_bytes: int) -> None:
        self._out = out
        self._descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        hold(self._descriptor, out)
        os.ftruncate(self._descriptor, kept_bytes)
        self._size = kept_bytes

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def write_all(self, lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Write each line to the operating system, and sync to the disk every few seconds."""
        last = time.monotonic()
        for line in lines:
            self._write(_to_json(line) + b"\n")
            if time.monotonic() - last > _SYNC_S:
                os.fsync(self._descriptor)
                last = time.monotonic()
            yield line
        os.fsync(self._descriptor)

    def _write(self, content: bytes) -> None:
        now = os.fstat(self._descriptor)
        if now.st_nlink == 0 or now.st_size != self._size:
            raise ValueError(
                f"--out: {str(self._out)!r} was removed or changed by somebody else while it was written; nothing more "
                "goes into it: see to that, then run the same command again"
            )
        try:
            self._size += len(content)
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError as error:
            raise OSError(
                f"--out: could not write {str(self._out)!r} ({error.strerror}); what is in it is right: make room and "
                "run the same command again"
            ) from error
