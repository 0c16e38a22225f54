"""Modules put in place of others: what transformers' model computes with them, ours does."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")


class LowRank(nn.Linear):
    """W x + b + B A x, as a subclass: of the right type and shape, with another forward."""

    @classmethod
    def of(cls, linear):
        new = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        new.load_state_dict(linear.state_dict())
        generator = torch.Generator().manual_seed(3)
        new.a = 0.2 * torch.randn(2, linear.in_features, generator=generator)
        new.b = 0.2 * torch.randn(linear.out_features, 2, generator=generator)
        return new

    def forward(self, x):
        return super().forward(x) + x @ self.a.T @ self.b.T


class DoubledConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def doubled(conv):
    new = DoubledConv(3, 24, 8, 8)
    new.load_state_dict(conv.state_dict())
    return new


class Scaled(nn.Module):
    """Another module around the one that was there."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args) * 1.5


def rms_norm(norm):
    new = nn.RMSNorm(norm.normalized_shape, eps=1e-6)
    new.weight.data.copy_(norm.weight.data)
    return new


def new_linear(_):
    torch.manual_seed(4)
    return nn.Linear(24, 4)


class TwoWords(nn.Module):
    """A pooler as transformers' are written: it gets padded states."""

    def forward(self, states):
        return states[:, :2].mean(1).tanh()


def without(kind):
    """The same kind of module without what it can do without."""

    def make(module):
        if kind == "bias" and isinstance(module, nn.Linear):
            new = nn.Linear(module.in_features, module.out_features, bias=False)
        elif kind == "bias":
            new = nn.LayerNorm(module.normalized_shape, eps=1e-6, bias=False)
        else:
            return nn.LayerNorm(module.normalized_shape, eps=1e-6, elementwise_affine=False)
        new.weight.data.copy_(module.weight.data)
        return new

    return make


def plain_weight(module):
    """A weight that is no parameter: a leftover of tools that computed it."""
    weight = module.weight.detach() * 2
    del module.weight
    module.weight = weight
    return module


LAYER = "vilt.encoder.layer.0"
WORDS = "vilt.embeddings.text_embeddings"
QA, MLM = "ViltForQuestionAnswering", "ViltForMaskedLM"
NORMS = (f"{LAYER}.layernorm_before", f"{LAYER}.layernorm_after", "vilt.layernorm", f"{WORDS}.LayerNorm")
LINEARS = (
    *(f"{LAYER}.{path}.dense" for path in ("attention.output", "intermediate", "output")),
    *(f"{LAYER}.attention.attention.{part}" for part in ("query", "key", "value")),
    *("vilt.pooler.dense", "classifier.0", "classifier.3"),
)
TABLES = (f"{WORDS}.{t}" for t in ("word_embeddings", "position_embeddings", "token_type_embeddings"))
REPLACED = [
    *((QA, path, lambda norm: nn.Identity(), "Identity") for path in (*NORMS, "classifier.1")),
    *((QA, path, rms_norm, "RMSNorm") for path in (*NORMS, "classifier.1")),
    *((QA, path, LowRank.of, "subclass of Linear") for path in LINEARS),
    *((QA, path, Scaled, "wrapped") for path in (*TABLES, "vilt.embeddings.token_type_embeddings")),
    (QA, "vilt.embeddings.patch_embeddings.projection", doubled, "subclass of Conv2d"),
    (QA, "classifier.2", lambda _: nn.ReLU(), "ReLU"),
    (QA, "classifier", new_linear, "Linear"),
    (QA, f"{LAYER}.intermediate.intermediate_act_fn", lambda _: nn.ReLU(), "ReLU"),
    (QA, "vilt.pooler.activation", lambda _: nn.Identity(), "Identity"),
    (QA, f"{LAYER}.attention.output", Scaled, "wrapped"),
    (QA, f"{LAYER}.output", Scaled, "wrapped"),
    (QA, f"{LAYER}.intermediate", Scaled, "wrapped"),
    # A key's bias moves every score of a query alike: without it nothing changes.
    *((QA, path, without("bias"), "without bias") for path in (*NORMS, *LINEARS) if not path.endswith("key")),
    *((QA, path, without("weight"), "without weights") for path in NORMS),
    *((QA, path, plain_weight, "weight no parameter") for path in (*NORMS, *LINEARS)),
    (QA, "vilt.pooler", lambda _: TwoWords(), "of padded states"),
    (MLM, "mlm_score.transform.LayerNorm", rms_norm, "RMSNorm"),
    (MLM, "mlm_score.transform.transform_act_fn", lambda _: nn.ReLU(), "ReLU"),
    (MLM, "mlm_score.transform", Scaled, "wrapped"),
    (MLM, "mlm_score.decoder", LowRank.of, "subclass of Linear"),
    ("ViltForTokenClassification", "classifier", LowRank.of, "subclass of Linear"),
    ("ViltForImageAndTextRetrieval", "rank_output", LowRank.of, "subclass of Linear"),
]


@pytest.mark.parametrize(
    ("name", "path", "make"), [row[:3] for row in REPLACED], ids=[f"{path} {what}" for _, path, _, what in REPLACED]
)
def test_a_replaced_module(both, pair, name, path, make):
    ours, theirs, inputs = pair(name)
    plain = both.scores(theirs, inputs)
    for model in (ours, theirs):
        model.set_submodule(path, make(model.get_submodule(path)))
    assert both.off(both.check_same_scores("scores", (ours, theirs, inputs), 2e-5), plain) > 1e-3
