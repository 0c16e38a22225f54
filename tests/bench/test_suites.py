"""Every suite in quick mode on the CPU: who takes part, what is checked, what a row holds."""

import copy
import math
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

import vilt_fast
from vilt_fast.bench import contestant, ours, suites, timing
from vilt_fast.bench.contestant import Contestant, Unavailable

pytest.importorskip("transformers", minversion="5.0", reason="transformers is a contestant")

FIGURES = ("median_ms", "p20_ms", "p80_ms", "samples", "pairs_per_s", "tokens_per_s", "tflops", "matmul_share")
NEEDS_GPU = {"vilt_fast kernels", "vilt_fast kernels + graph", "packed varlen_attn", "padded SDPA, cuDNN"}
RUN_ON_CPU = {
    "ops": {"vilt_fast reference", "torch"},
    "model": {
        "transformers eager",
        "padded reference",
        "vilt_fast frozen, reference",
        "padded SDPA",
        "packed FlexAttention",
    },
    "end-to-end": {"transformers, PIL processor", "vilt_fast reference, packed uint8", "vilt_fast Engine"},
    "latency": {"transformers eager", "padded reference", "vilt_fast live, reference", "padded SDPA"},
    "scaling": {"transformers eager", "vilt_fast live, reference", "padded SDPA"},
    "memory": {"transformers eager", "padded reference", "vilt_fast frozen, reference"},
    "vit": {"transformers eager", "transformers, one by one", "vilt_fast frozen, reference", "packed, SDPA one by one"},
    "visual_bert": {
        "transformers eager",
        "packed by hand",
        "vilt_fast live, reference",
        "vilt_fast frozen, reference",
        "vilt_fast frozen, reference, unpadded",
        "vilt_fast reference",
        "padded SDPA",
        "packed FlexAttention",
        "packed, SDPA one by one",
    },
    "export": {"vilt_fast live, reference", "vilt_fast frozen, reference", "torch.export program"},
}


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", suites.SUITES)
def test_suite_on_the_cpu(name, run):
    rows = [row for some in suites.run_suite(name, run) for row in some]
    ran = {row.contestant for row in rows if row.status == "ok"}
    assert ran >= RUN_ON_CPU[name], RUN_ON_CPU[name] - ran
    assert {row.suite for row in rows} == {name}
    for row in rows:
        assert row.environment["commit"] and row.environment["torch"] == torch.__version__
        assert row.environment["mode"] == "quick"
        assert row.shape and row.tokens > 0 and row.dtype == "float32"
        if row.status == "ok":
            assert row.error <= row.bound or "another answer" in row.note
            assert all(getattr(row, figure) is not None for figure in FIGURES)
            assert 0 < row.p20_ms <= row.median_ms <= row.p80_ms and row.samples >= 2
        else:
            assert row.status.startswith("not run: ") and len(row.status) > 15, row.status
            assert "raised" not in row.status, row.status
            assert all(getattr(row, figure) is None for figure in FIGURES)
        if row.contestant in NEEDS_GPU:
            assert row.status.startswith("not run: needs a GPU"), row.status


def test_model_suite_has_every_workload(run, monkeypatch):
    """The names alone: nothing is run."""
    seen = []
    monkeypatch.setattr(run, "time", lambda suite, case, contestants: seen.append(case.workload) or [])
    assert list(suites.run_suite("model", run))
    assert {work.name for work in seen} == set(suites.workloads.WORKLOADS)
    assert {work.pictures for work in seen} == {1, 2}
    assert sum(work.max_image_length >= 0 for work in seen) == 3


def test_gpu_run_has_the_sizes_of_the_issue(monkeypatch):
    """The suites that a GPU runs, without one: batches to 1024, patches 16 to 1025, every dtype."""
    run = suites.Run(torch.device("cpu"), quick=True)
    run.quick, run.device = False, torch.device("cuda")
    assert run.dtypes == (torch.float32, torch.float16, torch.bfloat16)
    works = list(suites.scaling_cases(run))
    batches = [work.batch for work in works if work.name == "vqa-mix"]
    assert (min(batches), max(batches)) == (1, 1024)
    patches = [max(work.sequences()) - 11 for work in works if work.name.startswith("patches")]
    assert (min(patches), max(patches)) == (16, 1025)
    spreads = [work for work in works if work.name.startswith("spread")]
    assert len({work.tokens() for work in spreads}) == 1, "the spread alone is to differ"
    assert spreads[0].padded_tokens() == spreads[0].tokens() < spreads[-1].padded_tokens()


def without(argument):
    """Our model, called without one of its arguments."""

    def make(case):
        model = case.model(torch.float32)
        inputs = {name: value for name, value in case.inputs[0].items() if name != argument}
        return [lambda: model(**inputs).logits]

    return make


def altered(change):
    """Our model, with its logits changed."""

    def make(case):
        return [lambda: change(ours.model_calls(case, torch.float32, backend="reference")[0]().clone())]

    return make


def one_pair_of_another(logits):
    logits[0] = logits[1]
    return logits


def no_positions(case):
    model = copy.deepcopy(case.model(torch.float32))
    model.vilt.embeddings.position_embeddings.zero_()
    return [lambda: model(**case.inputs[0]).logits]


WRONG = {
    "no attention_mask": without("attention_mask"),
    "no pixel_mask": without("pixel_mask"),
    "no positions": no_positions,
    "one pair": altered(one_pair_of_another),
    "NaN": altered(lambda logits: logits.index_fill(0, torch.tensor([1]), math.nan)),
    "shape": altered(lambda logits: logits[:, :-1]),
    "zeros": altered(torch.zeros_like),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_contestant_is_caught_and_not_timed(name, dtype, case, run):
    """Also under the widest bound, that of bf16: a mistake is larger than rounding."""
    cheat = Contestant("cheat", dtype, WRONG[name])
    honest = Contestant("honest", torch.float32, partial(ours.model_calls, dtype=torch.float32, backend="reference"))
    bad, good = run.time("model", case, [cheat, honest])
    assert bad.status.startswith("wrong: error") and "not timed" in bad.status
    assert bad.error > bad.bound and bad.median_ms is None and bad.pairs_per_s is None
    assert good.status == "ok" and good.median_ms > 0


def test_wrong_contestant_never_meets_the_clock(case, run, monkeypatch):
    timed = []
    monkeypatch.setattr(timing, "measure", lambda contestants, *rest: timed.append(len(contestants)) or [])
    run.time("model", case, [Contestant("cheat", torch.float32, WRONG["zeros"])])
    assert timed == [0]


def test_bfloat16_passes_its_bound(case, run):
    """The bound catches mistakes and lets honest rounding pass."""
    make = partial(ours.model_calls, dtype=torch.bfloat16, backend="reference")
    (row,) = run.time("model", case, [Contestant("bf16", torch.bfloat16, make)])
    assert row.status == "ok" and 1e-4 < row.error < row.bound


def test_contestant_that_cannot_run_says_why(case, run):
    def unavailable(case):
        raise Unavailable("no such library")

    def broken(case):
        raise RuntimeError("something\n broke")

    rows = run.time(
        "model", case, [Contestant("a", torch.float32, unavailable), Contestant("b", torch.float32, broken)]
    )
    assert [row.status for row in rows] == ["not run: no such library", "not run: raised RuntimeError: something broke"]


def test_time_limit(case, run):
    run.deadline = 0.0
    make = partial(ours.model_calls, dtype=torch.float32, backend="reference")
    (row,) = run.time("model", case, [Contestant("late", torch.float32, make)])
    assert row.status == "not run: the time limit of this run was spent"


def test_unknown_suite(run):
    with pytest.raises(ValueError, match="suite: got 'speed', wanted one of model"):
        suites.run_suite("speed", run)


def test_figures_follow_from_the_time(case, run):
    """Units: 2 ms per call of 3 pairs are 1500 pairs/s."""
    make = partial(ours.model_calls, dtype=torch.float32, backend="reference")
    row = contestant.new_row("model", case, Contestant("x", torch.float32, make), {})
    cost = case.cost("model", torch.float32)
    row.fill(timing.Times(2.0, 1.9, 2.1, 9), cost, timing.Peaks(matmul_tflops=cost.flops / 1e9, copy_gbps=1.0))
    assert row.pairs_per_s == pytest.approx(1500)
    assert row.tokens_per_s == pytest.approx(row.tokens * 500)
    assert row.tflops == pytest.approx(cost.flops * 500 / 1e12)
    assert row.matmul_share == pytest.approx(0.5)
    assert row.gbps == row.copy_share == pytest.approx(cost.bytes * 500 / 1e9)


def test_backend_is_restored(case, run):
    before = dict(vilt_fast.ops._chosen)
    run.time("model", case, [replace(c, scope="model") for c in ours.contestants((torch.float32,))])
    assert vilt_fast.ops._chosen == before


def test_the_time_limit_ends_those_that_were_chosen(run, case, monkeypatch):
    """They get no more of the clock than what is left."""
    seconds = []
    real = suites.timing.measure
    monkeypatch.setattr(suites.timing, "measure", lambda *a: seconds.append(a[2].seconds) or real(*a))
    run.budget, run.deadline = replace(run.budget, seconds=100.0), time.monotonic() + 5
    rows = run.time("model", case, [one for one in ours.contestants(run.dtypes) if "live, reference" in one.name][:1])
    assert [row.status for row in rows] == ["ok"] and seconds[0] <= 5
