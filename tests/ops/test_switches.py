"""Which choice of a kernel counts: the block's, the environment's, a table's, none."""

import json
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.kernels import launch, switches  # noqa: E402


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Writes the shipped table of sm_90 anew."""
    monkeypatch.setattr(launch, "SHIPPED", tmp_path)

    def write(*entries: dict) -> None:
        (tmp_path / "sm90.json").write_text(json.dumps({"entries": list(entries)}))
        launch.forget_configurations()

    yield write
    launch.forget_configurations()


def test_what_counts_first(table, monkeypatch: pytest.MonkeyPatch) -> None:
    table()
    assert not any(switches.is_on(name, "sm90") for name in switches.SWITCHES)
    table({"op": "switches", "config": {"resident": True}})
    assert switches.is_on("resident", "sm90") and not switches.is_on("pdl", "sm90")
    monkeypatch.setenv(switches.VARIABLE, "-resident, pdl")
    assert not switches.is_on("resident", "sm90") and switches.is_on("pdl", "sm90")
    with switches.forced(resident=True, pdl=False):
        assert switches.is_on("resident", "sm90") and not switches.is_on("pdl", "sm90")
        with switches.forced(pdl=True):
            assert switches.is_on("pdl", "sm90")
        assert not switches.is_on("pdl", "sm90")
    assert switches.is_on("pdl", "sm90")


def test_a_size_class_of_its_own(table) -> None:
    table({"op": "switches", "bucket": ["large"], "config": {"span_list": True}})
    assert switches.is_on("span_list", "sm90", bucket="large") and not switches.is_on(
        "span_list", "sm90", bucket="tiny"
    )
    table({"op": "switches", "bucket": "large", "config": {"fold_norm": True}})
    with pytest.raises(ValueError, match="'fold_norm': its bits differ, so a table cannot choose it by size class"):
        switches.is_on("fold_norm", "sm90", bucket="large")


def test_what_is_wrong_is_refused(table, monkeypatch: pytest.MonkeyPatch) -> None:
    table({"op": "switches", "config": {"residnet": True}})
    with pytest.raises(ValueError, match="the table's entry of switches: got the switch 'residnet', wanted any of"):
        switches.is_on("resident", "sm90")
    table()
    with pytest.raises(ValueError, match="forced: got the switch 'warp', wanted any of"), switches.forced(warp=True):
        pass
    with switches.forced(pdl=True), pytest.raises(ValueError, match="'pdl': got a chip of sm80, wanted one of sm90"):
        switches.is_on("pdl", "sm80")
    monkeypatch.setenv(switches.VARIABLE, "resident,nothing")
    with pytest.raises(ValueError, match=r"\$VILT_FAST_SWITCHES: got the switch 'nothing'"):
        switches.is_on("resident", "sm90")
