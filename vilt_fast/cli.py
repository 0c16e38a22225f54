"""The command `vilt-fast`.

Nothing heavy is imported before the arguments are read, so that `vilt-fast --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import vilt_fast
from vilt_fast.commands import numbers, process

BAD_INPUT = 2  # the shell's code for wrong usage, which argparse uses too


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is for --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 on bad input (one line on stderr), 130 when interrupted.

    Args:
        argv: without the command's own name. None: those of this process, which the command then takes for its own,
            with its standard streams and its Ctrl-C.
    """
    if argv is not None:
        return _guarded(argv)
    process.take_over()
    code = _guarded(sys.argv[1:])
    if code == process.INTERRUPTED:
        _drop_output()
        process.end_interrupted()
    return code


def _guarded(argv: Sequence[str]) -> int:
    """The exit code of one command; what the user can see to is said in one line."""
    name, shows_traceback = "vilt-fast", False
    try:
        arguments = _parse(argv)
        if arguments.command is None:
            return 0
        name, shows_traceback = f"vilt-fast {arguments.command}", arguments.traceback
        with warnings.catch_warnings():
            if not sys.warnoptions:  # a library's warnings would bury the one line
                warnings.simplefilter("ignore")
            return _run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return process.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has quit, as `head` does
        _drop_output()
        return 0
    except Exception as error:
        if shows_traceback or not _is_bad_input(error):
            raise
        where = "" if _drop_output() else "standard output: "
        print(f"{name}: {where}{_one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _build_parser()
    try:
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help()
        return arguments
    finally:  # --help and --version end the process, with an output that may be full
        if sys.stdout is not None:
            sys.stdout.flush()


def _drop_output() -> bool:
    """Let the interpreter's own last flush succeed, whatever became of standard output; False: it is lost."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise ValueError("standard output is closed, wanted one, if only >/dev/null")
    try:
        os.getcwd()
    except FileNotFoundError as error:  # PyTorch would abort
        raise ValueError("the current folder was deleted, wanted one that exists: cd to another") from error
    module, function = _COMMANDS[arguments.command].target.split(":")
    command = getattr(importlib.import_module(f"vilt_fast.commands.{module}"), function)
    with vilt_fast.backend(getattr(arguments, "backend", None)):
        command(arguments)
    sys.stdout.flush()
    return 0


def _is_bad_input(error: Exception) -> bool:
    """Whether the user can fix it: everything that the library checks, files, and memory."""
    if isinstance(error, ValueError | OSError | MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _one_line(message: object) -> str:
    text = re.sub(r"^\[Errno -?\d+\] ", "", " ".join(str(message).split())) or type(message).__name__
    # What a terminal would obey stands in names of files, too.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Option:
    """The arguments of one call of `add_argument`."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names, self.settings = names, settings


class _Command:
    """One line of `vilt-fast --help`: `target` is "module:function" in vilt_fast.commands."""

    def __init__(self, target: str, summary: str, example: str, *options: _Option) -> None:
        self.target, self.summary, self.example, self.options = target, summary, example, options


def _model(required: bool) -> tuple[_Option, ...]:
    default = "" if required else " (default: the small model that ships with the package)"
    return (
        _Option(
            "--model",
            metavar="DIR|HUB_ID",
            required=required,
            help=f"directory, hub id or original .ckpt of the weights{default}",
        ),
        _Option(
            "--processor",
            metavar="DIR|HUB_ID",
            help="where the vocabulary and the image settings are (default: the same as --model)",
        ),
        _DEVICE,
        _Option("--dtype", default="float32", help="float32, float64, bfloat16 or float16 (default: float32)"),
        _Option("--backend", choices=("kernels", "reference"), help="default: kernels on CUDA, else reference"),
        _JSON,
    )


_IMAGE = _Option("image", metavar="IMAGE", help="the image's file")
_DEVICE = _Option("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
_JSON = _Option("--json", action="store_true", help="print JSON")
_BENCH = (
    _Option("--quick", action="store_true", help="a tiny model and few samples: the figures mean nothing"),
    _Option("--out", metavar="DIR", default="bench-results", help="of the files (default: bench-results)"),
    _Option("--device", help="default: cuda if available, else cpu"),
    _Option("--batch", type=numbers.positive, action="append", metavar="N", help="pairs per batch; may be repeated"),
    _Option(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="with peers that compile for minutes, or without (default: with them on a GPU)",
    ),
    _Option("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time of one thread (default: wall)"),
    _Option("--minutes", type=numbers.minutes, default=float("inf"), metavar="M", help="start nothing new after M"),
)
_SUITES = ("ops", "model", "end-to-end", "latency", "scaling", "memory", "vit", "visual_bert", "export", "all")
_TARGETS = "sm80,sm90,sm100,gfx942"

_COMMANDS = {
    "demo": _Command(
        "demo:demo",
        "answer questions about the bundled images, name shapes, and draw where the models looked",
        "vilt-fast demo --out demo.png",
        _Option("--out", metavar="PNG", default="demo.png", help="the image to write (default: demo.png)"),
        _Option(
            "--evaluate",
            type=numbers.positive,
            metavar="N",
            help="instead, measure the models on N fresh images each; the model card's N is 2000",
        ),
    ),
    "ask": _Command(
        "answer:ask",
        "answer a question about an image or its regions, or many",
        'vilt-fast ask photo.jpg "How many cats are there?" --model dandelin/vilt-b32-finetuned-vqa\n'
        '  vilt-fast ask --images photos --questions "How many cats are there?" --out answers.jsonl\n'
        "  vilt-fast ask --questions pairs.jsonl --out answers.jsonl\n"
        '  vilt-fast ask --regions photo.npz "How many cats are there?" --model uclanlp/visualbert-vqa '
        "--processor bert-base-uncased",
        _Option("image", metavar="IMAGE", nargs="?", help="the image's file"),
        _Option("question", metavar="QUESTION", nargs="?"),
        _Option("--images", metavar="FOLDER", dest="folder", help="ask about every image in it, but for hidden ones"),
        _Option(
            "--regions",
            metavar="FILE|FOLDER",
            help="for a VisualBERT, in place of IMAGE, an .npz (or .npy) with the features of a detector's regions; or "
            "in place of --images a folder of them",
        ),
        _Option(
            "--questions",
            metavar="TEXT|FILE",
            help="for --images, a question or a file with one per line, in UTF-8; or a .jsonl with lines "
            '{"image": ..., "question": ..., "id": ...}, id being optional, image (for a VisualBERT, the .npz of its '
            "regions) relative to --images, or --regions, or to the file",
        ),
        *_model(required=False),
        _Option("--top", type=numbers.positive, default=5, metavar="N", help="answers to show (default: 5)"),
        _Option(
            "--out",
            metavar="FILE",
            help="also draw the image, the answers and where the model looked, as PNG; for many, the .jsonl with the "
            "answers: if the same command made it, continue after its last line (.FILE.made.json beside it tells)",
        ),
    ),
    "fill": _Command(
        "score:fill",
        "fill the masked words of a text about an image, one by one, the most confident first",
        'vilt-fast fill photo.jpg "a bunch of [MASK] laying on a [MASK]." --model dandelin/vilt-b32-mlm',
        _IMAGE,
        _Option("text", metavar="TEXT", help="with [MASK] for each word to fill"),
        *_model(required=True),
    ),
    "match": _Command(
        "score:match",
        "score how well each text matches an image, best first",
        'vilt-fast match photo.jpg "two cats on a couch" "a football game" --model dandelin/vilt-b32-finetuned-coco',
        _IMAGE,
        _Option("texts", metavar="TEXT", nargs="+"),
        *_model(required=True),
    ),
    "classify": _Command(
        "classify:classify",
        "name what is in images, with a ViT",
        "vilt-fast classify photo.jpg --model google/vit-base-patch16-224\n"
        "  vilt-fast classify --images photos --out labels.jsonl",
        _Option("images", metavar="IMAGE", nargs="*", help="the images' files"),
        _Option("--images", metavar="FOLDER", dest="folder", help="every image in it, but for hidden ones"),
        *_model(required=False),
        _Option(
            "--top", type=numbers.positive, default=5, metavar="N", help="labels to show of one image (default: 5)"
        ),
        _Option(
            "--out",
            metavar="FILE",
            help="write the labels here, as JSON lines; if the same command made it, continue after its last line "
            "(.FILE.made.json beside it tells)",
        ),
    ),
    "nlvr": _Command(
        "score:nlvr",
        "say whether a sentence about two images is true",
        'vilt-fast nlvr left.jpg right.jpg "The left image has more dogs." --model dandelin/vilt-b32-finetuned-nlvr2',
        _Option("images", metavar="IMAGE", nargs=2, help="the two images, left and right"),
        _Option("text", metavar="TEXT"),
        *_model(required=True),
    ),
    "export": _Command(
        "export:export",
        "write a model into a file that runs without this package, and run that beside the model",
        "vilt-fast export --format onnx --model dandelin/vilt-b32-finetuned-vqa --out vqa.onnx\n"
        "  vilt-fast export --format aoti --model google/vit-base-patch16-224 --size 224x224 --out vit.pt2",
        _Option(
            "--format",
            choices=("torch", "onnx", "aoti"),
            required=True,
            help="torch: a program of torch.export; onnx; aoti: compiled for processors like this one, which takes a "
            "C++ compiler and a minute",
        ),
        _Option("--out", metavar="FILE", required=True, help="the file to write: .onnx, or .pt2 of the others"),
        *(option for option in _model(required=False) if option.names != ("--backend",)),
        *(
            _Option(f"--{axis}", dest=dest, type=numbers.positive, metavar="N", help=f"{what} (default: any number)")
            for axis, dest, what in (
                ("batch", "batch", "pairs, or images, of every batch"),
                ("words", "words", "of every text, padding counted"),
                ("regions", "region_count", "of every image, padding counted"),
                ("choices", "choices", "texts for each image, of a VisualBERT for multiple choice"),
            )
        ),
        _Option(
            "--size", type=numbers.size, metavar="HxW", help="of every image in pixels, padding counted (default: any)"
        ),
    ),
    "train-demo": _Command(
        "train:train_demo",
        "train a small model again and measure it",
        "vilt-fast train-demo --family vit --out runs/vit --seed 1",
        _Option("--family", choices=("vilt", "vit"), default="vilt", help="which one (default: vilt)"),
        _Option("--out", metavar="DIR", default="runs/demo", help="where the model goes (default: runs/demo)"),
        _Option("--resume", action="store_true", help="continue from the checkpoint in --out"),
        _Option("--seed", type=numbers.natural, default=0, metavar="N", help="of weights and images (default: 0)"),
        _Option("--steps", type=numbers.positive, metavar="N", help="of the optimizer (default: the recipe's)"),
        _Option("--minutes", type=numbers.minutes, metavar="M", help="stop after M minutes; --resume continues"),
        _Option("--workers", type=numbers.natural, default=2, metavar="N", help="processes that draw (default: 2)"),
        _DEVICE,
        _Option(
            "--evaluate",
            type=numbers.natural,
            default=2000,
            metavar="N",
            help="fresh images to measure it on; 0: none (default: 2000)",
        ),
        _Option("--quiet", action="store_true", help="no progress bar"),
    ),
    "check": _Command(
        "kernels:check",
        "compare every kernel with its reference on this machine",
        "vilt-fast check",
        _Option("--small", action="store_true", help="small sizes on a GPU too, for compute-sanitizer"),
        _JSON,
    ),
    "compile": _Command(
        "kernels:compile_kernels",
        "compile every kernel for GPUs that need not be here",
        "vilt-fast compile --targets sm80,sm90 --json compiled.json\n"
        "  vilt-fast compile --targets sm90 --operations linear --sass --csv compiled.csv",
        _Option("--targets", default=_TARGETS, metavar="LIST", help=f"comma-separated (default: {_TARGETS})"),
        _Option("--operations", metavar="LIST", help="kernel files to compile, comma-separated (default: all)"),
        _Option("--sass", action="store_true", help="count the instructions of loops and epilogues, by kind"),
        _Option("--json", metavar="FILE", help="also write the rows as JSON"),
        _Option("--csv", metavar="FILE", help="also write the rows as CSV"),
    ),
    "tune": _Command(
        "kernels:tune",
        "measure the kernels' tiles on this GPU and write the table that they then use",
        "vilt-fast tune",
        _Option("--out", metavar="DIR", help="where the table goes (default: where the kernels look for it)"),
    ),
    "bench": _Command(
        "bench:bench",
        "check every contestant, then time it beside the others, and file the results",
        "vilt-fast bench --suite model --device cpu --batch 8",
        _Option("--suite", choices=_SUITES, default="model", help="default: model"),
        _Option("--compare", nargs=2, metavar="JSON", help="instead, say what changed from one file to another"),
        *_BENCH,
    ),
    "ablate": _Command(
        "bench:ablate",
        "turn on one idea after the other: what each buys in time and costs in error",
        "vilt-fast ablate --without sampling --plot waterfall.png",
        _Option("--only", metavar="A,B", help="these switches alone (default: all)"),
        _Option("--without", metavar="A,B", help="all but these"),
        _Option("--plot", metavar="PNG", help="also draw the waterfall (needs matplotlib)"),
        *_BENCH,
    ),
    "env": _Command("environment:env", "print what a bug report needs", "vilt-fast env", _JSON),
}


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vilt-fast",
        description="Ask questions about images with ViLT and about their regions with VisualBERT, and name them with "
        "ViT, on packed tokens.",
    )
    parser.add_argument("--version", action="version", version=f"vilt_fast {vilt_fast.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, command in _COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for option in command.options:
            subparser.add_argument(*option.names, **option.settings)
    return parser


if __name__ == "__main__":
    sys.exit(main())
