"""Which choice of a kernel counts: the block's, the environment's, a table's, none."""

import json
import re
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
    table({"op": "switches", "N": [64, 32], "config": {"resident": True}})
    assert switches.is_on("resident", "sm90", N=64) and not switches.is_on("resident", "sm90", N=80)
    assert not switches.is_on("resident", "sm90")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"config": {"residnet": True}}, "got the switch 'residnet', wanted any of pdl"),
        ({"op": ["switches", "attention"]}, "op: got ['switches', 'attention'], wanted \"switches\" alone"),
        ({"op": ["switches"]}, "op: got ['switches'], wanted \"switches\" alone"),
        ({"op": "switch"}, "op: got 'switch', wanted any of switches, linear_pointer"),
        ({"bucket": "large"}, "switch 'resident': got the key 'bucket', wanted N, dtype: it is not chosen by more"),
        (
            {"bucket": "large", "config": {"shared_bytes": True}},
            "switch 'shared_bytes': got the key 'bucket', wanted N, K, dtype",
        ),
        ({"N": 768, "config": {"fold_norm": True}}, "switch 'fold_norm': got the key 'N', wanted none"),
        ({"head_dim": 999}, "got the key 'head_dim', wanted any of op, bucket, dtype, N, K, config, why"),
        ({"buckets": ["tiny"]}, "got the key 'buckets'"),
        ({"bucket": ["tinny"]}, "bucket: got 'tinny', wanted any of tiny, small, medium, large"),
        ({"op": "layer_norm", "dtype": "bf16"}, "dtype: got 'bf16', wanted any of float16"),
        ({"op": "layer_norm", "N": "768"}, "N: got '768', wanted an integer"),
        ({"config": {"resident": "no"}}, "switch 'resident': got 'no', wanted true or false"),
    ],
)
def test_a_table_that_would_be_ignored(table, entry, words) -> None:
    table({"op": "layer_norm", "config": {}}, {"op": "switches", "config": {"resident": True}, **entry})
    with pytest.raises(ValueError, match=rf"sm90\.json: entry 1: .*{re.escape(words)}"):
        switches.is_on("pdl", "sm90")
    table()
    assert not switches.is_on("pdl", "sm90")


def test_a_folder_of_tables_that_is_not_there(table, monkeypatch, tmp_path) -> None:
    table()
    monkeypatch.setenv("VILT_FAST_CONFIGS", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"\$VILT_FAST_CONFIGS: got .*none, wanted a folder: make it, or leave"):
        switches.is_on("pdl", "sm90")


def test_what_is_wrong_is_refused(table, monkeypatch: pytest.MonkeyPatch) -> None:
    table()
    with pytest.raises(ValueError, match="forced: got the switch 'warp', wanted any of"), switches.forced(warp=True):
        pass
    with switches.forced(pdl=True), pytest.raises(ValueError, match="'pdl': got a chip of sm80, wanted one of sm90"):
        switches.is_on("pdl", "sm80")
    monkeypatch.setenv(switches.VARIABLE, "resident,nothing")
    with pytest.raises(ValueError, match=r"\$VILT_FAST_SWITCHES: got the switch 'nothing'"):
        switches.is_on("resident", "sm90")
    monkeypatch.setenv(switches.VARIABLE, "resident,-")
    with pytest.raises(ValueError, match=r"\$VILT_FAST_SWITCHES: got the switch '-'"):
        switches.is_on("resident", "sm90")
