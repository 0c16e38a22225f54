"""Fields of a configuration that are of another type or out of range: named, from the constructor and from a file."""

import json

import pytest
import torch

import vilt_fast
from vilt_fast import ViltConfig

NAN, INF = float("nan"), float("inf")
SIZES = (
    "vocab_size type_vocab_size modality_type_vocab_size max_position_embeddings hidden_size num_attention_heads "
    "intermediate_size num_channels image_size patch_size"
).split()
WRONG = {
    **{name: (0, -1, 1.5, True, None, "x", [], {}, NAN, 10**10, 10**30, 10**400) for name in SIZES},
    "num_hidden_layers": (-1, 1.0, True, None, "2", NAN, 10_001, 10**9, 10**30),
    "layer_norm_eps": (0, 0.0, -1e-12, NAN, INF, "1e-12", None, True, [1e-6], 10**400),
    "encoder_layer_norm_eps": (0, -1e-12, NAN, INF, "1e-12", False),
    "hidden_dropout_prob": (-0.1, 1.1, NAN, INF, "0", None, True),
    "attention_probs_dropout_prob": (-0.1, 1.1, NAN, "0", None),
    "initializer_range": (-0.1, NAN, INF, "0", None, 10**400),
    "max_image_length": (0, True, 1.5, "200", None, 2**31),
    "num_images": (0, -2, True, 1.5, "2", None, 2**31),
    "qkv_bias": (1, "true", None, 0.0),
    "tie_word_embeddings": (1, "true", None),
    "output_attentions": (1, "true", None),
    "output_hidden_states": (0, "false", None),
    "return_dict": (1, "true", []),
    "hidden_act": (3, None, [], {}),
    "pad_token_id": (-1, 1.0, True, "0", 30522, 10**30),
    "num_labels": (-1, 1.5, True, "2", 10**9, 10**30),
    "id2label": (
        3,
        [1],
        "ab",
        {"x": "a"},
        {"0": 1},
        {"0": None},
        {"0": "a", "2": "b"},
        {"-1": "a", "0": "b"},
        {"1": "a"},
    ),
    "label2id": (3, [1], "ab", {"a": "x"}, {"a": None}, {"a": []}, {"a": 1.0}, {"a": True}),
    "pruned_heads": (3, [1], {"x": [1]}, {"0": 3}, {"0": ["a"]}, {"-1": [0]}, {"0": [-1]}),
    "__class__": (3, "x"),
    "__dict__": ({}, 3),
    "self": (1,),
    "to_dict": (1,),
    "problem_type": ("x", 3, []),
    "attn_implementation": ("flash_attention_2", 3, []),
}


def _is_json(value: object) -> bool:
    return value == value and value not in (INF, 10**400)  # the reader refuses these itself


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_value_is_named(field, tmp_path) -> None:
    path = tmp_path / "config.json"
    word = {"image_size": "image_size", "attn_implementation": "attn_implementation"}.get(field, field)
    for value in WRONG[field]:
        if field != "self":
            with pytest.raises(ValueError, match=word):
                ViltConfig(**{field: value})
        if _is_json(value):
            path.write_text(json.dumps({"model_type": "vilt", field: value}))
            for read in (lambda: ViltConfig.from_pretrained(tmp_path), lambda: ViltConfig.from_json_file(path)):
                with pytest.raises(ValueError, match=word) as caught:
                    read()
                assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("field", ["layer_norm_eps", "hidden_size", "qkv_bias"])
def test_a_wrong_value_that_is_assigned_is_named_by_the_next_check(field) -> None:
    config = ViltConfig()
    setattr(config, field, NAN)
    with pytest.raises(ValueError, match=field):
        config.validate()


@pytest.mark.parametrize("sizes", [{"hidden_size": 1_200_000}, {"intermediate_size": 2**30}, {"vocab_size": 2**31 - 1}])
def test_sizes_that_are_too_much_together(sizes) -> None:
    with pytest.raises(ValueError, match=rf"weights, wanted at most 1e\+12: got .*{next(iter(sizes))}="):
        vilt_fast.ViltModel(ViltConfig(**sizes))


@pytest.mark.parametrize("value", [torch.tensor(3), torch.ones(2), {3: 0}, {"a": NAN}], ids=repr)
def test_ids_of_labels_that_no_file_holds(value) -> None:
    with pytest.raises(ValueError, match="label2id must map labels to integers, got "):
        ViltConfig(label2id=value)


@pytest.mark.parametrize("label2id", [{"cat": 1, "dog": 0}, {"cat": 0, "bird": 1}, {"dog": 7}, {"dog": "0"}], ids=str)
def test_tables_of_labels_that_contradict_each_other(label2id, tmp_path) -> None:
    """transformers reads such files and keeps both tables: so it is here, with a word about it."""
    fields = {"id2label": {"0": "cat", "1": "dog"}, "label2id": label2id}
    label = next(label for label, index in label2id.items() if fields["id2label"].get(str(index)) != label)
    with pytest.warns(UserWarning, match=f"label2id gives '{label}' the id {label2id[label]}, where id2label has "):
        config = ViltConfig(**fields)
    assert config.label2id == label2id and config.id2label == {0: "cat", 1: "dog"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vilt", **fields}))
    with pytest.warns(UserWarning, match="answers follow id2label"):
        ViltConfig.from_pretrained(tmp_path)


def test_tables_of_labels_that_agree_are_read_without_a_word(recwarn) -> None:
    ViltConfig(id2label={0: "cat", 1: "cat", 2: "dog"}, label2id={"cat": 1, "dog": "2"})
    ViltConfig(id2label={0: "cat"}, label2id={})
    assert not recwarn.list


def test_labels_may_repeat_and_come_in_any_order() -> None:
    config = ViltConfig(id2label={"1": "crane", "0": "crane", "2": "cat"})
    assert list(config.id2label.items()) == [(0, "crane"), (1, "crane"), (2, "cat")]
    assert config.label2id == {"crane": 1, "cat": 2}  # as transformers has it


def test_values_at_the_edge() -> None:
    config = ViltConfig(
        hidden_dropout_prob=1,
        attention_probs_dropout_prob=0,
        initializer_range=0,
        layer_norm_eps=1,
        pad_token_id=30521,
        num_hidden_layers=0,
        id2label={},
        label2id={},
        num_images=1,
        hidden_act=torch.relu,
    )
    assert config.num_labels == 0 and ViltConfig.from_dict(config.to_dict() | {"hidden_act": "relu"}).num_labels == 0
