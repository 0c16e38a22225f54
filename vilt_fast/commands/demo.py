"""`vilt-fast demo`: what the models that ship answer about the bundled images, and where they looked."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from PIL import Image

from vilt_fast.checkpoints.files import write_atomically
from vilt_fast.commands.answer import answer, print_answers
from vilt_fast.commands.attended import attended_patches
from vilt_fast.commands.board import Named, draw_board
from vilt_fast.commands.given import check_given
from vilt_fast.commands.loading import printable
from vilt_fast.commands.output import output_path
from vilt_fast.commands.train import print_scores


def demo(arguments: argparse.Namespace) -> None:
    """Answer the questions about the bundled images, name shapes, and draw the board of both; or measure the models."""
    from vilt_fast import demo as bundled

    check_given(arguments)
    out = output_path(arguments.out, (".png",))
    if arguments.evaluate is not None:
        _evaluate(arguments.evaluate)
        return
    model, processor = bundled.load()
    about = f"the ViLT that ships with the package: {_millions(model)} parameters, trained on such shapes"
    print(f"The ViLT that ships with vilt_fast: {_millions(model)} parameters.\n")
    answered = []
    for image, question in bundled.examples():
        one = answer(model, processor, image, question, top=5, explain=True)
        print_answers(one.question, one.answers)
        answered.append(one)
    named = _name_examples()
    write_atomically(out, draw_board(answered, "An image and a question in, an answer out", about, named=named))
    print(f"Where they looked: {printable(arguments.out)}")


def _name_examples() -> list[Named]:
    """Print what the ViT says of its examples, and return it."""
    from vilt_fast import demo as bundled

    model, processor = bundled.load_vit()
    print(f"The ViT that ships with vilt_fast: {_millions(model)} parameters. It names one shape.\n")
    named = [name_image(model, processor, image) for image, _ in bundled.examples_vit()]
    for one in named:
        print(f"  {one.chance:6.1%}  {printable(one.name)}")
    print()
    return named


@torch.no_grad()
def name_image(model: Any, processor: Any, image: Image.Image) -> Named:
    """The most probable label of an image, and how much each patch was attended to, of a live ViT."""
    inputs = processor(image, return_tensors="pt")
    output = model(**inputs, output_attentions=True)
    chance, label = output.logits[0].softmax(-1).max(-1)
    patch, (height, width) = model.config.patch_shape[0], inputs["pixel_values"].shape[-2:]
    attention = attended_patches(output.attentions, 0, (height // patch, width // patch))
    return Named(image, model.config.id2label[int(label)], float(chance), attention)


def _evaluate(images: int) -> None:
    from vilt_fast import demo as bundled
    from vilt_fast.demo.evaluate import evaluate, evaluate_vit

    print("ViLT, which answers questions")
    print_scores(evaluate, *bundled.load(), images, progress=True)
    print("\nViT, which names one shape")
    print_scores(evaluate_vit, *bundled.load_vit(), images, progress=True)


def _millions(model: Any) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"
