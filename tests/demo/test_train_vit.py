"""Training the ViT: the loop that it shares with the ViLT, on images of one shape and their mirror images."""

import json
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from vilt_fast.demo import train_vit as training
from vilt_fast.demo.batches import batches
from vilt_fast.demo.data import make_labelled
from vilt_fast.demo.evaluate import evaluate_vit
from vilt_fast.demo.scene import NAMES
from vilt_fast.demo.train_vit import ViTRecipe, make_processor, make_round, train

TINY = ViTRecipe(
    steps=3,
    batch_size=8,
    pictures_per_round=6,
    passes=1,
    image_size=32,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    bf16=False,
)


def run(directory, **options):
    return train(directory, recipe=TINY, seed=3, workers=0, progress=False, **options)


def assert_equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_stopped_run_ends_at_the_same_weights(tmp_path):
    whole, _ = run(tmp_path / "whole")
    for _ in range(TINY.steps):  # time for one step each; two rounds in all
        parts, _ = run(tmp_path / "parts", minutes=1e-9, resume=True)
    assert_equal(whole, parts)
    report = json.loads((tmp_path / "parts" / "training.json").read_text())
    assert (report["steps"], report["examples"]) == (3, 20)  # 8 + 4 of a round, and 8 of the next


def test_a_run_of_the_other_family_is_refused(tmp_path):
    from vilt_fast.demo.train import train as train_vilt

    run(tmp_path, minutes=1e-9)
    with pytest.raises(ValueError, match="recipe"):
        train_vilt(tmp_path, seed=3, workers=0, progress=False, resume=True)


def test_training_sees_each_image_and_its_mirror_image_of_the_training_split(tmp_path, monkeypatch):
    seen = []

    def spy(split, seed, index, **options):
        seen.append((split, index))
        return make_labelled(split, seed, index, **options)

    monkeypatch.setattr(training, "make_labelled", spy)
    run(tmp_path)
    assert seen == [("train", index) for index in range(12)]  # fresh images in every round


def test_passes_show_each_image_again(tmp_path):
    twice = ViTRecipe(**{**vars(TINY), "passes": 2, "steps": 4})
    train(tmp_path, recipe=twice, workers=0, progress=False)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (state["round"], state["batch"]) == (0, 4)  # of 8 and 4 images, twice


def test_a_batch_is_what_the_processor_makes():
    processor = make_processor()
    (group,) = make_round(processor, 0, 4, 7)
    made = [make_labelled("train", 0, index) for index in (4, 5, 6)]
    expected = processor([one.image for one in made], return_tensors="pt")["pixel_values"]
    batch = group.take(torch.arange(6))
    # x / 127.5 - 1 against (x / 255 - 0.5) / 0.5
    torch.testing.assert_close(batch.pixel_values[:3], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(batch.pixel_values[3:], expected.flip(-1), rtol=0, atol=1e-6)
    assert [NAMES[i] for i in batch.answer] == 2 * [one.label for one in made]
    sizes = [len(some.answer) for some in batches([group], 4, torch.Generator().manual_seed(0))]
    assert sorted(sizes) == [2, 4]


def test_processes_make_the_same_round():
    with ProcessPoolExecutor(1) as executor:
        (other,) = make_round(make_processor(), 0, 0, 4, executor)
    (mine,) = make_round(make_processor(), 0, 0, 4)
    assert all(torch.equal(one, another) for one, another in zip(mine, other, strict=True))


def test_labels_are_all_names_and_say_what_is_there():
    made = [make_labelled("test", 7, index, short_side=32) for index in range(400)]
    assert {one.label for one in made} == set(NAMES) and len(NAMES) == len(set(NAMES)) == 40
    for one in made:
        (thing,) = one.scene.things
        assert one.label == f"{thing.color} {thing.shape}"
    again = make_labelled("test", 7, 0, short_side=32)
    assert np.array_equal(np.asarray(made[0].image), np.asarray(again.image))
    assert len({one.image.size for one in made}) == 5  # of several shapes


def test_evaluate_counts(tmp_path):
    model, processor = run(tmp_path, minutes=1e-9)
    scores = evaluate_vit(model, processor, 60, seed=1)
    images = [make_labelled("test", 1, index) for index in range(60)]
    with torch.no_grad():
        found = [model(**processor(one.image, return_tensors="pt")).logits.argmax().item() for one in images]
    right = [NAMES[i] == one.label for i, one in zip(found, images, strict=True)]
    shapes = [NAMES[i].split()[1] == one.label.split()[1] for i, one in zip(found, images, strict=True)]
    assert scores["all"].accuracy == sum(right) / 60 and scores["shape"].accuracy == sum(shapes) / 60
    assert all(score.questions == 60 and 0 < score.majority < 0.5 for score in scores.values())
    with pytest.raises(ValueError, match="n: got 0"):
        evaluate_vit(model, processor, 0)
