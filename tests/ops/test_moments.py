"""Moments of rows, and products that normalise their rows: any tile gives the same moments, and LayerNorm's answer."""

import pytest
import torch
from torch import Tensor

from vilt_fast.reference import layer_norm as norm_reference
from vilt_fast.reference import linear as reference

triton = pytest.importorskip("triton", reason="the kernels need Triton")
import triton.language as tl  # noqa: E402

from vilt_fast.kernels import launch  # noqa: E402
from vilt_fast.kernels import linear as kernel  # noqa: E402
from vilt_fast.kernels.layer_norm import row_moments  # noqa: E402
from vilt_fast.kernels.row_moments import row_scale  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TILES = [(64, 64, 1), (64, 128, 2), (128, 128, 2), (128, 256, 2), (64, 256, 1)]  # BLOCK_M, BLOCK_N, SUBTILES
EPS = 1e-12


def _descriptor(block_m: int, block_n: int, subtiles: int) -> dict:
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": 64, "SUBTILES": subtiles}
    return tile | {"GROUP_M": 3, "FLATTEN": True, "programs": 2, "num_warps": 4, "num_stages": 2}


def _random(device: torch.device, *shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    g = torch.Generator(device).manual_seed(seed)
    return [torch.randn(shape, generator=g, device=device) for shape in shapes]


def _hard_rows(rows: int, d: int, device: torch.device) -> Tensor:
    """Rows of many scales; some far from zero, one of one value, one zero, one with a single other value."""
    x, scales, shift = _random(device, (rows, d), (rows, 1), (rows, 1), seed=rows)
    x = x * scales.exp() + shift
    x[1:12:4] = x[1:12:4] * 0.1 + 30.0
    x[2], x[3], x[4] = 3.25, 0.0, 2.0
    x[4, 7] = -2.0
    return x


# --- moments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "d"), [(1, 64), (65, 192), (63, 768), (5, 4096)])
def test_row_moments(rows, d, dtype, device, poisoned) -> None:
    x = (_random(device, (rows, d))[0] + 100).to(dtype)
    got, wanted = row_moments(x).cpu(), norm_reference.row_moments(x.double()).cpu()
    assert got.dtype == torch.float32 and got.shape == (2, d // 64, rows)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)
    mean, scale = norm_reference.row_scale(got.double(), EPS)
    variance, right = torch.var_mean(x.double().cpu(), dim=1, correction=0)
    torch.testing.assert_close(mean, right, rtol=1e-6, atol=0)
    torch.testing.assert_close(scale, (variance + EPS).rsqrt(), rtol=1e-5, atol=0)


def test_rows_of_one_value_have_no_scale(device) -> None:
    x = torch.tensor([[0.0], [3.25], [-1e-3], [6e4], [float("nan")]], device=device).expand(5, 192).half()
    mean, scale = norm_reference.row_scale(row_moments(x).cpu(), EPS)
    assert torch.equal(mean[:4], x[:4, 0].cpu().float()) and (scale[:4] == 0).all()
    assert mean[4].isnan() and scale[4].isnan()


def test_moments_of_strided_rows(device) -> None:
    x = _random(device, (40, 256))[0].bfloat16()
    assert torch.equal(row_moments(x[1::3, 32:160]), row_moments(x[1::3, 32:160].contiguous()))
    assert row_moments(x[:0]).shape == (2, 4, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_moments_do_not_depend_on_the_tile(dtype, device, poisoned) -> None:
    """Nor on the other rows. They are of the result as it is rounded."""
    x, w, bias, residual = (t.to(dtype) for t in _random(device, (150, 64), (256, 64), (256,), (150, 256)))
    found = []
    for tile in TILES:
        with (
            launch.forced("linear_pointer", _descriptor(*tile)),
            launch.forced("linear_descriptor_moments", _descriptor(*tile)),
        ):
            out, moments = kernel.linear_and_moments(x, w, bias, residual)
            found += [moments]
            for start, stop in ((0, 1), (70, 135), (149, 150)):
                _, alone = kernel.linear_and_moments(x[start:stop], w, bias, residual[start:stop])
                assert torch.equal(alone, moments[:, :, start:stop]), (tile, start)
    assert all(torch.equal(moments, found[0]) for moments in found)
    wanted = norm_reference.row_moments(out.double())
    torch.testing.assert_close(found[0].double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(out, kernel.linear(x, w, bias, residual=residual))


def test_moments_follow_the_pointer_kernel(device) -> None:
    x, w, bias, residual = (t.bfloat16() for t in _random(device, (70, 64), (128, 64), (128,), (70, 128)))
    pointer = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 3, "num_warps": 4, "num_stages": 2}
    with launch.forced("linear_pointer", pointer):
        out, moments = kernel.linear_and_moments(x, w, bias, residual)
    assert torch.equal(moments, row_moments(out))


def test_a_strided_bias(device) -> None:
    x, w, bias, residual = (t.half() for t in _random(device, (5, 64), (128, 64), (256,), (5, 128)))
    wanted = kernel.linear_and_moments(x, w, bias[::2].contiguous(), residual)
    for got, right in zip(kernel.linear_and_moments(x, w, bias[::2], residual), wanted, strict=True):
        assert torch.equal(got, right)


# --- products of normalised rows --------------------------------------------------------------------------------------


def _fold(x: Tensor, gamma: Tensor, beta: Tensor, w: Tensor, bias: Tensor) -> dict[str, Tensor]:
    scaled = (w.double() * gamma.double()).to(x.dtype)
    sums, shift = scaled.double().sum(1).float(), (bias.double() + w.double() @ beta.double()).float()
    return {"input": x, "weight": scaled, "column_sums": sums, "bias": shift}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("side", ["reference", "pointer", "descriptor"])
def test_product_of_normalised_rows(side, activation, dtype, device, tolerances, poisoned) -> None:
    """As far from fp64 as twice PyTorch's LayerNorm and product in the same dtype, every row by itself."""
    d, N = 192, 136
    gamma, beta, w, bias = (t.to(dtype) for t in _random(device, (d,), (d,), (N, d), (N,), seed=3))
    x, w = _hard_rows(67, d, device).to(dtype), (w * d**-0.5).to(dtype)
    folded = _fold(x, gamma, beta, w, bias)
    if side == "reference":
        moments = norm_reference.row_moments(x)
        got = reference.linear_of_normed(**folded, moments=moments, eps=EPS, activation=activation)
    else:
        op = "linear_descriptor_normed" if device.type == "cuda" else "linear_pointer"
        config = (
            _descriptor(64, 64, 2)
            if side == "descriptor"
            else {
                "BLOCK_M": 64,
                "BLOCK_N": 128,
                "BLOCK_K": 64,
                "GROUP_M": 3,
                "num_warps": 4,
                "num_stages": 2,
            }
        )
        with launch.forced(op, config):
            got = kernel.linear_of_normed(**folded, moments=row_moments(x), eps=EPS, activation=activation)

    def plain(*tensors: Tensor) -> Tensor:
        x, gamma, beta, w, bias = tensors
        return reference.linear(norm_reference.layer_norm(x, gamma, beta, EPS), w, bias, activation=activation)

    inputs = (x, gamma, beta, w, bias)
    name = f"linear {activation or ''}".strip()
    tolerances.check(name, got, plain(*(t.double() for t in inputs)), plain(*inputs))


@triton.jit
def _row_scale_kernel(out_ptr, moments_ptr, D: tl.constexpr, UNROLLED: tl.constexpr):
    m_offs = tl.arange(0, 64)
    mean, scale = row_scale(moments_ptr, m_offs, 64, 1e-12, D, UNROLLED=UNROLLED)
    tl.store(out_ptr + m_offs, mean)
    tl.store(out_ptr + 64 + m_offs, scale)


def test_many_groups_are_combined_to_the_same_bits(device) -> None:
    """Unrolled, and in a loop as from 25 groups on: a wide model's answer follows the same arithmetic."""
    d = 4096
    moments, found = row_moments(_hard_rows(64, d, device).half()), []
    for unrolled in (1, d):
        found += [torch.empty(128, device=device)]
        _row_scale_kernel[(1,)](found[-1], moments, d, unrolled)
    assert torch.equal(*found) and found[0].isfinite().all()
    assert torch.equal(found[0].view(2, 64)[1] == 0, moments[1].sum(0) == 0)


def test_normalised_product_does_not_depend_on_the_tile(device) -> None:
    gamma, beta, w, bias = (t.half() for t in _random(device, (128,), (128,), (256, 128), (256,), seed=3))
    folded = _fold(_hard_rows(150, 128, device).half(), gamma, beta, w / 8, bias)
    moments, found = row_moments(folded["input"]), []
    for tile in (*TILES, (64, 32, 1)):
        with (
            launch.forced("linear_pointer", _descriptor(*tile)),
            launch.forced("linear_descriptor_normed", _descriptor(*tile)),
        ):
            found += [kernel.linear_of_normed(**folded, moments=moments, eps=EPS)]
            some = folded | {"input": folded["input"][70:135]}
            alone = kernel.linear_of_normed(**some, moments=moments[:, :, 70:135].contiguous(), eps=EPS)
            assert torch.equal(alone, found[-1][70:135]), tile
    assert all(torch.equal(out, found[0]) for out in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rows_far_from_zero(dtype, device, tolerances) -> None:
    """A mean of some hundreds or thousands of deviations, as the dtypes can hold them."""
    d, ratio = 768, {torch.float16: 500, torch.bfloat16: 2000}[dtype]
    gamma, beta, w, bias = (t.to(dtype) for t in _random(device, (d,), (d,), (64, d), (64,), seed=5))
    x = torch.full((8, d), 64.0)
    step = 64 * torch.finfo(dtype).eps
    count = max(1, round(d * (64 / ratio / step) ** 2))  # columns that differ by one step
    x[:, torch.randperm(d, generator=torch.Generator().manual_seed(0))[:count]] += step
    x, w = x.to(device, dtype), (w * d**-0.5).to(dtype)
    deviation, mean = torch.std_mean(x.double(), dim=1)
    assert (mean / deviation >= 0.8 * ratio).all()
    got = kernel.linear_of_normed(**_fold(x, gamma, beta, w, bias), moments=row_moments(x), eps=EPS)
    inputs = (x, gamma, beta, w, bias)
    plain = lambda x, g, b, w, c: reference.linear(norm_reference.layer_norm(x, g, b, EPS), w, c)  # noqa: E731
    tolerances.check("linear", got, plain(*(t.double() for t in inputs)), plain(*inputs))


def test_wrong_arguments(device) -> None:
    x, w, bias = _random(device, (5, 128), (64, 128), (64,))
    moments = row_moments(x)
    with pytest.raises(ValueError, match="row_moments: input: got 100 columns, wanted a multiple of 64 up to 4096"):
        row_moments(x[:, :100])
    with pytest.raises(ValueError, match="input: got 100 columns, wanted a multiple of 64"):
        norm_reference.row_moments(x[:, :100])
    with pytest.raises(ValueError, match=r"moments: got shape \(2, 2, 4\), wanted \(2, 2, 5\)"):
        kernel.linear_of_normed(x, moments[:, :, :4], w, bias, bias, EPS)
    with pytest.raises(ValueError, match="column_sums: got dtype torch.float16, wanted torch.float32"):
        kernel.linear_of_normed(x, moments, w, bias.half(), bias, EPS)
    with pytest.raises(ValueError, match="moments, column_sums, bias: got strides, wanted contiguous tensors"):
        kernel.linear_of_normed(x, moments.transpose(0, 1).contiguous().transpose(0, 1), w, bias, bias, EPS)
    with pytest.raises(ValueError, match="activation: got 'silu'"):
        kernel.linear_of_normed(x, moments, w, bias, bias, EPS, activation="silu")
    with pytest.raises(ValueError, match="weight: got 63 rows, wanted a multiple of 64"):
        kernel.linear_and_moments(x, w[:63], None, torch.ones(5, 63))
    with (
        launch.forced("linear_pointer", _descriptor(64, 64, 2)),
        launch.forced("linear_descriptor_moments", _descriptor(64, 64, 2)),
        pytest.raises(ValueError, match="a table's tile writes 32 columns at a time, wanted 64"),
    ):
        kernel.linear_and_moments(x, w, None, torch.ones(5, 64, device=device))


def test_gradients_and_lazy_negation_are_refused(device) -> None:
    x, w, bias, residual = _random(device, (5, 64), (64, 64), (64,), (5, 64))
    moments, negated = row_moments(x), torch.complex(x, -x).conj().imag
    for wrong, kind, words in ((x.clone().requires_grad_(), RuntimeError, "no backward"), (negated, ValueError, "neg")):
        with pytest.raises(kind, match=f"linear_of_normed: .*{words}"):
            kernel.linear_of_normed(wrong, moments, w, bias, bias, EPS)
        with pytest.raises(kind, match=f"linear_and_moments: .*{words}"):
            kernel.linear_and_moments(x, w, bias, wrong)
        with pytest.raises(kind, match=f"row_moments: .*{words}"):
            row_moments(wrong)


# --- real sizes, on a GPU ---------------------------------------------------------------------------------------------

ROWS = (226, 1688, 13504, 53831)  # of 1, 8, 64 and 256 pairs


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_same_bits_in_every_batch(dtype, gpu) -> None:
    """Two products and what is between them, of a pair alone and at several places in batches of every size class."""
    d, hidden = 768, 3072
    x, context, out, bias, up = _random(gpu, (ROWS[-1], d), (ROWS[-1], d), (d, d), (d,), (hidden, d))
    out, up = out * d**-0.5, (up * d**-0.5).to(dtype)
    sums, shift = up.float().sum(1), torch.zeros(hidden, device=gpu)
    x, context, out, bias = (t.to(dtype) for t in (x, context, out, bias))

    def both(context: Tensor, x: Tensor) -> list[Tensor]:
        z, moments = kernel.linear_and_moments(context, out, bias, x)
        return [
            z,
            moments.permute(2, 0, 1),
            kernel.linear_of_normed(z, moments, up, sums, shift, EPS, activation="gelu"),
        ]

    alone = both(context[:226], x[:226])
    for rows in ROWS[1:]:
        for start in (0, 57, rows - 226):
            batch = [t[:rows].clone() for t in (context, x)]
            for one, whole in zip(batch, (context, x), strict=True):
                one[start : start + 226] = whole[:226]
            for got, wanted in zip(both(*batch), alone, strict=True):
                assert torch.equal(got[start : start + 226], wanted), (rows, start)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("N", "activation"), [(2304, None), (3072, "gelu")])
def test_real_sizes(N, activation, dtype, gpu, tolerances, poisoned) -> None:
    d = 768
    gamma, beta, w, bias = (t.to(dtype) for t in _random(gpu, (d,), (d,), (N, d), (N,), seed=3))
    for rows in ROWS[:3]:
        inputs = (_hard_rows(rows, d, gpu).to(dtype), gamma, beta, (w * d**-0.5).to(dtype), bias)
        got = kernel.linear_of_normed(**_fold(*inputs), moments=row_moments(inputs[0]), eps=EPS, activation=activation)
        wide, plain = (
            reference.linear(norm_reference.layer_norm(*some[:3], EPS), *some[3:], activation=activation)
            for some in ([t.double() for t in inputs], inputs)
        )
        tolerances.check(f"linear {activation or ''}".strip(), got, wide, plain)
