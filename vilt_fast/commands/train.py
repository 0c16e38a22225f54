"""`vilt-fast train-demo`, and the table of a model's accuracy."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vilt_fast.checkpoints.files import directory_path, holds, listing
from vilt_fast.commands.loading import parse_device


def train_demo(arguments: argparse.Namespace) -> None:
    """Train a small model, save it, and print its accuracy on images it never saw."""
    from vilt_fast.demo import evaluate, train, train_vit
    from vilt_fast.demo.loop import CHECKPOINT

    is_vit = arguments.family == "vit"
    out = directory_path(arguments.out, "--out")
    device = parse_device(arguments.device)
    _check_out(out, CHECKPOINT, arguments.resume)
    model, processor = (train_vit if is_vit else train).train(
        out,
        steps=arguments.steps,
        minutes=arguments.minutes,
        seed=arguments.seed,
        resume=arguments.resume,
        device=device,
        workers=arguments.workers,
        progress=not arguments.quiet,
    )
    print(f"saved in {out}")
    if arguments.evaluate:
        measure = evaluate.evaluate_vit if is_vit else evaluate.evaluate
        print_scores(measure, model.cpu(), processor, arguments.evaluate, progress=not arguments.quiet)


def _check_out(out: Path, checkpoint: str, resume: bool) -> None:
    """Refuse to continue what is no run, and to write over a run or over anything else."""
    from vilt_fast.demo.vocabulary import vocabulary

    path = out / checkpoint
    if resume:
        if not path.is_file():
            found = "is no regular file" if os.path.lexists(path) else "does not exist"
            raise ValueError(f"--resume: {str(path)!r} {found}, wanted the --out of a run, or no --resume")
        return
    if os.path.lexists(path):
        raise ValueError(f"--out: {str(out)!r} already holds a run, wanted --resume or another directory")
    # The vocabulary comes before the first checkpoint: a run that was stopped between them can start again.
    ours = {"vocab.txt"} if holds(out / "vocab.txt", "\n".join(vocabulary()) + "\n") else set[str]()
    others = sorted(name for name in os.listdir(out) if name not in ours and name[0] != ".") if out.exists() else []
    if others:
        raise ValueError(f"--out: {str(out)!r} holds {listing(others, 3)}, wanted a new or an empty directory")


def print_scores(
    measure: Callable[..., dict[str, Any]], model: Any, processor: Any, images: int, *, progress: bool
) -> None:
    """Print accuracy by kind, beside that of always giving the kind's most frequent answer.

    measure: `evaluate` or `evaluate_vit` of vilt_fast.demo.evaluate.
    """
    scores = measure(model, processor, images, progress=progress and sys.stderr.isatty())
    print(f"{images} images of the test split, which is never trained on:\n")
    print(f"{'kind':<12}{'asked':>10}{'right':>9}{'majority':>10}")
    for kind, score in scores.items():
        print(f"{kind:<12}{score.questions:>10}{score.accuracy:>9.1%}{score.majority:>10.1%}")
