"""What we write: transformers reads it, nothing old stays beside it, and a failure leaves the old checkpoint whole."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import vilt_fast
from vilt_fast import checkpoints

NAME = "ViltForQuestionAnswering"
KINDS = {
    "one": {},
    "shards": {"max_shard_size": "15KB"},
    "bin": {"safe_serialization": False},
    "sharded bin": {"safe_serialization": False, "max_shard_size": "15KB"},
}


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        "ViltModel",
        "ViltForMaskedLM",
        NAME,
        "ViltForImagesAndTextClassification",
        "ViltForImageAndTextRetrieval",
        "ViltForTokenClassification",
    ],
)
@pytest.mark.parametrize("kind", ["one", "shards"])
@pytest.mark.parametrize("tied", [False, True])
def test_through_transformers_and_back(helpers, tmp_path, name, kind, tied):
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle")
    ours = helpers.make(name, tie_word_embeddings=tied)
    ours.save_pretrained(tmp_path / "ours", **KINDS[kind])
    theirs, report = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert helpers.same(dict(theirs.state_dict()), ours.state_dict())
    theirs.save_pretrained(tmp_path / "theirs")
    again = getattr(vilt_fast, name).from_pretrained(tmp_path / "theirs")
    assert helpers.same(again.state_dict(), ours.state_dict())
    if name == "ViltForMaskedLM":
        for model in (theirs, again):
            words = model.vilt.embeddings.text_embeddings.word_embeddings.weight
            assert (model.mlm_score.decoder.weight is words) == tied


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["ViltForMaskedLM", NAME, "ViltForImageTextMatching"])
def test_to_the_disk_and_back(helpers, tmp_path, name, kind, dtype):
    model = helpers.make(name).to(dtype)
    model.save_pretrained(tmp_path, **KINDS[kind])
    again = getattr(vilt_fast, name).from_pretrained(tmp_path, dtype="auto")
    assert helpers.same(again.state_dict(), model.state_dict())


def test_the_names_of_the_files(helpers, tmp_path):
    model = helpers.make(NAME)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    for kind, wanted in (("one", "model.safetensors"), ("bin", "pytorch_model.bin")):
        checkpoints.save_weights(model, tmp_path / kind, **KINDS[kind])
        assert files(tmp_path / kind) == {wanted}
    for kind, stem, suffix in (("shards", "model", "safetensors"), ("sharded bin", "pytorch_model", "bin")):
        checkpoints.save_weights(model, tmp_path / kind, **KINDS[kind])
        index = json.loads((tmp_path / kind / f"{stem}.{suffix}.index.json").read_text())
        count = len(set(index["weight_map"].values()))
        names = {f"{stem}-{i + 1:05d}-of-{count:05d}.{suffix}" for i in range(count)}
        assert count > 2 and files(tmp_path / kind) == names | {f"{stem}.{suffix}.index.json"}
        assert index["metadata"] == {"total_size": size, "total_parameters": size // 4}
        assert index["weight_map"].keys() == model.state_dict().keys()
    for file in (tmp_path / "shards").glob("*.safetensors"):
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 15_000
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("size, limit", [("9KB", 9000), ("9 kib", 9216), (9000, 9000), ("9000", 9000), ("1GB", 10**9)])
def test_sizes_of_shards(helpers, tmp_path, size, limit):
    model = helpers.make(NAME)
    checkpoints.save_weights(model, tmp_path, max_shard_size=size)
    held = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    sizes = {name: tensor.nbytes for shard in held for name, tensor in shard.items()}
    assert sizes.keys() == model.state_dict().keys()
    order = {name: place for place, name in enumerate(model.state_dict())}
    for shard, following in zip(held, [*held[1:], {}], strict=True):
        used = sum(sizes[name] for name in shard)
        assert len(shard) == 1 or used <= limit
        if following:  # a shard ends only where the next tensor would not fit
            assert used + sizes[min(following, key=order.get)] > limit


@pytest.mark.parametrize("size", ["", "GB", "5 apples", -1, 0, 2.5, None, "-5GB"])
def test_a_size_that_is_none(helpers, tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size: got "):
        checkpoints.save_weights(helpers.make(NAME), tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


def test_the_directory_is_a_file(helpers, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="directory"):
        checkpoints.save_weights(helpers.make(NAME), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("safe", [True, False])
def test_views_are_written_alone(helpers, tmp_path, safe):
    """Three parameters that are slices of one buffer, and one with a stride."""
    model = helpers.make("ViltModel")
    attention = model.encoder.layer[0].attention.attention
    fused = torch.randn(48, 16)
    for i, part in enumerate((attention.query, attention.key, attention.value)):
        part.weight = nn.Parameter(fused[16 * i : 16 * (i + 1)])
    model.pooler.dense.weight = nn.Parameter(torch.randn(16, 16).t())
    model.layernorm.weight = nn.Parameter(torch.randn(10_000)[::625])
    checkpoints.save_weights(model, tmp_path, safe_serialization=safe)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < sum(tensor.nbytes for tensor in model.state_dict().values()) + 20_000
    again = helpers.make("ViltModel", 3)
    checkpoints.load_weights(again, tmp_path)
    assert helpers.same(again.state_dict(), model.state_dict())


def test_a_decoder_that_config_json_does_not_call_tied_is_written(helpers, tmp_path):
    """transformers 4.37 would leave it random otherwise."""
    model = helpers.make("ViltForMaskedLM", tie_word_embeddings=True)
    checkpoints.save_weights(model, tmp_path / "tied")
    model.config.tie_word_embeddings = False
    checkpoints.save_weights(model, tmp_path / "said to be untied")
    names = [set(load_file(tmp_path / d / "model.safetensors")) for d in ("tied", "said to be untied")]
    assert names[1] - names[0] == {"mlm_score.decoder.weight"}
    assert names[1] == set(model.state_dict())


# --- over an earlier save ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", [*KINDS, "more shards"])
def test_nothing_of_an_earlier_save_stays(helpers, tmp_path, first, second):
    old, new = helpers.make(NAME, 1), helpers.make(NAME, 2)
    options = KINDS.get(second, {"max_shard_size": "5KB"})
    (tmp_path / "model").mkdir()
    for other in ("vocab.txt", "tokenizer.json", "my-model.safetensors", "model.safetensors.bak", "notes.index.json"):
        (tmp_path / "model" / other).write_text("mine")
    mine = files(tmp_path / "model")
    old.save_pretrained(tmp_path / "model", **KINDS[first])
    new.save_pretrained(tmp_path / "model", **options)
    new.save_pretrained(tmp_path / "alone", **options)
    assert files(tmp_path / "model") == files(tmp_path / "alone") | mine
    again = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "model")
    assert helpers.same(again.state_dict(), new.state_dict())


def test_a_model_saves_over_the_files_it_was_loaded_from(helpers, tmp_path):
    helpers.make(NAME, 1).save_pretrained(tmp_path)
    model = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path)
    helpers.randomise(model, 2).save_pretrained(tmp_path)
    assert helpers.same(vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("file", [1, 2, 3])
def test_a_full_disk_leaves_the_old_checkpoint(helpers, tmp_path, monkeypatch, first, second, file):
    """The disk takes `file` - 1 files and is full then."""
    old = helpers.make(NAME, 1)
    old.save_pretrained(tmp_path, **KINDS[first])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    flushed = []

    def fsync(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == file:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    new, options = helpers.make(NAME, 2), KINDS[second]
    if file > 1 and "max_shard_size" not in options:
        options = {**options, "max_shard_size": "20KB"}
    with pytest.raises(OSError, match="could not write .*nothing was changed") as caught:
        checkpoints.save_weights(new, tmp_path, **options)
    assert caught.value.errno == errno.ENOSPC and len(flushed) == file
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class _PowerCut(BaseException):
    pass


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", [*KINDS, "one and a companion"])
def test_a_process_that_dies_leaves_one_checkpoint_or_none_but_no_mixture(
    helpers, tmp_path, monkeypatch, first, second
):
    """It dies at its first, second, ... rename, link or removal, and can tidy up nothing."""
    models = [helpers.make(NAME, 1), helpers.make(NAME, 2)]
    options = {**KINDS.get(second, {}), "companions": {"note.txt": "new"} if second not in KINDS else {}}
    seen = set()
    for step in range(1, 200):
        directory = tmp_path / str(step)
        models[0].save_pretrained(directory, **KINDS[first])
        calls = []
        with monkeypatch.context() as patch:
            for name in ("replace", "link", "unlink"):
                patch.setattr(os, name, _dies(getattr(os, name), calls, step))
            try:
                checkpoints.save_weights(models[1], directory, **options)
            except _PowerCut:
                pass
        loaded = helpers.make(NAME, 3)
        try:
            checkpoints.load_weights(loaded, directory)
        except FileNotFoundError:
            seen.add("none")
            assert second != "one" and second != "bin"  # a single file is always the old one or the new one
        else:
            state = loaded.state_dict()
            which = [helpers.same(state, model.state_dict()) for model in models]
            assert any(which)
            seen.add("new" if which[1] else "old")
        if len(calls) < step:
            break
    assert len(calls) < step and {"old", "new"} <= seen


def _dies(function, calls, step):
    def call(*arguments, **options):
        calls.append(function)
        if len(calls) >= step:
            raise _PowerCut
        return function(*arguments, **options)

    return call


FULL = """
import resource, signal, sys
import torch, vilt_fast
model = vilt_fast.ViltForQuestionAnswering.from_pretrained(sys.argv[1])
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for safe in (True, False):
    for size in ("5GB", "30KB"):
        try:
            model.save_pretrained(sys.argv[1], safe_serialization=safe, max_shard_size=size)
        except OSError as error:
            print(error.errno, str(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files with setrlimit")
def test_files_that_the_system_refuses_to_let_grow(helpers, tmp_path):
    """The real thing, through safetensors and torch.save: the kernel stops each file at 20 kB."""
    model = helpers.make(NAME, 1, vocab_size=600)
    model.save_pretrained(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "model")], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stdout
    for line in lines:
        assert re.match(rf"{errno.EFBIG} .*could not write .*(safetensors|bin): File too large; nothing was chan", line)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_companions_come_with_the_weights_or_not_at_all(helpers, tmp_path, monkeypatch):
    model = helpers.make(NAME)
    checkpoints.save_weights(model, tmp_path, companions={"note.txt": "first"})
    assert (tmp_path / "note.txt").read_text() == "first"
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "model.safetensors" and ".tmp" in str(source):
            raise PermissionError(errno.EACCES, "in use")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):
        checkpoints.save_weights(helpers.make(NAME, 2), tmp_path, companions={"note.txt": "second"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("first, second", [("one", "shards"), ("shards", "one"), ("one", "bin"), ("shards", "shards")])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupt_leaves_one_checkpoint_and_nothing_of_the_other(
    helpers, tmp_path, monkeypatch, first, second, after
):
    """It comes once, before or after the first, second, ... rename, link or removal."""
    models = [helpers.make(NAME, 1), helpers.make(NAME, 2, hidden_dropout_prob=0.5)]
    models[0].save_pretrained(tmp_path / "first", **KINDS[first])
    models[1].save_pretrained(tmp_path / "second", **KINDS[second])
    whole = [_contents(tmp_path / name) for name in ("first", "second")]
    for step in range(1, 200):
        directory = tmp_path / str(step)
        models[0].save_pretrained(directory, **KINDS[first])
        calls = []
        with monkeypatch.context() as patch:
            for name in ("replace", "link", "unlink"):
                patch.setattr(os, name, _interrupts(getattr(os, name), calls, step, after))
            try:
                models[1].save_pretrained(directory, **KINDS[second])
            except KeyboardInterrupt:
                pass
        assert _contents(directory) in whole, (step, files(directory))
        if len(calls) < step:
            break
    assert 5 < len(calls) < step


def _contents(directory: Path) -> dict[str, bytes]:
    """By name; what a removal that did not happen has left is hidden, and no reader looks at it."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


def _interrupts(function, calls, step, after):
    def call(*arguments, **options):
        calls.append(function)
        if len(calls) != step:
            return function(*arguments, **options)
        if after:
            function(*arguments, **options)
        raise KeyboardInterrupt

    return call


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_a_directory_in_the_place_of_a_file_is_refused(helpers, tmp_path, kind, name):
    """Whether it would be replaced or, as the weights of an earlier save, be removed."""
    helpers.make(NAME).save_pretrained(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(IsADirectoryError, match=f"{name} is a directory"):
        helpers.make(NAME, 2).save_pretrained(tmp_path, **KINDS[kind])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("size", ["5IB", "5K", "GB", "-1GB", "1.5GB", 0, True])
def test_what_is_no_size_of_a_shard(helpers, tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size: got"):
        helpers.make("ViltModel").save_pretrained(tmp_path, max_shard_size=size)


class _Derived(vilt_fast.ViltConfig):
    """A user's own configuration."""

    model_type = "my_vilt"


class _DerivedModel(vilt_fast.ViltForMaskedLM):
    config_class = _Derived


@pytest.mark.parametrize("tied", [False, True])
def test_a_derived_configuration_has_the_names_of_its_base(helpers, tmp_path, tied):
    plain = helpers.make("ViltForMaskedLM", tie_word_embeddings=tied)
    fields = {name: value for name, value in plain.config.to_dict().items() if name != "model_type"}
    model = helpers.randomise(_DerivedModel(_Derived(**fields)), 1)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "my_vilt"
    again = _DerivedModel.from_pretrained(tmp_path)
    assert type(again.config) is _Derived and helpers.same(again.state_dict(), model.state_dict())


class _Foreign(nn.Module):
    """A module with the configuration of another architecture."""

    def __init__(self, config: object) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(2, 3)


class _BertConfig:
    model_type = "bert"


@pytest.mark.parametrize("config", [_BertConfig(), None], ids=["another architecture", "no configuration"])
def test_other_modules_are_saved_and_refused_by_name(helpers, tmp_path, config):
    module = _Foreign(config)
    checkpoints.save_weights(module, tmp_path / "foreign")
    saved = load_file(tmp_path / "foreign" / "model.safetensors")
    assert helpers.same(saved, module.state_dict())
    helpers.make("ViltModel").save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="holds no weights of _Foreign: it looks like"):
        checkpoints.load_weights(module, tmp_path / "ours")


def test_a_save_function_that_writes_nothing(helpers, tmp_path):
    model = helpers.make(NAME)
    model.save_pretrained(tmp_path, safe_serialization=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="save_function: it wrote nothing"):
        helpers.make(NAME, 1).save_pretrained(
            tmp_path, safe_serialization=False, save_function=lambda tensors, path: None
        )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_incomplete_state_dict_is_written_with_a_warning(helpers, tmp_path, caplog):
    model = helpers.make("ViltForMaskedLM", tie_word_embeddings=True)
    state = model.state_dict()
    del state["mlm_score.decoder.weight"]  # the word table, under its other name
    model.save_pretrained(tmp_path / "whole", state_dict=state)
    assert not caplog.records
    del state["mlm_score.decoder.bias"], state["vilt.layernorm.bias"]
    model.save_pretrained(tmp_path / "part", state_dict=state)
    assert "state_dict lacks 3 of the model's tensors: vilt.layernorm.bias, mlm_score" in caplog.text


def test_an_index_loads_by_its_own_path(helpers, tmp_path):
    model = helpers.make(NAME)
    model.save_pretrained(tmp_path, max_shard_size="15KB")
    other = helpers.make(NAME, 1)
    checkpoints.load_weights(other, tmp_path / "model.safetensors.index.json")
    assert helpers.same(other.state_dict(), model.state_dict())
