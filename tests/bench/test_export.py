"""The bench of exported forms: its workloads, who answers them, and what the report makes of the rows."""

import pytest
import torch

from vilt_fast.bench import export, report, suites, verify
from vilt_fast.bench.contestant import Unavailable

FP32 = torch.float32


def small(run: suites.Run, name: str = "export-mixed"):
    return run.case(export.WORKLOADS[name](2, seed=1), sets=1)


def test_full_is_the_padded_batch_of_mixed():
    mixed, full = export.mixed(8), export.full(8)
    heights, widths = zip(*mixed.sizes, strict=True)
    assert set(full.sizes) == {(max(heights), max(widths))} and set(full.lengths) == {max(mixed.lengths)}
    cells = max(heights) // 32 * (max(widths) // 32)
    assert full.tokens() == full.padded_tokens() == 8 * (max(mixed.lengths) + 1 + cells)
    assert mixed.tokens() < 0.7 * full.tokens()
    assert export.mixed(8) == mixed != export.mixed(8, seed=1)


@pytest.mark.slow
def test_one_program_answers_both(run):
    programs = []
    for name in export.WORKLOADS:
        case = small(run, name)
        with torch.inference_mode():
            (call,) = export.program_calls(case, FP32)
            assert verify.error_of(call, case.wanted) < 1e-5
            programs.append(export.program(case, FP32))
    assert programs[0] is programs[1]


@pytest.mark.slow
@pytest.mark.parametrize("make", [export.onnx_calls, export.inductor_calls])
def test_formats_are_right(make, run):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="pip install 'vilt_fast[export]'")
    case = small(run)
    with torch.inference_mode():
        (call,) = make(case, FP32)
        assert verify.error_of(call, case.wanted) < 1e-5


def test_a_missing_compiler_is_said(run, monkeypatch):
    monkeypatch.setattr(export.shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match="needs a C\\+\\+ compiler"):
        export.inductor_calls(small(run), FP32)


def test_the_report_says_what_padding_costs():
    row = {"suite": "export", "batch": 8, "dtype": "float32"}
    rows = []
    for workload, tokens, packed_ms in (("export-mixed", 60, 60.0), ("export-full", 100, 100.0)):
        for name, ms in (("vilt_fast live, reference", packed_ms), ("ONNX in onnxruntime", 80.0)):
            times = {"median_ms": ms, "p20_ms": ms - 1, "p80_ms": ms + 1, "times_first": packed_ms / ms}
            where = {"workload": workload, "contestant": name, "tokens": tokens, "pairs_per_s": 8e3 / ms}
            rows.append({**row, **where, **times})
    (part,) = report._exports(rows)
    assert "of 100 padded rows 60 are tokens" in part and "0.60 of them" in part
    onnx, live = part.splitlines()[-2:]
    assert onnx.endswith("| 80 | 79 to 81 | 80 | 79 to 81 | 1.00 | 0.75 | 1.25 |")
    assert live.endswith("| 60 | 59 to 61 | 100 | 99 to 101 | 0.60 | 1.00 | 1.00 |")
    assert report._exports(rows[:2]) == [] and report.plot_rows({"x": rows}) == []
