"""The waterfall: every switch has a row, and a row says what it is worth or why it has nothing to say."""

import pytest
import torch

from vilt_fast import ops
from vilt_fast.bench import ablation, choices, verify, workloads
from vilt_fast.bench.case import Case, tiny_config

INSIDE = choices.switches()  # the kernels'
NEED_GPU = {*ablation.KERNELS, "epilogues", "graphs", *INSIDE}


def test_waterfall_on_the_cpu(run):
    rows = ablation.run_ablation(run)
    assert [row.contestant for row in rows] == [ablation.BASE, *(f"+ {name}" for name in ablation.SWITCHES)]
    for row, name in zip(rows[1:], ablation.SWITCHES, strict=True):
        assert row.note.startswith(ablation.SWITCHES[name])
        if name in INSIDE and not set(INSIDE[name].operations) & set(ablation.KERNELS):
            assert row.status.startswith("not run: changes resize alone")
        elif name in NEED_GPU:
            assert row.status == "not run: needs a GPU" and row.median_ms is None
        else:
            assert row.status == "ok" and row.median_ms > 0
            assert row.error < 1e-5 or name == "sampling"
    sampling = rows[-1]
    assert sampling.error > 0.01 and "approximation" in sampling.note, "the error of sampling is its price"


@pytest.mark.parametrize("chosen", [(), ("packing",), ("packing", "uint8"), ("uint8", "packing", "first-rows")])
def test_any_subset(chosen, run):
    rows = ablation.run_ablation(run, chosen)
    ordered = [name for name in ablation.SWITCHES if name in chosen]
    assert [row.contestant for row in rows] == [ablation.BASE, *(f"+ {name}" for name in ordered)]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (("packing", "magic"), "got 'magic', wanted any of packing"),
        (("uint8",), "builds on packing"),
        (("packing", "epilogues"), "epilogues builds on linear"),
        (("packing", "graphs"), "graphs builds on uint8"),
    ],
)
def test_switches_that_make_no_sense(chosen, message, run):
    with pytest.raises(ValueError, match=message):
        ablation.run_ablation(run, chosen)


@pytest.fixture
def bytes_case():
    work = workloads.shrunk(workloads.vqa_mix(3), 8, side=192)
    return Case(work, tiny_config(work), torch.device("cpu"))


def test_bytes_are_the_same_images(bytes_case):
    model = bytes_case.model(torch.float64)
    for floats, packed in zip(bytes_case.inputs_in(torch.float64), bytes_case.packed_inputs, strict=True):
        with torch.inference_mode():
            assert verify.relative_error(model(**packed).logits, model(**floats).logits) < 1e-6


def test_epilogues_come_apart_and_together_again(monkeypatch):
    """Without fusion the product gets neither activation nor residual, and the result is the same."""
    seen = []
    x, weight, bias, extra = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6), torch.randn(5, 6)
    wanted = ops.linear(x, weight, bias, activation="gelu", residual=extra)
    plain = ops.linear

    def spy(*arguments, **options):
        seen.append(options)
        return plain(*arguments, **options)

    monkeypatch.setattr(ops, "linear", spy)
    with ablation.unfused_epilogues():
        got = ops.linear(x, weight, bias, activation="gelu", residual=extra)
    assert ops.linear is spy and seen == [{}]
    torch.testing.assert_close(got, wanted)


def test_backends_follow_the_switches():
    with ablation._backends(("packing", "attention")):
        assert ops._chosen["attention"] == "kernels" and ops._chosen["linear"] == "reference"
    assert not ops._chosen
    assert set(ablation.KERNELS) <= set(ablation.SWITCHES) and "resize" not in ablation.KERNELS


def test_a_switch_of_the_kernels_counts_where_it_is_held():
    """Each choice has launches of its own, and what was planned before is there again."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    from vilt_fast.kernels import launch, switches

    first, *_ = switches.SWITCHES
    on, off = choices.Choice([first]), choices.Choice([])
    before, seen = launch.plans, []
    launch.plans = {"before": 1}

    def call(name):
        seen.append((switches.is_on(first, "interpreter"), dict(launch.plans)))
        launch.plans[name] = 1

    try:
        for choice, name in ((on, "a"), (off, "b"), (on, "c")):
            choice.around(lambda name=name: call(name))()
        assert launch.plans == {"before": 1}
    finally:
        launch.plans = before
    assert seen == [(True, {}), (False, {}), (True, {"a": 1})]


def test_a_switch_needs_its_kernels_and_its_chip(run, monkeypatch):
    if not INSIDE:
        pytest.skip("needs Triton")
    monkeypatch.setattr(ablation, "_has_kernels", lambda device: True)
    name = next(name for name, switch in INSIDE.items() if "linear" in switch.operations)
    (_, packing, row) = ablation.run_ablation(run, ("packing", name))
    assert row.status == "not run: changes the kernels of linear, which are off"
    monkeypatch.setattr(choices, "available", lambda device: [])
    assert ablation._reason(name, run.device).startswith("not made for interpreter, but for sm")
