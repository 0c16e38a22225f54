"""ViT directories that transformers 4.37.2 really wrote (tests/data/transformers-4.37/make_vit.py), and its answers."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import vilt_fast

DATA = Path(__file__).parents[1] / "data" / "transformers-4.37"
NAMES = ("ViTModel", "ViTModel-bin", "ViTForImageClassification", "ViTForMaskedImageModeling")
CALLS = {name: json.loads((DATA / name / "expected.json").read_text()) for name in NAMES}
# fp32: a sum of some tens of products in another order; stored with seven digits, and the values are about one.
CLOSE = dict(rtol=1e-5, atol=3e-6)


def load(name, directory=None, **changes):
    options = {"add_pooling_layer": False} if name == "ViTModel-bin" else {}
    return getattr(vilt_fast, name.split("-")[0]).from_pretrained(directory or DATA / name, **options, **changes)


def arguments(call):
    """Pixels are not stored: value i is sin(0.37 i)."""
    given = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in call.items()}
    height, width = given.pop("size", torch.tensor([16, 16])).tolist()
    return {"pixel_values": torch.sin(0.37 * torch.arange(3 * height * width)).view(1, 3, height, width), **given}


def kinds(plain):
    """What a tuple holds: the shape of a tensor, the length of a tuple."""
    return [list(item.shape) if torch.is_tensor(item) else len(item) for item in plain]


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_437(name, tmp_path):
    model = load(name)
    model.save_pretrained(tmp_path)
    for loaded in (model, load(name, tmp_path)):
        for expected in CALLS[name]:
            given = arguments(expected["call"])
            output = loaded(**given)
            assert list(output) == list(expected["outputs"])
            for field, values in expected["outputs"].items():
                got = output[field] if isinstance(output[field], tuple) else (output[field],)
                values = values if isinstance(output[field], tuple) else [values]
                for one, wanted in zip(got, values, strict=True):
                    torch.testing.assert_close(one, torch.tensor(wanted), **CLOSE)
            assert kinds(loaded(**given, return_dict=False)) == expected["tuple"]


@torch.no_grad()
def test_the_rule_can_be_chosen(tmp_path):
    """By the file's version, unless `position_interpolation` says otherwise; it is kept in the file then."""
    expected = next(entry for entry in CALLS["ViTModel"] if entry["call"].get("interpolate_pos_encoding"))
    given, wanted = arguments(expected["call"]), torch.tensor(expected["outputs"]["last_hidden_state"])
    new = load("ViTModel", position_interpolation="size")
    assert (new(**given).last_hidden_state - wanted).abs().max() > 1e-2  # the two differ by much more than rounding
    new.save_pretrained(tmp_path)
    again = load("ViTModel", tmp_path)
    assert again.config.position_interpolation == "size"
    assert torch.equal(again(**given).last_hidden_state, new(**given).last_hidden_state)
    old = load("ViTModel", tmp_path, position_interpolation="scale_factor")
    torch.testing.assert_close(old(**given).last_hidden_state, wanted, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_transformers_5_reads_what_we_make_of_them(name, tmp_path):
    """And answers as it does from their own files."""
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle")
    load(name).save_pretrained(tmp_path)
    options = {"add_pooling_layer": False} if name == "ViTModel-bin" else {}
    cls = getattr(transformers, name.split("-")[0])
    theirs, report = cls.from_pretrained(tmp_path, output_loading_info=True, **options)
    assert not any(report.values()), report
    given = arguments({})
    torch.testing.assert_close(theirs.eval()(**given)[0], load(name)(**given)[0], **CLOSE)
    if name != "ViTModel-bin":  # transformers 5 reads no .bin on the side of a PyTorch that it finds too old
        first = cls.from_pretrained(DATA / name, **options).state_dict()
        assert all(torch.equal(first[key], value) for key, value in theirs.state_dict().items())


def test_the_fixtures_are_those_of_the_script():
    spec = importlib.util.spec_from_file_location("make_vit", DATA / "make_vit.py")
    make = importlib.util.module_from_spec(spec)
    pytest.importorskip("transformers", reason="the script imports it")
    spec.loader.exec_module(make)
    assert tuple(make.VARIANTS) == NAMES
    for name in NAMES:
        config = vilt_fast.ViTConfig.from_pretrained(DATA / name)
        assert config.transformers_version == "4.37.2"
        assert {key: getattr(config, key) for key in make.SIZES} == make.SIZES
