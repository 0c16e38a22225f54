"""`vilt-fast classify`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vilt_fast.commands.batch import answer_all
from vilt_fast.commands.folder import check_folder, find_images
from vilt_fast.commands.given import check_given
from vilt_fast.commands.loading import (
    as_dicts,
    finite,
    load,
    note_shipped_model,
    note_size,
    open_image,
    prepare_images,
    print_json,
    print_ranked,
    printable,
)
from vilt_fast.commands.output import output_path
from vilt_fast.commands.questions import Entry, Input
from vilt_fast.engine.results import label_scores, make_classified
from vilt_fast.frozen.model import freeze


def classify(arguments: argparse.Namespace) -> None:
    """Print the labels of each image, or write them all to a file."""
    check_given(arguments)
    _check(arguments)
    if arguments.out is not None:
        out = output_path(arguments.out, ())
        answer_all(arguments, out, _read_images(arguments.images, arguments.folder))
        return
    results = list(_classify_each(arguments))
    if arguments.json:
        print_json(arguments, results=[{"image": path, **_to_json(result)} for path, result in results])
    else:
        for path, result in results:
            _print(path, result, is_alone=len(arguments.images) == 1)
    note_shipped_model(arguments)


def _to_json(result: list[tuple[str, float]] | str) -> dict[str, Any]:
    return {"error": result} if isinstance(result, str) else {"labels": as_dicts(result, "label")}


def _print(path: str, result: list[tuple[str, float]] | str, *, is_alone: bool) -> None:
    if isinstance(result, str):
        print(f"{printable(path)}: error: {printable(result)}")
    elif is_alone:
        print_ranked(result)
    else:
        print(f"{printable(path)}: {printable(result[0][0])} ({result[0][1]:.1%})")


def _check(arguments: argparse.Namespace) -> None:
    if arguments.folder is None:
        if not arguments.images:
            raise ValueError("IMAGE: got none, wanted one or more (or --images and --out)")
        return
    if arguments.images:
        raise ValueError("IMAGE: got them beside --images, wanted one or the other")
    if arguments.out is None:
        raise ValueError("--out: got none, wanted the JSON-lines file to write, such as labels.jsonl")
    check_folder(arguments.folder)


def _read_images(paths: list[str], folder: str | None) -> Input:
    if folder is None:
        entries = [Entry({"image": path}, Path(path)) for path in paths]
        return Input(partial(iter, entries), len(entries), None)
    found = find_images(Path(folder))
    entries = [Entry({"image": path.relative_to(folder).as_posix()}, path) for path in found.paths]
    return Input(partial(iter, entries), len(entries), None, found.hidden, found.skipped)


def _classify_each(arguments: argparse.Namespace) -> Iterator[tuple[str, list[tuple[str, float]] | str]]:
    """Each image with its labels and their scores, best first, or with its error, unless it is alone."""
    for path in arguments.images:
        if not os.path.exists(path):
            raise FileNotFoundError(f"IMAGE: no such file: {path!r}")
    if len(arguments.images) == 1:  # before the model, which takes longer
        open_image(arguments.images[0])
    live, processor = load(arguments)
    note_size(live.config, processor)
    model = freeze(live, graphs=False)
    for path in arguments.images:  # opened one by one: there may be many
        try:
            yield path, _classify_one(model, processor, path, arguments.top)
        except (ValueError, OSError) as error:
            if len(arguments.images) == 1:
                raise
            yield path, str(error)


@torch.no_grad()
def _classify_one(model: Any, processor: Any, path: str, top: int) -> list[tuple[str, float]]:
    logits = model(**prepare_images(processor, model, [open_image(path)]), interpolate_pos_encoding=True).logits
    scores, labels = (part[0, :top].tolist() for part in label_scores(logits, model.config.problem_type))
    return finite(make_classified(model.config.id2label, scores, labels).top)
