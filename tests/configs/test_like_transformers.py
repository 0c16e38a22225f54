"""What people do to a configuration of transformers: unknown fields, dictionaries, JSON, common fields, AutoConfig."""

import copy
import json
import pickle
import warnings

import pytest
import torch
from transformers import AutoConfig
from transformers import ViltConfig as Theirs

from vilt_fast import ViltConfig
from vilt_fast.configs.spelling import nearest

# What transformers' ConfigTester gives every configuration.
COMMON = dict(
    return_dict=False,
    output_hidden_states=True,
    output_attentions=True,
    dtype="float16",
    is_encoder_decoder=True,
    chunk_size_feed_forward=5,
    architectures=["BertModel"],
    id2label={0: "label"},
    label2id={"label": "0"},
    pad_token_id=7,
    problem_type="regression",
    tokenizer_class="BertTokenizerFast",
    prefix="prefix",
)
# A field that they add, and one that they set whatever is asked.
ONLY_THEIRS = {"chunk_size_feed_forward": 0, "tie_word_embeddings": False}
SMALL = dict(hidden_size=48, num_attention_heads=6, num_labels=3, image_size=(64, 96))


@pytest.fixture
def config() -> ViltConfig:
    return ViltConfig(
        **SMALL,
        foo=3,
        nested={"a": [1, 2]},
        chunk_size_feed_forward=0,
        pruned_heads={"1": [0, 4]},
        problem_type="regression",
    )


@pytest.mark.parametrize(
    "there_and_back",
    [
        copy.copy,
        copy.deepcopy,
        lambda config: pickle.loads(pickle.dumps(config)),
        lambda config: ViltConfig.from_dict(config.to_dict()),
        lambda config: ViltConfig(**config.to_dict()),
        lambda config: ViltConfig.from_dict(config.to_diff_dict()),
        lambda config: ViltConfig.from_dict(json.loads(config.to_json_string())),
        lambda config: ViltConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
        lambda config: ViltConfig(**{**Theirs(**config.to_dict()).to_dict(), **ONLY_THEIRS}),
    ],
    ids="copy deepcopy pickle from_dict keywords diff json json-whole transformers".split(),
)
def test_unknown_fields_survive(config, there_and_back) -> None:
    again = there_and_back(config)
    assert again == config and again.foo == 3 and again.nested == {"a": [1, 2]}
    assert again.pruned_heads == {1: [0, 4]} and again.problem_type == "regression" and again.num_labels == 3
    assert again.to_dict()["foo"] == 3 and again != ViltConfig(**SMALL, foo=4)


def test_files(config, tmp_path) -> None:
    config.save_pretrained(tmp_path)
    config.to_json_file(tmp_path / "other.json")
    for again in (
        ViltConfig.from_pretrained(tmp_path),
        ViltConfig.from_pretrained(tmp_path / "other.json"),
        ViltConfig.from_json_file(tmp_path / "other.json"),
        ViltConfig.from_pretrained(tmp_path.parent, subfolder=tmp_path.name, force_download=True, proxies=None),
    ):
        assert again == config and again.to_dict() == config.to_dict()
    assert Theirs.from_pretrained(tmp_path).foo == 3
    content, rest = ViltConfig.get_config_dict(tmp_path, revision="main", bar=1)
    assert content["foo"] == 3 and rest == {"bar": 1}
    with pytest.raises(OSError, match="no directory"):
        ViltConfig.from_pretrained(f".{tmp_path}")


def test_the_file_says_nothing_that_says_nothing() -> None:
    written = json.loads(ViltConfig().to_json_string())
    assert not written.keys() & {"architectures", "torch_dtype", "problem_type", "pruned_heads", "_name_or_path"}
    whole = json.loads(ViltConfig().to_json_string(use_diff=False))
    assert whole["pruned_heads"] == {} and whole["problem_type"] is None
    assert "vilt_fast_version" not in vars(ViltConfig.from_dict(written))


def test_overrides_that_are_no_fields(config, tmp_path) -> None:
    config.save_pretrained(tmp_path)
    again, unused = ViltConfig.from_pretrained(
        tmp_path, hidden_size=96, foo=4, bar=1, dtype="float16", _from_auto=True, return_unused_kwargs=True
    )
    assert again.hidden_size == 96 and again.foo == 4 and unused == {"bar": 1, "dtype": "float16"}
    assert not hasattr(again, "bar") and again.torch_dtype is None
    assert ViltConfig.from_pretrained(tmp_path, bar=1).bar == 1


def test_to_dict_is_a_copy_and_plain(config) -> None:
    content = config.to_dict()
    content["nested"]["a"].append(3)
    content["id2label"][0] = "changed"
    assert config.nested == {"a": [1, 2]} and config.id2label[0] == "LABEL_0"
    theirs = Theirs(**SMALL, foo=3).to_dict()
    assert {**theirs, "model_type": "vilt"}.items() >= {
        name: content[name] for name in ("image_size", "label2id", "foo", "model_type", "architectures")
    }.items()
    assert theirs["id2label"].keys() == content["id2label"].keys()


def test_common_fields_are_those_of_transformers() -> None:
    ours, theirs = ViltConfig(**COMMON), Theirs(**COMMON)
    for name in COMMON:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.dtype is ours.torch_dtype is torch.float16
    for name in "use_return_dict num_labels is_encoder_decoder problem_type architectures name_or_path dtype".split():
        assert getattr(ViltConfig(), name) == getattr(Theirs(), name), name
    for name in "attribute_map keys_to_ignore_at_inference sub_configs base_config_key".split():
        assert getattr(ViltConfig, name) == getattr(Theirs, name), name
    assert ours.get_text_config() is ours.get_text_config(decoder=True) is ours
    assert set(ours) >= {"hidden_size", "prefix"} and "nonsense" not in ours


def test_dtypes_under_both_names() -> None:
    for given in ("bfloat16", torch.bfloat16, "torch.bfloat16"):
        config = ViltConfig(torch_dtype=given)
        assert config.dtype is torch.bfloat16 and config.to_dict()["torch_dtype"] == "bfloat16"
        assert json.loads(config.to_json_string())["torch_dtype"] == "bfloat16"
    config.dtype = torch.float16
    assert config.torch_dtype is torch.float16 and Theirs(**config.to_dict()).dtype is torch.float16
    file = {"torch_dtype": "float16", "dtype": "bfloat16"}
    assert ViltConfig.from_dict(file).dtype is torch.bfloat16 is Theirs.from_dict(dict(file)).dtype
    assert ViltConfig.from_dict(file, torch_dtype="float64").dtype is torch.float64


def test_label2id_and_num_labels() -> None:
    config = ViltConfig(num_labels=5)
    assert len(config.id2label) == len(config.label2id) == 5
    config.num_labels = 3
    assert len(config.id2label) == len(config.label2id) == 3


def test_update(config) -> None:
    config.update({"hidden_size": 24, "num_labels": 2, "bar": None})
    assert config.hidden_size == 24 and config.id2label == {0: "LABEL_0", 1: "LABEL_1"} and config.bar is None
    changes = "hidden_dropout_prob=0.25,qkv_bias=false,num_hidden_layers=1,hidden_act=relu"
    theirs = Theirs()
    theirs.update_from_string(changes)
    config.update_from_string(changes)
    for name in ("hidden_dropout_prob", "qkv_bias", "num_hidden_layers", "hidden_act"):
        assert getattr(config, name) == getattr(theirs, name) != getattr(ViltConfig(), name)
    for text, message in (
        ("nonsense=3", "'nonsense' is no field"),
        ("qkv_bias=perhaps", "qkv_bias: got 'perhaps'"),
        ("num_hidden_layers=many", "num_hidden_layers: got 'many'"),
        ("id2label=3", "id2label: got '3'"),
    ):
        with pytest.raises(ValueError, match=message):
            config.update_from_string(text)
    with pytest.raises(ValueError, match="hidden_size must be a positive integer"):
        config.update({"hidden_size": 0})


def test_what_cannot_be_a_field() -> None:
    for name in ("to_dict", "image_shape", "validate"):
        with pytest.raises(ValueError, match=f"{name} is a method or computed"):
            ViltConfig(**{name: 3})
    with pytest.raises(ValueError, match="problem_type must be one of"):
        ViltConfig(problem_type="classification")
    with pytest.raises(ValueError, match="attn_implementation must be one of .* got 'flash_attention_2'"):
        ViltConfig(attn_implementation="flash_attention_2")
    sdpa = ViltConfig(attn_implementation="sdpa")
    assert sdpa._attn_implementation == "sdpa" and sdpa == ViltConfig() and "sdpa" not in sdpa.to_json_string()


def test_a_slip_of_the_pen_is_named() -> None:
    for wrong, right in (
        ("hiden_size", "hidden_size"),
        ("num_hidden_layer", "num_hidden_layers"),
        ("hidden_dropout_probs", "hidden_dropout_prob"),
        ("numlabels", "num_labels"),
        ("torch_dtypes", "torch_dtype"),
    ):
        with pytest.warns(UserWarning, match=f"{wrong} is no field of ViltConfig.*mean {right}?"):
            assert getattr(ViltConfig(**{wrong: 3}), wrong) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ViltConfig(**COMMON, foo=3, max_length=20, num_beams=1, torchscript=False, is_decoder=False)
        ViltConfig.from_dict(Theirs().to_dict())


def test_nearest() -> None:
    assert nearest("Hidden_Sizes", ["hidden_size", "hidden_act"]) == "hidden_size"
    assert nearest("foo", ["hidden_size"]) is None and nearest("a", []) is None


def test_auto_config_of_transformers(config, tmp_path) -> None:
    registered = dict(AutoConfig.register.__globals__["CONFIG_MAPPING"]._extra_content)
    config.save_pretrained(tmp_path)
    try:
        AutoConfig.register("vilt", ViltConfig, exist_ok=True)
        again = AutoConfig.from_pretrained(tmp_path)
        assert type(again) is ViltConfig and again == config
        again, unused = AutoConfig.from_pretrained(tmp_path, hidden_size=24, bar=1, return_unused_kwargs=True)
        assert again.hidden_size == 24 and unused == {"bar": 1}
    finally:
        AutoConfig.register.__globals__["CONFIG_MAPPING"]._extra_content = registered
