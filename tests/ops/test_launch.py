"""Configurations: which table answers, and what is said of one that is broken."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.kernels import launch, linear  # noqa: E402


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the tables of a pretended GPU and forgets what was looked up before and after."""

    def write(tuned: list[dict], shipped: list[dict]) -> None:
        for folder, name, entries in (("tuned", "some-gpu-triton-9.9.json", tuned), ("shipped", "sm90.json", shipped)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_text(json.dumps({"entries": entries}))
        launch.forget_configurations()

    monkeypatch.setattr(launch, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("VILT_FAST_CONFIGS", str(tmp_path / "tuned"))
    monkeypatch.setattr(launch.triton, "__version__", "9.9.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Some GPU")
    monkeypatch.setattr(launch, "_arch_of_device", lambda index: "sm90")
    yield write
    launch.forget_configurations()


def _ask(op: str = "linear_pointer", **changes) -> dict:
    sizes = {"arch": "sm90", "N": 768, "K": 3072, "rows": 226, "dtype": torch.bfloat16} | changes
    return launch.configuration(op, **sizes, heuristic=lambda **asked: {"asked": asked})


def test_first_match_wins_and_tuned_comes_first(tables) -> None:
    tables(
        tuned=[{"op": "linear_pointer", "N": 768, "bucket": "tiny", "config": {"from": "tuned"}}],
        shipped=[
            {"op": ["linear_pointer", "attention"], "dtype": ["float16", "bfloat16"], "config": {"from": "shipped"}},
            {"op": "linear_pointer", "config": {"from": "last"}},
        ],
    )
    assert _ask() == {"from": "tuned"}
    assert _ask(rows=600) == {"from": "shipped"}
    assert _ask(rows=600, dtype="tf32") == {"from": "last"}
    assert _ask("attention", N=5) == {"from": "shipped"}
    assert _ask(arch="sm80")["asked"]["arch"] == "sm80"  # neither table is about this chip
    asked = {"op": "third", "arch": "sm90", "N": 768, "K": 3072, "bucket": "large", "dtype": "bfloat16"}
    assert _ask("third", rows=30000) == {"asked": asked}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"entries": [{"op": "linear"}]}', '{"entries": [{"op": 3, "config": {}}]}']
)
def test_a_broken_table_is_named(text, tmp_path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json: got no table, wanted"):
        launch.read_table(path)


def test_size_classes() -> None:
    rows = (0, 1, 512, 513, 4096, 4097, 24576, 24577, 10**7)
    wanted = ["tiny"] * 3 + ["small"] * 2 + ["medium"] * 2 + ["large"] * 2
    assert [launch.size_bucket(n) for n in rows] == wanted


def test_families() -> None:
    families = {"sm80": "sm80", "sm86": "sm80", "sm89": "sm80", "sm90": "sm90", "sm100": "sm100", "sm103": "sm100"}
    families |= {"sm120": "sm80", "gfx942": "gfx942", "gfx950": "gfx942", "interpreter": "interpreter"}
    assert {arch: launch.family(arch) for arch in families} == families


def test_table_name() -> None:
    assert launch.table_name("NVIDIA H200", "3.6.0") == "nvidia-h200-triton-3.6.json"
    assert launch.table_name("NVIDIA A100-SXM4-80GB", "3.7.1+git") == "nvidia-a100-sxm4-80gb-triton-3.7.json"


def test_shipped_tables_hold_what_the_kernels_take() -> None:
    """Every entry of linear is a whole configuration, and no size class changes how K is added up."""
    paths = sorted(launch.SHIPPED.glob("*.json"))
    assert paths
    for path in paths:
        for entry in launch.read_table(path):
            assert entry["why"], path
            if "linear_descriptor" in entry["op"]:
                whole = linear.heuristic(op="linear_descriptor", arch="sm90", N=1, K=1, bucket="tiny", dtype="bfloat16")
                assert set(entry["config"]) == set(whole), (path, entry)


def test_fp32_follows_the_matmul_precision() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for precision, wanted in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(precision)
            assert launch.input_precision(torch.float32) == wanted
            assert launch.input_precision(torch.bfloat16) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


def test_next_power_of_2() -> None:
    assert [launch.next_power_of_2(n) for n in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]


def test_row_major_copies_only_what_kernels_cannot_address() -> None:
    x = torch.empty(4, 6, device="meta")
    for same in (x, x[::2], x[:, 1:3], x[:1].expand(4, 6), x[:, :1]):
        assert launch.row_major(same) is same
    for other in (x.t(), x[:, ::2], torch.empty(2, 2**23, device="meta")[:, :5]):
        assert launch.row_major(other).is_contiguous()
