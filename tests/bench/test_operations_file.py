"""The file for work on one kernel: every contestant is right, a wrong one is not timed, and its columns are whole."""

import pytest
import torch

from vilt_fast import ops

pytest.importorskip("pytest_benchmark", reason="bench/test_operations.py uses pytest-benchmark")
pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.bench import operations  # noqa: E402
from vilt_fast.bench import test_operations as bench  # noqa: E402

COLUMNS = {"commit", "device", "torch", "triton", "dtype", "shape", "launches", "error", "contestant"}
KERNELS = "vilt_fast kernels"
KINDS = {
    "linear": ["linear", "linear + residual", "linear + GELU", "linear + residual"],
    "layer_norm": ["layer_norm"],
    "attention": ["attention"],
    "dropout": ["dropout"],
    "text_embed": ["text_embed"],
    "patch_embed": ["patch_embed", "patch_embed, the product alone on ready patches"],
    "patch_sample": ["patch_sample", "patch_sample"],
    "resize": ["resize", "resize"],
}


@pytest.fixture
def fresh():
    """Cases of a test's own, where it changes what they compute."""
    bench.cases.cache_clear()
    yield
    bench.cases.cache_clear()


@pytest.mark.parametrize(("operation", "number", "name"), bench.PARAMETERS)
def test_every_contestant_is_right_and_its_columns_are_whole(benchmark, operation, number, name) -> None:
    bench.test_operation(benchmark, operation, number, name)
    columns = benchmark.extra_info
    assert set(columns) >= COLUMNS
    kind = bench.cases(operation, columns["device_type"])[number].operation
    assert (columns["contestant"], columns["workload"]) == (name, kind)
    assert columns["error"] <= columns["bound"] and kind in benchmark.group
    if benchmark.stats is not None:
        times = [columns[f"{name}_ms"] for name in ("p20", "median", "p80")]
        assert 0 < times[0] <= times[1] <= times[2]


@pytest.mark.parametrize("operation", KINDS)
def test_names_and_shapes_of_cases(operation) -> None:
    found = bench.cases(operation, "cpu")
    assert [case.operation for case in found] == KINDS[operation]
    assert len({(case.operation, case.shape) for case in found}) == len(found)
    words = {"layer_norm": "x 48", "text_embed": "words", "resize": "2 images", "patch_embed": "patches"}
    assert words.get(operation, "") in found[0].shape


def test_ids_say_operation_and_contestant() -> None:
    ids = [parameter.id for parameter in bench.PARAMETERS]
    assert len(set(ids)) == len(ids)
    assert {"linear + GELU, 2-torch", f"attention, 0-{KERNELS}", "resize, 0-Pillow"} <= set(ids)


def test_attention_has_both_peers_and_says_why_one_cannot_run(benchmark) -> None:
    names = list(bench.contestants(bench.cases("attention", "cpu")[0]))
    assert names[0] == KERNELS
    assert {"torch varlen_attn", "torch SDPA, unpacked, padded and packed again"} <= set(names)
    if not torch.cuda.is_available():
        with pytest.raises(pytest.skip.Exception, match="needs a GPU: varlen_attn"):
            bench.test_operation(benchmark, "attention", 0, "torch varlen_attn")
    benchmark(int)  # a benchmark fixture that is not used is a warning


def test_what_is_wrong_is_not_timed(benchmark, monkeypatch, fresh) -> None:
    right = ops.layer_norm
    monkeypatch.setattr(ops, "layer_norm", lambda x, *arguments: right(x, *arguments) + (x.dtype != torch.float64))
    with pytest.raises(AssertionError, match="not timed"):
        bench.test_operation(benchmark, "layer_norm", 0, KERNELS)
    benchmark(int)


def test_what_raises_fails(benchmark, monkeypatch, fresh) -> None:
    def broken(x, *arguments):
        raise RuntimeError("something broke")

    monkeypatch.setattr(ops, "layer_norm", broken)
    with pytest.raises(AssertionError, match="raised RuntimeError: something broke"):
        bench.test_operation(benchmark, "layer_norm", 0, KERNELS)
    benchmark(int)


def test_a_wrong_plan_is_not_timed(benchmark, monkeypatch, fresh) -> None:
    """One row that is off by one is enough."""
    right = ops.patch_sample

    def wrong(*arguments, **options):
        plan = right(*arguments, **options)
        plan.patch_row[-1] += 1
        return plan

    monkeypatch.setattr(ops, "patch_sample", wrong)
    monkeypatch.setattr(operations.OperationCase, "wanted", property(_right_plan))
    with pytest.raises(AssertionError, match="not timed"):
        bench.test_operation(benchmark, "patch_sample", 0, KERNELS)
    benchmark(int)


def _right_plan(case: operations.OperationCase) -> torch.Tensor:
    return case.peers["torch"](*case.sets[0])


@pytest.mark.parametrize("name", ["Pillow", "torch antialiased bicubic"])
def test_a_wrong_resize_is_not_timed(benchmark, monkeypatch, fresh, name) -> None:
    case, _ = bench.cases("resize", torch.device("cuda" if torch.cuda.is_available() else "cpu").type)
    right = case.peers[name]
    monkeypatch.setitem(case.peers, name, lambda *images: [255 - image for image in right(*images)])
    with pytest.raises(AssertionError, match="not timed"):
        bench.test_operation(benchmark, "resize", 0, name)
    benchmark(int)
