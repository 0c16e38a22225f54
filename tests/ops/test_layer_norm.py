"""layer_norm: the kernel beside the fp64 reference, for any width, with strides and at hard numbers."""

import pytest
import torch
from torch import Tensor

from vilt_fast.reference.layer_norm import layer_norm as reference

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.kernels import launch, linear, switches  # noqa: E402
from vilt_fast.kernels import layer_norm as kernel  # noqa: E402
from vilt_fast.kernels.shipped import empty  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _inputs(rows: int, d: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[Tensor]:
    g = torch.Generator(device).manual_seed(seed)
    x, weight, bias = (torch.randn(shape, generator=g, device=device) for shape in ((rows, d), (d,), (d,)))
    return [t.to(dtype) for t in (x * 3 + 1, weight, bias)]


def _check(tolerances, inputs: list[Tensor], eps: float) -> None:
    wanted = reference(*(t.double() for t in inputs), eps)
    tolerances.check("layer_norm", kernel.layer_norm(*inputs, eps), wanted, reference(*inputs, eps))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "d"), [(1, 768), (63, 16), (64, 100), (65, 769), (197, 768), (281, 192), (3, 4096), (2, 1)]
)
@pytest.mark.parametrize("eps", [1e-12, 1e-6])
def test_against_fp64(eps, rows, d, dtype, device, tolerances, poisoned) -> None:
    _check(tolerances, _inputs(rows, d, dtype, device, seed=d), eps)


def test_strided_rows(device, tolerances, poisoned) -> None:
    whole, weight, bias = _inputs(64, 256, torch.bfloat16, device)
    view = whole[1:52:3, 8:200]
    weight, bias = weight.repeat_interleave(2)[: 2 * 192 : 2], bias[:192]
    kept = view.clone()
    whole.fill_(float("nan"))
    view.copy_(kept)
    assert view.stride(0) == 3 * 256
    _check(tolerances, [view, weight, bias], 1e-6)
    columns_apart = kept.t().contiguous().t()
    assert torch.equal(
        kernel.layer_norm(columns_apart, weight, bias, 1e-6), kernel.layer_norm(kept, weight, bias, 1e-6)
    )


def test_large_mean_small_variance(device, tolerances) -> None:
    """What E[x^2] - E[x]^2 would lose: a mean a thousand times the deviation."""
    x, weight, bias = _inputs(65, 768, torch.float32, device)
    _check(tolerances, [x + 3000.0, weight, bias], 1e-12)


def test_a_row_does_not_depend_on_its_batch(device) -> None:
    x, weight, bias = _inputs(150, 768, torch.float32, device)
    batch = kernel.layer_norm(x, weight, bias, 1e-12)
    for start, stop in ((0, 1), (70, 135), (149, 150)):
        assert torch.equal(kernel.layer_norm(x[start:stop], weight, bias, 1e-12), batch[start:stop])


def test_nan_stays_in_its_row(device) -> None:
    x, weight, bias = _inputs(5, 64, torch.float32, device)
    x[2, 7] = float("nan")
    nans = kernel.layer_norm(x, weight, bias, 1e-6).isnan().all(dim=1)
    assert nans.tolist() == [False, False, True, False, False]
    assert not kernel.layer_norm(x, weight, bias, 1e-6)[[0, 1, 3, 4]].isnan().any()


def test_no_rows(device) -> None:
    assert kernel.layer_norm(*_inputs(0, 8, torch.float32, device), 1e-6).shape == (0, 8)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((2, 3, 4), (4,), (4,)), r"input: got shape \(2, 3, 4\), wanted \(rows, d\)"),
        (((2, 4), (5,), (4,)), r"weight: got shape \(5,\), wanted \(4,\)"),
        (((2, 4), (4,), (4, 1)), r"bias: got shape \(4, 1\), wanted \(4,\)"),
        (((2, 4097), (4097,), (4097,)), "got 4097 columns, wanted 1 to 4096"),
        (((2, 0), (0,), (0,)), "got 0 columns, wanted 1 to 4096"),
    ],
)
def test_bad_shapes(shapes, words) -> None:
    with pytest.raises(ValueError, match=words):
        kernel.layer_norm(*(torch.ones(shape) for shape in shapes), 1e-6)


def test_bad_dtypes() -> None:
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match="weight: got dtype torch.float64, wanted torch.float32"):
        kernel.layer_norm(x, x[0].double(), x[0], 1e-6)
    with pytest.raises(ValueError, match="input: got dtype torch.int64"):
        kernel.layer_norm(x.long(), x[0].long(), x[0].long(), 1e-6)


def test_registration(device) -> None:
    inputs = _inputs(5, 24, torch.float32, device)
    torch.library.opcheck(torch.ops.vilt_fast.layer_norm.default, (*inputs, 1e-6))
    compiled = torch.compile(lambda *t: kernel.layer_norm(*t, 1e-6), fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(*inputs), kernel.layer_norm(*inputs, 1e-6))
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match="no autograd formula"):
        kernel.layer_norm(*inputs, 1e-6).sum().backward()


@pytest.mark.parametrize("arch", ["sm90", "sm100"])
def test_programmatic_launch_by_its_switch(arch, monkeypatch) -> None:
    """Every kernel of a block but attention; without the switch none."""
    x, w, vector = empty("bf16", 226, 768), empty("bf16", 768, 768), empty("bf16", 768)
    wide = empty("fp32", 768)

    def launches() -> list[dict]:
        monkeypatch.setattr(launch, "recording", launch.Recording(arch, []))
        kernel._launch(x, vector, vector, 1e-6)
        linear._launch(x, w, vector, None, x)
        linear._launch(x[:, 1:], w[:, 1:], None, None, None)  # no descriptor describes this
        moments = kernel.row_moments(x)
        linear.linear_of_normed(x, moments, w, wide, wide, 1e-6)
        linear.linear_and_moments(x, w, vector, x)
        return [configuration for _, _, configuration in launch.recording.launches]

    plain = launches()
    assert len(plain) == 6 and not any("PDL" in config for config in plain)
    with switches.forced(pdl=True):
        assert launches() == [config | {"PDL": True, "launch_pdl": True} for config in plain]
        # The interpreter runs one kernel after the other.
        assert switches.with_pdl({"ROWS": 1}, "interpreter", N=64, bucket="tiny", dtype=torch.float16) == {"ROWS": 1}


# --- real sizes, on a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [192, 768, 1024, 1536, 4096])
def test_real_sizes(d, dtype, gpu, tolerances, poisoned) -> None:
    _check(tolerances, _inputs(13504, d, dtype, gpu), 1e-12)


@pytest.mark.gpu
def test_same_bits_in_every_batch(gpu) -> None:
    x, weight, bias = _inputs(53831, 768, torch.bfloat16, gpu)
    batch = kernel.layer_norm(x, weight, bias, 1e-12)
    for start, rows in ((0, 1), (57, 226), (53605, 226), (1000, 13504)):
        assert torch.equal(kernel.layer_norm(x[start : start + rows], weight, bias, 1e-12), batch[start : start + rows])


@pytest.mark.gpu
def test_cuda_graph(gpu) -> None:
    inputs = _inputs(226, 768, torch.bfloat16, gpu)
    wanted = kernel.layer_norm(*inputs, 1e-12)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel.layer_norm(*inputs, 1e-12)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, wanted)
