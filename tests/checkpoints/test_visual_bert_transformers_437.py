"""VisualBERT directories that transformers 4.37.2 wrote (tests/data/transformers-4.37/make_visual_bert.py), and its
answers."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import vilt_fast

DATA = Path(__file__).parents[1] / "data" / "transformers-4.37"
NAMES = tuple(sorted(path.name for path in DATA.glob("VisualBert*")))
CALLS = {name: json.loads((DATA / name / "expected.json").read_text()) for name in NAMES}
# fp32: a sum of some tens of products in another order; stored with seven digits, and the values are about one.
CLOSE = dict(rtol=1e-5, atol=3e-6)


def load(name, directory=None, package=vilt_fast, **options):
    if name == "VisualBertModel-bin":
        options["add_pooling_layer"] = False
    return getattr(package, name.split("-")[0]).from_pretrained(directory or DATA / name, **options)


def arguments(call):
    """Features are not stored: value i is sin(0.37 i)."""
    given = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in call.items()}
    for shape, name in (("regions", "visual_embeds"), ("words", "inputs_embeds")):
        if shape in given:
            size = given.pop(shape).tolist()
            given[name] = torch.sin(0.37 * torch.arange(torch.Size(size).numel())).view(size)
    return given


def expected_values(expected):
    """Of each field, a list of tensors."""
    outputs = expected["outputs"]
    many = {
        field: values if field in ("hidden_states", "attentions") else [values] for field, values in outputs.items()
    }
    return {field: [torch.tensor(value) for value in values] for field, values in many.items()}


def seen(field, value, given):
    """Zero where ours is: rows of words and regions that are masked, and attentions from and to them."""
    masks = [given[key].flatten(0, -2) for key in ("attention_mask", "visual_attention_mask") if key in given]
    real = torch.cat(masks, dim=1) if masks else None
    if real is None or value.dim() < 3 or real.shape[1] != value.shape[-2]:
        return value
    if field == "attentions":
        return value * real[:, None, :, None] * real[:, None, None]
    return value * real[..., None]


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_437(name, tmp_path):
    model = load(name)
    model.save_pretrained(tmp_path)
    for loaded in (model, load(name, tmp_path)):
        for expected in CALLS[name]:
            given = arguments(expected["call"])
            output = loaded(**given)
            wanted = expected_values(expected)
            assert list(output) == list(wanted)
            for field, values in wanted.items():
                got = output[field] if isinstance(output[field], tuple) else (output[field],)
                if "Question" in name and "labels" in given and field == "logits":
                    got = (got[0].log_softmax(-1),)  # 4.37 returns those instead of logits
                for one, value in zip(got, values, strict=True):
                    torch.testing.assert_close(one, seen(field, value, given), **CLOSE)
            check_tuple(loaded(**given, return_dict=False), expected["tuple"])


def check_tuple(plain, kinds):
    """The shape of a tensor, the length of a tuple; a base model without pooler has None, or nothing, in its place."""
    got = [list(item.shape) if torch.is_tensor(item) else item and len(item) for item in plain]
    assert [kind for kind in got if kind is not None] == [kind for kind in kinds if kind is not None]


@pytest.mark.parametrize("name", [name for name in NAMES if "PreTraining" in name])
def test_the_tie_of_437(name):
    model = load(name)
    tied = model.cls.predictions.decoder.weight is model.visual_bert.get_input_embeddings().weight
    assert tied == ("untied" not in name) == model.config.tie_word_embeddings
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    assert model.cls.predictions.bias.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_transformers_5_reads_what_we_make_of_them(name, tmp_path):
    """And answers as it does from their own files."""
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle")
    load(name).save_pretrained(tmp_path)
    theirs, report = load(name, tmp_path, transformers, output_loading_info=True)
    assert not any(report.values()), report
    given = arguments(CALLS[name][0]["call"])
    output = theirs.eval()(**{key: value for key, value in given.items() if key != "head_mask"})
    for field, (value, *_) in expected_values(CALLS[name][0]).items():
        got = output[field][0] if isinstance(output[field], tuple) else output[field]
        torch.testing.assert_close(seen(field, got, given), seen(field, value, given), **CLOSE)
    # transformers 5 reads no .bin on the side of a PyTorch that it finds too old, and of an untied decoder no bias.
    if not name.endswith(("-bin", "-untied")):
        first = load(name, None, transformers).state_dict()
        assert all(torch.equal(first[key], value) for key, value in theirs.state_dict().items())


def test_the_fixtures_are_those_of_the_script():
    spec = importlib.util.spec_from_file_location("make_visual_bert", DATA / "make_visual_bert.py")
    make = importlib.util.module_from_spec(spec)
    pytest.importorskip("transformers", reason="the script imports it")
    spec.loader.exec_module(make)
    assert tuple(sorted(make.VARIANTS)) == NAMES
    for name in NAMES:
        config = vilt_fast.VisualBertConfig.from_pretrained(DATA / name)
        assert config.transformers_version == "4.37.2"
        assert {key: getattr(config, key) for key in make.SIZES} == make.SIZES
