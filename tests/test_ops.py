"""The switch between kernels and reference."""

import pytest
import torch

import vilt_fast
from vilt_fast import ops


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which side `linear` and `layer_norm` were sent to, in order."""
    log: list[str] = []
    monkeypatch.setattr(ops, "_HAS_TRITON", True)
    monkeypatch.setattr(ops._linear, "linear", lambda *a, **k: log.append("linear reference"))
    monkeypatch.setattr(ops._layer_norm, "layer_norm", lambda *a, **k: log.append("layer_norm reference"))
    kernels = pytest.importorskip("vilt_fast.kernels.linear", reason="Triton is not installed here")
    norm = pytest.importorskip("vilt_fast.kernels.layer_norm", reason="Triton is not installed here")
    monkeypatch.setattr(kernels, "linear", lambda *a, **k: log.append("linear kernels"))
    monkeypatch.setattr(norm, "layer_norm", lambda *a, **k: log.append("layer_norm kernels"))
    return log


def _call() -> None:
    x = torch.ones(1, 1)
    ops.linear(x, x)
    ops.layer_norm(x, x, x, 1e-5)


def test_cpu_tensors_go_to_the_reference(sent: list[str]) -> None:
    _call()
    assert sent == ["linear reference", "layer_norm reference"]


def test_one_switch_for_all_and_one_each(sent: list[str]) -> None:
    with vilt_fast.backend("kernels"):
        _call()
        with vilt_fast.backend(linear="reference"):
            _call()
        _call()
    with vilt_fast.backend("kernels", layer_norm="reference"):
        _call()
    assert sent == [
        *("linear kernels", "layer_norm kernels"),
        *("linear reference", "layer_norm kernels"),
        *("linear kernels", "layer_norm kernels"),
        *("linear kernels", "layer_norm reference"),
    ]


def test_the_switch_is_set_back_after_an_error(sent: list[str]) -> None:
    with pytest.raises(KeyError), vilt_fast.backend("kernels"):
        raise KeyError
    _call()
    assert sent == ["linear reference", "layer_norm reference"]


@pytest.mark.parametrize(
    ("arguments", "operations", "word"),
    [(("cuda",), {}, "cuda"), ((), {"convolution": "kernels"}, "convolution"), ((), {"linear": "fast"}, "fast")],
)
def test_unknown_names(arguments: tuple, operations: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word), vilt_fast.backend(*arguments, **operations):
        pass


def test_kernels_without_triton_raise_and_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_HAS_TRITON", False)
    with vilt_fast.backend("kernels"), pytest.raises(RuntimeError, match=r'backend\("reference"\)'):
        _call()
