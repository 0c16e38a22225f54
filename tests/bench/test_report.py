"""The README's section and the plots are those of the committed result files."""

import json
from pathlib import Path

import pytest

from vilt_fast.bench import plots, report, results

ROOT = Path(__file__).resolve().parents[2]


def test_readme_and_plots_match_the_committed_results():
    if not (ROOT / "README.md").exists():
        pytest.skip("not a checkout")
    assert report.check(ROOT) == [], "run `make report` and commit what it writes"


def line(contestant, median, **changes):
    row = {
        "suite": "model", "workload": "vqa-mix", "scope": "model", "contestant": contestant, "dtype": "bfloat16",
        "is_ours": contestant.startswith("vilt_fast"), "batch": 64, "tokens": 13504, "padded_tokens": 26000,
        "shape": "64 x 1 pictures", "status": "ok", "error": 8e-3, "bound": 5e-2, "median_ms": median,
        "p20_ms": 0.98 * median, "p80_ms": 1.02 * median, "samples": 20, "pairs_per_s": 64e3 / median,
        "tokens_per_s": 13504e3 / median, "tflops": 2500 / median, "gbps": 900 / median, "matmul_share": 2.5 / median,
        "copy_share": 0.2 / median, "peak_mib": 900.0, "note": "", "model": "12 x 768, patch 32", "commit": "0" * 12,
        "device": "NVIDIA Test", "device_type": "cuda", "torch": "2.11.0", "triton": "3.6.0", "transformers": "5.17.0",
        "launches": "included", "threads": "8", "mode": "full",
    }  # fmt: skip
    return {**row, **changes}


def some_rows():
    failed = {"median_ms": None, "p20_ms": None, "pairs_per_s": None, "error": None, "status": "not run: needs a GPU"}
    rows = [line("transformers eager", 58.0), line("vilt_fast kernels", 6.0)]
    rows += [line("transformers eager", 50.0, workload="extreme"), line("vilt_fast kernels", 4.0, workload="extreme")]
    # A loss: the peer's encoder is faster than ours at one pair.
    rows += [line(name, ms, scope="encoder", batch=1, suite="latency", tokens=220) for name, ms in
             (("packed varlen_attn", 0.6), ("vilt_fast kernels", 0.7))]  # fmt: skip
    rows += [line("torch", 0.3, suite="ops", scope="operation", workload="linear")]
    for place, (name, ms) in enumerate((("padded reference", 80.0), ("+ packing", 30.0), ("+ attention", 32.0))):
        rows.append(line(name, ms, suite="ablate", note="what it does" if place else ""))
    rows.append(line("+ graphs", 1.0, suite="ablate", **failed))
    rows += [line(name, ms, suite="vit", workload="vit-mixed", times_first=times) for name, ms, times in
             (("transformers eager", 70.0, 1.0), ("vilt_fast frozen", 25.0, 2.75))]  # fmt: skip
    rows += [line(name, ms, suite="visual_bert", workload="visual-bert-mixed", times_first=times, dtype=dtype)
             for dtype in ("float16", "bfloat16") for name, ms, times in
             (("transformers eager", 70.0, 1.0), ("vilt_fast frozen", 20.0, 3.5))]  # fmt: skip
    for patches, each in ((16, 1.0), (144, 0.9), (1025, 1.8)):
        tokens = 27 * patches
        rows.append(line("vilt_fast kernels", each * tokens / 1e3, suite="scaling", workload=f"patches-{patches}",
                         tokens=tokens, batch=16))  # fmt: skip
    return rows


@pytest.fixture
def checkout(tmp_path):
    """A README with markers and one GPU result file."""
    (tmp_path / "README.md").write_text(f"# x\n\n{report.START}\nwhat stood here before\n{report.END}\n\nend\n")
    folder = tmp_path / report.RESULTS
    folder.mkdir(parents=True)
    content = {"suite": "all", "environment": {"device": "NVIDIA Test", "mode": "full"}, "rows": some_rows()}
    (folder / "all_test.json").write_text(json.dumps(content))
    quick = {"suite": "all", "environment": {"device": "NVIDIA Test", "mode": "quick"}, "rows": [line("quick", 1.0)]}
    (folder / "all_test_quick.json").write_text(json.dumps(quick))
    return tmp_path


def test_section_holds_wins_and_losses(checkout):
    text = report.section(report.load(checkout))
    assert report.NOT_MEASURED not in text
    assert "| 64 | **vilt_fast kernels** | bfloat16 | 6 | 5.88 to 6.12 | 1.067e+04 | 9.67 | 42 % | 8e-03 |" in text
    assert "quick" not in text
    loss = text.split("Where a peer is faster than we are:")[1]
    assert "packed varlen_attn 0.6 ms, vilt_fast kernels 0.7 ms" in loss and loss.count("\n- ") == 1
    assert "| + attention | 32 | 0.94 | 8e-03 | what it does |" in text
    assert "| + graphs |  |  |  | not run: needs a GPU |" in text
    assert "2.00 times as much a token in patches-1025 at B=16 as in patches-144 at B=16" in text
    assert "| vit-mixed | 64 | **vilt_fast frozen** | bfloat16 | 25 | 24.5 to 25.5 | 2.56e+03 | 2.75 |" in text
    for dtype in ("float16", "bfloat16"):
        frozen = f"| visual-bert-mixed | 64 | **vilt_fast frozen** | {dtype} | 20 | 19.6 to 20.4 | 3.2e+03 | 3.50 |"
        assert frozen in text
    assert "| extreme | 64 | bfloat16 | vilt_fast kernels | 4 | transformers eager | 50 |" in text


def test_without_gpu_results_it_says_so():
    assert f"On a GPU: {report.NOT_MEASURED}" in report.section({})
    cpu = [line("vilt_fast reference", 500.0, device_type="cpu")]
    text = report.section({"Some CPU": cpu})
    assert f"On a GPU: {report.NOT_MEASURED}" in text and "Some CPU" in text and "8 threads" in text


def test_what_does_not_match_is_found(checkout):
    pytest.importorskip("matplotlib", reason="draws the plots")
    assert report.check(checkout), "the old section is not of these rows"
    assert report.main([], root=checkout) == 0
    assert report.check(checkout) == [] and report.main(["--check"], root=checkout) == 0
    drawn = {path.stem for path in (checkout / report.RESULTS).glob("*.png")}
    assert drawn == set(plots.PLOTS)
    text = (checkout / "README.md").read_text()
    assert text.startswith("# x\n") and text.endswith("\n\nend\n") and "stood here" not in text

    path = checkout / report.RESULTS / "all_test.json"
    content = results.read(path)
    content["rows"][1]["median_ms"] = 5.0
    path.write_text(json.dumps(content))
    wrong = report.check(checkout)
    assert len(wrong) == len(plots.PLOTS) + 1 and report.main(["--check"], root=checkout) == 1


@pytest.mark.parametrize("suite", report.FAMILIES)
def test_no_plot_is_of_another_family(suite, checkout):
    by_device = report.load(checkout)
    assert any(row["suite"] == suite for rows in by_device.values() for row in rows)
    assert not any(row["suite"] == suite for row in report.plot_rows(by_device))


def test_a_missing_marker_is_an_error():
    with pytest.raises(ValueError, match="must both be there"):
        report.replaced("no markers", "text")


@pytest.mark.parametrize("name", plots.PLOTS)
def test_nothing_to_draw(name, tmp_path):
    assert plots.PLOTS[name]([], tmp_path / "a.png") is False
    assert not list(tmp_path.iterdir())


def test_colours_differ_in_grey():
    """Eight curves differ in colour, and without colour in marker and dash."""
    styles = [plots._style(index) for index in range(8)]
    assert len({style["color"] for style in styles}) == 8
    assert len({(style["marker"], style["linestyle"]) for style in styles}) == 8
    assert len({style["linestyle"] for style in styles}) == 4


def test_growth_ignores_noise():
    def row(tokens, median, low, high):
        return line("x", median, suite="scaling", workload="patches-1", tokens=tokens, batch=1, p20_ms=low, p80_ms=high)

    assert report.growth([row(100, 1.0, 0.9, 1.1), row(200, 4.0, 3.9, 4.1)])
    assert not report.growth([row(100, 1.0, 0.9, 2.5), row(200, 4.0, 3.9, 4.1)])
    assert not report.growth([row(100, 1.0, 0.9, 1.1), row(200, 2.1, 2.0, 2.2)])
