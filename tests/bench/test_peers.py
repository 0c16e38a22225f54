"""The hand-written peers are right where they can run, and the compiled and graphed ones say why they do not."""

import pytest
import torch

from vilt_fast.bench import ours, peers, verify, workloads
from vilt_fast.bench.case import Case, padded_logits, tiny_config
from vilt_fast.bench.contestant import Unavailable, graphed

FP32 = torch.float32
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


def error(calls, case) -> float:
    with torch.inference_mode():
        return verify.relative_error(calls[0](), case.wanted)


@pytest.fixture(scope="session", params=[1, 2], ids=["one image", "two images"])
def any_case(request):
    make = workloads.vqa_mix if request.param == 1 else workloads.nlvr2
    work = workloads.shrunk(make(3, seed=9), 8, side=192)
    return Case(work, tiny_config(work), torch.device("cpu"))


@pytest.mark.parametrize("make", [peers.padded_calls, peers.flex_calls, peers.one_by_one_calls])
def test_encoder_by_hand(make, any_case):
    assert error(make(any_case, FP32), any_case) < 1e-5


@pytest.mark.parametrize("every_row", [False, True])
def test_packed_encoder_by_hand(any_case, every_row):
    """The module of the varlen_attn peer, with attention spelled out in place of the GPU's."""
    tokens, layout = any_case.packed
    attend = peers.in_spans(layout.cu_seqlens.diff().tolist())
    calls = peers._encoder_calls(any_case, FP32, tokens, layout.first.long(), attend, None, False, every_row)
    assert error(calls, any_case) < 1e-5


@pytest.mark.parametrize("every_row", [False, True])
def test_our_encoder(any_case, every_row):
    assert error(ours.encoder_calls(any_case, FP32, backend="reference", every_row=every_row), any_case) < 1e-5


def test_encoders_are_compared_on_the_same_work():
    """Ours and theirs: with the shortcut in the last block, or each without."""
    for scope, word in (("encoder", "only the rows that the head reads"), ("encoder, every row", "every row")):
        everybody = (*peers.encoder_peers(FP32), *ours.encoder_contestants(FP32))
        assert {word in one.note for one in everybody if one.scope == scope} == {True}
        assert {one.is_ours for one in everybody if one.scope == scope} == {True, False}


def test_our_model_on_packed_bytes(any_case):
    assert error(ours.model_calls(any_case, FP32, backend="reference", is_packed=True), any_case) < 1e-5


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_frozen_form(any_case, is_packed):
    """As it is timed on a CPU, and its planning apart."""
    calls = ours.frozen_calls(any_case, FP32, backend="reference", is_packed=is_packed)
    assert error(calls, any_case) < verify.BOUNDS[FP32]
    assert ours.planning_calls(any_case, FP32, is_packed=is_packed)[0]() is None


def test_transformers_takes_our_weights(any_case):
    pytest.importorskip("transformers", minversion="5.0", reason="it is the peer")
    assert error(peers.transformers_calls(any_case, FP32), any_case) < 1e-5


def test_reference_does_not_depend_on_its_chunk(case):
    state = case.master.state_dict()
    with torch.inference_mode():
        whole, single = (padded_logits(state, case.config, case.inputs[0], torch.float64, n) for n in (16, 1))
    assert (whole - single).abs().max() < 1e-10


def test_every_set_has_values_of_its_own(case):
    first, second = (call() for call in ours.model_calls(case, FP32, backend="reference"))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda case: peers.packed_calls(case, torch.bfloat16), "needs a GPU: varlen_attn"),
        (lambda case: peers.padded_calls(case, FP32, cudnn=True), "needs a GPU: cuDNN"),
        (lambda case: peers.padded_calls(case, FP32, graphs=True), "needs a GPU: CUDA graphs"),
        (lambda case: ours.model_calls(case, FP32, backend="kernels"), "needs a GPU: Triton kernels"),
        (lambda case: [graphed(lambda: None, case.device)], "needs a GPU: CUDA graphs"),
    ],
)
def test_reasons(make, reason, case):
    with pytest.raises(Unavailable, match=reason):
        make(case)


def test_names_are_unique():
    everybody = [*peers.model_peers((FP32, torch.bfloat16)), *peers.encoder_peers(FP32), *ours.contestants((FP32,))]
    everybody += ours.encoder_contestants(FP32)
    names = [(one.name, one.scope, one.dtype) for one in everybody]
    assert len(set(names)) == len(names)
    assert {"transformers + torch.compile", "packed varlen_attn + max-autotune", "padded SDPA, cuDNN"} <= {
        one.name for one in everybody
    }


def test_compiled_peers_of_a_case_fit_torchs_cache():
    """torch.compile falls back to eager silently beyond so many versions of one function."""
    compiled = [one for one in peers.encoder_peers(FP32) if one.compiles]
    assert 0 < len(compiled) <= torch._dynamo.config.recompile_limit
