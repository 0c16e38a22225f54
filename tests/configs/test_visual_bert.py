"""VisualBertConfig: fields, defaults, what is refused, and the way through transformers and back."""

import copy
import inspect
import json
import pickle
import warnings

import pytest
import torch
from transformers import VisualBertConfig as HuggingFaceConfig

from vilt_fast import VisualBertConfig

FIELDS = (
    "vocab_size hidden_size visual_embedding_dim num_hidden_layers num_attention_heads intermediate_size hidden_act "
    "hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings type_vocab_size initializer_range "
    "layer_norm_eps bypass_transformer special_visual_initialize pad_token_id bos_token_id eos_token_id"
).split()
SMALL = dict(hidden_size=48, num_attention_heads=6, num_labels=3, visual_embedding_dim=20)
# What transformers' ConfigTester gives every configuration.
COMMON = dict(
    return_dict=False,
    output_hidden_states=True,
    output_attentions=True,
    dtype="float16",
    chunk_size_feed_forward=5,
    architectures=["BertModel"],
    id2label={0: "label"},
    label2id={"label": "0"},
    pad_token_id=7,
    bos_token_id=8,
    eos_token_id=9,
    tie_word_embeddings=False,
    problem_type="regression",
    prefix="prefix",
)


def test_defaults_are_the_documented_ones() -> None:
    ours, theirs = VisualBertConfig(), HuggingFaceConfig()
    for name in (*FIELDS, "tie_word_embeddings", "num_labels", "model_type", "use_return_dict"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_positional_arguments_are_those_of_437() -> None:
    kinds = inspect.signature(VisualBertConfig).parameters.values()
    assert [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD] == FIELDS


def test_common_fields_are_those_of_transformers() -> None:
    ours, theirs = VisualBertConfig(**COMMON), HuggingFaceConfig(**COMMON)
    for name in COMMON:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.dtype is ours.torch_dtype is torch.float16


def test_round_trip_through_transformers(tmp_path) -> None:
    config = VisualBertConfig(
        **SMALL, my_note="kept", bypass_transformer=True, special_visual_initialize=False, tie_word_embeddings=False
    )
    config.save_pretrained(tmp_path / "a")
    theirs = HuggingFaceConfig.from_pretrained(tmp_path / "a")
    assert theirs.visual_embedding_dim == 20 and theirs.bypass_transformer and not theirs.special_visual_initialize
    assert theirs.num_labels == 3 and not theirs.tie_word_embeddings
    theirs.save_pretrained(tmp_path / "b")
    back = VisualBertConfig.from_pretrained(tmp_path / "b")
    for name in (*FIELDS, "id2label", "my_note", "tie_word_embeddings"):
        assert getattr(back, name) == getattr(config, name), name
    assert VisualBertConfig.from_pretrained(tmp_path / "a") == config


@pytest.mark.parametrize(
    "there_and_back",
    [
        copy.copy,
        copy.deepcopy,
        lambda config: pickle.loads(pickle.dumps(config)),
        lambda config: VisualBertConfig.from_dict(config.to_dict()),
        lambda config: VisualBertConfig(**config.to_dict()),
        lambda config: VisualBertConfig.from_dict(config.to_diff_dict()),
        lambda config: VisualBertConfig.from_dict(json.loads(config.to_json_string())),
        lambda config: VisualBertConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
        lambda config: VisualBertConfig(**HuggingFaceConfig(**config.to_dict()).to_dict()),
    ],
    ids="copy deepcopy pickle from_dict keywords diff json json-whole transformers".split(),
)
def test_unknown_fields_survive(there_and_back) -> None:
    config = VisualBertConfig(**SMALL, foo=3, nested={"a": [1, 2]}, chunk_size_feed_forward=0, pruned_heads={"1": [0]})
    again = there_and_back(config)
    assert again == config and again.foo == 3 and again.nested == {"a": [1, 2]}
    assert again.pruned_heads == {1: [0]} and again.num_labels == 3 and again.to_dict()["foo"] == 3


def test_no_warning_without_a_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VisualBertConfig.from_dict(HuggingFaceConfig().to_dict())
        VisualBertConfig(**COMMON)
    with pytest.warns(UserWarning, match="visual_embeding_dim is no field of VisualBertConfig.*visual_embedding_dim"):
        VisualBertConfig(visual_embeding_dim=1024)


@pytest.mark.parametrize(
    "field, value",
    [
        ("vocab_size", 0),
        ("visual_embedding_dim", 0),
        ("visual_embedding_dim", 1.5),
        ("max_position_embeddings", -1),
        ("type_vocab_size", "two"),
        ("hidden_size", 50),
        ("num_hidden_layers", -1),
        ("intermediate_size", True),
        ("hidden_dropout_prob", 2),
        ("attention_probs_dropout_prob", -0.1),
        ("initializer_range", float("nan")),
        ("layer_norm_eps", 0),
        ("bypass_transformer", 1),
        ("special_visual_initialize", "yes"),
        ("tie_word_embeddings", None),
        ("pad_token_id", 30522),
        ("pad_token_id", -1),
        ("problem_type", "guessing"),
    ],
)
def test_what_is_refused(field, value) -> None:
    with pytest.raises(ValueError, match="num_attention_heads" if value == 50 else field):
        VisualBertConfig(**{"num_attention_heads": 12, field: value})


def test_another_family() -> None:
    for other in ("vilt", "roberta", "vit"):
        with pytest.raises(ValueError, match=f"model_type 'visual_bert', got '{other}'"):
            VisualBertConfig.from_dict({"model_type": other})


def test_sizes_beyond_all_memory() -> None:
    for sizes in (
        {"hidden_size": 12 * 10**6, "intermediate_size": 10**8},
        {"visual_embedding_dim": 2 * 10**9, "hidden_size": 12 * 10**6},
    ):
        with pytest.raises(ValueError, match="make .* weights, wanted at most"):
            VisualBertConfig(**sizes)
