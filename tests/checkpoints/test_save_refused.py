"""What could not be read again is not written, and the old files stay; what would be lost without a word is said."""

import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import vilt_fast
from vilt_fast import checkpoints

NAME = "ViltForQuestionAnswering"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def model(helpers):
    return helpers.make(NAME, 2)


@pytest.fixture
def saved(helpers, tmp_path):
    helpers.make(NAME, 1).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# --- a state dict --------------------------------------------------------------------------------------------------


def _state_dicts(own):
    name = "classifier.3.bias"
    return {
        "empty": ({}, "state_dict: got no tensors.*is_main_process=False"),
        "a list": ([], "state_dict: got .*wanted a dictionary"),
        "a number": (3, "state_dict: got 3, wanted a dictionary"),
        "a name that is a number": ({3: torch.ones(2)}, "state_dict: got .*wanted a dictionary"),
        "sparse": ({**own, name: torch.ones(5).to_sparse()}, f"no dense tensors with data: {name}"),
        "meta": ({**own, name: torch.ones(5, device="meta")}, f"no dense tensors with data: {name}"),
        "no tensor": ({**own, name: 3}, f"no dense tensors with data: {name}"),
        "one more": (
            {**own, "x.weight": torch.ones(2)},
            "does not fit ViltForQuestionAnswering: 1 unexpected: x.weight",
        ),
        "shapes": (
            {key: tensor[None] for key, tensor in own.items()},
            rf"{len(own)} of another shape: .*LayerNorm.bias \(got \(1, 16\), wanted \(16,\)\)",
        ),
        "a wrapper's": ({f"module.{key}": tensor for key, tensor in own.items()}, f"{len(own)} unexpected: module"),
    }


@pytest.mark.parametrize("case", _state_dicts({}))
@pytest.mark.parametrize("safe", [True, False])
def test_a_state_dict_that_would_not_load(model, saved, case, safe):
    before = _contents(saved)
    state, words = _state_dicts(dict(model.state_dict()))[case]
    with pytest.raises(ValueError, match=words):
        model.save_pretrained(saved, state_dict=state, safe_serialization=safe)
    assert _contents(saved) == before


def test_an_empty_state_dict_of_another_process_is_nothing_to_write(model, saved):
    before = _contents(saved)
    model.save_pretrained(saved, state_dict={}, is_main_process=False)
    assert _contents(saved) == before


def test_a_model_in_parts_is_not_compared(model, tmp_path):
    """DeepSpeed leaves parameters of no elements in the process that saves."""
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data, parameter.ds_id = torch.empty(0), 1
    model.save_pretrained(tmp_path, state_dict=whole)
    loaded = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_diverged_are_written_with_a_warning(model, tmp_path, caplog, value):
    with torch.no_grad():
        model.classifier[3].bias[1] = value
    model.save_pretrained(tmp_path)
    assert "1 tensors are NaN or infinite, and from_pretrained will refuse" in caplog.text
    assert caplog.text.count("classifier.3.bias") == 1
    with pytest.raises(ValueError, match="1 tensors are NaN or infinite in float32: classifier.3.bias"):
        type(model).from_pretrained(tmp_path)


# --- a configuration and settings ----------------------------------------------------------------------------------


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


FIELDS = {
    "layer_norm_eps": float("nan"),
    "hidden_size": 17,
    "hidden_act": 3,
    "id2label": {0: "a", 1: "\ud800", 2: "c", 3: "d", 4: "e"},
    "label2id": {"a": None},
    "foo": float("inf"),
    "lists": [1.0, [float("nan")]],
    "deep": _nested(70),
    "deeper": _nested(2000),
    "thing": object(),
    "lock": threading.Lock(),
    "keys": {1: "a", "b": 2},
    "twice": {"1": 2, 1: 2},
    "tuple": {(1, 2): 3},
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_could_not_be_read_again(model, saved, field):
    before = _contents(saved)
    setattr(model.config, field, FIELDS[field])
    if field == "id2label":
        model.config.label2id = {}
    word = "1" if field == "id2label" else field
    for save in (model.save_pretrained, model.config.save_pretrained):
        with pytest.raises(ValueError, match=word):
            save(saved)
    assert _contents(saved) == before


def _processor():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    tokenizer = vilt_fast.BertTokenizer({word: index for index, word in enumerate(words)})
    return vilt_fast.ViltProcessor(vilt_fast.ViltImageProcessor(), tokenizer)


@pytest.mark.parametrize(
    "part, name, value",
    [
        ("image_processor", "image_mean", [float("nan")] * 3),
        ("image_processor", "my_setting", object()),
        ("tokenizer", "model_max_length", float("nan")),
    ],
)
def test_a_setting_that_could_not_be_read_again(tmp_path, part, name, value):
    processor = _processor()
    processor.save_pretrained(tmp_path)
    before = _contents(tmp_path)
    setattr(getattr(processor, part), name, value)
    for save in (processor.save_pretrained, getattr(processor, part).save_pretrained):
        with pytest.raises(ValueError, match=name):
            save(tmp_path)
    assert _contents(tmp_path) == before


def test_no_file_is_written_that_is_too_large_to_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("vilt_fast.checkpoints.json_files.MOST_BYTES", 1000)
    with pytest.raises(
        ValueError, match="tokenizer.json: was not written.*wanted at most|tokenizer.json: got a file of"
    ):
        _processor().save_pretrained(tmp_path / "new")
    monkeypatch.setattr("vilt_fast.checkpoints.json_files._MOST_BYTES_OF", {"config.json": 100})
    with pytest.raises(ValueError, match="config.json: was not written.*wanted at most"):
        vilt_fast.ViltConfig().save_pretrained(tmp_path / "new")
    assert not any(tmp_path.rglob("*.json"))


# --- where to ------------------------------------------------------------------------------------------------------

PLACES = {
    "nothing": "",
    "None": None,
    "a number": 3,
    "bytes": b"x",
    "a null byte": "a\0b",
    "a surrogate": "\ud800x",
    "a long name": "x" * 5000,
    "a file": "file",
    "below a file": "file/x/y",
    "a link to nothing": "link",
    "a device": os.devnull,
}


@pytest.mark.parametrize("case", PLACES)
@pytest.mark.parametrize("kind", ["model", "weights", "config", "processor", "tokenizer", "image_processor"])
def test_a_place_that_is_no_directory(model, tmp_path, monkeypatch, case, kind):
    processor = _processor()
    save = {
        "model": model.save_pretrained,
        "weights": lambda directory: checkpoints.save_weights(model, directory),
        "config": model.config.save_pretrained,
        "processor": processor.save_pretrained,
        "tokenizer": processor.tokenizer.save_pretrained,
        "image_processor": processor.image_processor.save_pretrained,
    }[kind]
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("link").symlink_to("absent")
    with pytest.raises(ValueError, match="directory: ") as caught:
        save(PLACES[case])
    assert len(str(caught.value)) < 600
    assert sorted(os.listdir(tmp_path)) == ["file", "link"] and Path("file").read_text() == "mine"


@pytest.mark.parametrize("variant", ["x" * 101, "a/b", "a\n", 3])
def test_a_variant_that_is_no_part_of_a_name(model, tmp_path, variant):
    for call in (model.save_pretrained, type(model).from_pretrained):
        with pytest.raises(ValueError, match="variant: got"):
            call(
                tmp_path / "new" if call == model.save_pretrained else tmp_path,
                variant=variant,
                **({} if call == model.save_pretrained else {"config": model.config}),
            )


# --- variants ------------------------------------------------------------------------------------------------------


def test_a_variant_leaves_the_configuration_of_all_as_it_is(helpers, saved):
    config = (saved / "config.json").read_bytes()
    half = helpers.make(NAME, 2).to(torch.float16)
    half.save_pretrained(saved, variant="fp16")
    assert (saved / "config.json").read_bytes() == config
    assert helpers.same(type(half).from_pretrained(saved, variant="fp16", dtype="auto").state_dict(), half.state_dict())
    assert helpers.same(type(half).from_pretrained(saved).state_dict(), helpers.make(NAME, 1).state_dict())


@pytest.mark.parametrize("first, second", [(None, "fp16"), ("fp16", None), ("fp16", "ema")])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "25KB"}, {"safe_serialization": False}], ids=str)
def test_a_variant_of_another_configuration_is_refused(helpers, tmp_path, first, second, options):
    """config.json is one for all: it would not be true of the weights that stay."""
    helpers.make(NAME, 1).save_pretrained(tmp_path, variant=first, **options)
    before = _contents(tmp_path)
    other = helpers.make(NAME, 2, id2label={index: f"other {index}" for index in range(5)}, layer_norm_eps=1e-6)
    words = (
        r"directory: .* holds (pytorch_)?model\..*, whose config.json differs from the model's in id2label, label2id, "
    )
    with pytest.raises(ValueError, match=words + "layer_norm_eps: save into another directory"):
        other.save_pretrained(tmp_path, variant=second)
    assert _contents(tmp_path) == before
    other.save_pretrained(tmp_path, variant=first)
    assert type(other).from_pretrained(tmp_path, variant=first).config.id2label[0] == "other 0"


def test_a_whole_model_takes_the_place_of_one_in_shards_and_the_other_way(helpers, saved):
    """Shards and their index are no other variant."""
    for options in ({"max_shard_size": "25KB"}, {}, {"safe_serialization": False}):
        helpers.make(NAME, 2, id2label={index: str(options) for index in range(5)}).save_pretrained(saved, **options)
        assert vilt_fast.ViltForQuestionAnswering.from_pretrained(saved).config.id2label[0] == str(options)


def test_a_module_without_a_configuration_is_saved_as_it_is(tmp_path):
    checkpoints.save_weights(nn.Linear(2, 3), tmp_path)
    assert os.listdir(tmp_path) == ["model.safetensors"]
