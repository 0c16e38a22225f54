"""Refusals that name the file, and say what to do in words of the command line."""

import os

import pytest
from PIL import EpsImagePlugin, Image


@pytest.fixture
def place(tmp_path, monkeypatch):
    Image.new("RGB", (70, 70), "red").save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_image_that_is_too_elongated_is_named(fail, models, place):
    Image.new("RGB", (1, 3000)).save("thin.png")
    assert "IMAGE: 'thin.png': an image of 3000x1" in fail("ask", "thin.png", "a", "--model", models["ask"])
    said = fail("nlvr", "a.png", "thin.png", "a", "--model", models["nlvr"])
    assert "IMAGE: 'thin.png': an image of 3000x1" in said


def test_a_bomb_is_told_by_its_size(fail, models, place):
    Image.new("1", (20000, 20000)).save("bomb.png")
    said = fail("ask", "bomb.png", "a", "--model", models["ask"])
    assert "400000000 pixels" in said and "make it smaller" in said and "DOS" not in said


def test_eps_without_ghostscript(fail, models, place, monkeypatch):
    Image.new("RGB", (9, 9), "red").save("a.eps")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", False)
    said = fail("ask", "a.eps", "a", "--model", models["ask"])
    assert "'a.eps': EPS needs Ghostscript" in said and "damaged" not in said


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize(
    ("out", "named"),
    [("", "--out: got an empty name"), ("/dev/stdout", "is the file that standard output goes to")],
)
def test_an_output_without_a_name_of_its_own(fail, models, place, many, out, named):
    asked = ("--images", ".", "--questions", "what color") if many else ("a.png", "what color")
    assert named in fail("ask", *asked, "--out", out, "--model", models["ask"])


def test_an_output_that_is_a_pipe_without_a_name(fail, models, place):
    reader, writer = os.pipe()
    argv = ("ask", "--images", ".", "--questions", "what color", "--model", models["ask"])
    assert "is a pipe or a device" in fail(*argv, "--out", f"/dev/fd/{writer}")
    os.close(reader)
    os.close(writer)


def test_kernels_without_a_gpu(fail, models, place, monkeypatch):
    pytest.importorskip("triton", reason="the kernels need Triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    said = fail("ask", "a.png", "a", "--model", models["ask"], "--backend", "kernels")
    assert "--backend: kernels need a GPU" in said and "--backend reference" in said


# --- train-demo -----------------------------------------------------------------------------------------------------


def test_training_writes_over_nothing(fail, place):
    (place / "config.json").write_text("mine")
    assert "holds a.png, config.json, wanted a new or an empty directory" in fail("train-demo", "--out", ".")
    assert sorted(os.listdir()) == ["a.png", "config.json"] and (place / "config.json").read_text() == "mine"


@pytest.mark.parametrize("make", [None, os.mkfifo, os.mkdir])
def test_training_continues_a_run_only(fail, place, make):
    """A pipe would be read for ever."""
    os.mkdir("run")
    if make:
        make("run/checkpoint.pt")
    said = fail("train-demo", "--resume", "--out", "run")
    assert "'run/checkpoint.pt' " + ("is no regular file" if make else "does not exist") in said
    assert os.listdir("run") == (["checkpoint.pt"] if make else [])
