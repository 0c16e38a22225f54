"""`vilt-fast ask`, and the answer to one question."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from PIL import Image

from vilt_fast.checkpoints.files import brief, write_atomically
from vilt_fast.commands.attended import attended_patches
from vilt_fast.commands.batch import ask_many
from vilt_fast.commands.board import Answered, draw_board
from vilt_fast.commands.given import check_given, check_no_file
from vilt_fast.commands.loading import (
    as_dicts,
    finite,
    load,
    note_shipped_model,
    open_and_load,
    prepare,
    prepare_regions,
    print_json,
    print_ranked,
    printable,
)
from vilt_fast.commands.output import output_path
from vilt_fast.engine.results import answer_chances, make_answer
from vilt_fast.engine.visual_bert import check_width
from vilt_fast.frozen.model import freeze
from vilt_fast.processing.regions import read_regions


def ask(arguments: argparse.Namespace) -> None:
    """Answer one question about one image or its regions, or many."""
    if arguments.regions is not None:
        _take_question(arguments)
    check_given(arguments)
    if arguments.folder is not None or arguments.questions is not None:
        ask_many(arguments)
        return
    if arguments.regions is not None:
        _ask_about_regions(arguments)
        return
    for name in ("image", "question"):
        if getattr(arguments, name) is None:
            raise ValueError(f"{name.upper()}: got none, wanted one (or --images and --questions)")
    explain = arguments.out is not None
    out = output_path(arguments.out, (".png",), [arguments.image]) if explain else None
    (image,), model, processor = open_and_load(arguments, arguments.image, frozen=not explain)
    one = answer(model, processor, image, arguments.question, top=arguments.top, explain=explain)
    if out is not None:
        name = arguments.model or "the model that ships with the package"
        write_atomically(out, draw_board([one], "vilt_fast ask", name))
    if arguments.json:
        print_json(arguments, answers=as_dicts(one.answers, "answer"))
    else:
        print_answers(one.question, one.answers)
    note_shipped_model(arguments)


def _take_question(arguments: argparse.Namespace) -> None:
    """Beside --regions there is no IMAGE: what stands first is the QUESTION."""
    if arguments.question is not None:
        raise ValueError("IMAGE: got one beside --regions, wanted the QUESTION alone")
    arguments.image, arguments.question = None, arguments.image


@torch.no_grad()
def _ask_about_regions(arguments: argparse.Namespace) -> None:
    if arguments.question is None:
        raise ValueError("QUESTION: got none, wanted one (or --questions and a folder as --regions)")
    where = f"--regions: {brief(arguments.regions)}"
    if os.path.isdir(arguments.regions):
        raise ValueError(f"{where} is a folder, which goes with --questions and --out; wanted an .npz file")
    if arguments.out is not None:
        raise ValueError("--out: got one beside --regions FILE, whose image is not there to be drawn; leave it out")
    check_no_file(arguments.question, "QUESTION")
    regions = read_regions(arguments.regions, "--regions")
    live, processor = load(arguments)
    check_width(regions, live.config, where)
    model = freeze(live, graphs=False)
    logits = model(**prepare_regions(processor, model, regions, arguments.question, where)).logits
    chances, labels = answer_chances(logits, arguments.top, is_exclusive=True)
    answers = finite(make_answer(model.config.id2label, chances[0].tolist(), labels[0].tolist()).top)
    if arguments.json:
        print_json(arguments, answers=as_dicts(answers, "answer"))
    else:
        print_answers(arguments.question, answers)


@torch.no_grad()
def answer(model: Any, processor: Any, image: Image.Image, question: str, *, top: int, explain: bool) -> Answered:
    """The `top` most probable answers, each with its own probability: a question may have several right answers.

    Args:
        model: a ViltForQuestionAnswering, or a frozen one. image: RGB.
        explain: also return how much each patch was attended to, for which the model must be live.
    """
    inputs = prepare(processor, model, [image], question)
    output = model(**inputs, output_attentions=True) if explain else model(**inputs)
    chances, labels = answer_chances(output.logits, top)
    answers = finite(make_answer(model.config.id2label, chances[0].tolist(), labels[0].tolist()).top)
    if not explain:
        return Answered(image, question, answers, None)
    patch, (height, width) = model.config.patch_shape[0], inputs["pixel_values"].shape[-2:]
    grid = height // patch, width // patch
    attention = attended_patches(output.attentions, inputs["input_ids"].shape[1], grid)
    return Answered(image, question, answers, attention)


def print_answers(question: str, answers: list[tuple[str, float]]) -> None:
    """The question, and its answers with their probabilities."""
    print(printable(question))
    print_ranked(answers)
    print()
