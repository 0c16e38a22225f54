"""Bad weights: one error that names the file and the tensors, and a model that is as it was."""

import json
import os
import pickle
import re
from collections import OrderedDict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import vilt_fast
from vilt_fast import checkpoints

NAME = "ViltForQuestionAnswering"


@pytest.fixture
def model(helpers):
    return helpers.make(NAME)


@pytest.fixture
def refused(model, helpers, tmp_path):
    """Loads a state dict, which must fail; returns the error's text."""

    def load(state, *, binary=False, strict=True):
        path = tmp_path / ("weights.bin" if binary else "weights.safetensors")
        if binary:
            torch.save(state, path)
        else:
            save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
        before = helpers.copy(model)
        with pytest.raises(ValueError) as caught:
            checkpoints.load_weights(model, path, strict=strict)
        assert helpers.same(model.state_dict(), before)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    return load


@pytest.mark.parametrize("binary", [False, True])
def test_every_kind_of_misfit_in_one_error(helpers, refused, binary):
    state = helpers.make(NAME, 1).state_dict()
    del state["vilt.layernorm.weight"], state["classifier.3.bias"]
    state["vilt.encoder.layer.7.output.dense.bias"] = torch.zeros(3)
    state["classifier.3.weight"] = state["classifier.3.weight"][:4]
    state["vilt.pooler.dense.bias"] = torch.zeros(16, dtype=torch.int8)
    text = refused(state, binary=binary)
    assert "does not fit ViltForQuestionAnswering" in text
    assert "2 missing: vilt.layernorm.weight, classifier.3.bias" in text
    assert "1 unexpected: vilt.encoder.layer.7.output.dense.bias" in text
    assert "1 of another shape: classifier.3.weight (got (4, 32), wanted (5, 32))" in text
    assert "1 not floating point: vilt.pooler.dense.bias (int8)" in text
    assert "strict=False" in text


def test_a_long_list_is_cut_and_counted(refused, model):
    state = {name: tensor for name, tensor in model.state_dict().items() if ".encoder." not in name}
    count = len(model.state_dict()) - len(state)
    names = [name for name in model.state_dict() if ".encoder." in name]
    text = refused(state)
    assert f"{count} missing: {', '.join(names[:20])} and {count - 20} more" in text


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn, torch.complex64]
)
@pytest.mark.parametrize("strict", [True, False])
def test_other_dtypes_are_never_cast(helpers, refused, dtype, strict):
    state = helpers.make(NAME, 1).state_dict()
    state["vilt.layernorm.bias"] = torch.ones(16).to(dtype)
    text = refused(state, strict=strict)
    assert f"1 not floating point: vilt.layernorm.bias ({str(dtype).removeprefix('torch.')})" in text


def test_not_strict_keeps_what_does_not_fit_and_names_it(helpers, model, tmp_path, caplog):
    state = helpers.make(NAME, 1).state_dict()
    del state["classifier.3.bias"]
    state["classifier.3.weight"] = torch.ones(4, 32)
    state["extra.weight"] = torch.ones(3)
    state["rank_output.weight"] = torch.ones(1, 16)
    save_file(state, tmp_path / "model.safetensors")
    before = helpers.copy(model)
    checkpoints.load_weights(model, tmp_path, strict=False)
    kept = {"classifier.3.bias", "classifier.3.weight"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name in kept else state[name])
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 4
    for words in (
        "1 missing, these keep fresh values: classifier.3.bias",
        "1 unexpected, left out: extra.weight",
        "1 of another shape, these keep fresh values: classifier.3.weight (got (4, 32), wanted (5, 32))",
        "skipped, ViltForQuestionAnswering has no such head: rank_output.weight",
    ):
        assert sum(words in message for message in messages) == 1


def test_the_heads_of_others_are_skipped_with_a_warning(helpers, model, tmp_path, caplog):
    state = helpers.make(NAME, 1).state_dict()
    others = {
        "mlm_score.decoder.bias": torch.ones(30),
        "rank_output.bias": torch.ones(1),
        "itm_score.fc.bias": torch.ones(2),
        "mpp_score.decoder.bias": torch.ones(768),
    }
    save_file({**state, **others}, tmp_path / "model.safetensors")
    checkpoints.load_weights(model, tmp_path)
    assert helpers.same(model.state_dict(), state)
    assert len(caplog.records) == 1 and all(name in caplog.text for name in others)


# --- other architectures -------------------------------------------------------------------------------------------


def _names(*names):
    return {name: torch.ones(2, 2) for name in names}


@pytest.mark.parametrize(
    "state, words",
    [
        (_names("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.weight"), "BERT"),
        (_names("visual_bert.embeddings.visual_projection.weight"), "VisualBERT"),
        (_names("vit.embeddings.cls_token", "vit.encoder.layer.0.output.dense.weight"), "vit"),
        (_names("text_model.embeddings.token_embedding.weight", "vision_model.post_layernorm.weight"), "CLIP"),
        (_names("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "cls_token"), "a timm vision transformer"),
        (_names("model.layers.0.self_attn.q_proj.weight"), "a language model"),
        (_names("conv1.weight", "fc.bias"), "something else"),
        ({}, "0 tensors"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_another_architecture_by_its_names(refused, state, words, strict):
    text = refused(state, strict=strict)
    assert "holds no weights of ViltForQuestionAnswering: it looks like" in text and words in text


@pytest.mark.parametrize("kind", ["ViTModel", "BertModel", "VisualBertModel", "CLIPModel"])
def test_another_architecture_of_transformers(helpers, tmp_path, kind):
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="it makes the directories")
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    fields = {"text_config": small, "vision_config": {**small, "patch_size": 8, "image_size": 16}}
    fields = fields if kind == "CLIPModel" else {**small, "patch_size": 8, "image_size": 16}
    other = getattr(transformers, kind)(getattr(transformers, kind.replace("Model", "Config"))(**fields))
    other.save_pretrained(tmp_path)
    model_type = other.config.model_type
    with pytest.raises(ValueError, match=rf"config\.json must have model_type 'vilt', got '{model_type}'"):
        vilt_fast.ViltModel.from_pretrained(tmp_path)
    model = helpers.make("ViltModel")
    before = helpers.copy(model)
    with pytest.raises(ValueError, match=rf"holds no weights of ViltModel: it looks like model_type '{model_type}'"):
        checkpoints.load_weights(model, tmp_path)
    assert helpers.same(model.state_dict(), before)


def test_a_vilt_of_another_size(helpers, tmp_path):
    helpers.make(NAME, hidden_size=24).save_pretrained(tmp_path)
    model = helpers.make(NAME)
    before = helpers.copy(model)
    with pytest.raises(ValueError, match=r"49 of another shape: .*, vilt.embeddings.cls_token \(got \(1, 1, 24\), wan"):
        checkpoints.load_weights(model, tmp_path)
    assert helpers.same(model.state_dict(), before)


# --- damaged files -------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999), safe=st.booleans())
def test_a_truncated_file(helpers, tmp_path, share, safe):
    model = helpers.make("ViltModel")
    directory = tmp_path / f"{safe}"
    model.save_pretrained(directory, safe_serialization=safe)
    path = next(p for p in directory.iterdir() if p.suffix in (".safetensors", ".bin"))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    before = helpers.copy(model)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        checkpoints.load_weights(model, directory)
    assert helpers.same(model.state_dict(), before)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 5000,
        b"PK\x03\x04 not a zip" * 50,
        b"<html>404</html>" * 50,
        pickle.dumps(["a", "list"], protocol=2),
        pickle.dumps({"a": 3}, protocol=2),
    ],
)
def test_not_a_weight_file(model, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        checkpoints.load_weights(model, tmp_path)


def test_a_git_lfs_pointer(model, tmp_path):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa\n"
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
            checkpoints.load_weights(model, tmp_path)
        (tmp_path / name).unlink()


class _Marks:
    """Unpickled by an ordinary `torch.load`, this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class _Eval:
    def __reduce__(self):
        return eval, ("__import__('os').abort()",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["mkdir", "eval", "module"])
def test_code_in_a_checkpoint_does_not_run(model, helpers, tmp_path, zipped, kind):
    path = tmp_path / "pytorch_model.bin"
    thing = {"mkdir": _Marks(tmp_path / "ran"), "eval": _Eval(), "module": torch.nn.Linear(2, 2)}[kind]
    torch.save({**model.state_dict(), "extra": thing}, path, _use_new_zipfile_serialization=zipped)
    before = helpers.copy(model)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin .*not run"):
        checkpoints.load_weights(model, tmp_path)
    assert not (tmp_path / "ran").exists()
    assert helpers.same(model.state_dict(), before)
    torch.save(thing, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        checkpoints.load_weights(model, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), {"a": {"b": torch.ones(2)}}, {"a": 3, "b": "c"}])
def test_a_bin_that_holds_something_else(model, tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: (got a .*, wanted a dictionary|entries that are not)"):
        checkpoints.load_weights(model, tmp_path)


def test_tensors_without_data(helpers, model, tmp_path):
    for bad in (torch.ones(16).to_sparse(), torch.empty(16, device="meta")):
        torch.save({**model.state_dict(), "vilt.layernorm.bias": bad}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="not dense tensors with data: vilt.layernorm.bias"):
            checkpoints.load_weights(model, tmp_path)
    with pytest.raises(ValueError, match=r"model: got parameters on the meta device"):
        helpers.make(NAME).save_pretrained(tmp_path)
        checkpoints.load_weights(model.to("meta"), tmp_path)


def test_old_and_ordered_bins_load(model, helpers, tmp_path):
    state = helpers.make(NAME, 1).state_dict()
    for content in (OrderedDict(state), {"state_dict": dict(state), "epoch": 3}, {"model": state, "args": {"lr": 1.0}}):
        for zipped in (True, False):
            torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
            helpers.randomise(model, 5)
            checkpoints.load_weights(model, tmp_path / "w.pt")
            assert helpers.same(model.state_dict(), state)


# --- shards and directories ----------------------------------------------------------------------------------------


@pytest.fixture
def shards(helpers, tmp_path):
    helpers.make(NAME, 1).save_pretrained(tmp_path, max_shard_size="6KB")
    return tmp_path


def _edit(index, edit):
    content = json.loads(index.read_text())
    edit(content)
    index.write_text(json.dumps(content))


@pytest.mark.parametrize("case", ["absent", "moved", "outside", "no map", "no json", "truncated"])
def test_bad_shards(model, helpers, shards, case):
    index = shards / "model.safetensors.index.json"
    names = sorted(path.name for path in shards.glob("model-*"))
    error, words = ValueError, names[1]
    if case == "absent":
        (shards / names[1]).unlink()
        error = FileNotFoundError
    elif case == "moved":
        _edit(index, lambda content: content["weight_map"].update({"classifier.0.bias": names[1], "ghost": names[1]}))
        words = f"places tensors in {names[1]} that it does not hold: .*ghost"
    elif case == "outside":
        _edit(index, lambda content: content["weight_map"].update({"classifier.0.bias": "../secret.safetensors"}))
        words = r"shards must lie beside it, got '\.\./secret"
    elif case == "no map":
        _edit(index, lambda content: content.pop("weight_map"))
        words = "is no index of shards"
    elif case == "no json":
        index.write_text("{")
        words = "is no index of shards"
    else:
        (shards / names[1]).write_bytes((shards / names[1]).read_bytes()[:-1])
    before = helpers.copy(model)
    with pytest.raises(error, match=words):
        checkpoints.load_weights(model, shards)
    assert helpers.same(model.state_dict(), before)


def test_a_shard_of_another_model_beside_the_index_is_not_read(model, helpers, shards):
    save_file({"classifier.3.bias": torch.zeros(5)}, shards / "model-00099-of-00099.safetensors")
    checkpoints.load_weights(model, shards)
    assert helpers.same(model.state_dict(), helpers.make(NAME, 1).state_dict())


def test_no_weights(model, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tf_model.h5").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no weights in .*which holds: config\.json, tf_model\.h5 .*looked"):
        checkpoints.load_weights(model, tmp_path)
    with pytest.raises(FileNotFoundError, match="no directory"):
        checkpoints.load_weights(model, tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no directory"):
        checkpoints.load_weights(model, str(tmp_path / "absent.ckpt"))
    (tmp_path / "weights.h5").write_text("")
    with pytest.raises(ValueError, match=r"weights\.h5: got a file ending in '\.h5', wanted \.safetensors, \.bin"):
        checkpoints.load_weights(model, tmp_path / "weights.h5")


def test_nobody_is_told_to_run_code(model, tmp_path, monkeypatch):
    """What PyTorch says of files of its first versions, word for word."""
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    advice = (
        "Cannot use ``weights_only=True`` with files saved in the legacy .tar format. In PyTorch 2.6, we changed the "
        "default value. Re-running `torch.load` with `weights_only` set to `False` will likely succeed, but it can "
        "result in arbitrary code execution."
    )

    def load(*arguments, **options):
        raise RuntimeError(advice)

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(ValueError, match="legacy .tar format") as caught:
        checkpoints.load_weights(model, tmp_path)
    assert "Re-running" not in str(caught.value) and "likely succeed" not in str(caught.value)
