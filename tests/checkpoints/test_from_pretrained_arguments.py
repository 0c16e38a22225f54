"""Arguments of from_pretrained and save_pretrained that people pass by habit: done, already so, or refused by name."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vilt_fast
from vilt_fast import checkpoints

NAME = "ViltForQuestionAnswering"
CLASS = vilt_fast.ViltForQuestionAnswering


@pytest.fixture
def model(helpers):
    return helpers.make(NAME)


@pytest.fixture
def saved(model, tmp_path):
    """The folder of a saved model."""
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# --- where weights and configuration come from ---------------------------------------------------------------------


def test_a_state_dict_without_a_name(helpers, model):
    loaded = CLASS.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert helpers.same(loaded.state_dict(), model.state_dict()) and not loaded.training
    assert loaded.config == model.config and loaded.config is not model.config and loaded.name_or_path == ""
    tensors = [loaded.classifier[0].weight, model.classifier[0].weight]
    assert tensors[0].data_ptr() != tensors[1].data_ptr()
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    assert CLASS.from_pretrained(None, config=model.config, state_dict=half, dtype="auto").dtype == torch.float16


def test_a_state_dict_with_a_name(helpers, model, saved):
    """As in transformers 4.37: the configuration is that of the name."""
    other = helpers.make(NAME, 5)
    loaded = CLASS.from_pretrained(saved, state_dict=other.state_dict())
    assert helpers.same(loaded.state_dict(), other.state_dict())


def test_a_state_dict_that_does_not_fit(model):
    state = dict(model.state_dict())
    del state["classifier.3.bias"]
    with pytest.raises(ValueError, match=r"^state_dict does not fit ViltForQuestionAnswering: 1 missing: classif"):
        CLASS.from_pretrained(None, config=model.config, state_dict=state)
    for bad in ({"classifier.3.bias": 3}, {"a": torch.zeros(1, device="meta")}):
        with pytest.raises(ValueError, match="state_dict: entries that are not dense tensors with data"):
            CLASS.from_pretrained(None, config=model.config, state_dict=bad)


def test_nothing_to_read(model):
    with pytest.raises(ValueError, match="name_or_path is None: give state_dict= and config="):
        CLASS.from_pretrained(None, config=model.config)
    with pytest.raises(ValueError, match="config: got None, and no name_or_path"):
        CLASS.from_pretrained(None, state_dict=model.state_dict())
    with pytest.raises(ValueError, match="config: got None, and no name_or_path"):
        CLASS.from_pretrained()


def test_the_configuration_in_every_form(helpers, model, saved, tmp_path):
    (saved / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match=r"no config\.json in the directory .*Give config="):
        CLASS.from_pretrained(saved)
    fields = json.loads((tmp_path / "config.json").read_text())
    for config in (model.config, fields, tmp_path, str(tmp_path), tmp_path / "config.json"):
        loaded = CLASS.from_pretrained(saved, config=config)
        assert helpers.same(loaded.state_dict(), model.state_dict())
        if config is not model.config:
            assert (
                CLASS.from_pretrained(saved, config=config, hidden_dropout_prob=0.5).config.hidden_dropout_prob == 0.5
            )
    with pytest.raises(ValueError, match="give config or fields of it, got both"):
        CLASS.from_pretrained(saved, config=model.config, hidden_dropout_prob=0.5)
    with pytest.raises(TypeError, match=r"from_pretrained\(\) got unknown arguments: hidden_dropout$"):
        CLASS.from_pretrained(saved, config=model.config, hidden_dropout=0.5)


def test_loading_leaves_the_configuration_that_was_given_as_it_was(helpers):
    model = helpers.make("ViltForMaskedLM", tie_word_embeddings=False)
    config = vilt_fast.ViltConfig.from_dict(model.config.to_dict(), tie_word_embeddings=True)
    loaded = vilt_fast.ViltForMaskedLM.from_pretrained(None, config=config, state_dict=model.state_dict())
    assert config.tie_word_embeddings and not loaded.config.tie_word_embeddings


def test_the_names_that_transformers_uses(helpers, model, saved, tmp_path):
    loaded = CLASS.from_pretrained(pretrained_model_name_or_path=saved, torch_dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16 and loaded.name_or_path == str(saved)
    model.save_pretrained(save_directory=tmp_path / "again")
    assert helpers.same(CLASS.from_pretrained(tmp_path / "again").state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="directory: got None"):
        model.save_pretrained()


def test_key_mapping(helpers, model, tmp_path):
    renamed = {name.replace("vilt.", "module.body."): tensor for name, tensor in model.state_dict().items()}
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    save_file(renamed, tmp_path / "model.safetensors")
    loaded = CLASS.from_pretrained(tmp_path, key_mapping={r"^module\.": "", r"^body\.": "vilt."})
    assert helpers.same(loaded.state_dict(), model.state_dict())


# --- which files ---------------------------------------------------------------------------------------------------


def test_use_safetensors(helpers, tmp_path):
    first, second = helpers.make(NAME, 1), helpers.make(NAME, 2)
    first.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    for use, model in ((None, first), (True, first), (False, second)):
        loaded = CLASS.from_pretrained(tmp_path, use_safetensors=use)
        assert helpers.same(loaded.state_dict(), model.state_dict())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights in .*\(looked for model\.safetensors, model\.safet"):
        CLASS.from_pretrained(tmp_path, use_safetensors=True)
    with pytest.raises(ValueError, match=r"use_safetensors=True: got the file .*pytorch_model\.bin"):
        CLASS.from_pretrained(tmp_path / "pytorch_model.bin", use_safetensors=True)
    first.save_pretrained(tmp_path)
    assert not (tmp_path / "pytorch_model.bin").exists()
    with pytest.raises(FileNotFoundError, match=r"\(looked for pytorch_model\.bin, pytorch_model\.bin\.index\.json\)"):
        CLASS.from_pretrained(tmp_path, use_safetensors=False)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["5GB", "8KB"])
def test_a_variant_beside_the_usual_weights(helpers, tmp_path, safe, size):
    usual, special = helpers.make(NAME, 1), helpers.make(NAME, 2)
    for model, variant in ((usual, None), (special, "fp16")):
        for _ in range(2):  # the second save takes the place of the first
            model.save_pretrained(tmp_path, variant=variant, safe_serialization=safe, max_shard_size=size)
    for model, variant in ((usual, None), (special, "fp16")):
        loaded = CLASS.from_pretrained(tmp_path, variant=variant)
        assert helpers.same(loaded.state_dict(), model.state_dict())
    names = {path.name for path in tmp_path.iterdir()}
    if size == "5GB":
        ends = "model.safetensors model.fp16.safetensors" if safe else "pytorch_model.bin pytorch_model.fp16.bin"
        assert names == {"config.json", *ends.split()}
    else:
        assert ("model.safetensors.index.fp16.json" if safe else "pytorch_model.bin.index.fp16.json") in names
    special.save_pretrained(tmp_path, variant="fp16")
    assert helpers.same(CLASS.from_pretrained(tmp_path).state_dict(), usual.state_dict())
    assert {name for name in names if "fp16" not in name} <= {path.name for path in tmp_path.iterdir()}
    assert [path.name for path in tmp_path.glob("*fp16*")] == ["model.fp16.safetensors"]


@pytest.mark.parametrize("size", ["5GB", "8KB"])
def test_a_variant_goes_to_transformers_and_back(helpers, tmp_path, size):
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle")
    ours = helpers.make(NAME)
    ours.save_pretrained(tmp_path / "ours", variant="fp16", max_shard_size=size)
    theirs = transformers.ViltForQuestionAnswering.from_pretrained(tmp_path / "ours", variant="fp16")
    assert helpers.same(theirs.state_dict(), ours.state_dict())
    theirs.save_pretrained(tmp_path / "theirs", variant="int8.x", max_shard_size=size)
    loaded = CLASS.from_pretrained(tmp_path / "theirs", variant="int8.x")
    assert helpers.same(loaded.state_dict(), ours.state_dict())


def test_a_variant_that_is_not_there(saved, model):
    with pytest.raises(FileNotFoundError, match=r"looked for model\.fp16\.safetensors, model\.safetensors\.ind"):
        CLASS.from_pretrained(saved, variant="fp16")
    for bad in ("../x", "a/b", 3):
        with pytest.raises(ValueError, match="variant: got .*, wanted a part of a file's name"):
            CLASS.from_pretrained(saved, variant=bad)
        with pytest.raises(ValueError, match="variant: got .*, wanted a part of a file's name"):
            model.save_pretrained(saved, variant=bad)


def test_force_download(hub_server, helpers, model):
    folder = hub_server.folder / "team/small" / "main"
    model.save_pretrained(folder)

    def downloads():
        return sum(method == "GET" for method, _ in hub_server.requests)

    CLASS.from_pretrained("team/small")
    assert (first := downloads()) == 2
    CLASS.from_pretrained("team/small", force_download=False)
    assert downloads() == first
    loaded = CLASS.from_pretrained("team/small", force_download=True, dtype="auto")
    assert downloads() == 2 * first
    assert helpers.same(loaded.state_dict(), model.state_dict())
    vilt_fast.ViltConfig.from_pretrained("team/small", force_download=True)
    assert downloads() == 2 * first + 1


def test_use_auth_token(hub_server, helpers, model):
    model.save_pretrained(hub_server.folder / "team/secret" / "main")
    hub_server.tokens["team/secret"] = "hf_secret"
    loaded = CLASS.from_pretrained("team/secret", use_auth_token="hf_secret")
    assert helpers.same(loaded.state_dict(), model.state_dict())


# --- what does not fit ---------------------------------------------------------------------------------------------


def test_loading_info_is_that_of_transformers(helpers, model, tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle")
    state = dict(model.state_dict())
    del state["classifier.1.bias"], state["vilt.pooler.dense.weight"]
    state["classifier.3.weight"] = torch.zeros(4, 32)
    state["extra.weight"] = torch.zeros(2)
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    save_file(state, tmp_path / "model.safetensors")
    options = dict(ignore_mismatched_sizes=True, output_loading_info=True)
    loaded, info = CLASS.from_pretrained(tmp_path, **options)
    theirs, wanted = transformers.ViltForQuestionAnswering.from_pretrained(tmp_path, **options)
    assert type(loaded) is CLASS and not loaded.training
    wanted["mismatched_keys"] = {(name, tuple(got), tuple(want)) for name, got, want in wanted["mismatched_keys"]}
    assert (
        info
        == wanted
        == {
            "missing_keys": {"classifier.1.bias", "vilt.pooler.dense.weight"},
            "unexpected_keys": {"extra.weight"},
            "mismatched_keys": {("classifier.3.weight", (4, 32), (5, 32))},
            "error_msgs": [],
        }
    )
    model.save_pretrained(tmp_path)
    _, info = CLASS.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    _, info = vilt_fast.ViltModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["unexpected_keys"] == {name for name in model.state_dict() if name.startswith("classifier")}


# --- where weights go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["cpu", torch.device("cpu"), {"": "cpu"}, {"vilt": "cpu", "classifier": torch.device("cpu")}], ids=str
)
def test_a_device_map_of_one_device(helpers, model, saved, place):
    loaded = CLASS.from_pretrained(saved, device_map=place, low_cpu_mem_usage=True, offload_folder="unused")
    assert loaded.device == torch.device("cpu") and helpers.same(loaded.state_dict(), model.state_dict())


def test_device_map_auto(saved, monkeypatch):
    assert checkpoints.single_device(None, None) is None
    with monkeypatch.context() as patch:  # as if it were there
        patch.setattr(torch, "empty", lambda *size, device: None)
        assert checkpoints.single_device("cuda:1", None) == torch.device("cuda", 1)
        assert checkpoints.single_device(None, {"": "cuda:1"}) == torch.device("cuda", 1)
    for word in ("auto", "balanced", "balanced_low_0", "sequential"):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        assert checkpoints.single_device(None, word) == torch.device("cpu")
        assert CLASS.from_pretrained(saved, device_map=word).device.type == "cpu"
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        assert checkpoints.single_device(None, word) == torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("place", ["auto", "cuda", "cuda:0", 0, {"": 0}], ids=str)
def test_device_map_of_a_gpu(saved, place):
    assert CLASS.from_pretrained(saved, device_map=place).device.type == "cuda"


@pytest.mark.parametrize(
    "place", [{"vilt": "cuda:0", "classifier": "cpu"}, {"vilt": "cpu", "classifier": "disk"}, {"": "disk"}, "disk", {}]
)
def test_a_device_map_of_several_devices(saved, place):
    with pytest.raises(ValueError, match=r"device_map: got .*, wanted one device.*accelerate\.dispatch_model"):
        CLASS.from_pretrained(saved, device_map=place)


def test_a_device_that_is_none(saved):
    for place in ("gpu0", 1.5, {"": "nowhere"}):
        with pytest.raises(ValueError, match="device_map: got .*, wanted a device that is there, such as 'cpu'"):
            CLASS.from_pretrained(saved, device_map=place)
    with pytest.raises(ValueError, match="give device or device_map, got both"):
        CLASS.from_pretrained(saved, device_map="cpu", device="cpu")


# --- accepted, and refused -----------------------------------------------------------------------------------------

ASKS_FOR_NOTHING = dict(
    low_cpu_mem_usage=True,
    trust_remote_code=False,
    resume_download=True,
    proxies=None,
    mirror=None,
    _fast_init=True,
    _from_auto=True,
    _from_pipeline=None,
    _commit_hash="abc",
    weights_only=True,
    from_tf=False,
    from_flax=False,
    load_in_8bit=False,
    load_in_4bit=False,
    quantization_config=None,
    tp_plan=None,
    max_memory=None,
    offload_folder="somewhere",
    offload_state_dict=True,
    offload_buffers=False,
    adapter_kwargs={"token": "hf_secret"},
    attn_implementation="sdpa",
    use_flash_attention_2=False,
    generation_config=None,
)


def test_arguments_that_ask_for_nothing(helpers, model, saved, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = CLASS.from_pretrained(saved, **ASKS_FOR_NOTHING)
    assert helpers.same(loaded.state_dict(), model.state_dict()) and not caplog.text
    assert loaded.config == model.config  # none of them became a field


@pytest.mark.parametrize(
    "argument, value, advice",
    [
        ("trust_remote_code", True, "no code of a checkpoint runs"),
        ("weights_only", False, "no code of a checkpoint runs"),
        ("load_in_8bit", True, "torchao"),
        ("load_in_4bit", True, "torchao"),
        ("quantization_config", {"load_in_8bit": True}, "torchao"),
        ("quantization_config", object, "torchao"),
        ("gguf_file", "model.gguf", "safetensors"),
        ("from_tf", True, "transformers 4.37"),
        ("from_flax", True, "transformers 4.37"),
        ("max_memory", {0: "2GB"}, "accelerate.dispatch_model"),
        ("offload_buffers", True, "accelerate.cpu_offload"),
        ("tp_plan", "auto", "parallelize_module"),
        ("distributed_config", object, "parallelize_module"),
        ("use_flash_attention_2", True, "no score matrix"),
        ("attn_implementation", "flash_attention_2", "'eager' or 'sdpa'"),
        ("attn_implementation", "own", "'eager' or 'sdpa'"),
        ("use_kernels", True, "vilt_fast.backend"),
        ("adapter_kwargs", {"_adapter_model_path": "x"}, "peft.PeftModel.from_pretrained"),
        ("proxies", {"https": "x"}, "HTTPS_PROXY"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_honoured(saved, argument, value, advice):
    with pytest.raises(ValueError, match=argument) as caught:
        CLASS.from_pretrained(saved, **{argument: value})
    assert advice in str(caught.value)


def test_unknown_arguments(saved, model):
    with pytest.raises(TypeError, match=r"from_pretrained\(\) got unknown arguments: low_cpu_memory, tokn$"):
        CLASS.from_pretrained(saved, tokn="x", low_cpu_memory=True)
    with pytest.raises(TypeError, match=r"save_pretrained\(\) got unknown arguments: maximum$"):
        model.save_pretrained(saved, maximum=3)
    with pytest.raises(TypeError, match=r"save_pretrained\(\) got unknown arguments: commit_message$"):
        model.save_pretrained(saved, commit_message="only where something is pushed")


# --- save_pretrained -----------------------------------------------------------------------------------------------


def test_a_state_dict_is_what_is_written(helpers, model, tmp_path):
    other = helpers.make(NAME, 7)
    before = helpers.copy(model)
    model.save_pretrained(tmp_path, state_dict=other.state_dict(), save_peft_format=True, token="hf_x")
    assert helpers.same(load_file(tmp_path / "model.safetensors"), other.state_dict())
    assert helpers.same(model.state_dict(), before)
    part = {"classifier.3.bias": torch.ones(5)}
    model.save_pretrained(tmp_path, state_dict=part)
    assert helpers.same(load_file(tmp_path / "model.safetensors"), part)
    with pytest.raises(ValueError, match="no dense tensors with data: a, b"):
        model.save_pretrained(tmp_path, state_dict={"a": torch.ones(1, device="meta"), "b": 3})
    assert helpers.same(load_file(tmp_path / "model.safetensors"), part)


@pytest.mark.parametrize("tied", [False, True])
def test_the_state_dict_of_a_tied_model(helpers, tmp_path, tied):
    """As accelerate gathers it: the decoder is a tensor of its own, and equal."""
    model = helpers.make("ViltForMaskedLM", tie_word_embeddings=tied)
    model.tie_weights()
    model.save_pretrained(tmp_path, state_dict={n: t.clone() for n, t in model.state_dict().items()})
    assert ("mlm_score.decoder.weight" in load_file(tmp_path / "model.safetensors")) != tied
    loaded = vilt_fast.ViltForMaskedLM.from_pretrained(tmp_path)
    assert helpers.same(loaded.state_dict(), model.state_dict()) and loaded.config.tie_word_embeddings == tied


def test_only_the_main_process_writes(model, tmp_path):
    model.save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


def test_save_function(helpers, model, tmp_path):
    """accelerate's guides pass `save_function=accelerator.save`; it writes what is not safetensors."""
    written = []

    def save(tensors, path):
        written.append(Path(path).parent)
        torch.save(tensors, path)

    with pytest.warns(UserWarning, match="save_function writes .bin files: it is not called for safetensors"):
        model.save_pretrained(tmp_path, save_function=save)
    assert not written
    model.save_pretrained(tmp_path, save_function=save, safe_serialization=False, max_shard_size="8KB")
    assert len(written) > 1 and set(written) == {tmp_path}
    assert helpers.same(CLASS.from_pretrained(tmp_path).state_dict(), model.state_dict())
    accelerate = pytest.importorskip("accelerate", reason="its own function")
    accelerator = accelerate.Accelerator(cpu=True)
    model.save_pretrained(
        tmp_path / "other",
        is_main_process=accelerator.is_main_process,
        save_function=accelerator.save,
        state_dict=accelerator.get_state_dict(model),
        safe_serialization=False,
    )
    assert helpers.same(CLASS.from_pretrained(tmp_path / "other").state_dict(), model.state_dict())


def test_a_distributed_checkpoint_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"distributed_checkpoint=True.*torch\.distributed\.checkpoint"):
        model.save_pretrained(tmp_path, distributed_checkpoint=True)


# --- the Auto classes of transformers ------------------------------------------------------------------------------


@pytest.fixture
def auto():
    """transformers, with our classes registered; afterwards it is as it was."""
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="its Auto classes are tried")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kinds = {
        transformers.AutoModel: vilt_fast.ViltModel,
        transformers.AutoModelForVisualQuestionAnswering: CLASS,
        transformers.AutoModelForMaskedLM: vilt_fast.ViltForMaskedLM,
    }
    transformers.AutoConfig.register("vilt", vilt_fast.ViltConfig, exist_ok=True)
    for kind, ours in kinds.items():
        kind.register(vilt_fast.ViltConfig, ours, exist_ok=True)
    yield transformers
    CONFIG_MAPPING._extra_content.pop("vilt")
    for kind in kinds:
        kind._model_mapping._extra_content.pop(vilt_fast.ViltConfig)


def test_auto_classes_give_our_models(auto, helpers, model, saved, caplog):
    config = auto.AutoConfig.from_pretrained(saved, hidden_dropout_prob=0.3)
    assert type(config) is vilt_fast.ViltConfig and config.hidden_dropout_prob == 0.3
    assert {"name_or_path", "_commit_hash"}.isdisjoint(json.loads(config.to_json_string()))
    kind = auto.AutoModelForVisualQuestionAnswering
    loaded = kind.from_pretrained(saved, hidden_dropout_prob=0.3, dtype="auto", trust_remote_code=False)
    assert type(loaded) is CLASS and helpers.same(loaded.state_dict(), model.state_dict())
    assert loaded.config.hidden_dropout_prob == 0.3
    assert kind.from_pretrained(saved, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert type(auto.AutoModel.from_pretrained(saved)) is vilt_fast.ViltModel
    assert type(kind.from_pretrained(saved, config=config)) is CLASS
    _, info = kind.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values())
    with pytest.raises(TypeError, match="unknown arguments: nonsense"):
        kind.from_pretrained(saved, nonsense=3)
    with pytest.raises(ValueError, match="load_in_8bit=True is not supported"):
        kind.from_pretrained(saved, load_in_8bit=True)


def test_auto_classes_make_our_models(auto, model):
    made = auto.AutoModelForVisualQuestionAnswering.from_config(model.config, dtype=torch.bfloat16)
    assert type(made) is CLASS and made.dtype == torch.bfloat16
    made = auto.AutoModelForMaskedLM.from_config(model.config, attn_implementation="eager", torch_dtype="float16")
    assert type(made) is vilt_fast.ViltForMaskedLM and made.dtype == torch.float16
    assert type(auto.AutoModel.from_config(model.config, add_pooling_layer=False).pooler) is type(None)
    with pytest.raises(ValueError, match="attn_implementation"):
        auto.AutoModel.from_config(model.config, attn_implementation="flash_attention_2")


def test_auto_classes_read_what_transformers_wrote(auto, helpers, tmp_path):
    theirs = helpers.theirs(NAME)
    theirs.save_pretrained(tmp_path)
    loaded = auto.AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert type(loaded) is CLASS and helpers.same(loaded.state_dict(), theirs.state_dict())
