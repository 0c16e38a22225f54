"""Quantised weights: torchao's tensor subclasses, and torch.ao's dynamic Linear modules."""

import warnings

import pytest
import torch
from torch import nn

import vilt_fast

pytest.importorskip("torchao", reason="these are tests with torchao")
pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

from torchao import quantization as ao  # noqa: E402

QA, MLM, WORDS = "ViltForQuestionAnswering", "ViltForMaskedLM", "ViltForTokenClassification"
# int8 activations are rounded: where ours and theirs differ by 1e-7, a value may fall on the other side of a step of
# 1 / 127 of its row's largest.
ROUNDED = 0.02
CONFIGURATIONS = {
    "int8 weights": (ao.Int8WeightOnlyConfig, 1e-5),
    "int8 weights and activations": (ao.Int8DynamicActivationInt8WeightConfig, ROUNDED),
    "int4 weights, int8 activations": (ao.Int8DynamicActivationIntxWeightConfig, ROUNDED),
    "any int weights": (ao.IntxWeightOnlyConfig, 1e-5),
}


def make(name):
    kind, _ = CONFIGURATIONS[name]
    if kind in (ao.IntxWeightOnlyConfig, ao.Int8DynamicActivationIntxWeightConfig):
        bits = torch.int8 if kind is ao.IntxWeightOnlyConfig else torch.int4
        return kind(weight_dtype=bits, **({} if bits is torch.int8 else {"weight_granularity": ao.PerGroup(8)}))
    return kind()


@pytest.mark.parametrize("which", CONFIGURATIONS)
@pytest.mark.parametrize("name", [QA, WORDS])
def test_quantize(both, pair, name, which):
    """Every Linear of both models quantised: the same scores, which are not those of fp32."""
    ours, theirs, inputs = pair(name)
    plain = both.scores(theirs, inputs)
    for model in (ours, theirs):
        ao.quantize_(model, make(which))
        assert type(model.vilt.encoder.layer[0].output.dense.weight.data) is not torch.Tensor
    wanted = both.check_same_scores("scores", (ours, theirs, inputs), CONFIGURATIONS[which][1])
    assert 1e-4 < both.off(wanted, plain) < 0.5


def test_quantized_embeddings(both, pair):
    """Tables, too: their weight is read where their module reads it."""
    ours, theirs, inputs = pair()
    plain = both.scores(theirs, inputs)
    config = ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(8))
    for model in (ours, theirs):
        ao.quantize_(model, config, lambda module, path: isinstance(module, nn.Embedding) and "text" in path)
    wanted = both.check_same_scores("scores", (ours, theirs, inputs))
    assert both.off(wanted, plain) > 1e-4


def test_freeze_refuses_quantised_weights(pair):
    ours = pair()[0]
    ao.quantize_(ours, ao.Int8WeightOnlyConfig(), lambda module, path: path.endswith("layer.1.output.dense"))
    with pytest.raises(ValueError, match=r"freeze: vilt\.encoder\.layer\.1\.output\.dense\.weight is a \w+"):
        vilt_fast.freeze(ours)


@pytest.fixture
def dynamically():
    """Quantises every Linear of a model as torch.ao.quantization does."""

    def quantise(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

    if not {"fbgemm", "x86", "qnnpack", "onednn"} & set(torch.backends.quantized.supported_engines):
        pytest.skip("this PyTorch has no engine for quantised products")
    return quantise


@pytest.mark.parametrize("name", [QA, WORDS])
def test_quantize_dynamic(both, pair, dynamically, name):
    """Its scales are those of all rows of a call: compared on a batch without padding."""
    ours, theirs, inputs = pair(name)
    full = inputs.but(attention_mask=torch.ones_like(inputs["attention_mask"]), pixel_mask=None)
    full.words = torch.ones_like(inputs.words)
    full["pixel_values"] = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = both.scores(theirs, full)
    ours, theirs = dynamically(ours), dynamically(theirs)
    assert "quantized" in type(ours.vilt.encoder.layer[0].output.dense).__module__
    wanted = both.check_same_scores("scores", (ours, theirs, full), ROUNDED)
    assert 1e-4 < both.off(wanted, plain) < 0.5


def test_freeze_refuses_quantised_modules(pair, dynamically):
    with pytest.raises(ValueError, match=r"freeze: \S+ is a torch\.ao\.nn\.quantized\.dynamic"):
        vilt_fast.freeze(dynamically(pair()[0]))
