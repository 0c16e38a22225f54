"""`vilt-fast export`: what it writes and prints, and what it refuses in one line."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import vilt_fast
from vilt_fast import cli, export
from vilt_fast.export import torch_file

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    """A directory with a small ViT, and no image settings."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("vit")
    config = vilt_fast.ViTConfig(**SMALL, image_size=16, patch_size=8, num_labels=3, initializer_range=0.5)
    vilt_fast.ViTForImageClassification(config).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("settings")
    vilt_fast.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(directory)
    return str(directory)


def test_what_is_printed(run, vit, settings, tmp_path):
    """Twice: the second run replaces the first one's file, and prints JSON."""
    command = ("export", "--format", "torch", "--model", vit, "--processor", settings, "--size", "16x24")
    out = tmp_path / "vit.pt2"
    lines = run(*command, "--out", str(out)).splitlines()
    assert lines[0].startswith(f"{out}: ViTForImageClassification, torch, float32, 0.") and " MB, in " in lines[0]
    assert lines[1].startswith("largest difference from the model ") and ", of at most " in lines[1]
    assert " pairs/s, " in lines[2] and lines[2].endswith(" on a ragged batch (batch 4, height 16, width 24)")
    assert lines[3:] == ["  batch   1 or more", "  height  16", "  width   24"]
    assert os.listdir(tmp_path) == ["vit.pt2"]
    first = out.read_bytes()
    told = json.loads(run(*command, "--out", str(out), "--batch", "3", "--dtype", "bf16", "--json"))
    assert out.read_bytes() != first
    assert told["model_class"] == "ViTForImageClassification" and told["format"] == "torch" and told["out"] == str(out)
    assert 0 <= told["difference"] <= told["bound"] and told["size_bytes"] == out.stat().st_size
    assert told["file_pairs_per_s"] > 0 and told["eager_pairs_per_s"] > 0 and told["seconds"] > 0
    assert told["axes"]["batch"] == {"name": "batch", "least": 3, "most": 3, "multiple": 1}
    about = json.loads(torch_file.read_metadata(out))
    assert about["dtype"] == "bfloat16" and about["image_processor"]["size"] == {"height": 16, "width": 16}


def test_no_settings(capsys, vit, tmp_path):
    """They are not needed to run a model; that the file has none is said."""
    out = tmp_path / "a.pt2"
    command = ["export", "--format", "torch", "--model", vit, "--out", str(out), "--size", "8x16", "--batch", "2"]
    assert cli.main(command) == 0
    assert capsys.readouterr().err.startswith("note: no processor is beside the model: ")
    assert json.loads(torch_file.read_metadata(out))["image_processor"] is None


@pytest.mark.parametrize("kind", ["ask", "itm", "nlvr"])
def test_any_class(monkeypatch, models, tmp_path, kind):
    """The one that wrote the checkpoint, with its processor, and every option as an argument."""
    saved = []
    monkeypatch.setattr(
        "vilt_fast.commands.export.save", lambda *given, **options: saved.append((given, options)) or 0 / 0
    )
    fixed = ("--batch", "2", "--words", "9", "--size", "32x48")
    command = ("export", "--format", "onnx", "--model", models[kind], "--out", str(tmp_path / "a.onnx"), *fixed)
    with pytest.raises(ZeroDivisionError):
        cli.main([*command, "--dtype", "float16"])
    ((model, path), options), architecture = saved[0], json.load(open(f"{models[kind]}/config.json"))["architectures"]
    assert [type(model).__name__] == architecture and model.dtype == torch.float16 and not model.training
    assert isinstance(options["processor"], vilt_fast.ViltProcessor) and path == tmp_path / "a.onnx"
    assert (options["batch"], options["words"], options["image_size"]) == (2, 9, (32, 48))
    assert options["regions"] is None and options["format"] == "onnx"


def test_what_is_refused(fail, vit, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder.pt2")
    (tmp_path / "other.pt2").write_text("a thesis")
    shutil.copytree(vit, "model")
    os.link("model/model.safetensors", "same.pt2")
    os.symlink("model/model.safetensors", "link.pt2")
    torch_file_of = ("export", "--format", "torch", "--model", "model")
    for argv, message in (
        ((*torch_file_of, "--out", "folder.pt2"), "--out: 'folder.pt2' is a directory"),
        ((*torch_file_of, "--out", "none/a.pt2"), "--out: the directory of 'none/a.pt2' does not exist"),
        ((*torch_file_of, "--out", "a.onnx"), "wanted a name that ends in .pt2"),
        ((*torch_file_of, "--out", "other.pt2"), "other.pt2' exists and is no export of ours"),
        ((*torch_file_of, "--out", "same.pt2"), "the same file as the input"),
        ((*torch_file_of, "--out", "link.pt2"), "the same file as the input"),
        ((*torch_file_of, "--out", ""), "--out: got an empty name"),
        ((*torch_file_of, "--out", "a.pt2", "--size", "20x16"), "image_size: got 20 for the height"),
        ((*torch_file_of, "--out", "a.pt2", "--size", "20"), "--size: got '20', wanted HEIGHTxWIDTH"),
        (
            (*torch_file_of, "--out", "a.pt2", "--words", "3"),
            "words: got 3, but a ViTForImageClassification has no such",
        ),
        ((*torch_file_of, "--out", "a.pt2", "--dtype", "int8"), "--dtype: got 'int8', wanted one of"),
        ((*torch_file_of, "--out", "a.pt2", "--device", "tpu"), "--device: got 'tpu'"),
        ((*torch_file_of, "--out", "a.pt2", "--processor", "none"), "none"),
        (("export", "--format", "torch", "--model", "none", "--out", "a.pt2"), "none"),
        (("export", "--format", "torch", "--processor", "model", "--out", "a.pt2"), "without --model, wanted both"),
        (("export", "--format", "tf", "--out", "a.pt2"), "invalid choice: 'tf'"),
        (("export", "--format", "torch"), "required: --out"),
    ):
        assert message in fail(*argv), argv
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**content, "architectures": ["ViTForDreams"]}))
    assert "is to be one of ours, such as ViltForQuestionAnswering; got 'ViTForDreams'" in fail(
        *torch_file_of, "--out", "a.pt2"
    )
    assert sorted(os.listdir()) == ["folder.pt2", "link.pt2", "model", "other.pt2", "same.pt2"]


def test_one_writer_at_a_time(fail, vit, settings, tmp_path):
    from vilt_fast.commands.output import sole_writer

    out = tmp_path / "a.pt2"
    with sole_writer(out):
        message = fail("export", "--format", "torch", "--model", vit, "--processor", settings, "--out", str(out))
    assert f"is being written by process {os.getpid()}" in message and not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_full_disk(vit, settings, tmp_path):
    """In a process of its own, whose files may not grow: one line, and nothing is left."""
    pytest.importorskip("resource")
    out = tmp_path / "a.pt2"
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    command = [
        *(sys.executable, "-c", limit + "from vilt_fast.cli import main; sys.exit(main())"),
        *("export", "--format", "torch", "--model", vit, "--processor", settings, "--out", str(out), "--size", "16x16"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr == f"vilt-fast export: could not write {out}: File too large; nothing was changed\n"
    assert not os.listdir(tmp_path)


def test_an_interrupt(capsys, monkeypatch, vit, settings, tmp_path):
    """Ctrl-C while the file is written."""

    def write(program, path, about):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch_file, "write", write)
    command = ["export", "--format", "torch", "--model", vit, "--processor", settings, "--size", "16x16"]
    assert cli.main([*command, "--out", str(tmp_path / "a.pt2")]) == 130
    assert capsys.readouterr().err == "interrupted\n" and not os.listdir(tmp_path)


def test_formats_are_those_of_the_room():
    """The command line names them without importing them."""
    (option,) = [one for one in cli._COMMANDS["export"].options if one.names == ("--format",)]
    assert option.settings["choices"] == tuple(export.FORMATS)
