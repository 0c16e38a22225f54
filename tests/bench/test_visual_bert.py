"""VisualBERT's workloads, and its peers: right where they are right, and caught where they are not."""

import pytest
import torch

from vilt_fast.bench import flops, ours, verify, visual_bert
from vilt_fast.bench.contestant import Contestant

FP32, CPU = torch.float32, torch.device("cpu")


def small(name: str = "visual-bert-mixed", batch: int = 3) -> visual_bert.VisualBertCase:
    return visual_bert.VisualBertCase.of(visual_bert.WORKLOADS[name](batch, seed=4), CPU, 1, False, quick=True)


@pytest.mark.parametrize("name", visual_bert.WORKLOADS)
def test_tokens_are_what_the_model_packs(name):
    case = small(name)
    tokens, layout = case.packed
    assert layout.cu_seqlens.diff().tolist() == case.lengths
    assert len(tokens) == case.workload.tokens() <= case.workload.padded_tokens()
    assert case.describe()["workload"] == name and "regions" in case.describe()["shape"]


def test_sizes():
    """Of 60 words and 36 regions at most, which padding makes of nearly all; or exactly so many."""
    full = visual_bert.full(2)
    assert full.sequences() == [96, 96] and full.padded_tokens() == full.tokens() == 192
    work = visual_bert.mixed(256)
    assert work == visual_bert.mixed(256) != visual_bert.mixed(256, seed=1)
    assert (min(work.lengths), max(work.lengths)) == (8, 60) and (min(work.regions), max(work.regions)) == (10, 36)
    assert work.padded_tokens() == 256 * 96 > 1.6 * work.tokens()
    assert work.shape() == "256 x 8..60 words, 10..36 regions"


def test_inputs_are_masked_where_a_pair_is_shorter():
    case = small()
    (one,) = case.inputs
    assert one["attention_mask"].sum(1).tolist() == list(case.workload.lengths)
    assert one["visual_attention_mask"].sum(1).tolist() == list(case.workload.regions)
    rows, features, counts = case.unpadded(one)
    assert [len(row) for row in rows] == list(case.workload.lengths) and counts == list(case.workload.regions)
    assert torch.equal(features, torch.cat([one["visual_embeds"][b, :n] for b, n in enumerate(counts)]))


@pytest.mark.parametrize("make", [visual_bert.transformers_calls, visual_bert.packed_calls])
@pytest.mark.parametrize("name", visual_bert.WORKLOADS)
def test_peers_are_right(make, name):
    pytest.importorskip("transformers", minversion="5.0", reason="it is a peer")
    case = small(name)
    with torch.inference_mode():
        assert verify.error_of(make(case, FP32)[0], case.wanted) < 1e-5


@pytest.mark.parametrize("every_row", [False, True], ids=["rows that are read", "every row"])
def test_our_encoder_is_right(every_row):
    case = small()
    with torch.inference_mode():
        (call,) = ours.encoder_calls(case, FP32, backend="reference", every_row=every_row)
        assert verify.error_of(call, case.wanted) < 1e-5


@pytest.mark.parametrize("missing", ["visual_attention_mask", "attention_mask"])
def test_what_is_not_masked_is_caught(missing, run):
    """Our own model that attends to padding."""
    case = small()
    inputs = {name: value for name, value in case.inputs[0].items() if name != missing}

    def plain(case):
        model = case.model(FP32)
        return [lambda: model(**inputs).logits]

    (row,) = run.time("visual_bert", case, [Contestant("plain", FP32, plain)])
    assert row.status.startswith("wrong: error") and row.median_ms is None


def test_contestants_have_names_of_their_own():
    found = visual_bert.contestants(FP32)
    assert len({(one.name, one.scope) for one in found}) == len(found)
    assert found[0].name == "transformers eager"


def test_costs_of_the_published_size():
    """2.6 TFLOP for 256 pairs: 2 x 7,077,888 weights a block and row, and attention of 4 n^2 d."""
    work = visual_bert.mixed(256)
    case = visual_bert.VisualBertCase.of(work, CPU, 1, False, quick=False)
    rows, squares = work.tokens(), sum(n * n for n in work.sequences())
    blocks = 12 * (2 * rows * 7_077_888 + 4 * squares * 768)
    around = 2 * sum(work.regions) * 2048 * 768 + 2 * 256 * 768 * 3129
    assert case.cost("model", torch.bfloat16).flops == blocks + around
    assert isinstance(case.cost("encoder", torch.bfloat16), flops.Cost)
