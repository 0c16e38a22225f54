"""Every command from end to end on small random models, and every bad input in one line with exit code 2."""

import importlib.metadata
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vilt_fast
from vilt_fast import cli
from vilt_fast.commands import answer, environment, loading, score

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"a the red blue cat dog on couch is there how many what color ? . left right".split()]
ANSWERS = ("red", "blue", "yes", "no", "2", "cat", "dog")


def make_config(**overrides) -> vilt_fast.ViltConfig:
    sizes = dict(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        image_size=64, patch_size=16, max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    return vilt_fast.ViltConfig(**{**sizes, **overrides})


def save_model(directory: Path, name: str, **overrides) -> str:
    """A directory with random weights of class `name`, a vocabulary and the picture settings."""
    torch.manual_seed(len(name))
    model = getattr(vilt_fast, name)(make_config(**overrides))
    model.save_pretrained(directory)
    words = directory / "words.txt"
    words.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    pictures = vilt_fast.ViltImageProcessor(size={"shortest_edge": 64}, size_divisor=16)
    vilt_fast.ViltProcessor(pictures, vilt_fast.BertTokenizer(str(words))).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Directories of one model a command."""
    root = tmp_path_factory.mktemp("models")
    labels = dict(enumerate(ANSWERS))
    wanted = {
        "ask": ("ViltForQuestionAnswering", {"id2label": labels}),
        "fill": ("ViltForMaskedLM", {}),
        "match": ("ViltForImageAndTextRetrieval", {}),
        "itm": ("ViltForImageTextMatching", {}),
        "nlvr": ("ViltForImagesAndTextClassification",
                 {"num_images": 2, "modality_type_vocab_size": 3, "id2label": {0: "False", 1: "True"}}),
    }  # fmt: skip
    return {kind: save_model(root / kind, name, **options) for kind, (name, options) in wanted.items()}


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> str:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    Image.fromarray(rng.integers(0, 256, (90, 130, 3), np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def photo2(tmp_path_factory) -> str:
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("pictures") / "grey.png"
    Image.fromarray(rng.integers(0, 256, (120, 80), np.uint8)).save(path)
    return str(path)


def run(capsys, *argv: str) -> str:
    """Standard output of a command that succeeds and says nothing on standard error."""
    code = cli.main(list(argv))
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    return shown.out


def fail(capsys, *argv: str) -> str:
    """The one line on standard error of a command that is refused with code 2."""
    try:
        code = cli.main(list(argv))
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert shown.err.endswith("\n") and shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith("vilt-fast")
    return shown.err


# --- ask ------------------------------------------------------------------------------------------------------------


def test_ask_prints_the_models_own_answers(capsys, models, photo):
    """The probabilities are the sigmoids of the logits that the library gives for the same inputs."""
    options = ("--model", models["ask"], "--json", "--top", "7")
    out = json.loads(run(capsys, "ask", photo, "what color is the cat?", *options))
    model = vilt_fast.ViltForQuestionAnswering.from_pretrained(models["ask"]).eval()
    processor = vilt_fast.ViltProcessor.from_pretrained(models["ask"])
    with torch.no_grad():
        chances = model(**processor(photo, "what color is the cat?", return_tensors="pt")).logits[0].sigmoid()
    assert out["question"] == "what color is the cat?" and out["image"] == photo
    assert {a["answer"] for a in out["answers"]} == set(ANSWERS)
    listed = [a["probability"] for a in out["answers"]]
    assert listed == sorted(listed, reverse=True)
    for entry in out["answers"]:
        # Same code, same inputs: only the order of floating-point sums could differ between runs.
        assert math.isclose(entry["probability"], float(chances[ANSWERS.index(entry["answer"])]), abs_tol=1e-6)


def test_ask_as_text(capsys, models, photo):
    lines = run(capsys, "ask", photo, "is there a dog?", "--model", models["ask"], "--top", "2").splitlines()
    assert lines[0] == "is there a dog?"
    assert len([line for line in lines if "%" in line]) == 2


def test_ask_never_shows_more_answers_than_there_are(capsys, models, photo):
    out = json.loads(run(capsys, "ask", photo, "how many", "--model", models["ask"], "--json", "--top", "100"))
    assert len(out["answers"]) == len(ANSWERS)


@pytest.mark.parametrize("dtype", ["float64", "bf16"])
def test_ask_in_other_dtypes(capsys, models, photo, dtype):
    options = ("ask", photo, "how many dog", "--model", models["ask"], "--json", "--top", "7")
    plain = {a["answer"]: a["probability"] for a in json.loads(run(capsys, *options))["answers"]}
    other = {a["answer"]: a["probability"] for a in json.loads(run(capsys, *options, "--dtype", dtype))["answers"]}
    # bfloat16 keeps 8 bits; two layers and a head of random weights lose a few of them.
    assert all(abs(plain[word] - other[word]) < (1e-4 if dtype == "float64" else 0.1) for word in ANSWERS)


def test_ask_draws(capsys, models, photo, tmp_path):
    out = tmp_path / "seen.png"
    run(capsys, "ask", photo, "how many dog", "--model", models["ask"], "--out", str(out))
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width > 600
    assert sorted(tmp_path.iterdir()) == [out]


def test_ask_without_model_uses_the_one_that_ships(capsys, photo):
    out = json.loads(run(capsys, "ask", photo, "how many circles are there?", "--json"))
    assert out["model"] is None and len(out["answers"]) == 5


# --- fill, match, nlvr ----------------------------------------------------------------------------------------------


def test_fill_is_the_documentations_procedure(capsys, models, photo):
    """Against the loop of Hugging Face's example, written out: the surest masked word first, then the model again."""
    text = "a [MASK] cat on the [MASK] [MASK]."
    out = json.loads(run(capsys, "fill", photo, text, "--model", models["fill"], "--json"))
    model = vilt_fast.ViltForMaskedLM.from_pretrained(models["fill"]).eval()
    processor = vilt_fast.ViltProcessor.from_pretrained(models["fill"])
    encoding = processor(photo, text, return_tensors="pt")
    ids, filled = encoding["input_ids"], []
    with torch.no_grad():
        for _ in range(3):
            logits = model(input_ids=ids, pixel_values=encoding["pixel_values"]).logits[0]
            values, tokens = logits.softmax(dim=-1).max(dim=-1)
            values[ids[0] != WORDS.index("[MASK]")] = 0
            select = int(values.argmax())
            ids[0, select] = tokens[select]
            filled.append(WORDS[int(tokens[select])])
    assert [step["word"].replace(" ", "") for step in out["words"]] == filled
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


def test_fill_text_output(capsys, models, photo):
    lines = run(capsys, "fill", photo, "a [MASK] dog", "--model", models["fill"]).splitlines()
    assert len(lines) == 2 and "%" in lines[1]


def test_match_ranks_by_the_ranking_head(capsys, models, photo):
    texts = ["a red cat", "the dog on the couch", "how many"]
    out = json.loads(run(capsys, "match", photo, *texts, "--model", models["match"], "--json"))
    model = vilt_fast.ViltForImageAndTextRetrieval.from_pretrained(models["match"]).eval()
    processor = vilt_fast.ViltProcessor.from_pretrained(models["match"])
    with torch.no_grad():
        alone = {text: float(model(**processor(photo, text, return_tensors="pt")).logits) for text in texts}
    assert [m["text"] for m in out["matches"]] == sorted(texts, key=lambda text: -alone[text])
    for entry in out["matches"]:
        # Alone and in a batch the sums have another order; fp32.
        assert math.isclose(entry["score"], alone[entry["text"]], rel_tol=1e-4, abs_tol=1e-4)


def test_match_with_the_matching_head_gives_probabilities(capsys, models, photo):
    out = json.loads(run(capsys, "match", photo, "a dog", "a cat", "--model", models["itm"], "--json"))
    assert out["score_is"] == "probability"
    assert all(0 <= m["score"] <= 1 for m in out["matches"])
    assert "%" in run(capsys, "match", photo, "a dog", "--model", models["itm"])


def test_nlvr_reads_both_pictures(capsys, models, photo, photo2):
    options = ("the left dog", "--model", models["nlvr"], "--json")
    one = json.loads(run(capsys, "nlvr", photo, photo2, *options))
    other = json.loads(run(capsys, "nlvr", photo2, photo, *options))
    assert {entry["label"] for entry in one["labels"]} == {"True", "False"}
    assert math.isclose(sum(entry["probability"] for entry in one["labels"]), 1, rel_tol=1e-6)
    chance = {entry["label"]: entry["probability"] for entry in one["labels"]}
    swapped = {entry["label"]: entry["probability"] for entry in other["labels"]}
    assert abs(chance["True"] - swapped["True"]) > 1e-4
    assert "%" in run(capsys, "nlvr", photo, photo2, *options[:-1])


# --- demo and env ---------------------------------------------------------------------------------------------------


def test_demo_answers_and_draws(capsys, tmp_path):
    out = tmp_path / "demo.png"
    shown = run(capsys, "demo", "--out", str(out))
    from vilt_fast import demo

    questions = [question for _, question in demo.examples()]
    assert len(questions) >= 3 and all(question in shown for question in questions)
    assert shown.count("%") == 5 * len(questions)  # five answers with their probabilities each
    with Image.open(out) as image:
        assert image.format == "PNG" and image.height > 250 * len(questions)


def test_env_as_text_and_json(capsys):
    found = json.loads(run(capsys, "env", "--json"))
    assert found["vilt_fast"] == vilt_fast.__version__ and found["torch"] == importlib.metadata.version("torch")
    assert any(name.startswith("gpu") for name in found)
    text = run(capsys, "env")
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


# --- what is shown, what is refused ---------------------------------------------------------------------------------

COMMANDS = ("demo", "ask", "fill", "match", "nlvr", "train-demo", "env")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and f"example:\n  vilt-fast {command}" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_examples_parse(command):
    """The example in the help is a command line that the parser takes."""
    import shlex

    subparsers = next(a for a in cli._build_parser()._actions if hasattr(a, "choices") and a.choices)
    example = shlex.split(subparsers.choices[command].epilog.split("\n", 1)[1])
    assert example[0] == "vilt-fast"
    assert cli._build_parser().parse_args(example[1:]).command == command


def test_no_command_shows_the_help(capsys):
    assert all(command in run(capsys) for command in COMMANDS)


def bad_pictures(tmp_path) -> dict[str, str]:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is no picture")
    Image.new("RGB", (50, 50), "red").save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    paths = {name: str(tmp_path / name) for name in ("empty.png", "text.png", "cut.jpg", "missing.png")}
    return {**paths, "directory": str(tmp_path)}


@pytest.mark.parametrize("kind", ["empty.png", "text.png", "cut.jpg", "missing.png", "directory"])
def test_bad_picture(capsys, models, photo, tmp_path, kind):
    path = bad_pictures(tmp_path)[kind]
    assert Path(path).name in fail(capsys, "ask", path, "how many", "--model", models["ask"])
    fail(capsys, "fill", path, "a [MASK]", "--model", models["fill"])
    fail(capsys, "match", path, "a", "--model", models["match"])
    fail(capsys, "nlvr", photo, path, "a", "--model", models["nlvr"])


def test_decompression_bomb(capsys, models, photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "bomb" in fail(capsys, "ask", photo, "how many", "--model", models["ask"])


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
        (("--out", "no-such-folder/a.png"), "no-such-folder"),
        (("--out", "."), "directory"),
        (("--colour",), "--colour"),
    ],
)
def test_bad_option(capsys, models, photo, options, named):
    assert named in fail(capsys, "ask", photo, "how many", "--model", models["ask"], *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(capsys, models, photo):
    assert "cuda" in fail(capsys, "ask", photo, "how many", "--model", models["ask"], "--device", "cuda")


def test_missing_model(capsys, photo, tmp_path):
    missing = str(tmp_path / "no-model")
    for command in (("ask", photo, "a"), ("fill", photo, "[MASK]"), ("match", photo, "a"), ("nlvr", photo, photo, "a")):
        assert "no-model" in fail(capsys, *command, "--model", missing)


def test_empty_model_directory(capsys, photo, tmp_path):
    assert "config.json" in fail(capsys, "ask", photo, "a", "--model", str(tmp_path))


def test_unreachable_hub(capsys, photo, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "nobody/nothing" in fail(capsys, "ask", photo, "a", "--model", "nobody/nothing")


@pytest.mark.parametrize("command", ["fill", "match", "nlvr"])
def test_model_is_required(capsys, photo, command):
    argv = {"fill": ["[MASK]"], "match": ["a"], "nlvr": [photo, "a"]}[command]
    assert "--model" in fail(capsys, command, photo, *argv)


def test_processor_alone_is_refused(capsys, models, photo):
    assert "--processor" in fail(capsys, "ask", photo, "a", "--processor", models["ask"])


@pytest.mark.parametrize("command", ["ask", "fill", "match", "nlvr"])
def test_weights_of_another_command(capsys, models, photo, command):
    """config.json says what the weights are for; the message names the command that fits."""
    argv = {"ask": [photo, "a"], "fill": [photo, "[MASK]"], "match": [photo, "a"], "nlvr": [photo, photo, "a"]}[command]
    for kind, directory in models.items():
        other = "match" if kind == "itm" else kind
        if other != command:
            assert f"vilt-fast {other}" in fail(capsys, command, *argv, "--model", directory)


def test_weights_without_a_head(capsys, photo, tmp_path):
    directory = save_model(tmp_path / "bare", "ViltModel")
    assert "no command" in fail(capsys, "ask", photo, "a", "--model", directory)


def test_weights_of_another_architecture(capsys, photo, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    assert "BertModel" in fail(capsys, "ask", photo, "a", "--model", str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"architectures": 3, "model_type": "bert"}'])
def test_damaged_config(capsys, photo, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    fail(capsys, "ask", photo, "a", "--model", str(tmp_path))


def test_truncated_weights(capsys, photo, tmp_path):
    directory = Path(save_model(tmp_path / "cut", "ViltForQuestionAnswering"))
    weights = next(directory.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    fail(capsys, "ask", photo, "a", "--model", str(directory))


def test_nothing_to_fill(capsys, models, photo):
    assert "[MASK]" in fail(capsys, "fill", photo, "a red cat", "--model", models["fill"])


def test_question_too_long(capsys, models, photo):
    assert "16" in fail(capsys, "ask", photo, "cat " * 38, "--model", models["ask"])


def test_nlvr_wants_weights_for_two_pictures(capsys, photo, tmp_path):
    options = {"num_images": 3, "modality_type_vocab_size": 4}
    directory = save_model(tmp_path / "three", "ViltForImagesAndTextClassification", **options)
    assert "3 pictures" in fail(capsys, "nlvr", photo, photo, "a", "--model", directory)


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


def test_full_disk_keeps_the_old_picture(monkeypatch, capsys, models, photo, tmp_path):
    out = tmp_path / "seen.png"
    out.write_bytes(b"the old one")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    argv = ("ask", photo, "a", "--model", models["ask"], "--out", str(out))
    assert "No space left" in fail(capsys, *argv)
    assert out.read_bytes() == b"the old one" and sorted(tmp_path.iterdir()) == [out]


# --- as a process ---------------------------------------------------------------------------------------------------


def process(*argv: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vilt_fast.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, **options)


def test_process_answers(models, photo):
    done = process("ask", photo, "how many", "--model", models["ask"], "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["answers"]) == 5


def test_process_refuses_in_one_line(models):
    done = process("ask", "missing.png", "how many", "--model", models["ask"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "missing.png" in done.stderr


def test_help_imports_nothing_heavy():
    code = "import sys, vilt_fast.cli as c\ntry: c.main(['ask', '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(sorted({'torch', 'numpy', 'PIL', 'triton'} & set(sys.modules)))"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("[]\n"), done


def test_reader_that_leaves():
    """`vilt-fast env | head -0`: no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vilt_fast.cli", "env"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.stderr == ""


def test_every_loadable_class_has_a_command():
    heads = {name for name in vilt_fast.__all__ if name.startswith("ViltFor") and name != "ViltFeatureExtractor"}
    assert set(loading.COMMANDS) == heads - {"ViltForTokenClassification"}
