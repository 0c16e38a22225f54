"""The contestants that need a GPU, in Triton's interpreter: that they answer rightly, not how fast."""

import pytest
import torch

from vilt_fast.bench import ablation, ours, verify, workloads
from vilt_fast.bench.case import Case, tiny_config
from vilt_fast.bench.suites import Run

pytest.importorskip("triton", reason="the kernels need Triton")
FP32 = torch.float32


@pytest.fixture(scope="module")
def small():
    """One pair of four patches."""
    work = workloads.Workload("one", ((16, 16),), (3,))
    return Case(work, tiny_config(work), torch.device("cpu"), sets=1)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    from vilt_fast.kernels import launch

    if not launch.INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1; on a GPU, test_gpu.py runs the same contestants")
    monkeypatch.setattr(ours, "need_kernels", lambda case, backend: None)
    monkeypatch.setattr(ablation, "_has_kernels", lambda device: True)


@pytest.mark.parametrize("make", [ours.encoder_calls, ours.model_calls])
def test_kernels_are_right(make, small):
    with torch.inference_mode():
        (call,) = make(small, FP32, backend="kernels")
        assert verify.relative_error(call(), small.wanted) < 1e-5


def test_every_switch_is_right(small, monkeypatch):
    """All but graphs, which no interpreter has: cumulative, each with an error of rounding."""
    run = Run(torch.device("cpu"), quick=True)
    run.case = lambda workload: small
    run.budget = type(run.budget)(0.0, least=1, most=1, warm_up=0)
    chosen = [name for name in ablation.SWITCHES if name not in ("graphs", "sampling")]
    rows = ablation.run_ablation(run, chosen)
    ran = [row for row in rows if "alone, which the model does not call" not in row.status]
    assert [row.contestant for row in ran if row.status != "ok"] == []
    assert all(row.error < 1e-5 for row in ran) and len(ran) > len(chosen) - 3
