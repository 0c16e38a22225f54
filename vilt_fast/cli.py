"""The command `vilt-fast`.

Nothing heavy is imported before the arguments are read, so that `vilt-fast --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import vilt_fast

BAD_INPUT = 2  # the shell's code for wrong usage, which argparse uses too
INTERRUPTED = 130  # 128 + SIGINT


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is for --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 on bad input (one line on stderr), 130 when interrupted."""
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # a library's warning would stand between the user and the one line
                warnings.simplefilter("ignore")
            return _run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.traceback or not _is_bad_input(error):
            raise
        print(f"vilt-fast {arguments.command}: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def _run(arguments: argparse.Namespace) -> int:
    command = getattr(importlib.import_module(f"vilt_fast.commands.{arguments.module}"), arguments.function)
    with vilt_fast.backend(getattr(arguments, "backend", None)):
        command(arguments)
    sys.stdout.flush()
    return 0


def _is_bad_input(error: Exception) -> bool:
    """Whether the user can mend it: everything that the library checks, files, and memory."""
    if isinstance(error, ValueError | OSError | MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _one_line(message: object) -> str:
    return " ".join(str(message).split()) or type(message).__name__


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vilt-fast", description="Ask questions about pictures, with ViLT on packed tokens.")
    parser.add_argument("--version", action="version", version=f"vilt_fast {vilt_fast.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _add_demo(commands)
    _add_ask(commands)
    _add_fill(commands)
    _add_match(commands)
    _add_nlvr(commands)
    _add_train_demo(commands)
    _add_check(commands)
    _add_compile(commands)
    _add_tune(commands)
    _add_bench(commands)
    _add_ablate(commands)
    _add_env(commands)
    return parser


def _add(commands: argparse._SubParsersAction, name: str, target: str, summary: str, example: str) -> _Parser:
    """A subcommand that calls `target`, "module:function" in vilt_fast.commands, with an example in its help."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module, function = target.split(":")
    parser.set_defaults(module=module, function=function)
    return parser


def _add_model_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    default = "" if required else " (default: the small model that ships with the package)"
    parser.add_argument(
        "--model",
        metavar="DIR|HUB_ID",
        required=required,
        help=f"directory, hub id or original .ckpt of the weights{default}",
    )
    parser.add_argument(
        "--processor",
        metavar="DIR|HUB_ID",
        help="where the vocabulary and the picture settings are (default: the same as --model)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    parser.add_argument("--dtype", default="float32", help="float32, float64, bfloat16 or float16 (default: float32)")
    parser.add_argument("--backend", choices=("kernels", "reference"), help="default: kernels on CUDA, else reference")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a positive integer")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted an integer >= 0")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a positive number")
    return minutes


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "demo",
        "answer:demo",
        "answer questions about the bundled pictures and draw where the model looked",
        "vilt-fast demo --out demo.png",
    )
    parser.add_argument("--out", metavar="PNG", default="demo.png", help="the picture to write (default: demo.png)")
    _add_evaluate(parser, default=0, help="instead, measure the model on N fresh pictures; the model card's N is 2000")


def _add_ask(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "ask",
        "answer:ask",
        "answer a question about a picture, or many",
        'vilt-fast ask photo.jpg "How many cats are there?" --model dandelin/vilt-b32-finetuned-vqa\n'
        '  vilt-fast ask --images photos --questions "How many cats are there?" --out answers.jsonl\n'
        "  vilt-fast ask --questions pairs.jsonl --out answers.jsonl",
    )
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="the picture's file")
    parser.add_argument("question", metavar="QUESTION", nargs="?")
    parser.add_argument("--images", metavar="FOLDER", dest="folder", help="ask about every picture in it")
    parser.add_argument(
        "--questions",
        metavar="TEXT|FILE",
        help='for --images, a question or a file with one a line; or a .jsonl with lines {"image": ..., "question": '
        '..., "id": ...}, id as you like, image relative to --images or to the file',
    )
    _add_model_options(parser, required=False)
    parser.add_argument("--top", type=_positive, default=5, metavar="N", help="answers to show (default: 5)")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="also draw the picture, the answers and where the model looked, as PNG; for many, the .jsonl with the "
        "answers: where it exists, go on behind its last line",
    )


def _add_fill(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "fill",
        "score:fill",
        "fill the masked words of a text about a picture, one by one, the surest first",
        'vilt-fast fill photo.jpg "a bunch of [MASK] laying on a [MASK]." --model dandelin/vilt-b32-mlm',
    )
    parser.add_argument("image", metavar="IMAGE", help="the picture's file")
    parser.add_argument("text", metavar="TEXT", help="with [MASK] for each word to fill")
    _add_model_options(parser, required=True)


def _add_match(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "match",
        "score:match",
        "score how well each text fits a picture, best first",
        'vilt-fast match photo.jpg "two cats on a couch" "a football game" --model dandelin/vilt-b32-finetuned-coco',
    )
    parser.add_argument("image", metavar="IMAGE", help="the picture's file")
    parser.add_argument("texts", metavar="TEXT", nargs="+")
    _add_model_options(parser, required=True)


def _add_nlvr(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "nlvr",
        "score:nlvr",
        "say whether a sentence about two pictures is true",
        'vilt-fast nlvr left.jpg right.jpg "The left image has more dogs." --model dandelin/vilt-b32-finetuned-nlvr2',
    )
    parser.add_argument("images", metavar="IMAGE", nargs=2, help="the two pictures, left and right")
    parser.add_argument("text", metavar="TEXT")
    _add_model_options(parser, required=True)


def _add_train_demo(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "train-demo",
        "train:train_demo",
        "train the small model again and measure it",
        "vilt-fast train-demo --out runs/demo --seed 1",
    )
    parser.add_argument("--out", metavar="DIR", default="runs/demo", help="where the model goes (default: runs/demo)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--seed", type=_natural, default=0, metavar="N", help="of weights and pictures (default: 0)")
    parser.add_argument("--steps", type=_positive, metavar="N", help="of the optimizer (default: the recipe's)")
    parser.add_argument("--minutes", type=_minutes, metavar="M", help="stop after so many; --resume goes on")
    parser.add_argument("--workers", type=_natural, default=2, metavar="N", help="processes that draw (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    _add_evaluate(parser, default=2000, help="fresh pictures to measure it on; 0: none (default: 2000)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_evaluate(parser: argparse.ArgumentParser, *, default: int, help: str) -> None:
    parser.add_argument("--evaluate", type=_natural, default=default, metavar="N", help=help)


def _add_check(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "check",
        "kernels:check",
        "compare every kernel with its reference on this machine",
        "vilt-fast check",
    )
    parser.add_argument("--small", action="store_true", help="small sizes on a GPU too, for compute-sanitizer")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_compile(commands: argparse._SubParsersAction) -> None:
    targets = "sm80,sm90,sm100,gfx942"
    parser = _add(
        commands,
        "compile",
        "kernels:compile_kernels",
        "compile every kernel for GPUs that need not be here",
        "vilt-fast compile --targets sm80,sm90 --json compiled.json",
    )
    parser.add_argument("--targets", default=targets, metavar="LIST", help=f"with commas (default: {targets})")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")


def _add_tune(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "tune",
        "kernels:tune",
        "measure the kernels' tiles on this GPU and write the table that they then use",
        "vilt-fast tune",
    )
    parser.add_argument("--out", metavar="DIR", help="where the table goes (default: where the kernels look for it)")


def _add_bench(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "bench",
        "bench:bench",
        "check every contestant, then time it beside the others, and file the results",
        "vilt-fast bench --suite model --device cpu --batch 8",
    )
    suites = ("ops", "model", "end-to-end", "latency", "scaling", "memory", "all")
    parser.add_argument("--suite", choices=suites, default="model", help="default: model")
    parser.add_argument("--compare", nargs=2, metavar="JSON", help="instead, say what changed from one file to another")
    _add_bench_options(parser)


def _add_ablate(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "ablate",
        "bench:ablate",
        "turn on one idea after the other: what each buys in time and costs in error",
        "vilt-fast ablate --without sampling --plot waterfall.png",
    )
    parser.add_argument("--only", metavar="A,B", help="these switches alone (default: all)")
    parser.add_argument("--without", metavar="A,B", help="all but these")
    parser.add_argument("--plot", metavar="PNG", help="also draw the waterfall (needs matplotlib)")
    _add_bench_options(parser)


def _add_bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a tiny model and few samples: the figures mean nothing")
    parser.add_argument("--out", metavar="DIR", default="bench-results", help="of the files (default: bench-results)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--batch", type=_positive, action="append", metavar="N", help="pairs a batch; may be repeated")
    parser.add_argument("--compile", action="store_true", help="with compiled peers on a CPU too: takes minutes")
    parser.add_argument("--minutes", type=_minutes, default=float("inf"), metavar="M", help="start nothing new after M")


def _add_env(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "env", "environment:env", "print what a bug report needs", "vilt-fast env")
    parser.add_argument("--json", action="store_true", help="print JSON")


if __name__ == "__main__":
    sys.exit(main())
