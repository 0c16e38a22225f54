"""The two kernels of `linear.py`, which has a drawing of them: their loops over K and what follows a tile's sum."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import activate
from .row_moments import row_scale, write_moments


@triton.jit
def _place_of(tile, rows, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """First row and first column of a tile: down GROUP_M tiles, then across, then the next group."""
    m_blocks = tl.cdiv(rows, BLOCK_M)
    per_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    first = tile // per_group * GROUP_M
    height = tl.minimum(m_blocks - first, GROUP_M)
    return (first + tile % per_group % height) * BLOCK_M, tile % per_group // height * BLOCK_N


@triton.jit
def _columns(ptr, n_start, N: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr):
    """COLUMNS elements of a vector of N, as fp32; zeros past its end, where a part of a tile of BLOCK_N may lie."""
    n_offs = n_start + tl.arange(0, COLUMNS)
    if N % BLOCK_N == 0:
        values = tl.load(ptr + n_offs)
    else:
        values = tl.load(ptr + n_offs, mask=n_offs < N, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _affine(
    acc,  # (BLOCK_M, COLUMNS): a tile or half of one
    bias_ptr,
    moments_ptr,
    sums_ptr,
    m_start,
    n_start,
    rows,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """b + a tile; with moments, b + scale (tile - mean sums): of normalised rows, from the product of plain ones."""
    if moments_ptr is not None:
        mean, scale = row_scale(moments_ptr, m_start + tl.arange(0, BLOCK_M), rows, eps, K)
        sums = _columns(sums_ptr, n_start, N, COLUMNS, BLOCK_N)
        bias = _columns(bias_ptr, n_start, N, COLUMNS, BLOCK_N)
        acc = tl.fma(scale[:, None], tl.fma(-mean[:, None], sums[None, :], acc), bias[None, :])
    elif bias_ptr is not None:
        acc += _columns(bias_ptr, n_start, N, COLUMNS, BLOCK_N)[None, :]
    return acc


# A new number of rows must not compile a new kernel.
@triton.jit(do_not_specialize=["rows"])
def linear_pointer(
    out_ptr,  # (rows, N)
    x_ptr,  # (rows, K)
    w_ptr,  # (N, K)
    bias_ptr,  # (N,) or None
    residual_ptr,  # (rows, N) or None
    moments_ptr,  # (2, K / 64, rows) of x, which is then to be normalised; or None
    sums_ptr,  # (N,) of the columns of W^T, or None
    rows,
    stride_om,
    stride_xm,
    stride_wn,
    stride_rm,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr = False,  # see `switches.with_pdl`
):
    if PDL:
        gdc_wait()
    m_start, n_start = _place_of(tl.program_id(0), rows, N, BLOCK_M, BLOCK_N, GROUP_M)
    m_first, n_first = m_start.to(tl.int64), n_start.to(tl.int64)
    m_offs, n_offs, k_offs = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    # Past the edge the last row (column) is read again and its result dropped: the loop needs no mask for it.
    x_offs = tl.minimum(m_offs, rows - m_start - 1)
    w_offs = tl.minimum(n_offs, N - n_start - 1)
    x_ptrs = x_ptr + m_first * stride_xm + (x_offs[:, None] * stride_xm + k_offs[None, :])  # (BLOCK_M, BLOCK_K)
    w_ptrs = w_ptr + n_first * stride_wn + (w_offs[:, None] * stride_wn + k_offs[None, :])  # (BLOCK_N, BLOCK_K)

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            k_mask = k_offs[None, :] < K - k
            x = tl.load(x_ptrs, mask=k_mask, other=0.0)
            w = tl.load(w_ptrs, mask=k_mask, other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    if PDL:
        gdc_launch_dependents()

    mask = (m_offs < rows - m_start)[:, None] & (n_offs < N - n_start)[None, :]
    acc = _affine(acc, bias_ptr, moments_ptr, sums_ptr, m_start, n_start, rows, eps, N, K, BLOCK_M, BLOCK_N, BLOCK_N)
    OUT_16BIT: tl.constexpr = out_ptr.dtype.element_ty.primitive_bitwidth == 16
    acc = activate(acc, ACTIVATION, OUT_16BIT)
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + m_first * stride_rm + n_start + (m_offs[:, None] * stride_rm + n_offs[None, :])
        acc += tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
    out_ptrs = out_ptr + m_first * stride_om + n_start + (m_offs[:, None] * stride_om + n_offs[None, :])
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _result(acc, residual_desc, m_start, n_start, ACTIVATION: tl.constexpr, dtype: tl.constexpr):
    """A block of a tile at (m_start, n_start), after its bias, as it is stored."""
    acc = activate(acc, ACTIVATION, dtype.primitive_bitwidth == 16)
    if residual_desc is not None:
        acc += residual_desc.load([m_start, n_start]).to(tl.float32)
    return acc.to(dtype)


@triton.jit(do_not_specialize=["rows"])
def linear_descriptor(
    out_desc,  # (rows, N) in blocks of (BLOCK_M, BLOCK_N / SUBTILES)
    out_moments_ptr,  # (2, N / 64, rows) or None
    x_desc,  # (rows, K) in blocks of (BLOCK_M, BLOCK_K)
    w_desc,  # (N, K) in blocks of (BLOCK_N, BLOCK_K)
    bias_ptr,  # (N,) or None
    residual_desc,  # (rows, N) in blocks of (BLOCK_M, BLOCK_N / SUBTILES), or None
    moments_ptr,  # (2, K / 64, rows) of x, which is then to be normalised; or None
    sums_ptr,  # (N,) of the columns of W^T, or None
    rows,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SUBTILES: tl.constexpr,
    FLATTEN: tl.constexpr,
    BIAS_FIRST: tl.constexpr = True,  # once, in wide loads; else for each half of a tile
    PDL: tl.constexpr = False,  # see `switches.with_pdl`
):
    if PDL:
        gdc_wait()
        # The next kernel's programs start as soon as ours leave room for them.
        gdc_launch_dependents()
    tiles = tl.cdiv(rows, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    # A descriptor reads zeros past every edge and writes nothing there: no masks.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        m_start, n_start = _place_of(tile, rows, N, BLOCK_M, BLOCK_N, GROUP_M)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            x = x_desc.load([m_start, k])
            w = w_desc.load([n_start, k])
            acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        COLUMNS: tl.constexpr = BLOCK_N // SUBTILES
        if BIAS_FIRST:
            acc = _affine(
                *(acc, bias_ptr, moments_ptr, sums_ptr, m_start, n_start, rows, eps),
                *(N, K, BLOCK_M, BLOCK_N, BLOCK_N),
            )
        if SUBTILES == 2:
            # Half the columns at a time: half the registers and half the shared memory for what is on its way out.
            pair = tl.permute(tl.reshape(acc, (BLOCK_M, 2, COLUMNS)), (0, 2, 1))
            acc, right = tl.split(pair)  # (BLOCK_M, COLUMNS) each
        for half in tl.static_range(SUBTILES):
            if half == 1:
                acc = right
                n_start += COLUMNS
            if not BIAS_FIRST:
                acc = _affine(
                    *(acc, bias_ptr, moments_ptr, sums_ptr, m_start, n_start, rows, eps),
                    *(N, K, BLOCK_M, COLUMNS, BLOCK_N),
                )
            out = _result(acc, residual_desc, m_start, n_start, ACTIVATION, out_desc.dtype)
            out_desc.store([m_start, n_start], out)
            if out_moments_ptr is not None:
                m_offs = m_start + tl.arange(0, BLOCK_M)
                write_moments(out_moments_ptr, out, m_offs, n_start, rows, N, BLOCK_M, COLUMNS)
