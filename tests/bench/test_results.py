"""Result files, and what counts as a regression."""

import csv
import importlib.metadata
import json
import os
from functools import partial

import pytest
import torch

from vilt_fast.bench import ours, results
from vilt_fast.bench.contestant import Contestant
from vilt_fast.bench.environment import commit, environment, file_stem


@pytest.fixture
def rows(case, run):
    make = partial(ours.model_calls, dtype=torch.float32)
    both = [
        Contestant(f"vilt_fast {side}", torch.float32, partial(make, backend=side)) for side in ("reference", "kernels")
    ]
    return run.time("model", case, both)


def test_json_and_csv_hold_the_same_rows(rows, run, tmp_path):
    as_json, as_csv = results.write(rows, "model", run.environment, tmp_path / "new")
    content = results.read(as_json)
    assert content["environment"] == run.environment and len(content["rows"]) == 2
    with open(as_csv, newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    for line, row in zip(table, content["rows"], strict=True):
        assert line == {name: "" if value is None else str(value) for name, value in row.items()}
        assert row["commit"] == run.environment["commit"] and row["device"] and row["torch"] and row["shape"]
    assert content["rows"][1]["status"] == "not run: needs a GPU: Triton kernels"


def test_files_are_named_by_device_and_versions():
    found = {"device": "NVIDIA H200 (141 GB)", "torch": "2.11.0+cu128", "triton": "3.6.0", "mode": "full"}
    assert file_stem("ops", found) == "ops_h200-141-gb_torch-2.11.0_triton-3.6.0"
    assert file_stem("ops", {**found, "mode": "quick"}).endswith("_quick")


def test_environment_names_what_matters():
    found = environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["commit"] == "unknown" or len(found["commit"].split("+")[0]) == 12


def test_torch_is_named_as_it_names_itself(monkeypatch):
    """Wheels from PyPI have "2.11.0" as metadata and "2.11.0+cu130" inside."""
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.11.0")
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    found = environment(torch.device("cpu"))
    assert found["torch"] == "2.11.0+cu130" and found["triton"] == "2.11.0"
    assert "torch-2.11.0_" in file_stem("ops", found), "files of one release have one name"


def test_commit_can_be_named(monkeypatch):
    monkeypatch.setenv("VILT_FAST_COMMIT", "abc")
    assert commit() == "abc"


@pytest.mark.parametrize("content", ["", "[]", '{"suite": "x"}', "\x00", "[" * 100_000])
def test_not_a_result_file(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="not a result file"):
        results.read(path)


def test_a_pipe_is_no_result_file(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    for path in (tmp_path / "a.json", tmp_path):
        with pytest.raises(ValueError, match="not a result file: it is a directory, a pipe or a device"):
            results.read(path)


def line(**changes):
    row = dict.fromkeys(results.KEY, "x")
    return {**row, "status": "ok", "median_ms": 10.0, "p20_ms": 9.0, "p80_ms": 11.0, **changes}


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (line(median_ms=10.5, p20_ms=9.5, p80_ms=11.5), "same"),
        (line(median_ms=13.0, p20_ms=11.0, p80_ms=14.0), "same"),  # the intervals touch
        (line(median_ms=13.0, p20_ms=11.1, p80_ms=14.0), "slower"),
        (line(median_ms=8.0, p20_ms=7.0, p80_ms=8.9), "faster"),
        (line(median_ms=None, p20_ms=None, p80_ms=None, status="wrong: error"), "broke"),
    ],
)
def test_compare(after, verdict):
    (row,) = results.compare({"rows": [line()]}, {"rows": [after]})
    assert row["verdict"] == verdict
    assert row["ratio"] == (after["median_ms"] / 10 if after["median_ms"] else None)


def test_compare_rows_that_only_one_file_has():
    rows = results.compare({"rows": [line(batch=1)]}, {"rows": [line(batch=2)]})
    assert {(row["batch"], row["verdict"]) for row in rows} == {(1, "gone"), (2, "new")}


def test_the_shape_tells_two_cases_of_an_operation_apart():
    """Both products with a residual have the same name."""
    before = {
        "rows": [line(shape="8 x 768 -> 768"), line(shape="8 x 3072 -> 768", median_ms=40.0, p20_ms=39, p80_ms=41)]
    }
    rows = results.compare(before, before)
    assert [row["before_ms"] for row in rows] == [10.0, 40.0]


def test_files_survive_a_round_trip(rows, run, tmp_path):
    path, _ = results.write(rows, "model", run.environment, tmp_path)
    once = path.read_text()
    assert json.loads(once)["suite"] == "model" and not list(tmp_path.glob(".*"))
    assert {row["verdict"] for row in results.compare(results.read(path), results.read(path))} == {"same"}
