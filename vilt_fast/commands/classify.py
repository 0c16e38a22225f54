"""`vilt-fast classify`."""

from __future__ import annotations

import argparse
import os
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
    prepare_images,
    print_json,
    print_ranked,
    printable,
)
from vilt_fast.commands.output import output_path
from vilt_fast.commands.questions import Entry, Input
from vilt_fast.engine.results import label_scores, make_classified
from vilt_fast.frozen.model import freeze
from vilt_fast.processing.decoding import load_image


def classify(arguments: argparse.Namespace) -> None:
    """Print the labels of each image, or write them all to a file."""
    check_given(arguments)
    _check(arguments)
    if arguments.out is not None:
        out = output_path(arguments.out, ())
        answer_all(arguments, out, _read_images(arguments.images, arguments.folder))
        return
    ranked = _classify_each(arguments)
    if arguments.json:
        named = zip(arguments.images, ranked, strict=True)
        print_json(arguments, results=[{"image": path, "labels": as_dicts(top, "label")} for path, top in named])
    elif len(ranked) == 1:
        print_ranked(ranked[0])
    else:
        for path, top in zip(arguments.images, ranked, strict=True):
            print(f"{printable(path)}: {printable(top[0][0])} ({top[0][1]:.1%})")
    note_shipped_model(arguments)


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


@torch.no_grad()
def _classify_each(arguments: argparse.Namespace) -> list[list[tuple[str, float]]]:
    """The labels of each image with their scores, best first. Images are opened one by one: there may be many."""
    for path in arguments.images:
        if not os.path.exists(path):
            raise FileNotFoundError(f"IMAGE: no such file: {path!r}")
    image: Any = load_image(arguments.images[0], name="IMAGE")  # before the model, which takes longer
    live, processor = load(arguments)
    model, ranked = freeze(live, graphs=False), []
    problem, names = model.config.problem_type, model.config.id2label
    for number, path in enumerate(arguments.images):
        image = load_image(path, name="IMAGE") if number else image
        image.filename = path  # for errors
        inputs = prepare_images(processor, model, [image])
        logits = model(**inputs, interpolate_pos_encoding=True).logits
        scores, labels = (part[0, : arguments.top].tolist() for part in label_scores(logits, problem))
        ranked.append(finite(make_classified(names, scores, labels).top))
    return ranked
