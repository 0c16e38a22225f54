"""`vilt-fast ask --regions`: a VisualBERT on files of detectors, alone and in folders."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

import vilt_fast
from vilt_fast import cli

WIDTH = 10


@pytest.fixture(scope="module")
def visual(tmp_path_factory, models) -> str:
    """A directory with a VisualBERT and the vocabulary of the other models."""
    root = tmp_path_factory.mktemp("visual")
    save(root / "ask", models, "VisualBertForQuestionAnswering")
    return str(root / "ask")


def save(folder, models, name, **fields):
    tokenizer = vilt_fast.BertTokenizer.from_pretrained(models["ask"])
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    config = vilt_fast.VisualBertConfig(
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=16,
        visual_embedding_dim=WIDTH,
        initializer_range=0.5,
        id2label={0: "red", 1: "blue", 2: "yes", 3: "no"},
        **sizes,
        **fields,
    )
    torch.manual_seed(1)
    getattr(vilt_fast, name)(config).save_pretrained(folder)
    vilt_fast.VisualBertProcessor(tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    """Seven files of regions, one of them damaged, beside what is none."""
    root, rng = tmp_path_factory.mktemp("regions"), np.random.default_rng(0)
    for number in range(6):
        np.savez(root / f"{number}.npz", features=rng.normal(size=(number + 1, WIDTH)).astype(np.float32))
    (root / "6.npz").write_bytes(b"damaged")
    (root / "photo.png").write_bytes(b"no file of regions")
    return root


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_answers_are_transformers(run, visual, regions, dtype):
    path, question = str(regions / "3.npz"), "what color is the cat?"
    options = ("--model", visual, "--json", "--top", "9", "--dtype", dtype)
    out = json.loads(run("ask", "--regions", path, question, *options))
    theirs = transformers.VisualBertForQuestionAnswering.from_pretrained(visual).eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(visual)
    with torch.no_grad():
        features = torch.from_numpy(np.load(path)["features"])[None]
        chances = theirs(**tokenizer(question, return_tensors="pt"), visual_embeds=features).logits[0].softmax(-1)
    assert (out["regions"], out["question"], out["model"]) == (path, question, visual) and "image" not in out
    best = chances.sort(descending=True)
    assert [one["answer"] for one in out["answers"]] == [theirs.config.id2label[i] for i in best.indices.tolist()]
    assert [one["probability"] for one in out["answers"]] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_the_question_may_stand_anywhere(run, visual, regions):
    path, question = str(regions / "0.npz"), "how many dog"
    lines = run("ask", "--regions", path, question, "--model", visual, "--top", "2").splitlines()
    assert lines[0] == question and len([line for line in lines if "%" in line]) == 2
    assert run("ask", question, "--model", visual, "--top", "2", "--regions", path).splitlines() == lines


def test_a_model_for_pairs_of_images(run, models, regions, tmp_path):
    folder = save(tmp_path / "nlvr", models, "VisualBertForVisualReasoning")
    out = json.loads(run("ask", "--regions", str(regions / "1.npz"), "a cat is left", "--model", folder, "--json"))
    assert sum(one["probability"] for one in out["answers"]) == pytest.approx(1, abs=1e-5)


def test_a_configuration_that_names_no_class(run, visual, regions, tmp_path):
    shutil.copytree(visual, tmp_path / "plain")
    content = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert content.pop("architectures") == ["VisualBertForQuestionAnswering"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(content))
    asked = ("ask", "--regions", str(regions / "1.npz"), "what color")
    assert run(*asked, "--model", str(tmp_path / "plain")) == run(*asked, "--model", visual)


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_folder_of_regions(run, visual, regions, tmp_path):
    out = tmp_path / "answers.jsonl"
    command = ("ask", "--regions", str(regions), "--questions", "what color", "--out", str(out), "--model", visual)
    assert run(*command) == f"{out}: 6 answered, 1 with an error\n"
    lines = lines_of(out)
    assert [line["image"] for line in lines] == [f"{number}.npz" for number in range(7)]
    assert "'6.npz': damaged or no .npz file" in lines[6]["error"]
    alone = json.loads(run("ask", "--regions", str(regions / "3.npz"), "what color", "--model", visual, "--json"))
    assert lines[3]["answer"] == alone["answers"][0]["answer"]
    assert lines[3]["score"] == pytest.approx(alone["answers"][0]["probability"], abs=1e-5)


def test_json_lines_and_a_run_that_continues(run, visual, regions, tmp_path):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    asked = [{"image": f"{number % 8}.npz", "question": f"how many {'cat ' * (number % 4)}"} for number in range(24)]
    pairs.write_text("".join(json.dumps({**one, "id": number}) + "\n" for number, one in enumerate(asked)))
    command = ("--questions", str(pairs), "--regions", str(regions), "--out", str(out), "--model", visual, "--json")
    assert json.loads(run("ask", *command))["errors"] == 6
    whole = out.read_bytes()
    assert "no such file" in lines_of(out)[7]["error"] and lines_of(out)[8]["id"] == 8
    out.write_bytes(whole[: len(whole) // 2])
    assert json.loads(run("ask", *command))["already_done"] > 5
    assert out.read_bytes() == whole


def test_regions_beside_the_file_of_questions(run, visual, regions, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"image": str(regions / "0.npz"), "question": "what color"}) + "\n")
    run("ask", "--questions", str(pairs), "--out", str(tmp_path / "a.jsonl"), "--model", visual)
    assert lines_of(tmp_path / "a.jsonl")[0]["answer"]


def test_images_and_regions_are_not_mixed_up(fail, visual, models, regions, photo):
    path = str(regions / "0.npz")
    said = fail("ask", photo, "what color", "--model", visual)
    assert "VisualBertForQuestionAnswering, which reads regions" in said and "ask --regions FILE.npz" in said
    said = fail("ask", "--regions", path, "what color", "--model", models["ask"])
    assert "--regions: got them for ViltForQuestionAnswering, which reads images" in said
    assert "the model that ships reads images" in fail("ask", "--regions", path, "what color")
    said = fail("ask", path, "what color", "--model", visual)
    assert "0.npz', a file of regions: vilt-fast ask --regions FILE" in said
    assert "0.npz', a file of regions" in fail("ask", path, "what color", "--model", models["ask"])
    assert "IMAGE: got one beside --regions" in fail("ask", photo, "what color", "--regions", path, "--model", visual)


def test_folders_are_not_mixed_up(fail, visual, models, regions, photo, tmp_path):
    out, folder, pictures = str(tmp_path / "a.jsonl"), str(regions), photo.rpartition("/")[0]
    command = ("ask", "--questions", "what color", "--out", out)
    assert "reads regions" in fail(*command, "--images", pictures, "--model", visual)
    assert "--regions: got them for Vilt" in fail(*command, "--regions", folder, "--model", models["ask"])
    assert "beside --regions" in fail(*command, "--regions", folder, "--images", pictures, "--model", visual)
    assert "--regions: no .npz or .npy in" in fail(*command, "--regions", pictures, "--model", visual)
    assert "--regions: no such folder" in fail(*command, "--regions", "nowhere", "--model", visual)
    assert "--regions: not a folder" in fail(*command, "--regions", str(regions / "0.npz"), "--model", visual)
    assert not (tmp_path / "a.jsonl").exists()


def test_bad_files_of_regions(fail, visual, regions, tmp_path):
    np.savez(tmp_path / "wide.npz", features=np.ones((3, WIDTH + 1)))
    np.savez(tmp_path / "nan.npz", features=np.full((3, WIDTH), np.nan))
    np.savez(tmp_path / "empty.npz", boxes=np.ones((3, 4)))
    for name, message in (
        ("wide.npz", "wide.npz': got features of width 11, wanted 10"),
        ("nan.npz", "nan.npz': features: region 0 holds NaN"),
        ("empty.npz", "empty.npz': got 'boxes', wanted the features"),
        ("none.npz", "--regions: no such file"),
        (".", "is a folder, which goes with --questions and --out"),
    ):
        said = fail("ask", "--regions", str(tmp_path / name), "what color", "--model", visual)
        assert message in said and said.startswith("vilt-fast ask: --regions: "), said
    assert "damaged" in fail("ask", "--regions", str(regions / "6.npz"), "what color", "--model", visual)
    said = fail("ask", "--regions", str(tmp_path), "what color", "--model", visual, "--out", str(tmp_path / "a.jsonl"))
    assert "is a folder, which goes with --questions and --out" in said


def test_bad_arguments(fail, visual, regions, models, tmp_path):
    path, model = str(regions / "0.npz"), ("--model", visual)
    assert "QUESTION: got none" in fail("ask", "--regions", path, *model)
    assert "QUESTION: got ' '" in fail("ask", "--regions", path, " ", *model)
    assert "--regions: got an empty name" in fail("ask", "--regions", "", "what color", *model)
    assert "--out: got one beside --regions" in fail("ask", "--regions", path, "what", *model, "--out", "a.png")
    assert "tokens, wanted at most 16" in fail("ask", "--regions", path, "cat " * 20, *model)
    assert "got them beside" in fail("ask", "what", "--questions", "what color", "--regions", str(regions), *model)
    bare = tmp_path / "bare"
    vilt_fast.VisualBertForQuestionAnswering.from_pretrained(visual).save_pretrained(bare)
    said = fail("ask", "--regions", path, "what color", "--model", str(bare))
    assert "no vocabulary of their own" in said and "bert-base-uncased" in said


@pytest.mark.parametrize("command", ["fill", "match", "nlvr", "classify"])
def test_other_commands_name_the_right_one(fail, visual, photo, command):
    given = {"nlvr": (photo, photo, "a cat"), "classify": (photo,)}.get(command, (photo, "a [MASK]"))
    said = fail(command, *given, "--model", visual)
    assert "got VisualBertForQuestionAnswering, wanted" in said and "use `vilt-fast ask --regions`" in said


@pytest.mark.parametrize("command", ["fill", "match", "nlvr", "classify"])
def test_other_commands_on_regions_name_what_there_is(fail, visual, models, photo, regions, tmp_path, command):
    path = str(regions / "0.npz")
    given = {"nlvr": (photo, path, "a cat"), "classify": (path,)}.get(command, (path, "a [MASK]"))
    said = fail(command, *given, "--model", models["fill"])
    assert "0.npz', a file of regions: vilt-fast ask --regions FILE QUESTION" in said and "Engine.fill" in said
    given = tuple(photo if one == path else one for one in given)
    shutil.copytree(visual, tmp_path / "plain")
    content = json.loads((tmp_path / "plain" / "config.json").read_text())
    del content["architectures"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(content))
    said = fail(command, *given, "--model", str(tmp_path / "plain"))
    assert "got visual_bert, wanted V" in said and "use `vilt-fast ask --regions`" in said


def test_a_model_without_a_command(fail, models, regions, tmp_path):
    folder = save(tmp_path / "pretraining", models, "VisualBertForPreTraining")
    said = fail("ask", "--regions", str(regions / "0.npz"), "what color", "--model", folder)
    assert "got VisualBertForPreTraining" in said and "no command uses it, but in Python Engine.fill" in said


@pytest.mark.parametrize("dtype, large", [("float16", 1e5), ("bfloat16", 3.4e38)])
def test_the_dtype_is_blamed_for_an_overflow(fail, visual, tmp_path, dtype, large):
    np.savez(tmp_path / "r.npz", features=np.full((2, WIDTH), large, np.float32))
    said = fail("ask", "--regions", str(tmp_path / "r.npz"), "what color", "--model", visual, "--dtype", dtype)
    assert f"--dtype: the features overflow in torch.{dtype}, wanted a wider one" in said


def test_one_limit_for_a_file_and_a_folder(run, fail, visual, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "a.jsonl"
    folder.mkdir()
    np.savez(folder / "r.npz", features=np.ones((4093, WIDTH), np.float32))
    wanted = "got 4097 words and regions, wanted at most 4096: keep fewer regions"
    said = fail("ask", "--regions", str(folder / "r.npz"), "what color", "--model", visual)
    assert f"--regions: '{folder / 'r.npz'}': {wanted}\n" in said
    run("ask", "--regions", str(folder), "--questions", "what color", "--out", str(out), "--model", visual)
    assert lines_of(out)[0]["error"] == f"regions: {wanted}"


def test_the_name_of_a_file_is_no_question(run, fail, visual, regions, photo, tmp_path, monkeypatch):
    asked = ("ask", "--regions", str(regions / "0.npz"), "--model", visual)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "what color").write_text("a file")
    for name in (photo, "gone.jpg", "gone.NPZ", "gone.npy", "what color"):
        said = fail(*asked, name)
        assert f"QUESTION: got '{name}', a file, wanted the question" in said
    for question in ("what.color", "what color is dog.png", "cat"):
        assert run(*asked, question).startswith(question)


def test_npy_files_in_a_folder(capsys, visual, regions, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "a.jsonl"
    folder.mkdir()
    for number in (1, 2):
        features = np.load(regions / f"{number}.npz")["features"]
        np.save(folder / f"{number}.npy", features)
        np.save(folder / f"{number}_info.npy", np.array({"boxes": 1}), allow_pickle=True)
    np.savez(folder / "3.npz", features=features)
    np.savez(folder / ".4.npz", features=features)
    asked = ["ask", "--regions", str(folder), "--questions", "what color", "--out", str(out), "--model", visual]
    assert cli.main(asked) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{out}: 3 answered, 0 with an error, 1 hidden file left out\n"
    assert "left out 2, the first" in shown.err and "_info.npy is what is known about the features" in shown.err
    lines = lines_of(out)
    assert [line["image"] for line in lines] == ["1.npy", "2.npy", "3.npz"]
    assert lines[1]["top"] == lines[2]["top"]


def test_long_names_are_shortened(run, fail, visual, tmp_path):
    name = "x" * 5000 + ".npz"
    for given in ((name, "what color"), (name, "--questions", "what color", "--out", str(tmp_path / "a.jsonl"))):
        assert len(fail("ask", "--regions", *given, "--model", visual)) < 500
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"image": name, "question": "what color"}) + "\n")
    (tmp_path / "deep").mkdir()
    for place in (".", "deep/.."):
        out = tmp_path / f"{len(place)}.jsonl"
        asked = ("--questions", str(tmp_path / "pairs.jsonl"), "--regions", f"{tmp_path}/{place}", "--out", str(out))
        run("ask", *asked, "--model", visual)
        assert lines_of(out)[0]["error"] == f"regions: no such file: '{'x' * 196}..."
