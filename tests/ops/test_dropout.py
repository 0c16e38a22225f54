"""dropout: the kernel beside the reference, bit for bit, forwards and backwards."""

import math

import pytest
import torch
from torch import Tensor

import vilt_fast
from vilt_fast import ops
from vilt_fast.reference.dropout import dropout as reference
from vilt_fast.reference.philox import MASK32, philox4x32

triton = pytest.importorskip("triton", reason="the kernels need Triton")
tl = pytest.importorskip("triton.language")
from vilt_fast.kernels import dropout as kernel  # noqa: E402
from vilt_fast.kernels import launch  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SEEDS = (0, 1, 12345678901234567, 2**63 - 1)


def _input(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of all magnitudes, so that some products are subnormal and some infinite in fp16."""
    g = torch.Generator(device).manual_seed(0)
    x = torch.randn(shape, generator=g, device=device) * 2.0 ** torch.randint(
        -20, 17, shape, generator=g, device=device
    )
    return x.to(dtype)


def _seed(value: int, device: torch.device) -> Tensor:
    return torch.tensor(value, device=device)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def _check(input: Tensor, p: float, seed: Tensor) -> None:
    got, wanted = kernel.dropout(input, p, seed), reference(input, p, seed)
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    assert torch.equal(_bits(got), _bits(wanted))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [0, 1, 63, 64, 65, 1000, 2 * kernel.BLOCK, 2 * kernel.BLOCK + 3])
def test_against_reference(numel, dtype, device, poisoned) -> None:
    input = _input(numel, dtype=dtype, device=device)
    for seed, p in zip(SEEDS, (0.1, 0.5, 0.999, 1e-6), strict=True):
        _check(input, p, _seed(seed, device))


@pytest.mark.parametrize("p", [0.0, 2.0**-33, 1 - 2.0**-40, 1.0, 0, 1])
def test_ends_of_the_range(p, device, poisoned) -> None:
    input = _input(7, 13, dtype=torch.float32, device=device)
    _check(input, p, _seed(3, device))
    kept = int((kernel.dropout(input, p, _seed(3, device)) != 0).sum())
    assert kept == (91 if p < 0.5 else 0)


def test_strided(device, poisoned) -> None:
    """The mask goes by the place in the tensor, not in memory."""
    whole, seed = _input(6, 10, 9, dtype=torch.bfloat16, device=device), _seed(9, device)
    for view in (
        whole.transpose(0, 2),
        whole[1::2, 3:],
        whole[:, :, :1].expand(6, 10, 4),
        whole[2, 3, 4],
        whole[0, 0, 1:],
    ):
        _check(view, 0.3, seed)
    _check(torch._neg_view(whole), 0.3, seed)


def test_nan_and_infinity(device, poisoned) -> None:
    seed = _seed(2, device)
    kept = reference(torch.ones(64, device=device), 0.5, seed) != 0
    for bad in (math.nan, math.inf, -math.inf):
        for dtype in DTYPES:
            got = kernel.dropout(torch.full((64,), bad, dtype=dtype, device=device), 0.5, seed)
            wanted = torch.where(kept, bad, 0.0).to(dtype)
            torch.testing.assert_close(got, wanted, equal_nan=True, rtol=0, atol=0)


@triton.jit
def _keep_kernel(out_ptr, counter_ptr, seed: tl.int64, threshold: tl.int64, BLOCK: tl.constexpr):
    keep = kernel.keep_mask(seed, tl.load(counter_ptr + tl.arange(0, BLOCK)), threshold)
    tl.store(out_ptr + tl.arange(0, 4 * BLOCK), keep.to(tl.int32))


def test_counters_of_64_bits(device) -> None:
    """What no tensor here is large enough for: elements from 4 * 2^32 on."""
    g = torch.Generator(device).manual_seed(1)
    counter = torch.randint(2**62, (64,), generator=g, device=device)
    counter[:4] = torch.tensor([2**32 - 1, 2**32, 2**32 + 1, 2**34])
    keep = torch.empty(256, dtype=torch.int32, device=device)
    _keep_kernel[(1,)](keep, counter, SEEDS[2], 2**31, BLOCK=64)
    words = philox4x32((counter & MASK32, counter >> 32, 0, 0), (SEEDS[2] & MASK32, SEEDS[2] >> 32))
    assert torch.equal(keep != 0, torch.stack(words, 1).flatten() >= 2**31)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient(dtype, device, poisoned) -> None:
    """The kernel on the gradient, with the same seed: bit for bit the gradient of the reference."""
    seed, p = _seed(6, device), 0.3
    input = _input(5, 33, dtype=dtype, device=device).requires_grad_()
    gradient = _input(33, 5, dtype=dtype, device=device).t()
    got, wanted = (
        torch.autograd.grad(side(input, p, seed), input, gradient)[0] for side in (kernel.dropout, reference)
    )
    assert torch.equal(_bits(got), _bits(wanted))
    ones = torch.ones_like(input)
    (got,) = torch.autograd.grad(kernel.dropout(input, p, seed).sum(), input)  # of a gradient with strides of 0
    assert torch.equal(got, reference(ones, p, seed))


def test_second_gradient(device) -> None:
    seed = _seed(6, device)
    input = torch.randn(20, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(kernel.dropout(input, 0.3, seed).square().sum(), input, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), input)
    scale = reference(torch.ones(20, device=device), 0.3, seed)
    torch.testing.assert_close(second, 2 * scale.square())


def test_a_seed_that_changed_before_the_backward_pass_is_an_error(device) -> None:
    seed = _seed(6, device)
    out = kernel.dropout(torch.randn(20, device=device, requires_grad=True), 0.3, seed)
    seed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_registration(device) -> None:
    seed, p = _seed(6, device), 0.3
    for input in (torch.randn(5, 24, device=device, requires_grad=True), torch.randn(24, 5, device=device).t()):
        torch.library.opcheck(torch.ops.vilt_fast.dropout.default, (input, p, seed))
    compiled = torch.compile(kernel.dropout, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows, p in ((3, 0.1), (4, 0.2), (5, 0.0)):
        input = torch.randn(rows, 24, device=device, requires_grad=True)
        out, wanted = compiled(input * 1, p, seed), reference(input, p, seed)
        assert torch.equal(out, wanted)
        assert torch.equal(*(torch.autograd.grad(one.sum(), input)[0] for one in (out, wanted)))


def test_direct_launches_give_the_same(device) -> None:
    """Past torch.library, where nothing wants a gradient, as through it."""
    input, seed = torch.randn(5, 24, device=device), _seed(6, device)
    with torch.no_grad():
        assert launch.is_direct(input, seed)
        direct = kernel.dropout(input, 0.3, seed)
    assert torch.equal(direct, torch.ops.vilt_fast.dropout(input, 0.3, seed))
    with vilt_fast.backend(dropout="kernels"):
        assert torch.equal(direct, ops.dropout(input, 0.3, seed))


def test_bad_arguments() -> None:
    x, seed = torch.ones(2, 4), torch.tensor(0)
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"dropout: p: got {p}, wanted 0 <= p <= 1"):
            kernel.dropout(x, p, seed)
    for dtype in (torch.float64, torch.int64):
        with pytest.raises(ValueError, match=f"input: got dtype {dtype}, wanted torch.float32 or"):
            kernel.dropout(x.to(dtype), 0.1, seed)
    with pytest.raises(ValueError, match=r"seed: got shape \(1,\), wanted \(\)"):
        kernel.dropout(x, 0.1, seed[None])
    with pytest.raises(ValueError, match=r"seed: got dtype torch.int32, wanted torch.int64"):
        kernel.dropout(x, 0.1, seed.int())
    with pytest.raises(ValueError, match="got tensors on cpu, meta, wanted one device"):
        kernel.dropout(x, 0.1, seed.to("meta"))


# --- real sizes, on a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_real_sizes(dtype, gpu, poisoned) -> None:
    input = _input(13504, 3072, dtype=dtype, device=gpu)
    for view in (input, input.flatten()[1:]):  # whose addresses are no multiples of 16
        _check(view, 0.1, _seed(SEEDS[2], gpu))


@pytest.mark.gpu
@pytest.mark.parametrize("numel", [2**31 + 1000, 2**34 + 1000])
def test_large_offsets(numel, gpu) -> None:
    if torch.cuda.mem_get_info()[0] < 4 * numel + 2**30:
        pytest.skip(f"needs {4 * numel / 2**30:.0f} GiB of free memory")
    out = kernel.dropout(torch.ones(numel, dtype=torch.bfloat16, device=gpu), 0.5, _seed(7, gpu))
    counter = torch.arange((numel - 2000) // 4, numel // 4, device=gpu)
    words = philox4x32((counter & MASK32, counter >> 32, 0, 0), (7, 0))
    assert torch.equal(out[-2000:] != 0, torch.stack(words, 1).flatten() >= 2**31)


@pytest.mark.gpu
def test_cuda_graph_reads_the_seed_of_each_replay(gpu) -> None:
    input, seed = _input(226, 768, dtype=torch.bfloat16, device=gpu), _seed(1, gpu)
    kernel.dropout(input, 0.1, seed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel.dropout(input, 0.1, seed)
    for value in SEEDS:
        seed.fill_(value)
        graph.replay()
        assert torch.equal(out, reference(input, 0.1, seed))
