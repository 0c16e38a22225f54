"""`vilt-fast check`, `compile` and `tune`."""

import csv
import json

import pytest

from vilt_fast import cli, ops

pytest.importorskip("triton", reason="the kernels need Triton")

# Every name with a floor, and every operation whose result is integers.
OPERATIONS = {kind.split()[0] for name, operation in ops.OPERATIONS.items() for kind in operation.floors or [name]}


def test_check_runs_every_kernel_in_every_dtype(capsys) -> None:
    assert cli.main(["check", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["operation"].split()[0] for row in rows} == OPERATIONS
    assert OPERATIONS >= {"linear", "attention", "attention_rows", "patch_sample", "resize"}
    assert {row["dtype"] for row in rows} == {"float32", "float16", "bfloat16", "int32", "uint8"}
    assert all(row["passed"] and row["error"] <= row["bound"] for row in rows)
    assert all(row["error"] > 0 for row in rows if row["operation"] == "linear gelu")  # something was compared


def test_check_fails_on_a_kernel_that_is_wrong(capsys, monkeypatch) -> None:
    from vilt_fast.bench import check
    from vilt_fast.kernels import layer_norm

    right, cases = layer_norm.layer_norm, check._cases
    monkeypatch.setattr(layer_norm, "layer_norm", lambda *a: right(*a) * 1.01)
    some = ("layer_norm", "linear")  # the others take their time
    monkeypatch.setattr(check, "_cases", lambda batch: (c for c in cases(batch) if c[0].operation in some))
    monkeypatch.setattr(check, "switched_cases", lambda *_: ())
    assert cli.main(["check"]) == 2
    printed = capsys.readouterr()
    assert "FAIL" in printed.out
    assert "layer_norm float32" in printed.err and "linear" not in printed.err


def test_compile_prints_a_table_and_writes_rows(capsys, monkeypatch, tmp_path) -> None:
    from vilt_fast.bench import compile as compiler

    row = dict(
        target="sm90",
        kernel="k",
        config="c",
        registers=9,
        spill_bytes=0,
        shared_bytes=1,
        matrix_instructions="wgmma",
        matrix_shapes=[],
    )
    asked = []
    monkeypatch.setattr(compiler, "compile_all", lambda targets, **options: asked.append((targets, options)) or [row])
    assert cli.main(["compile", "--targets", "sm90,sm80", "--json", str(tmp_path / "rows.json")]) == 0
    assert asked == [(["sm90", "sm80"], {"counts": False})]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [key for key in row if key != "matrix_shapes"] and "wgmma" in printed[1]
    (written,) = json.loads((tmp_path / "rows.json").read_text())
    assert written == {key: value for key, value in row.items() if key != "matrix_shapes"}
    monkeypatch.setattr(compiler, "compile_all", lambda targets, **options: [{**row, "spill_bytes": 8}])
    assert cli.main(["compile"]) == 2
    assert "spill: sm90 k" in capsys.readouterr().err


def test_compile_counts_instructions(capsys, tmp_path) -> None:
    """One kernel, really compiled: its rows have registers, spills and what its loops are made of."""
    path = tmp_path / "counts.csv"
    arguments = ["--targets", "sm90", "--operations", "dropout", "--sass", "--csv", str(path)]
    assert cli.main(["compile", *arguments]) == 0
    rows = list(csv.DictReader(path.open()))
    assert rows and {row["target"] for row in rows} == {"sm90"} and "inner_matrix" in capsys.readouterr().out
    for row in rows:
        assert int(row["instructions"]) >= int(row["inner"]) + int(row["outer"]) > 0
        assert int(row["inner_global_load"]) + int(row["outer_global_load"]) > 0


def test_compile_of_an_unknown_target_is_bad_input(capsys) -> None:
    assert cli.main(["compile", "--targets", "sm12"]) == 2
    assert "sm12" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--csv", "/nonexistent/x.csv"), "--csv: the directory of '/nonexistent/x.csv' does not exist"),
        (("--json", "/tmp"), "--json: '/tmp' is a directory"),
        (("--operations", ""), "--operations: got '', wanted names"),
        (("--targets", "sm90,"), "--targets: got 'sm90,', wanted names"),
    ],
)
def test_compile_refuses_before_it_compiles(arguments, message, capsys, monkeypatch) -> None:
    from vilt_fast.bench import compile as compiler

    monkeypatch.setattr(compiler, "compile_all", lambda *_, **__: pytest.fail("compiles first"))
    assert cli.main(["compile", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_compile_keeps_what_is_not_its_own(option, tmp_path, capsys, monkeypatch) -> None:
    from vilt_fast.bench import compile as compiler

    monkeypatch.setattr(compiler, "compile_all", lambda *_, **__: [])
    path = tmp_path / "mine"
    for content in (b"\x89PNG\r\n", b'[{"name": 1}]', b"name,age\n", b"\xff\xd8"):
        path.write_bytes(content)
        assert cli.main(["compile", option, str(path)]) == 2
        said = capsys.readouterr().err
        assert f"{option}: {str(path)!r} exists and is no" in said and said.count("\n") == 1
        assert path.read_bytes() == content
    assert cli.main(["compile", "--json", str(tmp_path / "new"), "--csv", str(tmp_path / "new")]) == 2
    assert "wanted two names" in capsys.readouterr().err


def test_compile_replaces_its_own(tmp_path, capsys, monkeypatch) -> None:
    from vilt_fast.bench import compile as compiler

    names = ["target", "kernel", "config", "registers", "spill_bytes", "shared_bytes", "matrix_instructions"]
    for rows in ([], [dict.fromkeys(names, 0)], []):
        monkeypatch.setattr(compiler, "compile_all", lambda *_, rows=rows, **__: rows)
        assert cli.main(["compile", "--json", str(tmp_path / "a"), "--csv", str(tmp_path / "b")]) == 0
        assert json.loads((tmp_path / "a").read_text()) == rows
        assert len((tmp_path / "b").read_text().splitlines()) == 1 + len(rows)


@pytest.mark.parametrize("command", ["tune", "bench"])
def test_a_directory_that_is_a_file_is_refused_before_anything_is_timed(command, tmp_path, capsys) -> None:
    (tmp_path / "photo.jpg").touch()
    assert cli.main([command, "--out", str(tmp_path / "photo.jpg")]) == 2
    assert "photo.jpg is a file, wanted a directory" in capsys.readouterr().err


def test_compile_takes_a_name_once(capsys, monkeypatch) -> None:
    from vilt_fast.bench import compile as compiler

    asked = []
    monkeypatch.setattr(compiler, "compile_all", lambda targets, **options: asked.append((targets, options)) or [])
    cli.main(["compile", "--targets", "sm90, sm90", "--operations", "linear,linear"])
    assert asked == [(["sm90"], {"counts": False, "operations": ["linear"]})]


def test_check_looks_at_the_switches_first(capsys, monkeypatch) -> None:
    monkeypatch.setenv("VILT_FAST_SWITCHES", "residential")
    assert cli.main(["check"]) == 2
    printed = capsys.readouterr()
    assert "got the switch 'residential'" in printed.err and "linear" not in printed.out


def test_tune_without_a_gpu_says_so(capsys, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["tune"]) == 2
    assert "GPU" in capsys.readouterr().err
