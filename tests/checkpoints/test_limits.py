"""Sizes, names, devices and patterns that no machine has or takes: refused by the name of the argument, at once."""

import json
import os
import subprocess
import sys
import time
import tracemalloc

import pytest
import torch

import vilt_fast
from vilt_fast import checkpoints
from vilt_fast.checkpoints.files import read_json

NAME = "ViltForQuestionAnswering"


@pytest.fixture
def saved(helpers, tmp_path):
    helpers.make(NAME).save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    tokenizer = vilt_fast.BertTokenizer({word: index for index, word in enumerate(words)})
    vilt_fast.ViltProcessor(vilt_fast.ViltImageProcessor(), tokenizer).save_pretrained(tmp_path)
    return tmp_path


# --- memory --------------------------------------------------------------------------------------------------------

SIZES = dict(hidden_size=16, num_attention_heads=2, intermediate_size=20, num_hidden_layers=1)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("ViltModel", {"vocab_size": 10**9}),
        ("ViltForMaskedLM", {"intermediate_size": 2 * 10**9}),
        ("ViltForQuestionAnswering", {"max_position_embeddings": 10**9}),
        ("ViltForImagesAndTextClassification", {"num_images": 50_000, "modality_type_vocab_size": 50_001}),
    ],
)
def test_a_model_that_memory_does_not_hold(monkeypatch, name, fields):
    monkeypatch.setattr("vilt_fast.checkpoints.memory.total_memory", lambda: 2e9)
    config, kind = vilt_fast.ViltConfig(**{**SIZES, **fields}), getattr(vilt_fast, name)
    for make in (kind, kind._from_config):
        with pytest.raises(ValueError, match="config: a ViltConfig of these sizes makes a model that takes [0-9]+ GB"):
            make(config)
    with torch.device("meta"):
        assert kind(config).num_parameters() * 4 > 2e9
    with checkpoints.shapes_only():
        assert kind(config).num_parameters() * 4 > 2e9


def test_a_model_that_is_made_without_memory_may_be_larger_than_it(monkeypatch):
    accelerate = pytest.importorskip("accelerate", reason="makes models on the meta device by a way of its own")
    monkeypatch.setattr("vilt_fast.checkpoints.memory.total_memory", lambda: 1e5)
    with accelerate.init_empty_weights():
        assert next(vilt_fast.ViltModel(vilt_fast.ViltConfig(**SIZES)).parameters()).is_meta


def test_the_estimate_is_near_the_truth(helpers):
    for name in helpers.classes:
        model = helpers.make(name, vocab_size=3000)
        assert 0.5 < model.config.count_weights() / model.num_parameters() <= 1, name


@pytest.mark.parametrize("name", ["ViltModel", "ViltForMaskedLM"])
def test_a_table_of_words_that_memory_does_not_hold(helpers, name):
    model = helpers.make(name)
    before = helpers.copy(model)
    for rows in (2**31 - 1, 10**30, -1, True, "x"):
        with pytest.raises(ValueError, match="new_num_tokens: "), pytest.MonkeyPatch.context() as patch:
            patch.setattr("vilt_fast.checkpoints.memory.total_memory", lambda: 2e9)
            model.resize_token_embeddings(rows)
    with pytest.raises(ValueError, match="pad_to_multiple_of: got an integer of about"):
        model.resize_token_embeddings(3, pad_to_multiple_of=10**30)
    assert helpers.same(model.state_dict(), before) and model.config.vocab_size == 30


def test_a_first_load_does_not_import_the_compiler(saved):
    """Which takes seconds, and nothing is compiled."""
    code = (
        "import sys, vilt_fast; vilt_fast.ViltForQuestionAnswering.from_pretrained(sys.argv[1]); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(saved)], check=True, timeout=300)


# --- files ---------------------------------------------------------------------------------------------------------

READ_WHOLE = {
    "config.json": vilt_fast.ViltForQuestionAnswering,
    "model.safetensors.index.json": vilt_fast.ViltForQuestionAnswering,
    "preprocessor_config.json": vilt_fast.ViltProcessor,
    "processor_config.json": vilt_fast.ViltProcessor,
    "tokenizer_config.json": vilt_fast.ViltProcessor,
    "tokenizer.json": vilt_fast.ViltProcessor,
    "special_tokens_map.json": vilt_fast.ViltProcessor,
    "vocab.txt": vilt_fast.ViltProcessor,
}


@pytest.mark.parametrize("name", READ_WHOLE)
def test_a_file_that_is_larger_than_any(helpers, saved, name):
    """3 GB with nothing in them."""
    if "index" in name:
        helpers.make(NAME).save_pretrained(saved, max_shard_size="25KB")
    if name == "special_tokens_map.json":
        (saved / "tokenizer_config.json").unlink()
    if name == "vocab.txt":
        (saved / "tokenizer.json").unlink()
    with open(saved / name, "wb") as file:
        file.truncate(3 * 2**30)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"{name}: got a file of 3072.0 MB, wanted at most (16|64)"):
            READ_WHOLE[name].from_pretrained(saved)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_what_is_read_takes_memory_for_its_values_alone(tmp_path):
    path = tmp_path / "some.json"
    path.write_text('{"a": [' + "1," * 99_999 + "1]}")
    tracemalloc.start()
    try:
        assert len(read_json(path)["a"]) == 10**5
        assert tracemalloc.get_traced_memory()[1] < 20 * path.stat().st_size
    finally:
        tracemalloc.stop()


def test_many_labels_are_refused_in_time(saved):
    """A config.json of nearly the size that is still read, whose labels are not those of the weights."""
    content = json.loads((saved / "config.json").read_text())
    content["id2label"] = {str(index): f"LABEL_{index}" for index in range(200_000)}
    content["label2id"] = {label: int(index) for index, label in content["id2label"].items()}
    (saved / "config.json").write_text(json.dumps(content))
    start = time.process_time()
    with pytest.raises(ValueError, match="classifier.3.bias"):
        getattr(vilt_fast, NAME).from_pretrained(saved)
    assert time.process_time() - start < 4


def test_a_key_that_stands_twice_among_many(tmp_path):
    path = tmp_path / "some.json"
    names = [f'"{index}": 1' for index in range(100_000)]
    path.write_text("{" + ", ".join([*names, '"99999": 1']) + "}")
    start = time.process_time()
    with pytest.raises(ValueError, match="'99999' stands there twice"):
        read_json(path)
    assert time.process_time() - start < 2


# --- names ---------------------------------------------------------------------------------------------------------

LONG = "x" * 5000
NAMES = [None, 3, b"x", ["x"], LONG, f"{LONG}/y", f"/{LONG}", "a\0b", "\ud800", f"~{'x' * 50}/y"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:10])
def test_names_that_are_none(name):
    for read in (
        getattr(vilt_fast, NAME).from_pretrained,
        vilt_fast.ViltConfig.from_pretrained,
        vilt_fast.ViltImageProcessor.from_pretrained,
        lambda name: checkpoints.load_weights(vilt_fast.ViltModel(vilt_fast.ViltConfig(**SIZES)), name),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match="name_or_path|no directory|no weights") as caught:
            read(name)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("option", [{"subfolder": 3}, {"revision": 3}, {"cache_dir": 3}, {"token": 3.5}], ids=str)
def test_options_of_the_hub_that_are_none(saved, option):
    for kind in (getattr(vilt_fast, NAME), vilt_fast.ViltConfig, vilt_fast.ViltProcessor):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: got 3.*, wanted a text"):
            kind.from_pretrained(saved, **option)


def test_a_subfolder_and_a_shard_of_long_names(helpers, saved):
    with pytest.raises(FileNotFoundError, match="no x"):
        getattr(vilt_fast, NAME).from_pretrained(saved, subfolder=LONG)
    helpers.make(NAME).save_pretrained(saved, max_shard_size="25KB")
    path = saved / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"]["classifier.3.bias"] = f"{LONG}.safetensors"
    path.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match="no xxx.* in the directory") as caught:
        getattr(vilt_fast, NAME).from_pretrained(saved)
    assert len(str(caught.value)) < 2000


MAPPINGS = {
    "no pattern": {"(": "x"},
    "no group": {"vilt": "\\9"},
    "no named group": {"vilt": "\\g<x>"},
    "a number": {3: "x"},
    "of numbers": {"vilt": 4},
    "a text": "x",
    "a list": [("a", "b")],
    "one name of several": {r"\d": "0"},
}


@pytest.mark.parametrize("case", MAPPINGS)
def test_key_mappings_that_are_none(saved, case):
    with pytest.raises(ValueError, match="key_mapping: "):
        getattr(vilt_fast, NAME).from_pretrained(saved, key_mapping=MAPPINGS[case])


# --- devices -------------------------------------------------------------------------------------------------------

DEVICES = ["x", "", "cuda:x", "cuda:99", "mps:7", 99, -1, 10**30, True, [], {}, 1.5, b"cpu", torch.float32]


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: repr(device)[:10])
def test_devices_that_are_not_there(saved, device):
    words = r": got .*, wanted a device that is there, such as 'cpu'.*: ."
    with pytest.raises(ValueError, match="device" + words) as caught:
        getattr(vilt_fast, NAME).from_pretrained(saved, device=device)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="place" + words):
        checkpoints.as_device(device, "place")
    if device not in ([], {}):  # no map of one device
        with pytest.raises(ValueError, match="device_map" + words):
            getattr(vilt_fast, NAME).from_pretrained(saved, device_map={"": device})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, torch.device("cuda")], ids=str)
def test_a_gpu_that_is_not_there(saved, device):
    for argument in ("device", "device_map"):
        with pytest.raises(ValueError, match=f"{argument}: got .*such as 'cpu': "):
            getattr(vilt_fast, NAME).from_pretrained(saved, **{argument: device})


def test_devices_that_are_there():
    assert checkpoints.as_device(None) is None
    for device in ("cpu", torch.device("cpu"), "meta"):
        assert checkpoints.as_device(device) == torch.device(device)


def test_no_file_is_opened_that_is_none(saved):
    """A name that is one of a device is no file of a model."""
    with pytest.raises((ValueError, FileNotFoundError)):
        vilt_fast.ViltConfig.from_pretrained(os.devnull)
