"""The switch between kernels and reference."""

import os
import subprocess
import sys

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


def test_compilation_traces_through_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides, in one graph; fullgraph=True raises where tracing stops."""
    kernels = pytest.importorskip("vilt_fast.kernels.linear", reason="Triton is not installed here")
    monkeypatch.setattr(kernels, "linear", lambda input, weight, bias, **options: input @ weight.T + 1)
    compiled = torch.compile(lambda x: ops.linear(x, x), backend="eager", fullgraph=True)
    x = torch.eye(3)
    assert torch.equal(compiled(x), x)
    with vilt_fast.backend("kernels"):
        assert torch.equal(compiled(x), x + 1)
    assert torch.equal(compiled(x), x)


def test_compilation_imports_the_kernels_that_it_meets(tmp_path) -> None:
    """In a fresh process, where nothing imported them before the trace."""
    pytest.importorskip("triton", reason="Triton is not installed here")
    code = """
import sys, torch, vilt_fast
from vilt_fast import ops

compiled = torch.compile(lambda x: ops.layer_norm(x, x[0], x[0], 1e-6), backend="eager", fullgraph=True)
try:
    with vilt_fast.backend("kernels"):
        compiled(torch.ones(2, 2))
except Exception as error:
    print(error)
print("vilt_fast.kernels.layer_norm" in sys.modules, "vilt_fast.kernels.linear" in sys.modules)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("True False\n") and "marked as skipped" not in done.stdout, done.stdout + done.stderr
