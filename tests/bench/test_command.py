"""`vilt-fast bench` and `vilt-fast ablate` as a user types them."""

import json

import pytest

from vilt_fast.bench import results, suites
from vilt_fast.cli import main

pytest.importorskip("transformers", minversion="5.0", reason="transformers is a contestant")


def test_bench_files_what_it_prints(tmp_path, capsys):
    code = main(["bench", "--suite", "ops", "--quick", "--device", "cpu", "--batch", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert code == 0
    (path,) = tmp_path.glob("ops_*_quick.json")
    assert str(path) in printed and path.with_suffix(".csv").exists()
    rows = results.read(path)["rows"]
    assert {row["batch"] for row in rows} == {1}
    assert all(row["contestant"] in printed for row in rows)


def test_compare(tmp_path, capsys):
    row = {**dict.fromkeys(results.KEY, "x"), "status": "ok", "median_ms": 2.0, "p20_ms": 1.9, "p80_ms": 2.1}
    slow = {**row, "median_ms": 3.0, "p20_ms": 2.9, "p80_ms": 3.1}
    for name, content in (("a", row), ("b", slow)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": [content]}))
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert main(["bench", "--compare", a, a]) == 0
    assert main(["bench", "--compare", b, a]) == 0
    assert "1 faster" in capsys.readouterr().out
    assert main(["bench", "--compare", a, b]) == 2
    captured = capsys.readouterr()
    assert "slower" in captured.out and "1 regressions beyond noise" in captured.err


def test_a_wrong_answer_fails_the_command_after_filing(tmp_path, capsys, monkeypatch):
    from vilt_fast.bench import verify

    monkeypatch.setattr(verify, "relative_error", lambda got, wanted: 0.9)
    arguments = ["--quick", "--device", "cpu", "--batch", "1", "--out", str(tmp_path)]
    assert main(["bench", "--suite", "latency", *arguments]) == 2
    assert "wrong answers, not timed: transformers eager (vqa-mix)" in capsys.readouterr().err
    (path,) = tmp_path.glob("latency_*.json")
    assert not any(row["median_ms"] for row in results.read(path)["rows"])


def test_ablate(tmp_path, capsys):
    arguments = ["--only", "packing,uint8,attention", "--without", "attention", "--device", "cpu"]
    assert main(["ablate", "--quick", *arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "+ uint8" in printed and "+ attention" not in printed
    (path,) = tmp_path.glob("ablate_*_quick.json")
    assert [row["contestant"] for row in results.read(path)["rows"]] == ["padded reference", "+ packing", "+ uint8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--suite", "speed"], "invalid choice: 'speed'"),
        (["bench", "--device", "abacus"], "abacus"),
        (["bench", "--compare", "missing.json", "missing.json"], "missing.json"),
        (["ablate", "--only", "magic"], "got 'magic'"),
        (["ablate", "--without", "magic"], "got 'magic'"),
        (["ablate", "--only", "uint8"], "builds on packing"),
        (["ablate", "--only", ""], "switches: got ''"),
        (["ablate", "--plot", "."], "--plot: '.' is a directory"),
        (["ablate", "--plot", ""], "--plot: got '', wanted the name of a file"),
        (["ablate", "--plot", "nowhere/a.png"], "--plot: the directory of 'nowhere/a.png'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(suites, "Run", None)  # nothing is measured
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
