"""transformers' common test classes, with our classes in them: every test ends as tests/THEIRS.md says."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SUITES = ("Modelling", "ModellingOfTwoImages", "Configuration", "ImageProcessing", "Processing")
SUITES += ("ViTModelling", "ViTConfiguration", "VisualBertModelling", "VisualBertConfiguration")


@pytest.fixture(scope="module")
def theirs():
    """The modules of tests/theirs, which is found by path like all of tests/."""
    pytest.importorskip("transformers", reason="transformers' tests need transformers")
    names = ("distribution", "mount", "running", "table", "testers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1])
        yield SimpleNamespace(**{name: importlib.import_module(f"theirs.{name}") for name in names})


@pytest.fixture(scope="module")
def folder(theirs):
    try:
        return theirs.distribution.tests_folder()
    except theirs.distribution.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def cases(theirs, folder):
    classes = theirs.mount.ours()
    with theirs.mount.mounted(folder, classes) as importer:
        yield theirs.testers.suites(importer, classes)


@pytest.mark.parametrize("name", SUITES)
def test_each_of_their_tests_ends_as_the_table_says(name, theirs, cases):
    outcomes = theirs.running.run(cases[name])
    found = theirs.table.differences(theirs.table.read()[name], outcomes)
    assert not found, "\n".join([*found, "", "See `python tests/run_theirs.py --help`."])


def test_the_table_holds_no_failure_that_a_user_would_meet(theirs):
    suites = theirs.table.read()
    assert set(SUITES) <= suites.keys()
    rows = {f"{name}.{test}": row for name, suite in suites.items() for test, row in suite.rows.items()}
    failed = [f"{test}: {row.line}" for test, row in rows.items() if row.verdict == theirs.table.FAILED]
    assert not failed, "\n".join(failed)
    assert not [test for test, row in rows.items() if not row.why or row.verdict not in theirs.table.MEANINGS]


def test_a_change_of_any_kind_is_noticed(theirs):
    row = theirs.table.Row("refused", "ValueError: no", "we say so")
    suite = theirs.table.Suite("", ["test_a", "test_gone"], ["test_b"], {"test_c": row, "test_d": row})
    outcomes = {
        "test_a": theirs.running.Outcome("failed", "KeyError: 'x'"),
        "test_b": theirs.running.Outcome("passed"),
        "test_c": theirs.running.Outcome("passed"),
        "test_d": theirs.running.Outcome("failed", "KeyError: 'x'"),
        "test_new": theirs.running.Outcome("passed"),
    }
    found = theirs.table.differences(suite, outcomes)
    assert sorted(line.split(":")[0] for line in found) == sorted([*outcomes, "test_gone"])
    outcomes = {name: theirs.running.Outcome("passed") for name in suite.passed}
    outcomes["test_b"] = theirs.running.Outcome("skipped", "why")
    outcomes["test_c"] = outcomes["test_d"] = theirs.running.Outcome("failed", "ValueError: no")
    assert not theirs.table.differences(suite, outcomes)


def test_the_table_reads_back_and_keeps_a_verdict_while_the_test_ends_alike(theirs, tmp_path):
    outcome = theirs.running.Outcome
    outcomes = {
        "test_a": outcome("passed"),
        "test_b": outcome("skipped", "no GPU"),
        "test_c": outcome("failed", "E: 1"),
        "test_d": outcome("skipped", "no method"),
    }
    control = {**outcomes, "test_d": outcome("passed")}
    old = theirs.table.Suite(rows={"test_c": theirs.table.Row("refused", "E: 1", "because")})
    new = theirs.table.updated(old, "A note.", outcomes, control)
    assert new.rows["test_c"] == old.rows["test_c"]
    assert new.rows["test_d"].verdict == theirs.table.FAILED  # skipped on ours alone
    theirs.table.write({"Some": new}, tmp_path / "table.md")
    assert theirs.table.read(tmp_path / "table.md") == {"Some": new}
    changed = theirs.table.updated(new, "", {"test_c": outcome("failed", "E: 2")}, control)
    assert changed.rows["test_c"].verdict == theirs.table.FAILED


def test_nothing_is_left_when_their_tests_are_done(theirs, folder):
    import transformers

    from vilt_fast.models.base import PreTrainedModel

    lent = [name for name in theirs.mount.LENT["models.base.PreTrainedModel"] if not hasattr(PreTrainedModel, name)]
    path, original = list(sys.path), transformers.ViltModel
    with theirs.mount.mounted(folder, theirs.mount.ours()) as importer:
        importer("test_configuration_common")
        assert sys.modules["transformers"].ViltModel is not original
    assert sys.modules["transformers"].ViltModel is original
    assert sys.path == path
    assert not [name for name in sys.modules if name.startswith(theirs.mount.PACKAGE)]
    assert not [name for name in lent if hasattr(PreTrainedModel, name)]


def test_another_archive_is_refused(theirs, tmp_path):
    (tmp_path / "transformers-1.0.tar.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="got SHA-256"):
        theirs.distribution._check(tmp_path / "transformers-1.0.tar.gz", "0" * 64)
