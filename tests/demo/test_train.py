"""Training: the same trajectory after a stop, the same numbers as the packed model, no test picture in sight."""

import json
import pickle

import pytest
import torch

from vilt_fast.demo import batches as batches_module
from vilt_fast.demo.batches import THING_CLASSES, make_round
from vilt_fast.demo.data import make_sample
from vilt_fast.demo.dense import dense_forward
from vilt_fast.demo.evaluate import evaluate
from vilt_fast.demo.questions import ANSWERS
from vilt_fast.demo.scene import COLORS, SHAPES
from vilt_fast.demo.train import Recipe, answer_loss, make_model, make_processor, train

TINY = Recipe(
    steps=5,
    batch_size=8,
    pictures_per_round=4,
    questions_per_picture=3,
    hidden_size=32,
    num_hidden_layers=4,
    bf16=False,
)


def run(directory, **options):
    return train(directory, recipe=TINY, seed=3, workers=0, progress=False, **options)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_stopped_run_ends_at_the_same_weights(tmp_path):
    whole, _ = run(tmp_path / "whole")
    calls = 0
    while calls == 0 or json.loads((tmp_path / "parts" / "training.json").read_text())["steps"] < TINY.steps:
        model, _ = run(tmp_path / "parts", minutes=1e-9, resume=True)  # time for one step; two rounds in all
        calls += 1
    assert calls == TINY.steps
    assert_equal(state(whole), state(model))
    curves = [json.loads((tmp_path / name / "training.json").read_text())["steps"] for name in ("whole", "parts")]
    assert curves == [TINY.steps] * 2


def test_seed_decides_and_resume_refuses_another(tmp_path):
    first, _ = run(tmp_path / "a")
    again, _ = run(tmp_path / "b")
    assert_equal(state(first), state(again))
    other, _ = train(tmp_path / "c", recipe=TINY, seed=4, workers=0, progress=False)
    assert not torch.equal(first.classifier[0].weight, other.classifier[0].weight)
    with pytest.raises(ValueError, match="seed 3, wanted 5"):
        train(tmp_path / "a", recipe=TINY, seed=5, workers=0, progress=False, resume=True)
    with pytest.raises(ValueError, match="recipe"):
        train(tmp_path / "a", recipe=TINY, steps=9, seed=3, workers=0, progress=False, resume=True)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "pickle", "directory", "list", "no step", "other weights"])
def test_a_broken_checkpoint_is_named(tmp_path, kind):
    run(tmp_path, minutes=1e-9)
    path = tmp_path / "checkpoint.pt"
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind in ("list", "no step", "other weights"):
        model = {"classifier.0.weight": torch.ones(3)}
        changed = {"list": [1], "no step": {**state}, "other weights": {**state, "model": model}}[kind]
        if kind == "no step":
            del changed["step"]
        torch.save(changed, path)
    else:
        broken = {
            "empty": b"",
            "text": b"no checkpoint",
            "cut": whole[: len(whole) // 2],
            "pickle": pickle.dumps(TINY, 2),
        }
        path.write_bytes(broken[kind])
    with pytest.raises(
        ValueError, match="^resume: .*checkpoint.pt is truncated or no checkpoint of a run: ."
    ) as caught:
        run(tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_training_leaves_the_callers_generator_and_threads_alone(tmp_path):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run(tmp_path)
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads


def test_a_failed_checkpoint_leaves_the_old_one(tmp_path, monkeypatch):
    run(tmp_path, minutes=1e-9)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full_disk(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name, value", [("steps", 0), ("save_every", 0)])
def test_bad_numbers_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}: got 0"):
        train(tmp_path, progress=False, workers=0, **{name: value})


@pytest.mark.parametrize("minutes", [-1, 0, float("nan"), float("-inf")])
def test_minutes_in_which_nothing_could_be_trained_are_refused(tmp_path, minutes):
    with pytest.raises(ValueError, match=f"^minutes: got {minutes}"):
        run(tmp_path / "new", minutes=minutes)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("minutes, steps", [(5e-324, 1), (None, TINY.steps), (float("inf"), TINY.steps)])
def test_minutes_that_end_a_run_and_that_do_not(tmp_path, minutes, steps):
    run(tmp_path, minutes=minutes)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == steps


def test_dense_forward_is_the_packed_model(tmp_path):
    torch.manual_seed(0)
    model = make_model(TINY).double().train()
    processor = make_processor(TINY, vocab_file=tmp_path / "vocab.txt")
    sample = make_sample("train", 0, 1, questions=6)
    texts = [question.text for question in sample.questions]
    inputs = processor([sample.image] * 6, texts, padding=True, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].double()
    answer = torch.tensor([ANSWERS.index(question.answer) for question in sample.questions])
    packed = model(**inputs, output_hidden_states=True)
    dense = dense_forward(model, inputs["input_ids"], inputs["pixel_values"])
    # fp64 on both sides; the dense logits pass through float32 at the end
    torch.testing.assert_close(dense.logits, packed.logits.float(), rtol=1e-6, atol=1e-6)
    for rows, states in zip(dense.patches, packed.hidden_states[1:-1], strict=True):
        torch.testing.assert_close(rows, states[:, inputs["input_ids"].shape[1] + 1 :], rtol=1e-10, atol=1e-10)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(answer_loss(packed.logits, answer), parameters)
    for got, wanted in zip(torch.autograd.grad(answer_loss(dense.logits, answer), parameters), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)  # the loss is in float32


def test_shards_do_not_change_the_gradient(tmp_path):
    one, _ = train(tmp_path / "1", recipe=Recipe(**{**vars(TINY), "shards": 1}), seed=3, workers=0, progress=False)
    two, _ = run(tmp_path / "2")
    # The same sums in another order, five Adam steps long.
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, two.state_dict()[name], rtol=0, atol=2e-4)


def test_training_sees_the_training_split_only(tmp_path, monkeypatch):
    seen = []

    def spy(split, seed, index, **options):
        seen.append((split, index))
        return make_sample(split, seed, index, **options)

    monkeypatch.setattr(batches_module, "make_sample", spy)
    run(tmp_path)
    assert {split for split, _ in seen} == {"train"}
    assert [index for _, index in seen] == list(range(len(seen)))  # fresh pictures in every round


def test_a_batch_says_what_the_generator_knows(tmp_path):
    processor = make_processor(vocab_file=tmp_path / "vocab.txt")
    groups = make_round(processor, 0, 0, 30, 4)
    batch = next(batches_module.batches(groups, 16, torch.Generator().manual_seed(0)))
    assert batch.things.max() < THING_CLASSES and set(batch.mentions.unique().tolist()) <= {0, 1, 2}
    assert (batch.things[batch.mentions > 0] > 0).all(), "a question means a patch without a thing"
    grid = batch.pixel_values.shape[2] // 8 * (batch.pixel_values.shape[3] // 8)
    assert batch.things.shape[1] == grid
    total = sum(len(b.answer) for b in batches_module.batches(groups, 16, torch.Generator()))
    assert total == 30 * 4
    for row, cells in enumerate(batch.things):  # the answer to a question on colour lies at the patch it means
        words = processor.tokenizer.decode(batch.input_ids[row], skip_special_tokens=True)
        meant = cells[batch.mentions[row] == 1]
        if words.startswith("what color") or words.startswith("what shape"):
            color, shape = COLORS[(int(meant[0]) - 1) % len(COLORS)], SHAPES[(int(meant[0]) - 1) // len(COLORS)]
            assert ANSWERS[batch.answer[row]] == (color if "color" in words else shape)


def test_processes_make_the_same_round(tmp_path):
    from concurrent.futures import ProcessPoolExecutor

    processor = make_processor(vocab_file=tmp_path / "vocab.txt")
    with ProcessPoolExecutor(1) as executor:
        others = make_round(processor, 0, 0, 5, 2, executor)
    for mine, other in zip(make_round(processor, 0, 0, 5, 2), others, strict=True):
        assert all(torch.equal(one, another) for one, another in zip(mine, other, strict=True))


def test_pictures_are_those_of_the_processor(tmp_path):
    processor = make_processor(vocab_file=tmp_path / "vocab.txt")
    group = make_round(processor, 0, 4, 5, 1)[0]
    expected = processor.image_processor(make_sample("train", 0, 4, questions=1).image, return_tensors="pt")
    got = group.pixels.float().div(127.5).sub(1)
    torch.testing.assert_close(
        got, expected["pixel_values"], rtol=0, atol=1e-6
    )  # x/127.5 - 1 against (x/255 - 0.5)/0.5


def test_evaluate_counts(tmp_path):
    model, processor = run(tmp_path, minutes=1e-9)
    model.train()
    scores = evaluate(model, processor, 6, seed=1, questions=4)
    assert model.training and scores["all"].questions == 24
    assert sum(score.questions for kind, score in scores.items() if kind != "all") == 24
    assert all(0 <= score.accuracy <= 1 and 0 < score.majority <= 1 for score in scores.values())
    assert scores == evaluate(model, processor, 6, seed=1, questions=4)
    with pytest.raises(ValueError, match="n: got 0"):
        evaluate(model, processor, 0)
