"""Which switches a table turns on, from what was measured."""

import json
import re

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.bench import choices  # noqa: E402
from vilt_fast.bench.gpu_run import candidates, choose, facts, summary  # noqa: E402
from vilt_fast.kernels import launch, switches  # noqa: E402
from vilt_fast.kernels.switches import Switch  # noqa: E402

ROWS = {
    "exact": Switch(("linear",), ("sm90", "interpreter"), "", True, True),
    "other_bits": Switch(("attention",), ("sm90", "interpreter"), "", False),
    "embeds": Switch(("patch_embed",), ("sm90", "interpreter"), "", True),
}


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    monkeypatch.setattr(switches, "SWITCHES", ROWS)


def measured(switch: str, operation: str = "encoder", **milliseconds: float) -> list[dict]:
    """Facts by size class: 10 ms without the switch, and so many with it."""
    found = []
    for bucket, on in milliseconds.items():
        verdict = "same" if abs(on - 10) < 0.1 else "faster" if on < 10 else "slower"
        fact = {"step": "", "name": f"switch {switch}: {operation}", "value": 10 / on, "unit": "times"}
        times = {"verdict": verdict, "off_ms": 10.0, "on_ms": on}
        found.append({**fact, **times, "switch": switch, "operation": operation, "bucket": bucket})
    return found


def test_same_bits_by_size_class() -> None:
    (entry,) = choose.entries(measured("exact", tiny=9, small=10, large=11))
    assert (entry["op"], entry["bucket"], entry["config"]) == ("switches", ["tiny"], {"exact": True})
    assert "tiny 10 to 9 ms" in entry["why"]
    (entry,) = choose.entries(measured("exact", tiny=9, large=9.5))
    assert "bucket" not in entry
    assert choose.entries(measured("exact", tiny=10, large=11)) == []


def test_other_bits_for_all_sizes_or_none() -> None:
    (entry,) = choose.entries(measured("other_bits", tiny=10, large=9))
    assert "bucket" not in entry
    mixed = measured("other_bits", tiny=11, large=9)
    assert choose.entries(mixed) == []
    assert choose.undecided(mixed) == [
        "other_bits: off, it is slower for tiny, faster for large, and it is for all sizes or none"
    ]


def test_same_bits_for_all_sizes_or_none() -> None:
    """Whose launchers do not ask by size gets no entry with one, which would never be read."""
    (entry,) = choose.entries(measured("embeds", "patch_embed", tiny=10, large=9))
    assert "bucket" not in entry
    assert choose.entries(measured("embeds", "patch_embed", tiny=11, large=9)) == []


def test_chosen_measures_the_operations_of_what_was_chosen(monkeypatch, tmp_path) -> None:
    """Without a graph over them, those beside the encoder would not be measured at all."""
    entries = [{"op": "switches", "config": {"embeds": True, "exact": False}}, {"op": "linear", "config": {}}]
    monkeypatch.setattr(launch, "table_entries", lambda arch: entries)
    assert candidates.in_tables() == ["embeds"]
    monkeypatch.setenv(facts.FILE, str(tmp_path / "facts"))
    monkeypatch.setattr(candidates, "_encoder", lambda *_: None)
    assert candidates.main("table") == 0
    names = [fact["operation"] for fact in facts.read(tmp_path / "facts")]
    assert names and set(names) == {"patch_embed"}


def test_the_encoder_decides_where_there_is_one() -> None:
    assert choose.entries(measured("exact", large=10) + measured("exact", "linear", large=5)) == []
    assert len(choose.entries(measured("embeds", "patch_embed", large=9))) == 1
    both = measured("embeds", "patch_embed", large=9) + measured("embeds", "patch_embed", large=12)
    assert choose.entries(both) == [], "together they take longer"


def test_the_summary_shows_every_switch(tmp_path) -> None:
    found = measured("exact", tiny=8, large=11) + measured("other_bits", tiny=11, large=9)
    text = summary.text([], found, tmp_path)
    assert re.search(r"exact +encoder +1.250 faster +- +- +0.909 slower", text)
    assert "other_bits: off, it is slower for tiny" in text


def test_what_broke_stays_off() -> None:
    broken = {"step": "", "name": "switch exact: encoder B=1", "value": None, "unit": "", "failed": "bits differ"}
    found = [*measured("exact", large=9), broken]
    assert choose.entries(found) == [] and choose.undecided(found)[0].startswith("exact: off, it broke")


def test_the_table_is_one_that_kernels_take(tmp_path, monkeypatch, capsys) -> None:
    """Beside the tiles that are in it; a size class counts for launchers that ask by it, and for no others."""
    name = launch.table_name("interpreter", launch.triton.__version__)
    tile = {"op": "layer_norm", "config": {"ROWS": 2, "num_warps": 1}}
    stale = {"op": "switches", "config": {"embeds": True}}
    (tmp_path / name).write_text(json.dumps({"entries": [tile, stale]}))
    path = tmp_path / "facts.jsonl"
    lines = [*measured("exact", tiny=9, large=10), *measured("other_bits", tiny=9)]
    path.write_text("".join(json.dumps(fact) + "\n" for fact in lines) + '{"cut of')
    assert len(facts.read(path)) == 3
    assert choose.main(str(path), str(tmp_path)) == 0 and "2 entries in" in capsys.readouterr().out
    entries = launch.read_table(tmp_path / name)
    assert [entry["op"] for entry in entries] == ["switches", "switches", "layer_norm"]
    monkeypatch.setattr(launch, "table_entries", lambda arch: entries)
    assert switches.is_on("exact", "sm90", bucket="tiny") and not switches.is_on("exact", "sm90", bucket="large")
    assert not switches.is_on("exact", "sm90"), "who does not ask by size gets what holds for all sizes"
    assert switches.is_on("other_bits", "sm90") and not switches.is_on("embeds", "sm90")
    assert choices.switches() is ROWS
