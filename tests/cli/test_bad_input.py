"""Help, and every bad input: one line on standard error and exit code 2."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import vilt_fast
from vilt_fast import cli
from vilt_fast.commands import answer, loading

# --- what is shown, what is refused ---------------------------------------------------------------------------------

COMMANDS = ("demo", "ask", "fill", "match", "nlvr", "train-demo", "check", "compile", "tune", "env")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and f"example:\n  vilt-fast {command}" in out
    assert "picture" not in out.lower()  # one word for one thing: an image


@pytest.mark.parametrize("command", COMMANDS)
def test_help_examples_parse(command):
    """Every example in the help is a command line that the parser takes."""
    subparsers = next(a for a in cli._build_parser()._actions if hasattr(a, "choices") and a.choices)
    for line in subparsers.choices[command].epilog.splitlines()[1:]:
        example = shlex.split(line)
        assert example[0] == "vilt-fast"
        assert cli._build_parser().parse_args(example[1:]).command == command


def test_no_command_shows_the_help(run):
    assert all(command in run() for command in COMMANDS)


def bad_image(directory: Path, kind: str) -> str:
    whole = directory / "whole.jpg"
    Image.new("RGB", (50, 50), "red").save(whole)
    content = {
        "empty.png": b"",
        "text.png": b"this is no picture",
        "cut.jpg": whole.read_bytes()[: whole.stat().st_size // 2],
    }
    if kind in content:
        (directory / kind).write_bytes(content[kind])
    return str(directory if kind == "directory" else directory / kind)


def command_line(command: str, photo: str, model: str, image: str | None = None) -> tuple[str, ...]:
    """A complete command line; `image` replaces `photo`, the second one of the two that nlvr takes."""
    image = image or photo
    rest = {"ask": (image, "a"), "fill": (image, "[MASK]"), "match": (image, "a"), "nlvr": (photo, image, "a")}[command]
    return (command, *rest, "--model", model)


@pytest.mark.parametrize("command", ["ask", "fill", "match", "nlvr"])
@pytest.mark.parametrize("kind", ["empty.png", "text.png", "cut.jpg", "missing.png", "directory"])
def test_bad_image(fail, models, photo, tmp_path, kind, command):
    path = bad_image(tmp_path, kind)
    assert Path(path).name in fail(*command_line(command, photo, models[command], path))


def test_decompression_bomb(fail, models, photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "bomb" in fail("ask", photo, "how many", "--model", models["ask"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--dtype", "int8"), "int8"),
        (("--dtype", "float33"), "float33"),
        (("--device", "toaster"), "toaster"),
        (("--device", "meta"), "meta"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--top", "0"), "--top"),
        (("--top", "many"), "--top"),
        (("--top", "9" * 5000), "--top"),
        (("--out", "no-such-folder/a.png"), "no-such-folder"),
        (("--out", "."), "directory"),
        (("--colour",), "--colour"),
    ],
)
def test_bad_option(fail, models, photo, options, named):
    assert named in fail("ask", photo, "how many", "--model", models["ask"], *options)


@pytest.mark.parametrize(
    "argv",
    [
        ("demo", "--evaluate", "1" + "0" * 23),
        ("bench", "--batch", "9" * 23, "--quick", "--suite", "model"),
        ("train-demo", "--seed", "9" * 26),
    ],
)
def test_numbers_beyond_any_integer(fail, argv):
    assert argv[1] in fail(*argv)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(fail, models, photo):
    assert "cuda" in fail("ask", photo, "how many", "--model", models["ask"], "--device", "cuda")


@pytest.mark.parametrize("command", ["ask", "fill", "match", "nlvr"])
def test_missing_model(fail, photo, tmp_path, command):
    assert "no-model" in fail(*command_line(command, photo, str(tmp_path / "no-model")))


def test_empty_model_directory(fail, photo, tmp_path):
    assert "config.json" in fail("ask", photo, "a", "--model", str(tmp_path))


def test_unreachable_hub(fail, photo, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "nobody/nothing" in fail("ask", photo, "a", "--model", "nobody/nothing")


@pytest.mark.parametrize("command", ["fill", "match", "nlvr"])
def test_model_is_required(fail, photo, command):
    argv = {"fill": ["[MASK]"], "match": ["a"], "nlvr": [photo, "a"]}[command]
    assert "--model" in fail(command, photo, *argv)


def test_processor_alone_is_refused(fail, models, photo):
    assert "--processor" in fail("ask", photo, "a", "--processor", models["ask"])


FITTING = {"ask": "ask", "fill": "fill", "match": "match", "itm": "match", "nlvr": "nlvr"}  # weights -> command


@pytest.mark.parametrize(
    ("command", "kind"), [(c, kind) for c in sorted({*FITTING.values()}) for kind in FITTING if FITTING[kind] != c]
)
def test_weights_of_another_command(fail, models, photo, command, kind):
    """config.json says what the weights are for; the message names the command that fits."""
    assert f"vilt-fast {FITTING[kind]}" in fail(*command_line(command, photo, models[kind]))


def test_weights_without_a_head(saved, fail, photo, tmp_path):
    directory = saved(tmp_path / "bare", "ViltModel")
    assert "no command" in fail("ask", photo, "a", "--model", directory)


def test_weights_of_another_architecture(fail, photo, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    assert "BertModel" in fail("ask", photo, "a", "--model", str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"architectures": 3, "model_type": "bert"}'])
def test_damaged_config(fail, photo, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    fail("ask", photo, "a", "--model", str(tmp_path))


def test_truncated_weights(saved, fail, photo, tmp_path):
    directory = Path(saved(tmp_path / "cut", "ViltForQuestionAnswering"))
    weights = next(directory.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    fail("ask", photo, "a", "--model", str(directory))


def test_compile_for_an_unknown_target(fail):
    pytest.importorskip("triton", reason="the kernels need Triton")
    assert "sm12" in fail("compile", "--targets", "sm12")


def test_nothing_to_fill(fail, models, photo):
    assert "[MASK]" in fail("fill", photo, "a red cat", "--model", models["fill"])


def test_question_too_long(fail, models, photo):
    assert "16" in fail("ask", photo, "cat " * 38, "--model", models["ask"])


def test_nlvr_wants_weights_for_two_images(saved, fail, photo, tmp_path):
    options = {"num_images": 3, "modality_type_vocab_size": 4}
    directory = saved(tmp_path / "three", "ViltForImagesAndTextClassification", **options)
    assert "3 images per text" in fail("nlvr", photo, photo, "a", "--model", directory)


def test_traceback_on_request(models, photo):
    with pytest.raises(FileNotFoundError):
        cli.main(["--traceback", "ask", "missing.png", "a", "--model", models["ask"]])


def test_a_bug_is_not_called_bad_input(monkeypatch, models, photo):
    def broken(*args, **kwargs):
        raise KeyError("a bug of ours")

    monkeypatch.setattr(answer, "answer", broken)
    with pytest.raises(KeyError):
        cli.main(["ask", photo, "a", "--model", models["ask"]])


def test_interrupt(monkeypatch, capsys, models, photo):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(answer, "answer", interrupted)
    assert cli.main(["ask", photo, "a", "--model", models["ask"]]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_full_disk_keeps_the_old_file(fail, monkeypatch, models, photo, tmp_path):
    out = tmp_path / "seen.png"
    out.write_bytes(b"the old one")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    argv = ("ask", photo, "a", "--model", models["ask"], "--out", str(out))
    assert "No space left" in fail(*argv)
    assert out.read_bytes() == b"the old one" and sorted(tmp_path.iterdir()) == [out]


# --- as a process ---------------------------------------------------------------------------------------------------


def process(directory: Path, *argv: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess:
    """The command in a process of its own, outside the checkout and with standard input closed."""
    return subprocess.run(
        [sys.executable, "-m", "vilt_fast.cli", *argv],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )


def test_process_answers(models, photo, tmp_path):
    done = process(tmp_path, "ask", photo, "how many", "--model", models["ask"], "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["answers"]) == 5


def test_process_refuses_in_one_line(models, tmp_path):
    done = process(tmp_path, "ask", "missing.png", "how many", "--model", models["ask"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "missing.png" in done.stderr


def test_help_imports_nothing_heavy(tmp_path):
    code = """
import sys, vilt_fast.cli
try:
    vilt_fast.cli.main(["ask", "--help"])
except SystemExit:
    print(sorted({"torch", "numpy", "PIL", "triton"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("[]\n"), done


def test_reader_that_leaves(tmp_path):
    """`vilt-fast env | head -0`: no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    done = process(tmp_path, "env", stdout=writer)
    os.close(writer)
    assert done.stderr == ""


def test_every_class_with_an_answer_has_a_command():
    heads = {name for name in vilt_fast.__all__ if name.startswith(("ViltFor", "ViTFor", "VisualBertFor"))}
    without = {"ViltForTokenClassification", "ViTForMaskedImageModeling"}
    without |= {f"VisualBertFor{name}" for name in ("PreTraining", "MultipleChoice", "RegionToPhraseAlignment")}
    assert set(loading.COMMANDS) == heads - without
