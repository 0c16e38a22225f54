"""tune: the table holds the fastest tile that gives the right bits, and launchers read it."""

import json

import pytest
import torch

import vilt_fast
from vilt_fast.bench import attention, layer_norm, verify, workloads
from vilt_fast.bench import linear as products
from vilt_fast.bench import tune as module
from vilt_fast.bench.case import Case
from vilt_fast.configs.vilt import ViltConfig

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.kernels import launch, linear  # noqa: E402

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2}


@pytest.fixture
def clock(monkeypatch, device):
    """A pretended clock: a call takes as long as the tile in force says, 100 where none is."""
    monkeypatch.setattr(attention, "TILES", attention.TILES[:2])
    monkeypatch.setattr(layer_norm, "TILES", layer_norm.TILES[:2])
    tiles = {kind: [tiles[0], tiles[1], tiles[-1]] for kind, tiles in products.FEW_ROWS.items()}
    monkeypatch.setattr(products, "FEW_ROWS", tiles)

    def measure(call) -> float:
        config = next(iter(launch._forced.values()), None)
        return 100.0 if config is None else config.get("BLOCK_K", 0) + config.get("BLOCK_N", 0) + config.get("ROWS", 0)

    return measure


def test_the_fastest_goes_into_a_table_that_launchers_read(clock, tmp_path) -> None:
    lines = []
    path = module.tune(**SIZES, batches=(1,), directory=tmp_path, measure=clock, report=lines.append)
    table = json.loads(path.read_text())
    entries = launch.read_table(path)
    assert table["triton"] == launch.triton.__version__ and len(entries) == len(lines) == 6
    linears = _linears(entries)
    shapes = [(entry["N"], entry["K"]) for entry in linears]
    assert shapes == [(96, 32), (32, 32), (64, 32), (32, 64)]
    for entry in linears:
        # 64 x 64 columns by 64 of K is the least of the three by this clock.
        assert (entry["config"]["BLOCK_N"], entry["config"]["BLOCK_K"], entry["bucket"]) == (64, 64, "tiny")
        assert entry["why"].startswith("128.0000 ms, 100.0000 before; 3 measured, 0 left out")
    others = {entry["op"]: entry["config"].get("ROWS") for entry in entries if entry not in linears}
    assert others == {"layer_norm": 1, "attention": None}


def test_the_switches_of_a_table_stay(clock, tmp_path) -> None:
    """Tiles are measured under them; tiles of before go."""
    switch, tile = {"op": "switches", "config": {"pdl": True}}, {"op": "layer_norm", "config": {"ROWS": 4}}
    path = module.write_table(tmp_path, [switch, tile], keeps=lambda entry: True)
    path = module.write_table(tmp_path, [{**tile, "N": 32}], keeps=lambda entry: entry["op"] == "switches")
    assert launch.read_table(path) == [{**tile, "N": 32}, switch]


def _linears(entries: list[dict]) -> list[dict]:
    return [entry for entry in entries if entry["op"].startswith("linear")]


def test_other_bits_are_left_out(clock, tmp_path, monkeypatch) -> None:
    """The tile that would have won is wrong in one bit, so another one goes into the table."""
    real = linear.linear

    def off_by_a_bit(x, *arguments, **options):
        out = real(x, *arguments, **options)
        wrong = next(iter(launch._forced.values()), {}).get("BLOCK_K") == 128
        return out.view(torch.int16).bitwise_xor(wrong).view(out.dtype)

    monkeypatch.setattr(linear, "linear", off_by_a_bit)
    path = module.tune(**SIZES, batches=(1,), directory=tmp_path, measure=lambda call: 1000 - clock(call), report=len)
    linears = _linears(launch.read_table(path))
    assert len(linears) == 4
    for entry in linears:
        assert entry["config"]["BLOCK_K"] == 64 and "3 measured, 1 left out" in entry["why"]


def test_bad_arguments(monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"batches: got \(0,\), wanted positive numbers"):
        module.tune(batches=(0,), measure=lambda call: 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="got no CUDA GPU"):
        module.tune()


def test_folded_norms_have_tiles_of_their_own(device, monkeypatch) -> None:
    """Where there are descriptors: any tile for a product of normalised rows, whole groups for moments."""
    config = ViltConfig(hidden_size=64, intermediate_size=128, num_attention_heads=2)
    batch = Case(workloads.vqa_mix(1), config, device)
    monkeypatch.setattr(launch, "family", lambda arch: "sm90")
    tasks = {(task.op, task.key["N"]): task for task in products.tasks([batch])}
    assert {name for name, _ in tasks} == {
        f"linear_descriptor{end}" for end in ("", "_residual", "_normed", "_moments")
    }
    assert len(tasks[("linear_descriptor_normed", 192)].candidates) == len(products.FEW_ROWS["descriptor"])
    for tile in tasks[("linear_descriptor_moments", 64)].candidates:
        assert tile["BLOCK_N"] // tile["SUBTILES"] % 64 == 0
    monkeypatch.undo()
    for case in products.cases(batch)[-4:]:
        for dtype in (torch.float32, torch.bfloat16):
            with vilt_fast.backend("kernels"):
                error = verify.error_of(lambda c=case, d=dtype: c.ours(*c.sets_in(d)[0]), case.wanted)
            assert error <= verify.OPERATION_BOUNDS[dtype], (case.operation, dtype)
