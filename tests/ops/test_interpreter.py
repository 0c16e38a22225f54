"""The corrected interpreter: bfloat16 as a GPU computes it, which is fp32 rounded to nearest even."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="the kernels need Triton")
tl = pytest.importorskip("triton.language")
from vilt_fast.kernels import interpreter, launch  # noqa: E402

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="needs TRITON_INTERPRET=1")


@triton.jit
def _arithmetic(out_ptr, x_ptr, y_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    x, y = tl.load(x_ptr + offs), tl.load(y_ptr + offs)
    results = (x + y, x - y, x * y, -x, tl.where(x < y, x, y), tl.fma(x, y, x), tl.maximum(x, y))
    for i in tl.static_range(7):
        tl.store(out_ptr + i * N + offs, results[i])


@triton.jit
def _product(out_ptr, sum_ptr, x_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + offs)
    tl.store(out_ptr + offs, tl.dot(x, tl.trans(x)))
    tl.store(sum_ptr + tl.arange(0, N), tl.sum(x, axis=1) + tl.max(x, axis=1).to(x.dtype))


@triton.jit
def _copy(out_ptr, x_ptr, count, N: tl.constexpr):
    offs = tl.arange(0, N)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs, mask=offs < count, other=0.0), mask=offs < count)


@pytest.fixture(autouse=True)
def _patched() -> None:
    interpreter.patch()
    interpreter.patch()  # twice is once


def test_casts_round_to_nearest_even() -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.randint(-(2**31), 2**31, (100_000,), generator=g).int().view(torch.float32)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 3.4e38, 1e-45, 1.00390625, 1.01171875])
    values = torch.cat([special, values[~values.isnan()]])
    bits = torch.from_numpy(interpreter.fp32_to_bf16(values.numpy()).view("int16"))
    assert torch.equal(bits, values.bfloat16().view(torch.int16))
    assert torch.from_numpy(interpreter.bf16_to_fp32(interpreter.fp32_to_bf16(values.numpy()))).equal(
        values.bfloat16().float()
    )
    assert torch.tensor(
        interpreter.bf16_to_fp32(interpreter.fp32_to_bf16(torch.tensor([float("nan")]).numpy()))
    ).isnan()


def test_arithmetic() -> None:
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(256, generator=g).bfloat16() for _ in "xy")
    out = torch.full((7, 256), float("nan"), dtype=torch.bfloat16)
    _arithmetic[(1,)](out, x, y, N=256)
    fused = (x.double() * y.double() + x.double()).float().bfloat16()
    wanted = [x + y, x - y, x * y, -x, torch.minimum(x, y), fused, torch.maximum(x, y)]
    assert torch.equal(out, torch.stack(wanted))


def test_products_and_sums() -> None:
    x = torch.randn(32, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    out, total = torch.full((32, 32), float("nan")), torch.full((32,), float("nan"), dtype=torch.bfloat16)
    _product[(1,)](out, total, x, N=32)
    torch.testing.assert_close(out, x.float() @ x.float().T, rtol=1e-6, atol=1e-5)
    assert torch.equal(total, x.float().sum(1).bfloat16() + x.amax(1))


def test_memory_past_a_tensor_is_refused() -> None:
    """The element after a view belongs to somebody else, though the storage goes on."""
    x, out = torch.arange(48.0)[:7], torch.full((8,), -1.0)
    _copy[(1,)](out, x, 7, N=16)
    assert out.tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
    for source, target, kind in ((x, out, "read"), (out, x, "write")):
        with pytest.raises(triton.runtime.errors.InterpreterError, match=f"a kernel {kind}s bytes"):
            _copy[(1,)](target, source, 8, N=16)
