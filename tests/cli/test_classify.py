"""`vilt-fast classify`: labels of images, folders as JSON lines, and ask's rules for what is there already."""

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vilt_fast
from vilt_fast import cli
from vilt_fast.commands import loading

LABELS = ("cat", "dog", "red car", "tree")


def save_vit(directory: Path, name: str = "ViTForImageClassification", size=32, **fields) -> str:
    sizes = dict(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
        id2label=dict(enumerate(LABELS)),
    )
    torch.manual_seed(3)
    getattr(vilt_fast, name)(vilt_fast.ViTConfig(**{**sizes, **fields})).save_pretrained(directory)
    vilt_fast.ViTImageProcessor(size=size).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """30 images, one of them damaged, one a level down, and a hidden one."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (root / "more").mkdir()
    for number in range(30):
        pixels = rng.integers(0, 256, (*rng.integers(20, 60, 2), 3), np.uint8)
        Image.fromarray(pixels).save(root / ("more" if number == 29 else "") / f"{number:02}.png")
    (root / "17.png").write_bytes((root / "16.png").read_bytes()[:90])
    (root / ".00.png").write_bytes((root / "00.png").read_bytes())
    return root


@cache
def loaded(directory: str):
    kinds = vilt_fast.ViTForImageClassification, vilt_fast.ViTImageProcessor
    return tuple(kind.from_pretrained(directory) for kind in kinds)


@torch.no_grad()
def scores_of(directory: str, path) -> list[tuple[str, float]]:
    """Of one image, by the live model on what the processor makes of it."""
    model, processor = loaded(directory)
    pixels = processor(str(path), return_tensors="pt").pixel_values
    scores = model(pixels, interpolate_pos_encoding=True).logits[0].softmax(-1)
    best = scores.sort(descending=True)
    return [(LABELS[i], score) for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


@pytest.mark.parametrize("size", [32, {"shortest_edge": 20}], ids=["square", "shortest"])
def test_one_image(run, folder, tmp_path, size):
    model, path = save_vit(tmp_path, size=size), str(folder / "03.png")
    wanted = scores_of(model, path)
    shown = run("classify", path, "--model", model, "--top", "2")
    assert [line.split("  ")[-1] for line in shown.splitlines()] == [label for label, _ in wanted[:2]]
    read = json.loads(run("classify", path, "--model", model, "--json"))
    assert read["model"] == model and read["images"] == [path]
    assert [one["image"] for one in read["results"]] == [path]
    labels = read["results"][0]["labels"]
    assert [one["label"] for one in labels] == [label for label, _ in wanted]
    assert [one["probability"] for one in labels] == pytest.approx([score for _, score in wanted], abs=1e-5)


def test_several_images_are_a_line_each(run, vit, folder):
    paths = [str(folder / f"{number:02}.png") for number in (4, 2, 4)]
    shown = run("classify", *paths, "--model", vit).splitlines()
    best = [scores_of(vit, path)[0] for path in paths]
    assert shown == [f"{path}: {label} ({score:.1%})" for path, (label, score) in zip(paths, best, strict=True)]
    read = json.loads(run("classify", *paths, "--model", vit, "--json", "--top", "1"))
    assert [one["labels"][0]["label"] for one in read["results"]] == [label for label, _ in best]
    bad = str(folder / "17.png")  # costs itself alone
    shown = run("classify", bad, *paths, "--model", vit).splitlines()
    assert shown[0].startswith(f"{bad}: error: ") and len(shown) == 4
    read = json.loads(run("classify", *paths, bad, "--model", vit, "--json"))
    assert "labels" in read["results"][0] and list(read["results"][3]) == ["image", "error"]


@pytest.fixture(scope="module")
def whole(vit, folder, tmp_path_factory) -> bytes:
    """What a run writes that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "labels.jsonl"
    assert cli.main(["classify", "--images", str(folder), "--out", str(out), "--model", vit]) == 0
    return out.read_bytes()


def test_a_folder(whole, vit, folder):
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["image"] for line in lines] == [*(f"{number:02}.png" for number in range(29)), "more/29.png"]
    for line in lines:
        if line["image"] == "17.png":
            assert set(line) == {"image", "error"} and "'17.png'" in line["error"]
            continue
        wanted = scores_of(vit, folder / line["image"])
        assert (line["label"], line["score"]) == tuple(line["top"][0])
        assert [label for label, _ in line["top"]] == [label for label, _ in wanted]
        assert [score for _, score in line["top"]] == pytest.approx([score for _, score in wanted], abs=1e-4)


def test_a_run_that_continues_ends_with_the_same_bytes(run, whole, vit, folder, tmp_path):
    out = tmp_path / "labels.jsonl"
    command = ("classify", "--images", str(folder), "--out", str(out), "--model", vit)
    said = "29 classified, 1 with an error, 1 hidden file left out"
    assert run(*command) == f"{out}: {said}\n" and out.read_bytes() == whole
    for cut in (0, 7, len(whole) // 3, len(whole) - 1):
        out.write_bytes(whole[:cut])
        shown = json.loads(run(*command, "--json"))
        assert out.read_bytes() == whole, f"cut at {cut}"
        assert shown["already_done"] == whole[:cut].count(b"\n")
        assert shown["classified"] + shown["errors"] == 30 - shown["already_done"]


def test_images_by_name_with_an_output(run, whole, vit, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    out, names = tmp_path / "labels.jsonl", [f"{number:02}.png" for number in range(29)]
    run("classify", *names, "more/29.png", "nowhere.png", "--out", str(out), "--model", vit)
    *lines, last = out.read_bytes().splitlines(keepends=True)
    assert b"".join(lines) == whole and json.loads(last)["image"] == "nowhere.png" and b"error" in last


def test_what_another_command_made_is_not_continued(run, fail, models, vit, photo, tmp_path):
    folder, out = str(Path(photo).parent), tmp_path / "out.jsonl"
    run("classify", "--images", folder, "--out", str(out), "--model", vit)
    before = out.read_bytes()
    ask = ("ask", "--images", folder, "--questions", "is it red ?", "--model", models["ask"], "--out", str(out))
    assert "about another image or question" in fail(*ask)
    assert "top 5, now 2" in fail("classify", "--images", folder, "--out", str(out), "--model", vit, "--top", "2")
    other = save_vit(tmp_path / "other", hidden_act="relu")
    assert "other weights or another config" in fail(
        "classify", "--images", folder, "--out", str(out), "--model", other
    )
    sizes = vilt_fast.ViTImageProcessor(size=40)
    sizes.save_pretrained(tmp_path / "sizes")
    options = ("--model", vit, "--processor", str(tmp_path / "sizes"))
    assert "another processor" in fail("classify", "--images", folder, "--out", str(out), *options)
    assert out.read_bytes() == before
    out.unlink()
    run(*ask)
    assert "about another image or question" in fail("classify", "--images", folder, "--out", str(out), "--model", vit)
    out.write_text(json.dumps({"image": Path(photo).name, "answer": "red", "score": 1, "top": []}) + "\n")
    assert "no label and no error" in fail("classify", "--images", folder, "--out", str(out), "--model", vit)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "IMAGE: got none, wanted one or more"),
        ([""], "IMAGE: got an empty name"),
        (["nowhere.png"], "nowhere.png"),
        (["{photo}", "nowhere.png"], "nowhere.png"),
        (["{photo}", "--images", "{folder}"], "IMAGE: got them beside --images"),
        (["--images", "{folder}"], "--out: got none"),
        (["--images", "{photo}", "--out", "a.jsonl"], "--images: not a folder"),
        (["{photo}", "--out", "{photo}"], "same file as the input"),
        (["{photo}", "--out", "a.png"], "wanted a file for JSON lines"),
        (["{photo}", "--top", "0"], "positive integer"),
        (["{photo}", "--backend", "kernels"], "need a GPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(fail, vit, photo, folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    given = [value.format(photo=photo, folder=folder) for value in arguments]
    assert message in fail("classify", *given, "--model", vit)


def test_models_of_other_commands(fail, models, vit, photo, tmp_path):
    assert "use `vilt-fast classify`" in fail("ask", photo, "is it red ?", "--model", vit)
    assert "use `vilt-fast classify`" in fail("match", photo, "a cat", "--model", vit)
    assert "use `vilt-fast ask`" in fail("classify", photo, "--model", models["ask"])
    body = save_vit(tmp_path / "body", "ViTModel")
    assert "no command uses it" in fail("classify", photo, "--model", body)
    none = save_vit(tmp_path / "none", id2label=None, num_labels=0)
    assert "has no labels" in fail("classify", photo, "--model", none)
    assert "ViltImageProcessor" in fail("classify", photo, "--model", vit, "--processor", models["ask"])
    tall = tmp_path / "tall.png"
    Image.new("RGB", (1, 3000)).save(tall)
    edge = save_vit(tmp_path / "edge", size={"shortest_edge": 20, "longest_edge": 40})
    assert f"IMAGE: {str(tall)!r}: an image of 3000x1" in fail("classify", str(tall), "--model", edge)


def test_without_a_model_the_one_that_ships_answers(vit, photo, capsys, monkeypatch):
    monkeypatch.setattr("vilt_fast.demo.load_vit", lambda: loaded(vit), raising=False)
    assert cli.main(["classify", photo, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["results"][0]["labels"][0]["label"] == scores_of(vit, photo)[0][0]
    assert shown.err.startswith("note: answered by the small model") and "google/vit" in shown.err


def test_numbers_that_overflow_are_no_labels(fail, run, photo, tmp_path):
    model = vilt_fast.ViTForImageClassification.from_pretrained(save_vit(tmp_path))
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
        model.vit.layernorm.weight.mul_(1e30)
    model.save_pretrained(tmp_path)
    assert "not finite numbers" in fail("classify", photo, "--model", str(tmp_path))
    out = tmp_path / "labels.jsonl"
    run("classify", photo, "--model", str(tmp_path), "--out", str(out))
    assert "overflow in torch.float32" in json.loads(out.read_text())["error"]


def test_loading_takes_the_class_of_the_command(vit):
    given = argparse.Namespace(command="classify", model=vit, processor=None, device="cpu", dtype="fp64", backend=None)
    model, processor = loading.load(given)
    assert isinstance(model, vilt_fast.ViTForImageClassification) and model.dtype == torch.float64
    assert isinstance(processor, vilt_fast.ViTImageProcessor) and not model.training
