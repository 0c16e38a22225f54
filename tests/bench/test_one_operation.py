"""The files for work on one kernel: they verify before they time, and their columns are whole."""

import pytest
import torch

from vilt_fast import ops

pytest.importorskip("pytest_benchmark", reason="the bench files of single operations use pytest-benchmark")
pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.bench import layer_norm, linear, one_operation, resize  # noqa: E402

COLUMNS = {"commit", "device", "torch", "triton", "dtype", "shape", "launches", "error", "contestant"}


@pytest.mark.parametrize("contestant", one_operation.CONTESTANTS)
def test_linear(benchmark, contestant) -> None:
    linear.test_linear(benchmark, "up + GELU", contestant)
    assert set(benchmark.extra_info) >= COLUMNS
    if benchmark.stats is not None:
        times = [benchmark.extra_info[f"{name}_ms"] for name in ("p20", "median", "p80")]
        assert 0 < times[0] <= times[1] <= times[2]


def test_layer_norm(benchmark) -> None:
    layer_norm.test_layer_norm(benchmark, "vilt_fast")
    assert benchmark.extra_info["shape"].endswith("x 768" if torch.cuda.is_available() else "x 48")


def test_what_is_wrong_is_not_timed(benchmark, monkeypatch) -> None:
    right = ops.layer_norm
    monkeypatch.setattr(ops, "layer_norm", lambda x, *arguments: right(x, *arguments) + (x.dtype != torch.float64))
    with pytest.raises(AssertionError, match="not timed"):
        layer_norm.test_layer_norm(benchmark, "vilt_fast")
    benchmark(int)  # a benchmark fixture that is not used is a warning


@pytest.mark.parametrize("product", range(len(linear.PRODUCTS)))
def test_names_of_products_fit_the_cases(product) -> None:
    case = one_operation.find("linear", product, torch.device("cpu"))
    words = linear.PRODUCTS[product]
    assert ("residual" in words, "GELU" in words) == ("residual" in case.operation, "GELU" in case.operation)


@pytest.mark.parametrize("contestant", resize.CONTESTANTS)
def test_resize(benchmark, contestant) -> None:
    resize.test_resize(benchmark, contestant)
    assert "2 pictures" in benchmark.group or torch.cuda.is_available()


def test_a_wrong_resize_is_not_timed(benchmark, monkeypatch) -> None:
    monkeypatch.setitem(resize.CONTESTANTS, "Pillow", (lambda p, s: [255 - x for x in resize._pillow(p, s)], 0))
    with pytest.raises(AssertionError, match="not timed"):
        resize.test_resize(benchmark, "Pillow")
    benchmark(int)
