"""Every command from end to end on small random models."""

import functools
import importlib.metadata
import json
import math
import re
import sys

import pytest
import torch
from PIL import Image

import vilt_fast
from vilt_fast import cli
from vilt_fast.commands import environment, score

# --- ask ------------------------------------------------------------------------------------------------------------


def test_ask_prints_the_models_own_answers(run, models, photo):
    """The probabilities are the sigmoids of the logits that the library gives for the same inputs."""
    options = ("--model", models["ask"], "--json", "--top", "7")
    out = json.loads(run("ask", photo, "what color is the cat?", *options))
    model = vilt_fast.ViltForQuestionAnswering.from_pretrained(models["ask"]).eval()
    processor = vilt_fast.ViltProcessor.from_pretrained(models["ask"])
    with torch.no_grad():
        chances = model(**processor(photo, "what color is the cat?", return_tensors="pt")).logits[0].sigmoid()
    assert out["question"] == "what color is the cat?" and out["image"] == photo
    names = list(model.config.id2label.values())
    assert sorted(a["answer"] for a in out["answers"]) == sorted(names)
    listed = [a["probability"] for a in out["answers"]]
    assert listed == sorted(listed, reverse=True)
    for entry in out["answers"]:
        # Same code, same inputs: only the order of floating-point sums could differ between runs.
        assert math.isclose(entry["probability"], float(chances[names.index(entry["answer"])]), abs_tol=1e-6)


def test_ask_as_text(run, models, photo):
    lines = run("ask", photo, "is there a dog?", "--model", models["ask"], "--top", "2").splitlines()
    assert lines[0] == "is there a dog?"
    assert len([line for line in lines if "%" in line]) == 2


def test_ask_never_shows_more_answers_than_there_are(run, models, photo):
    out = json.loads(run("ask", photo, "how many", "--model", models["ask"], "--json", "--top", "100"))
    assert len(out["answers"]) == 7


@pytest.mark.parametrize("dtype", ["float64", "bf16"])
def test_ask_in_other_dtypes(run, models, photo, dtype):
    options = ("ask", photo, "how many dog", "--model", models["ask"], "--json", "--top", "7")
    plain = {a["answer"]: a["probability"] for a in json.loads(run(*options))["answers"]}
    other = {a["answer"]: a["probability"] for a in json.loads(run(*options, "--dtype", dtype))["answers"]}
    # bfloat16 keeps 8 bits; two layers and a head of random weights lose a few of them.
    assert all(abs(plain[word] - other[word]) < (1e-4 if dtype == "float64" else 0.1) for word in plain)


def test_ask_on_a_chosen_backend(run, fail, models, photo):
    options = ("ask", photo, "how many dog", "--model", models["ask"], "--json")
    assert run(*options, "--backend", "reference") == run(*options)
    assert "pallas" in fail(*options, "--backend", "pallas")


def test_ask_draws(run, models, photo, tmp_path):
    out = tmp_path / "seen.png"
    run("ask", photo, "how many dog", "--model", models["ask"], "--out", str(out))
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width > 600
    assert sorted(tmp_path.iterdir()) == [out]


def test_ask_without_model_uses_the_one_that_ships_and_says_what_it_knows(capsys, fail, photo):
    """Beside an answer, once; a refusal stays one line."""
    assert cli.main(["ask", photo, "how many circles are there?", "--json"]) == 0
    shown = capsys.readouterr()
    out = json.loads(shown.out)
    assert out["model"] is None and len(out["answers"]) == 5
    assert shown.err.count("\n") == 1 and "knows drawn shapes only" in shown.err and "--model" in shown.err
    fail("ask", "nowhere.png", "how many circles are there?")


# --- fill, match, nlvr ----------------------------------------------------------------------------------------------


def test_fill_is_the_documentations_procedure(run, models, photo):
    """Against the loop of Hugging Face's example, written out: the surest masked word first, then the model again."""
    text = "a [MASK] cat on the [MASK] [MASK]."
    out = json.loads(run("fill", photo, text, "--model", models["fill"], "--json"))
    model = vilt_fast.ViltForMaskedLM.from_pretrained(models["fill"]).eval()
    processor = vilt_fast.ViltProcessor.from_pretrained(models["fill"])
    encoding = processor(photo, text, return_tensors="pt")
    ids, filled = encoding["input_ids"], []
    with torch.no_grad():
        for _ in range(3):
            logits = model(input_ids=ids, pixel_values=encoding["pixel_values"]).logits[0]
            values, tokens = logits.softmax(dim=-1).max(dim=-1)
            values[ids[0] != processor.tokenizer.mask_token_id] = 0
            select = int(values.argmax())
            ids[0, select] = tokens[select]
            filled.append(processor.decode([int(tokens[select])]))
    assert [step["word"] for step in out["words"]] == filled
    assert out["filled"] == processor.decode(ids[0], skip_special_tokens=True)
    assert all(0 < step["probability"] <= 1 for step in out["words"])


def test_fill_leaves_a_word_that_is_filled_with_mask_itself():
    """A model that puts [MASK] everywhere still ends, after as many steps as there were masks."""

    class AlwaysMask:
        def __call__(self, input_ids):
            logits = torch.zeros(1, input_ids.shape[1], 8)
            logits[..., 4] = 5.0
            return type("Output", (), {"logits": logits})

    inputs = {"input_ids": torch.tensor([[2, 4, 5, 4, 3]])}
    steps = score.fill_masks(AlwaysMask(), inputs, mask_token_id=4)
    assert [token for token, _ in steps] == [4, 4]


def test_fill_text_output(run, models, photo):
    lines = run("fill", photo, "a [MASK] dog", "--model", models["fill"]).splitlines()
    assert len(lines) == 2 and "%" in lines[1]


def test_match_ranks_by_the_ranking_head(run, models, photo):
    texts = ["a red cat", "the dog on the couch", "how many"]
    out = json.loads(run("match", photo, *texts, "--model", models["match"], "--json"))
    model = vilt_fast.ViltForImageAndTextRetrieval.from_pretrained(models["match"]).eval()
    processor = vilt_fast.ViltProcessor.from_pretrained(models["match"])
    with torch.no_grad():
        alone = {text: float(model(**processor(photo, text, return_tensors="pt")).logits) for text in texts}
    assert [m["text"] for m in out["matches"]] == sorted(texts, key=lambda text: -alone[text])
    for entry in out["matches"]:
        # Alone and in a batch the sums have another order; fp32.
        assert math.isclose(entry["score"], alone[entry["text"]], rel_tol=1e-4, abs_tol=1e-4)


def test_match_with_the_matching_head_gives_probabilities(run, models, photo):
    out = json.loads(run("match", photo, "a dog", "a cat", "--model", models["itm"], "--json"))
    assert out["score_is"] == "probability"
    assert all(0 <= m["score"] <= 1 for m in out["matches"])
    assert "%" in run("match", photo, "a dog", "--model", models["itm"])


def test_nlvr_reads_both_pictures(run, models, photo, photo2):
    options = ("the left dog", "--model", models["nlvr"], "--json")
    one = json.loads(run("nlvr", photo, photo2, *options))
    other = json.loads(run("nlvr", photo2, photo, *options))
    assert {entry["label"] for entry in one["labels"]} == {"True", "False"}
    assert math.isclose(sum(entry["probability"] for entry in one["labels"]), 1, rel_tol=1e-6)
    chance = {entry["label"]: entry["probability"] for entry in one["labels"]}
    swapped = {entry["label"]: entry["probability"] for entry in other["labels"]}
    assert abs(chance["True"] - swapped["True"]) > 1e-4
    assert "%" in run("nlvr", photo, photo2, *options[:-1])


# --- demo and env ---------------------------------------------------------------------------------------------------


def test_demo_answers_and_draws(run, tmp_path):
    out = tmp_path / "demo.png"
    shown = run("demo", "--out", str(out))
    from vilt_fast import demo

    questions = [question for _, question in demo.examples()]
    assert len(questions) >= 3 and all(question in shown for question in questions)
    labels = [label for _, label in demo.examples_vit()]
    assert len(labels) >= 3 and all(label in shown for label in labels)
    # Five answers with their probabilities to each question, and one name for each shape.
    assert shown.count("%") == 5 * len(questions) + len(labels)
    with Image.open(out) as image:
        assert image.format == "PNG" and image.height > 250 * (len(questions) + 1)


def test_demo_measures_the_model(run):
    """Few images of the test split; the models that ship are right on at least 95 % of them in the long run."""
    tables = run("demo", "--evaluate", "4")
    (vilt, its), (vit, other) = re.findall(r"^all +(\d+) +([\d.]+)%", tables, re.MULTILINE)
    assert (vilt, vit) == ("24", "4") and float(its) >= 75 and float(other) >= 50


def test_train_demo_trains_measures_and_goes_on(run, fail, tmp_path, monkeypatch):
    import vilt_fast.demo.train as training

    small = {"pictures_per_round": 8, "batch_size": 4, "hidden_size": 16, "questions_per_picture": 2, "bf16": False}
    monkeypatch.setattr(training, "Recipe", functools.partial(training.Recipe, **small))
    out = tmp_path / "trained"
    options = ("--out", str(out), "--steps", "3", "--workers", "0", "--quiet")
    table = run("train-demo", *options, "--evaluate", "2")
    assert table.splitlines()[-1].split()[:2] == ["all", "12"]
    before = (out / "model.safetensors").read_bytes()
    assert "--resume" in fail("train-demo", *options)
    assert "seed" in fail("train-demo", *options, "--resume", "--seed", "1")
    run("train-demo", *options, "--evaluate", "0", "--resume")  # all its steps are done: the same weights
    assert (out / "model.safetensors").read_bytes() == before
    picture = tmp_path / "red.png"
    Image.new("RGB", (80, 60), "red").save(picture)
    assert "%" in run("ask", str(picture), "what color is the circle?", "--model", str(out))


def test_train_demo_trains_a_vit(run, fail, tmp_path, monkeypatch):
    import vilt_fast.demo.train_vit as training

    small = {"pictures_per_round": 8, "batch_size": 4, "hidden_size": 24, "num_hidden_layers": 1, "bf16": False}
    monkeypatch.setattr(training, "ViTRecipe", functools.partial(training.ViTRecipe, **small))
    out = tmp_path / "trained"
    options = ("--family", "vit", "--out", str(out), "--steps", "3", "--workers", "0", "--quiet")
    table = run("train-demo", *options, "--evaluate", "2").splitlines()
    assert [line.split()[:2] for line in table[-3:]] == [["color", "2"], ["shape", "2"], ["all", "2"]]
    assert "--resume" in fail("train-demo", *options)
    assert "recipe" in fail("train-demo", "--out", str(out), "--resume", "--workers", "0", "--quiet")  # of the ViLT
    model = vilt_fast.ViTForImageClassification.from_pretrained(out)
    assert model.config.num_labels == 40 and vilt_fast.ViTImageProcessor.from_pretrained(out).size["height"] == 64


def test_env_as_text_and_json(run):
    found = json.loads(run("env", "--json"))
    assert found["vilt_fast"] == vilt_fast.__version__ and found["torch"] == importlib.metadata.version("torch")
    assert any(name.startswith("gpu") for name in found)
    text = run("env")
    assert all(name in text for name in found)


def test_env_without_triton_or_torch(monkeypatch):
    """What is missing is said, not raised."""

    def version(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` fail
    found = environment.environment()
    assert found["triton"] is None and "torch import" in found


def test_version_agrees_with_the_distribution(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"vilt_fast {importlib.metadata.version('vilt_fast')}\n"
