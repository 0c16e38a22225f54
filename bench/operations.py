"""The operations one by one, at the shapes that a batch gives them, beside what PyTorch offers for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vilt_fast
from vilt_fast import ops
from vilt_fast.bench import flops, timing, verify
from vilt_fast.bench.contestant import Contestant, Unavailable
from vilt_fast.bench.flops import Cost
from vilt_fast.bench.workloads import Workload
from vilt_fast.configs.vilt import ViltConfig

EPS = 1e-12


@dataclass
class OperationCase:
    """One operation at one shape.

    Args:
        operation, shape: what a table says.
        workload: where the shape comes from.
        config, device: of the model, of the tensors.
        make: from a generator to the tensors, fp32 on the CPU.
        ours: from those tensors to the result, through `vilt_fast.ops`.
        peers: PyTorch's ways, by name; they may raise Unavailable.
        work: from the size of an element to the cost.
        compiles: whether the compiled ones take part.
    """

    operation: str
    shape: str
    workload: Workload
    config: ViltConfig
    device: torch.device
    make: Callable[[torch.Generator], list[Tensor]]
    ours: Callable[..., Tensor]
    peers: dict[str, Callable[..., Tensor]]
    work: Callable[[int], Cost]
    compiles: bool = False

    is_sampled = False

    @cached_property
    def sets(self) -> list[list[Tensor]]:
        """Input sets in fp32 on the device, as many as the cache asks for."""
        generator = torch.Generator().manual_seed(0)
        count = timing.rotations(self.work(2).bytes, self.device)
        return [[tensor.to(self.device) for tensor in self.make(generator)] for _ in range(count)]

    def sets_in(self, dtype: torch.dtype) -> list[list[Tensor]]:
        """The same in a dtype; integers stay."""
        return [[t.to(dtype) if t.is_floating_point() else t for t in one] for one in self.sets]

    @cached_property
    def wanted(self) -> Tensor:
        """The reference's result in fp64 for the first set. Inputs count as exact: they are rounded to bf16 before."""
        with vilt_fast.backend("reference"), torch.inference_mode():
            return self.ours(*self.sets_in(torch.float64)[0])

    def bound(self, dtype: torch.dtype) -> float:
        """Largest relative error of a row."""
        return verify.OPERATION_BOUNDS[dtype]

    def cost(self, scope: str, dtype: torch.dtype) -> Cost:
        """Of one call."""
        return self.work(dtype.itemsize)

    def describe(self) -> dict[str, Any]:
        """Columns of a row."""
        patch = self.config.patch_shape[0]
        return {
            "workload": self.operation,
            "batch": self.workload.batch,
            "tokens": self.workload.tokens(patch),
            "padded_tokens": self.workload.padded_tokens(patch),
            "shape": self.shape,
            "model": self.workload.name,
        }

    def contestants(self, dtype: torch.dtype) -> list[Contestant]:
        """Ours on both backends, then PyTorch's ways, each also under torch.compile."""
        found = [
            Contestant(f"vilt_fast {side}", dtype, partial(_our_calls, dtype=dtype, backend=side), "operation", True)
            for side in ("kernels", "reference")
        ]
        for name, peer in self.peers.items():
            found.append(Contestant(name, dtype, partial(_peer_calls, dtype=dtype, peer=peer), "operation"))
            compiled = partial(_peer_calls, dtype=dtype, peer=peer, compile=True)
            found.append(Contestant(f"{name} + torch.compile", dtype, compiled, "operation", compiles=True))
        return found


def _our_calls(case: OperationCase, dtype: torch.dtype, backend: str) -> list[Callable[[], Tensor]]:
    if backend == "kernels" and case.device.type != "cuda":
        raise Unavailable("needs a GPU: Triton kernels")

    def call(tensors: Sequence[Tensor]) -> Tensor:
        with vilt_fast.backend(backend):
            return case.ours(*tensors)

    return [partial(call, tensors) for tensors in case.sets_in(dtype)]


def _peer_calls(
    case: OperationCase, dtype: torch.dtype, peer: Callable[..., Tensor], compile: bool = False
) -> list[Callable[[], Tensor]]:
    function = torch.compile(peer, dynamic=False) if compile else peer
    return [partial(function, *tensors) for tensors in case.sets_in(dtype)]


def cases(workload: Workload, config: ViltConfig, device: torch.device, compiles: bool = False) -> list[OperationCase]:
    """Every product of a block with its epilogue, LayerNorm and attention."""
    lengths = workload.sequences(config.patch_shape[0])
    rows, d, hidden = sum(lengths), config.hidden_size, config.intermediate_size
    shared = {"workload": workload, "config": config, "device": device, "compiles": compiles}
    found = [
        _linear_case("linear", rows, d, 3 * d, **shared),
        _linear_case("linear + residual", rows, d, d, residual=True, **shared),
        _linear_case("linear + GELU", rows, d, hidden, activation="gelu", **shared),
        _linear_case("linear + residual", rows, hidden, d, residual=True, **shared),
        _layer_norm_case(rows, d, **shared),
        _attention_case(lengths, d, config.num_attention_heads, **shared),
    ]
    return found


def _random(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    # Rounded to bf16 at once: every dtype then computes on the same numbers, and errors are those of the arithmetic.
    return (torch.randn(*shape, generator=generator) * scale).bfloat16().float()


def _linear_case(
    name: str, rows: int, inputs: int, outputs: int, *, activation: str | None = None, residual: bool = False,
    **shared: Any,
) -> OperationCase:  # fmt: skip
    def make(generator: torch.Generator) -> list[Tensor]:
        weight = _random(generator, outputs, inputs, scale=inputs**-0.5)
        tensors = [_random(generator, rows, inputs), weight, _random(generator, outputs)]
        return [*tensors, _random(generator, rows, outputs)] if residual else tensors

    def ours(x: Tensor, weight: Tensor, bias: Tensor, extra: Tensor | None = None) -> Tensor:
        return ops.linear(x, weight, bias, activation=activation, residual=extra)

    def torch_way(x: Tensor, weight: Tensor, bias: Tensor, extra: Tensor | None = None) -> Tensor:
        out = F.linear(x, weight, bias)
        out = F.gelu(out) if activation else out
        return out if extra is None else out + extra

    return OperationCase(
        operation=name, shape=f"{rows} x {inputs} -> {outputs}", make=make, ours=ours, peers={"torch": torch_way},
        work=lambda itemsize: flops.linear(rows, inputs, outputs, itemsize, residual=residual), **shared,
    )  # fmt: skip


def _layer_norm_case(rows: int, d: int, **shared: Any) -> OperationCase:
    def torch_way(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (d,), weight, bias, EPS)

    return OperationCase(
        operation="layer_norm", shape=f"{rows} x {d}",
        make=lambda generator: [_random(generator, rows, d), _random(generator, d), _random(generator, d)],
        ours=lambda x, weight, bias: ops.layer_norm(x, weight, bias, EPS), peers={"torch": torch_way},
        work=lambda itemsize: flops.layer_norm(rows, d, itemsize), **shared,
    )  # fmt: skip


def _attention_case(lengths: Sequence[int], d: int, heads: int, **shared: Any) -> OperationCase:
    longest, device = max(lengths), shared["device"]
    spans = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    start, at = spans[:-1, None].long(), torch.arange(longest, device=device)
    real = at < spans.diff()[:, None]
    padded, mask, flat = torch.where(real, start + at, 0), real[:, None, None], real.flatten().nonzero().flatten()

    def sdpa(qkv: Tensor) -> Tensor:
        query, key, value = qkv[padded].unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.transpose(1, 2).reshape(-1, d)[flat]

    def varlen(qkv: Tensor) -> Tensor:
        if not qkv.is_cuda:
            raise Unavailable("needs a GPU: varlen_attn has no CPU kernel")
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = qkv.unflatten(-1, (3, heads, -1)).unbind(1)
        return varlen_attn(query, key, value, spans, spans, longest, longest).flatten(1)

    return OperationCase(
        operation="attention", shape=f"{len(lengths)} spans of {min(lengths)}..{longest}, {sum(lengths)} x 3 x {d}",
        make=lambda generator: [_random(generator, sum(lengths), 3 * d)],
        ours=lambda qkv: ops.attention(qkv, spans, heads, max_seqlen=longest),
        peers={"torch varlen_attn": varlen, "torch SDPA, unpacked, padded and packed again": sdpa},
        work=lambda itemsize: flops.attention(lengths, d, itemsize), **shared,
    )  # fmt: skip
