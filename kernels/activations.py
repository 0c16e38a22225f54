"""Activations of an fp32 accumulator, as epilogues of a product.

Exact GELU is x Phi(x) (Hendrycks & Gimpel 2016, section 2). For 16-bit outputs Phi is taken from a sigmoid of a
polynomial: 13 instructions an element on sm_90 where erf takes 31, and its error of 3e-6 is far below what the
rounding of the output loses.
"""

import triton
import triton.language as tl

ACTIVATIONS = (None, "gelu", "gelu_tanh", "relu", "tanh")

# x sigmoid(z) with z = x (a0 + a2 x^2 + ... + a8 x^8) is within 3e-6 of exact GELU; times -log2(e), for exp2.
_LOG2E = 1.4426950408889634
_A0 = tl.constexpr(-1.5956563 * _LOG2E)
_A2 = tl.constexpr(-0.0729375 * _LOG2E)
_A4 = tl.constexpr(2.49658e-4 * _LOG2E)
_A6 = tl.constexpr(6.11755e-5 * _LOG2E)
_A8 = tl.constexpr(-2.23897e-6 * _LOG2E)
_LIMIT = tl.constexpr(49.0)  # of x^2; the polynomial holds up to |x| = 7, where the sigmoid is 0 or 1 in fp32 already
# 2 sqrt(2 / pi) log2(e): the tanh form is x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).
_TANH_SCALE = tl.constexpr(-2 * 0.7978845608028654 * _LOG2E)


@triton.jit
def _times_sigmoid(x, z):
    """x / (1 + 2^z). The square of a reciprocal square root takes three instructions where a division takes five."""
    root = tl.rsqrt(1.0 + tl.exp2(z))
    return x * root * root


@triton.jit
def _gelu_cheap(x):
    t = tl.minimum(x * x, _LIMIT)
    p = tl.fma(tl.fma(tl.fma(tl.fma(t, _A8, _A6), t, _A4), t, _A2), t, _A0)
    return _times_sigmoid(x, x * p)


@triton.jit
def _tanh(x):
    """Cephes' tanhf: an odd polynomial near zero, where the exponential form would cancel."""
    t = x * x
    p = tl.fma(tl.fma(t, -5.70498872745e-3, 2.06390887954e-2), t, -5.37397155531e-2)
    p = tl.fma(tl.fma(p, t, 1.33314422036e-1), t, -3.33332819422e-1)
    near = tl.fma(p * t, x, x)
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * tl.minimum(tl.abs(x), 15.0)))
    # A comparison with NaN is false, and `near` is NaN then: it has to be the second branch.
    return tl.where(tl.abs(x) >= 0.625, tl.where(x < 0, -far, far), near)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, OUT_16BIT: tl.constexpr):
    """The activation of an fp32 block; OUT_16BIT says that the result will be rounded to fp16 or bf16."""
    if ACTIVATION == "gelu":
        if OUT_16BIT:
            x = _gelu_cheap(x)
        else:
            x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        z = x * tl.fma(x * x, 0.044715, 1.0)
        if OUT_16BIT:
            x = _times_sigmoid(x, z * _TANH_SCALE)
        else:
            x = 0.5 * x * (1.0 + _tanh(0.7978845608028654 * z))
    elif ACTIVATION == "relu":
        # Not a maximum: NaN has to stay NaN.
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "tanh":
        x = _tanh(x)
    return x
