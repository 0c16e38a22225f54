"""Values and sizes that no model has: refused by name, before memory is taken for them."""

import json
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import vilt_fast
from vilt_fast import checkpoints
from vilt_fast.checkpoints.files import read_json

NAME = "ViltForQuestionAnswering"


@pytest.fixture
def saved(helpers, tmp_path):
    helpers.make(NAME).save_pretrained(tmp_path)
    return tmp_path


def _edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_weights_that_are_not_finite(helpers, tmp_path, value, safe, strict):
    model = helpers.make(NAME)
    with torch.no_grad():
        model.classifier[3].bias[2] = value
        model.vilt.embeddings.cls_token[0, 0, 5] = value
    model.save_pretrained(tmp_path, safe_serialization=safe)
    with pytest.raises(ValueError) as caught:
        type(model).from_pretrained(tmp_path, strict=strict)
    assert str(tmp_path / ("model.safetensors" if safe else "pytorch_model.bin")) in str(caught.value)
    assert "2 tensors are NaN or infinite in float32: vilt.embeddings.cls_token, classifier.3.bias" in str(caught.value)
    whole = helpers.make(NAME, 1)
    before = helpers.copy(whole)
    with pytest.raises(ValueError, match="classifier.3.bias"):
        checkpoints.load_weights(whole, tmp_path, strict=strict)
    assert helpers.same(whole.state_dict(), before)


def test_weights_that_overflow_in_the_dtype_that_is_asked_for(helpers, tmp_path):
    model = helpers.make("ViltModel")
    with torch.no_grad():
        model.layernorm.bias[3] = 1e5
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="1 tensors are NaN or infinite in float16: layernorm.bias"):
        vilt_fast.ViltModel.from_pretrained(tmp_path, dtype="float16")
    assert vilt_fast.ViltModel.from_pretrained(tmp_path, dtype="bfloat16").layernorm.bias[3] > 9e4


def test_finite_weights_whose_sum_is_not_load(helpers, tmp_path):
    model = helpers.make("ViltModel")
    with torch.no_grad():
        model.pooler.dense.weight.fill_(3e38)
    model.save_pretrained(tmp_path)
    assert (vilt_fast.ViltModel.from_pretrained(tmp_path).pooler.dense.weight == 3e38).all()


def test_weights_that_the_model_does_not_take_may_be_anything(helpers, saved):
    path = saved / "model.safetensors"
    save_file({**load_file(path), "mpp_score.decoder.bias": torch.full((3,), float("nan"))}, path)
    assert getattr(vilt_fast, NAME).from_pretrained(saved)


# --- sizes ---------------------------------------------------------------------------------------------------------

SIZES = "vocab_size hidden_size num_hidden_layers intermediate_size max_position_embeddings type_vocab_size".split()


@pytest.mark.parametrize("value", [20_000, 5_000_000, 10**9, 10**30, 10**400])
@pytest.mark.parametrize("field", [*SIZES, "image_size", "num_channels", "modality_type_vocab_size"])
def test_sizes_that_do_not_fit_the_weights(saved, field, value):
    """In a second at most, and with memory for none of it: 20,000 words fit a machine, and must not be made first."""
    value = value // 8 * 8 if value < 10**300 else "9" * 400
    text = (saved / "config.json").read_text()
    old = json.dumps(json.loads(text)[field])
    (saved / "config.json").write_text(text.replace(f'"{field}": {old}', f'"{field}": {value}'))
    start, made = time.perf_counter(), []
    before = torch.nn.Module.register_parameter

    def register(module, name, parameter):
        made.append(parameter is not None and not parameter.is_meta)
        before(module, name, parameter)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as caught:
        patch.setattr(torch.nn.Module, "register_parameter", register)
        getattr(vilt_fast, NAME).from_pretrained(saved)
    assert time.perf_counter() - start < 1 and not any(made)
    assert str(saved) in str(caught.value) and len(str(caught.value)) < 5000


@pytest.mark.parametrize("labels", [10**9, 10**30, 50_000])
def test_labels_that_do_not_fit_the_weights(saved, labels):
    content = json.loads((saved / "config.json").read_text())
    del content["id2label"], content["label2id"]
    (saved / "config.json").write_text(json.dumps({**content, "num_labels": labels}))
    with pytest.raises(ValueError, match="num_labels must be|of another shape: classifier.3.bias"):
        getattr(vilt_fast, NAME).from_pretrained(saved)


def test_many_layers_are_not_made_to_be_counted(saved):
    _edit(saved / "config.json", num_hidden_layers=9_999)
    with pytest.raises(ValueError, match="num_hidden_layers=9999, but it holds [0-9]+ tensors"):
        getattr(vilt_fast, NAME).from_pretrained(saved)


@pytest.mark.parametrize("leave", [{"strict": False}, {"ignore_mismatched_sizes": True}])
def test_what_is_larger_than_this_machine_is_refused_where_sizes_may_differ(saved, leave, monkeypatch):
    monkeypatch.setattr("vilt_fast.checkpoints.memory.total_memory", lambda: 2e9)
    _edit(saved / "config.json", intermediate_size=100_000_000)
    with pytest.raises(ValueError, match="a ViltForQuestionAnswering of its configuration takes [0-9]+ GB, this mach"):
        getattr(vilt_fast, NAME).from_pretrained(saved, **leave)
    _edit(saved / "config.json", intermediate_size=40)
    assert getattr(vilt_fast, NAME).from_pretrained(saved, **leave).config.intermediate_size == 40


def test_a_class_that_reads_its_weights_while_it_is_made_loads(helpers, saved):
    class Mine(vilt_fast.ViltForQuestionAnswering):
        def __init__(self, config):
            super().__init__(config)
            self.sum = self.vilt.layernorm.weight.sum().item()

    assert helpers.same(Mine.from_pretrained(saved).state_dict(), helpers.make(NAME).state_dict())


def test_fresh_weights_are_those_of_the_seed(helpers, saved):
    """That shapes are compared first draws nothing."""
    config = helpers.make(NAME).config
    torch.manual_seed(3)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    with checkpoints.open_source(saved) as stored:
        checkpoints.check_sizes(lambda: getattr(vilt_fast, NAME)(config), config, stored, strict=True)
    assert torch.equal(torch.rand(4), drawn)


# --- JSON ----------------------------------------------------------------------------------------------------------

BAD_JSON = {
    "deep": ("[" * 100_000 + "]" * 100_000, "nested deeper than 64 levels"),
    "deep object": ('{"a":' * 100_000, "nested deeper than 64 levels"),
    "somewhat deep": ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested deeper than 64 levels"),
    "twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands there twice"),
    "NaN": ('{"a": {"b": [1, NaN]}}', "b: got nan, wanted a finite number"),
    "infinite": ('{"a": 1e999}', "a: got inf, wanted a finite number"),
    "digits": ('{"a": ' + "9" * 5000 + "}", "not a valid JSON file"),
    "surrogate": ('{"a": "\\ud800"}', "surrogates not allowed"),
    "list": ("[]", "got a JSON list, wanted an object"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not a valid JSON file"),
}


@pytest.mark.parametrize("case", BAD_JSON)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_none(helpers, tmp_path, case, name):
    helpers.make(NAME).save_pretrained(tmp_path, max_shard_size="6KB")
    content, words = BAD_JSON[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words) as caught:
        getattr(vilt_fast, NAME).from_pretrained(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=words):
        read_json(path)


@pytest.mark.parametrize("shard", ["../x.safetensors", "", ".", "/dev/zero", 3, None, [], {}, "x\0"])
def test_what_an_index_names_as_a_shard(helpers, tmp_path, shard):
    helpers.make(NAME).save_pretrained(tmp_path, max_shard_size="6KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["classifier.0.bias"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="index"):
        checkpoints.load_weights(helpers.make(NAME), tmp_path)


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_the_length_of_a_header(helpers, saved, size):
    path = saved / "model.safetensors"
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        checkpoints.load_weights(helpers.make(NAME), saved)


def test_names_in_a_bin_that_are_no_texts(helpers, tmp_path):
    model = helpers.make(NAME)
    torch.save({**model.state_dict(), 5: torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="entries that are not dense tensors with data: 5"):
        checkpoints.load_weights(model, tmp_path)
