"""`vilt-fast train-demo`, and the table of the model's accuracy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vilt_fast.commands.loading import parse_device


def train_demo(arguments: argparse.Namespace) -> None:
    """Train the small model, save it, and print its accuracy on images it never saw."""
    from vilt_fast.demo.train import CHECKPOINT, train

    out = Path(arguments.out)
    if (out / CHECKPOINT).exists() and not arguments.resume:
        raise ValueError(f"--out: {arguments.out} already holds a run, wanted --resume or another directory")
    model, processor = train(
        out,
        steps=arguments.steps,
        minutes=arguments.minutes,
        seed=arguments.seed,
        resume=arguments.resume,
        device=parse_device(arguments.device),
        workers=arguments.workers,
        progress=not arguments.quiet,
    )
    print(f"saved in {out}")
    if arguments.evaluate:
        print_scores(model.cpu(), processor, arguments.evaluate, progress=not arguments.quiet)


def print_scores(model: Any, processor: Any, images: int, *, progress: bool) -> None:
    """Print accuracy by kind of question, beside that of always giving the kind's most frequent answer."""
    from vilt_fast.demo.evaluate import evaluate

    scores = evaluate(model, processor, images, progress=progress and sys.stderr.isatty())
    print(f"{images} images of the test split, which is never trained on:\n")
    print(f"{'kind':<12}{'questions':>10}{'right':>9}{'majority':>10}")
    for kind, score in scores.items():
        print(f"{kind:<12}{score.questions:>10}{score.accuracy:>9.1%}{score.majority:>10.1%}")
