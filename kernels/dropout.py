"""y = x / (1 - p) where an element's random word is at least p * 2^32, else 0 (Srivastava et al. 2014).

One call of Philox4x32-10 (Salmon et al. 2011) gives the words of four elements side by side, so a thread has its own:

    counter     0            1            2                     low and high half of it, 0, 0; the key is the seed
    words       0  1  2  3 | 0  1  2  3 | 0  1  2  3 | ...      interleaved
    elements    0  1  2  3 | 4  5  6  7 | 8  9 10 11 | ...      BLOCK of them a program

The backward pass is the same kernel on the gradient with the same seed: nothing is kept for it but the seed, which
stays on the device, where a CUDA graph reads the value of the day. Not supported: fp64, torch.func.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vilt_fast.contracts.dropout import keep_rule

from . import launch
from .shipped import Configuration, compiled, empty

# Elements of a program: eight a thread, 16 bytes of 16-bit numbers. The interpreter takes 8 ms for one of any size.
BLOCK = 16384 if launch.INTERPRETED else 1024
NUM_WARPS = 4


@triton.jit
def keep_mask(seed, counter, threshold):
    """(4 * BLOCK,) bool: which elements stay, of the four that belong to each int64 counter, (BLOCK,)."""
    word0, word1, word2, word3 = tl.randint4x(seed, counter)
    words = tl.interleave(tl.interleave(word0, word2), tl.interleave(word1, word3))
    return words.to(tl.int64) >= threshold  # which may be 2^32, for p = 1


@triton.jit
def _drop(out_ptrs, x_ptrs, keep, scale, mask):
    x = tl.load(x_ptrs, mask=mask).to(tl.float32)
    tl.store(out_ptrs, tl.where(keep, x * scale, 0.0).to(out_ptrs.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["numel", "threshold"])
def dropout_kernel(
    out_ptr,  # (numel,)
    x_ptr,  # (numel,)
    seed_ptr,  # () int64
    numel: tl.int64,
    threshold: tl.int64,
    scale,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    keep = keep_mask(tl.load(seed_ptr), block * (BLOCK // 4) + tl.arange(0, BLOCK // 4), threshold)  # (BLOCK,)
    offs = block * BLOCK + tl.arange(0, BLOCK)
    if (block + 1) * BLOCK <= numel:  # no mask, so that a thread loads and stores 16 bytes at a time
        _drop(out_ptr + offs, x_ptr + offs, keep, scale, None)
    else:
        _drop(out_ptr + offs, x_ptr + offs, keep, scale, offs < numel)


# --- launcher ---------------------------------------------------------------------------------------------------------


def _launch(input: Tensor, p: float, seed: Tensor) -> Tensor:
    x = input.contiguous()
    out = x.new_empty(x.shape)
    if numel := x.numel():
        grid = (launch.cdiv(numel, BLOCK),)
        launch.run(dropout_kernel, grid, out, x, seed, numel, *keep_rule(p), BLOCK=BLOCK, num_warps=NUM_WARPS)
    return out


def _setup_context(ctx: Any, inputs: tuple[Tensor, float, Tensor], output: Tensor) -> None:
    _, ctx.p, seed = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return dropout(gradient, ctx.p, *ctx.saved_tensors), None, None


_dropout = torch.library.custom_op("vilt_fast::dropout", _launch, mutates_args=())
_dropout.register_fake(lambda input, p, seed: input.new_empty(input.shape))
_dropout.register_autograd(_backward, setup_context=_setup_context)


def shipped_configurations(target: str) -> list[Configuration]:
    """What launches on `target` compile."""
    shipped = []
    for dtype in ("bf16", "fp16", "fp32"):
        shipped += compiled(target, dtype, _launch, empty(dtype, 211, 768), 0.1, empty("i64"))
    return shipped


# --- public function --------------------------------------------------------------------------------------------------


def dropout(input: Tensor, p: float, seed: Tensor) -> Tensor:
    """`vilt_fast.reference.dropout.dropout` for fp32, fp16 and bf16, bit for bit, with its gradient."""
    keep_rule(p)
    launch.check_tensor("dropout", "input", input, input.shape)
    launch.check_tensor("dropout", "seed", seed, (), torch.int64)
    launch.check_device("dropout", input, seed)
    if p == 0:
        return input
    run = _launch if launch.is_direct(input, seed) else _dropout
    return run(input, p, seed)
