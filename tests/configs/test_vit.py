"""ViTConfig: fields, the rule of positions, and the way through transformers and back."""

import inspect
import json

import pytest
from transformers import ViTConfig as HuggingFaceConfig

from vilt_fast import ViTConfig
from vilt_fast.contracts.positions import BICUBIC, BICUBIC_SCALE

FIELDS = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "attention_probs_dropout_prob initializer_range layer_norm_eps image_size patch_size num_channels qkv_bias "
    "encoder_stride pooler_output_size pooler_act"
).split()


def test_defaults_are_the_documented_ones() -> None:
    ours, theirs = ViTConfig(), HuggingFaceConfig()
    assert {name: getattr(ours, name) for name in FIELDS} == {name: getattr(theirs, name) for name in FIELDS}
    assert ours.num_labels == theirs.num_labels == 2 and ours.model_type == theirs.model_type


def test_positional_arguments_are_those_of_437() -> None:
    kinds = inspect.signature(ViTConfig).parameters.values()
    assert [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD] == FIELDS[:-2]


def test_round_trip_through_transformers(tmp_path) -> None:
    config = ViTConfig(
        hidden_size=48, num_attention_heads=6, num_labels=3, image_size=(64, 96), my_note="kept", pooler_act="relu"
    )
    config.save_pretrained(tmp_path / "a")
    theirs = HuggingFaceConfig.from_pretrained(tmp_path / "a")
    assert theirs.hidden_size == theirs.pooler_output_size == 48 and list(theirs.image_size) == [64, 96]
    assert theirs.num_labels == 3 and theirs.pooler_act == "relu"
    theirs.save_pretrained(tmp_path / "b")
    back = ViTConfig.from_pretrained(tmp_path / "b")
    assert back.image_size == (64, 96) and back.my_note == "kept" and back.pooler_act == "relu"
    assert ViTConfig.from_pretrained(tmp_path / "a") == config


@pytest.mark.parametrize(
    "version, rule",
    [
        (None, BICUBIC),
        ("4.37.2", BICUBIC_SCALE),
        ("4.6.0.dev0", BICUBIC_SCALE),
        ("4.44.2", BICUBIC_SCALE),
        ("4.45.0", BICUBIC),
        ("4.45.0.dev0", BICUBIC),
        ("4.100.1", BICUBIC),
        ("5.17.0", BICUBIC),
        ("unknown", BICUBIC),
    ],
)
def test_the_rule_of_positions_is_that_of_the_version(tmp_path, version, rule) -> None:
    fields = {"model_type": "vit", **({} if version is None else {"transformers_version": version})}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = ViTConfig.from_pretrained(tmp_path)
    assert config.interpolation == rule
    config.save_pretrained(tmp_path / "again")
    assert ViTConfig.from_pretrained(tmp_path / "again").interpolation == rule
    assert ViTConfig.from_pretrained(tmp_path, position_interpolation="size").interpolation == BICUBIC
    other = ViTConfig.from_pretrained(tmp_path, position_interpolation="scale_factor")
    assert other.interpolation == BICUBIC_SCALE
    other.save_pretrained(tmp_path / "other")
    assert ViTConfig.from_pretrained(tmp_path / "other").interpolation == BICUBIC_SCALE


def test_what_is_only_ours_is_not_written_where_it_says_nothing(tmp_path) -> None:
    assert not {"position_interpolation", "drop_distillation_token"} & ViTConfig().to_dict().keys()
    assert ViTConfig(position_interpolation="size").to_dict()["position_interpolation"] == "size"


def test_relatives() -> None:
    """A distilled DeiT only when asked; MAE's encoder is a ViT."""
    with pytest.raises(ValueError, match="distilled DeiT.*drop_distillation_token=True"):
        ViTConfig.from_dict({"model_type": "deit"})
    config = ViTConfig.from_dict(
        {"model_type": "deit", "hidden_size": 24, "num_attention_heads": 2}, drop_distillation_token=True
    )
    assert config.model_type == "vit" and config.hidden_size == 24 and config.to_dict()["model_type"] == "vit"
    assert ViTConfig.from_dict({"model_type": "vit_mae", "mask_ratio": 0.5}).mask_ratio == 0.5
    with pytest.raises(ValueError, match="model_type 'vit', got 'vilt'"):
        ViTConfig.from_dict({"model_type": "vilt"})


def test_sizes_beyond_all_memory() -> None:
    with pytest.raises(ValueError, match="make .* weights, wanted at most"):
        ViTConfig(hidden_size=12 * 10**6, intermediate_size=10**8)
