"""ViltConfig: fields, checks, and the way through transformers and back."""

import inspect
import json

import pytest
from transformers import ViltConfig as HuggingFaceConfig

from vilt_fast import ViltConfig


def test_defaults_are_the_documented_ones() -> None:
    ours, theirs = ViltConfig(), HuggingFaceConfig()
    for name in (
        "vocab_size type_vocab_size modality_type_vocab_size max_position_embeddings hidden_size num_hidden_layers "
        "num_attention_heads intermediate_size hidden_act hidden_dropout_prob attention_probs_dropout_prob "
        "initializer_range layer_norm_eps image_size patch_size num_channels qkv_bias max_image_length num_images"
    ).split():
        assert getattr(ours, name) == getattr(theirs, name), name
    # 4.37 documents False; 5.x forces True. We follow 4.37 for a fresh model and the file for a saved one.
    assert ours.tie_word_embeddings is False
    assert ours.id2label == {0: "LABEL_0", 1: "LABEL_1"} and ours.num_labels == 2


def test_round_trip_through_transformers(tmp_path) -> None:
    config = ViltConfig(
        hidden_size=48, num_attention_heads=6, num_labels=3, image_size=(64, 96), my_note="kept", qkv_bias=False
    )
    config.save_pretrained(tmp_path / "a")
    theirs = HuggingFaceConfig.from_pretrained(tmp_path / "a")
    assert theirs.hidden_size == 48 and list(theirs.image_size) == [64, 96] and theirs.num_labels == 3
    theirs.save_pretrained(tmp_path / "b")
    back = ViltConfig.from_pretrained(tmp_path / "b")
    assert back.image_size == (64, 96) and back.my_note == "kept" and back.qkv_bias is False
    assert ViltConfig.from_pretrained(tmp_path / "a") == config
    assert back.tie_word_embeddings == json.loads((tmp_path / "b" / "config.json").read_text())["tie_word_embeddings"]


def test_labels() -> None:
    config = ViltConfig(id2label={"0": "no", "1": "yes", "2": "maybe"})
    assert config.num_labels == 3 and config.label2id == {"no": 0, "yes": 1, "maybe": 2}
    config.num_labels = 5
    assert config.id2label[4] == "LABEL_4"
    assert ViltConfig.from_dict(config.to_dict(), num_labels=7).num_labels == 7
    assert ViltConfig.from_dict({"num_labels": 7}, id2label={0: "a"}).num_labels == 1
    assert ViltConfig.from_dict(config.to_dict()).id2label == config.id2label
    assert ViltConfig.from_dict({**config.to_dict(), "label2id": {"a": 0}}, id2label={0: "b"}).label2id == {"b": 0}


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("hidden_size", 50, "num_attention_heads"),
        ("hidden_size", 0, "hidden_size"),
        ("vocab_size", 3.5, "vocab_size"),
        ("num_channels", -1, "num_channels"),
        ("max_image_length", 0, "max_image_length"),
        ("patch_size", (16, 32), "patch_size"),
        ("image_size", 16, "image_size"),
        ("image_size", "big", "image_size"),
        ("num_labels", -2, "num_labels"),
        ("num_hidden_layers", -1, "num_hidden_layers"),
    ],
)
def test_values_that_mean_nothing(field: str, value: object, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ViltConfig(**{field: value})


def test_files_that_are_none(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json"):
        ViltConfig.from_pretrained(tmp_path)
    path = tmp_path / "config.json"
    for text, word in [("{", "not a valid JSON"), ("[1]", "got a JSON list"), ('{"model_type": "bert"}', "'bert'")]:
        path.write_text(text)
        with pytest.raises(ValueError, match=word):
            ViltConfig.from_pretrained(tmp_path)


def test_the_dtype_of_an_older_file_is_not_written_again() -> None:
    config = ViltConfig.from_dict({"model_type": "vilt", "dtype": "float16", "torch_dtype": "float16"})
    written = json.loads(config.to_json_string(torch_dtype="float32"))
    assert written["torch_dtype"] == "float32" and "dtype" not in written


def test_the_signature_lists_every_argument() -> None:
    """Names, order and defaults of Hugging Face's class, then what goes by keyword alone."""
    parameters = inspect.signature(ViltConfig).parameters
    assert (
        list(parameters)
        == (
            "vocab_size type_vocab_size modality_type_vocab_size max_position_embeddings hidden_size num_hidden_layers "
            "num_attention_heads intermediate_size hidden_act hidden_dropout_prob attention_probs_dropout_prob "
            "initializer_range layer_norm_eps image_size patch_size num_channels qkv_bias max_image_length "
            "tie_word_embeddings num_images encoder_layer_norm_eps pad_token_id id2label label2id num_labels "
            "output_attentions output_hidden_states return_dict kwargs"
        ).split()
    )
    by_keyword = [name for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    assert by_keyword[0] == "encoder_layer_norm_eps" and len(by_keyword) == 8
    config = ViltConfig()
    for name, one in parameters.items():
        if name not in ("id2label", "label2id", "num_labels", "kwargs"):
            assert getattr(config, name) == one.default, name


def test_a_field_of_the_file_may_have_the_name_of_an_attribute(tmp_path) -> None:
    content = {**ViltConfig().to_diff_dict(), "extra": [1], "problem_type": "regression", "architectures": ["A"]}
    config = ViltConfig.from_dict(content)
    assert config.extra == [1]
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {name: saved[name] for name in content} == json.loads(json.dumps(content))


def test_a_configuration_and_one_derived_from_it_may_be_equal() -> None:
    class Mine(ViltConfig):
        model_type = "my_vilt"

    assert Mine(hidden_size=24) == ViltConfig(hidden_size=24) == Mine(hidden_size=24) != ViltConfig()
    assert ViltConfig() != 3
    assert type(Mine.from_dict(Mine().to_dict())) is Mine


def test_the_size_of_the_position_table() -> None:
    assert ViltConfig(image_size=64).image_shape == (64, 64) and ViltConfig(image_size=(64, 96)).image_shape == (64, 96)
