"""A save that is killed anywhere leaves the old files, the new ones, or what does not load; and the next tidies up."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

import vilt_fast

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")

NAME = "ViltForQuestionAnswering"
KINDS = {
    "one": {},
    "shards": {"max_shard_size": "25KB"},
    "bin": {"safe_serialization": False},
    "sharded bin": {"safe_serialization": False, "max_shard_size": "25KB"},
}
CALLS = ("replace", "link", "unlink", "fsync", "chmod")


def _kills_at(step: int):
    """A function that wraps those of `os`: the numbered call ends the process."""
    made = []

    def around(function):
        def call(*arguments, **options):
            made.append(function)
            if len(made) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    return around


def _is_killed(save, step: int) -> bool:
    """Run it in a child that is killed at the numbered call; False: it came to its end before that."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            torch.set_num_threads(1)
            around = _kills_at(step)
            for name in CALLS:
                setattr(os, name, around(getattr(os, name)))
            save()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


def _visible(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def _states(tmp_path: Path, first, second):
    """Every distinct state of a folder in which the second save was killed after the first: the folders, in order."""
    first(tmp_path / "old")
    seen = []
    for step in range(1, 300):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "old", folder)
        killed = _is_killed(lambda folder=folder: second(folder), step)
        if _visible(folder) not in seen:
            seen.append(_visible(folder))
            yield folder
        if not killed:
            break
    assert not killed and step > 2


def _labels(word: str) -> dict:
    return {"id2label": {index: f"{word} {index}" for index in range(5)}}


@pytest.fixture(scope="module")
def models(helpers):
    return {"old": helpers.make(NAME, 1, **_labels("old")), "new": helpers.make(NAME, 2, **_labels("new"))}


@pytest.mark.parametrize(
    "first, second",
    [
        ("one", "one"),
        ("shards", "one"),
        ("one", "shards"),
        ("shards", "shards"),
        ("one", "bin"),
        ("bin", "one"),
        ("shards", "sharded bin"),
        ("sharded bin", "bin"),
    ],
)
def test_weights_and_their_configuration(helpers, models, tmp_path, first, second):
    sources = [vilt_fast]
    if (first, second) in (("one", "one"), ("shards", "one")):
        sources.append(pytest.importorskip("transformers", minversion="5.0", reason="reads what we write"))
    found = []
    for folder in _states(
        tmp_path,
        lambda folder: models["old"].save_pretrained(folder, **KINDS[first]),
        lambda folder: models["new"].save_pretrained(folder, **KINDS[second]),
    ):
        for source in sources:
            try:
                loaded = getattr(source, NAME).from_pretrained(folder)
            except (FileNotFoundError, OSError) as error:
                found.append("none")
                if source is vilt_fast:
                    assert "no weights in" in str(error) and "a save was cut short here: save again, or rename" in str(
                        error
                    )
                    assert ".config.json." in str(error) or "config.json" in os.listdir(folder)
            else:
                which = loaded.config.id2label[0].split()[0]
                assert helpers.same(dict(loaded.state_dict()), models[which].state_dict()), (folder, which)
                found.append(which)
    assert found[0] == "old" and found[-1] == "new" and "none" in found


@pytest.mark.parametrize("kind", ["one", "bin"])
def test_with_the_same_configuration_there_are_always_weights(helpers, tmp_path, kind):
    """As a training run saves, time and again."""
    models = [helpers.make(NAME, seed) for seed in (1, 2)]
    found = [
        vilt_fast.ViltForQuestionAnswering.from_pretrained(folder)
        for folder in _states(
            tmp_path, models[0].save_pretrained, lambda f: models[1].save_pretrained(f, **KINDS[kind])
        )
    ]
    assert all(any(helpers.same(one.state_dict(), m.state_dict()) for m in models) for one in found) and len(found) > 1


def _processor(**settings):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *settings.pop("words")]
    tokenizer = vilt_fast.BertTokenizer({word: index for index, word in enumerate(words)}, **settings)
    size = {"shortest_edge": 32 * len(words)}
    return vilt_fast.ViltProcessor(vilt_fast.ViltImageProcessor(size=size), tokenizer)


def _seen(processor) -> tuple:
    tokenizer = processor.tokenizer
    return (
        processor.image_processor.size["shortest_edge"],
        tuple(tokenizer("a cat, A Dog b")["input_ids"]),
        tokenizer.model_max_length,
        tokenizer.padding_side,
    )


@pytest.mark.parametrize("same_words", [False, True])
def test_a_processor(tmp_path, same_words):
    """With other words and settings, or with other settings alone."""
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="reads what we write")
    old = _processor(words=["a", "cat", "dog"], model_max_length=20)
    new = _processor(
        words=["a", "cat", "dog"] if same_words else ["dog", "b", "A", "cat"],
        model_max_length=30,
        padding_side="left",
        do_lower_case=same_words,
    )
    old.image_processor.size = {"shortest_edge": 64}
    whole, found = {_seen(old): "old", _seen(new): "new"}, []
    for folder in _states(tmp_path, old.save_pretrained, new.save_pretrained):
        for kind in (vilt_fast.ViltProcessor, transformers.ViltProcessor):
            try:
                loaded = kind.from_pretrained(folder)
            except (OSError, ValueError, TypeError) as error:
                found.append("none")
                if kind is vilt_fast.ViltProcessor:
                    assert "a save was cut short here: save again, or rename ." in str(error)
            else:
                found.append(whole[_seen(loaded)])
    assert found[:2] == ["old"] * 2 and found[-2:] == ["new", "new"] and "none" in found


def test_image_settings_alone_are_old_or_new(tmp_path):
    first, second = vilt_fast.ViltImageProcessor(size=64), vilt_fast.ViltImageProcessor(size=96)
    found = [
        vilt_fast.ViltImageProcessor.from_pretrained(folder).size["shortest_edge"]
        for folder in _states(tmp_path, first.save_pretrained, second.save_pretrained)
    ]
    assert found == [64, 96]


def test_what_is_set_aside_is_named_and_comes_back_by_renaming(helpers, models, tmp_path):
    renamed = 0
    for folder in _states(tmp_path, models["old"].save_pretrained, models["new"].save_pretrained):
        aside = sorted(path for path in folder.iterdir() if path.name.endswith(".old"))
        if "model.safetensors" in os.listdir(folder) or not aside:
            continue
        for path in aside:
            path.rename(folder / path.name[1:].rsplit(".", 2)[0])
        renamed += 1
        loaded = vilt_fast.ViltForQuestionAnswering.from_pretrained(folder)
        assert loaded.config.id2label[0] == "old 0" and helpers.same(loaded.state_dict(), models["old"].state_dict())
    assert renamed > 0


# --- what is left over ---------------------------------------------------------------------------------------------


def _hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.skipif(sys.platform != "linux", reason="locks folders")
@pytest.mark.parametrize("kind", ["one", "sharded bin"])
def test_the_next_save_removes_what_a_killed_one_left(models, tmp_path, kind):
    left = 0
    for folder in _states(
        tmp_path, models["old"].save_pretrained, lambda folder: models["new"].save_pretrained(folder, **KINDS[kind])
    ):
        left += len(_hidden(folder))
        (folder / ".model.safetensors.swp").write_text("of another program")
        models["new"].save_pretrained(folder)
        assert _hidden(folder) == [".model.safetensors.swp"]
    assert left > 0


@pytest.mark.skipif(sys.platform != "linux", reason="locks folders")
def test_what_safetensors_was_writing_is_removed_too(models, tmp_path, monkeypatch):
    def save():
        monkeypatch.setattr(
            "vilt_fast.checkpoints.weight_files.save_file",
            lambda tensors, path, metadata: (path.write_bytes(b"half"), os.kill(os.getpid(), signal.SIGKILL)),
        )
        models["old"].save_pretrained(tmp_path)

    assert _is_killed(save, 10**9) and len(_hidden(tmp_path)) == 3
    models["new"].save_pretrained(tmp_path)
    assert not _hidden(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="locks folders")
def test_what_another_process_is_writing_stays(models, tmp_path):
    """It holds the lock of the folder, and is killed while it waits: then its files may go."""
    (ready, started), (wait, _) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            models["old"].save_pretrained(
                tmp_path,
                safe_serialization=False,
                save_function=lambda tensors, path: (
                    path.write_bytes(b"half"),
                    os.write(started, b"x"),
                    os.read(wait, 1),
                ),
            )
        finally:
            os._exit(1)
    assert os.read(ready, 1) == b"x"
    try:
        writing = _hidden(tmp_path)
        models["new"].save_pretrained(tmp_path)
        assert writing and _hidden(tmp_path) == writing
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    models["new"].save_pretrained(tmp_path, safe_serialization=False)
    assert not _hidden(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="locks folders")
def test_a_lock_of_someone_else_is_no_reason_not_to_save(models, tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr("vilt_fast.checkpoints.leftovers._TRIES", 2)
    lock = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        models["old"].save_pretrained(tmp_path)
    finally:
        os.close(lock)
    assert vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path).config.id2label[0] == "old 0"


def test_where_folders_cannot_be_locked_leftovers_stay(models, tmp_path, monkeypatch):
    (tmp_path / ".config.json.0123abcd.old").write_text("{}")
    monkeypatch.setattr("vilt_fast.checkpoints.leftovers.fcntl", None)
    models["old"].save_pretrained(tmp_path)
    assert _hidden(tmp_path) == [".config.json.0123abcd.old"]
