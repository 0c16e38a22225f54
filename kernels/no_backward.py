"""A clear error in place of a missing gradient, for operations that write into a tensor they are given.

`torch.library.custom_op` refuses a backward pass by itself only through what an operation returns. One that writes in
place returns nothing, so its gradient would be dropped in silence.
"""

from typing import Any

import torch
from torch import Tensor


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: str, written: Tensor, *inputs: Tensor) -> Tensor:
        ctx.op = op
        ctx.mark_dirty(written)
        return written

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        raise RuntimeError(
            f"{ctx.op}: the kernel has no backward pass; run under torch.no_grad(), "
            f'or train with vilt_fast.backend({ctx.op}="reference")'
        )


def refuse_backward(op: str, written: Tensor, *inputs: Tensor | None) -> Tensor:
    """`written` as it is; where an input asks for a gradient, a backward pass through it raises RuntimeError.

    Args:
        op: name of the operation, for the message.
        written: the tensor that the operation wrote into.
        inputs: what it read; None is passed over.
    """
    asking = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    if not (torch.is_grad_enabled() and asking):
        return written
    return _Refuse.apply(op, written, *asking)


def refuse_gradients(name: str, *tensors: Tensor | None) -> None:
    """Raises where a result would be without the gradient that was asked for, or be read from a lazily negated one."""
    given = [tensor for tensor in tensors if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        raise RuntimeError(f"{name}: the kernel has no backward pass; run under torch.no_grad()")
    if any(tensor.is_neg() for tensor in given):
        raise ValueError(f"{name}: got a lazily negated tensor, wanted one in memory: call its resolve_neg()")
