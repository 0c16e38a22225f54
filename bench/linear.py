"""linear beside cuBLAS: the four products of a block at the rows of a batch.

Peers: F.linear, F.linear + add, F.gelu(F.linear), and the same under torch.compile, which fuses what follows a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vilt_fast import ops
from vilt_fast.bench import flops
from vilt_fast.bench.case import Case
from vilt_fast.bench.operations import EPS, TUNED_DTYPES, OperationCase, Task, rounded
from vilt_fast.contracts.moments import GROUP

_PARAMETERS = {
    "descriptor": ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "FLATTEN", "programs", "SUBTILES"),
    "pointer": ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages"),
}
# What wins is known by family: few large tiles for many rows, many small ones for few.
MANY_ROWS: dict[str, list[tuple[Any, ...]]] = {
    "descriptor": [
        (128, 256, 64, 8, 3, True, 1, 2),
        (128, 256, 64, 8, 3, False, 1, 2),
        (128, 256, 64, 8, 4, False, 1, 2),
        (256, 128, 64, 8, 3, True, 1, 2),
        (128, 128, 64, 8, 3, True, 2, 2),
        (128, 128, 64, 8, 3, False, 2, 2),
        (128, 128, 64, 8, 4, True, 1, 2),
        (128, 128, 64, 4, 3, False, 2, 2),
        (64, 256, 64, 4, 3, False, 1, 2),
        (64, 128, 64, 4, 4, False, 2, 2),
    ],
    "pointer": [
        (128, 128, 64, 8, 3),
        (128, 128, 32, 4, 4),
        (128, 256, 64, 8, 3),
        (64, 128, 64, 4, 4),
        (64, 64, 64, 4, 4),
    ],
}
FEW_ROWS: dict[str, list[tuple[Any, ...]]] = {
    "descriptor": [
        (64, 64, 128, 4, 3, False, 2, 1),
        (64, 64, 64, 4, 4, False, 2, 1),
        (64, 64, 64, 4, 6, False, 2, 1),
        (64, 32, 128, 4, 4, False, 2, 1),
        (64, 128, 64, 4, 4, False, 2, 2),
        (64, 128, 128, 4, 3, False, 1, 2),
        (128, 64, 64, 8, 4, False, 2, 1),
        (128, 128, 64, 8, 3, False, 2, 2),
    ],
    "pointer": [(64, 64, 64, 4, 4), (64, 64, 128, 4, 3), (64, 32, 64, 4, 4), (64, 128, 64, 4, 3), (128, 64, 64, 4, 3)],
}


def _products(d: int, hidden: int) -> list[tuple[int, int, str | None, bool]]:
    """(inputs, outputs, activation, residual) of qkv, attention's output, up and down."""
    return [(d, 3 * d, None, False), (d, d, None, True), (d, hidden, "gelu", False), (hidden, d, None, True)]


def cases(batch: Case) -> list[OperationCase]:
    """Every product of a block with its epilogue; the activations that ViLT-B/32 does without are not timed."""
    d, hidden = batch.config.hidden_size, batch.config.intermediate_size
    others = [(d, hidden, activation, False) for activation in ("gelu_tanh", "relu", "tanh")]
    found = [_case(batch, *product) for product in (*_products(d, hidden), *others)]
    if d % GROUP == 0:  # what frozen models with folded norms launch
        found += [_normed_case(batch, *product[:3]) for product in _products(d, hidden) if not product[3]]
        found += [_moments_case(batch, *product[:2]) for product in _products(d, hidden) if product[3]]
    return found


def _case(batch: Case, inputs: int, outputs: int, activation: str | None, residual: bool) -> OperationCase:
    rows = sum(batch.lengths)

    def make(generator: torch.Generator) -> list[Tensor]:
        weight = rounded(generator, outputs, inputs, scale=inputs**-0.5)
        tensors = [rounded(generator, rows, inputs), weight, rounded(generator, outputs)]
        return [*tensors, rounded(generator, rows, outputs)] if residual else tensors

    def ours(x: Tensor, weight: Tensor, bias: Tensor, extra: Tensor | None = None) -> Tensor:
        return ops.linear(x, weight, bias, activation=activation, residual=extra)

    def torch_way(x: Tensor, weight: Tensor, bias: Tensor, extra: Tensor | None = None) -> Tensor:
        out = F.linear(x, weight, bias)
        out = F.gelu(out) if activation else out
        return out if extra is None else out + extra

    epilogue = {None: "", "gelu": " + GELU"}.get(activation, f" + {activation}") + (" + residual" if residual else "")
    return OperationCase(
        batch,
        operation=f"linear{epilogue}",
        floor=f"linear {activation or ''}".strip(),
        shape=f"{rows} x {inputs} -> {outputs}",
        make=make,
        ours=ours,
        peers={"torch": torch_way} if activation in (None, "gelu") else {},
        work=lambda itemsize: flops.linear(rows, inputs, outputs, itemsize, residual=residual),
    )


def _normed_case(batch: Case, inputs: int, outputs: int, activation: str | None) -> OperationCase:
    """LayerNorm in a product, its moments and its sums beside it, from a weight with the norm's in it."""
    rows = sum(batch.lengths)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        sums, moments = weight.to(wide).sum(1), ops.row_moments(x)
        return ops.linear_of_normed(x, moments, weight, sums, bias.to(wide), EPS, activation=activation)

    def torch_way(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = F.linear(F.layer_norm(x, (inputs,), eps=EPS), weight, bias)
        return F.gelu(out) if activation else out

    return OperationCase(
        batch,
        operation="LayerNorm in linear" + (" + GELU" if activation else ""),
        floor=f"linear {activation or ''}".strip(),
        shape=f"{rows} x {inputs} -> {outputs}",
        make=lambda g: [rounded(g, rows, inputs), rounded(g, outputs, inputs, scale=inputs**-0.5), rounded(g, outputs)],
        ours=ours,
        peers={"torch": torch_way},
        work=lambda itemsize: flops.linear(rows, inputs, outputs, itemsize),
    )


def _moments_case(batch: Case, inputs: int, outputs: int) -> OperationCase:
    """A product that leaves the moments of its rows for the next one's norm."""
    plain = _case(batch, inputs, outputs, None, True)
    ours = lambda *tensors: ops.linear_and_moments(*tensors)  # noqa: E731
    return replace(plain, operation="linear + residual, moments", ours=ours, peers={})


def tasks(batches: Sequence[Case]) -> Iterator[Task]:
    """A tile for each product and size class.

    All must give the same bits as the anchor, which is the same for every size class: a row's answer may not depend on
    the size of its batch.
    """
    from vilt_fast.kernels import launch

    arch = launch.arch_of(torch.empty(0, device=batches[0].device))
    kind = "descriptor" if launch.family(arch) in ("sm90", "sm100") else "pointer"
    for batch in batches:
        bucket = launch.size_bucket(sum(batch.lengths))
        tiles = FEW_ROWS[kind] if bucket in ("tiny", "small") else MANY_ROWS[kind]
        anchor, *candidates = (_configuration(arch, kind, tile) for tile in (FEW_ROWS[kind][0], *tiles))
        for product in _products(batch.config.hidden_size, batch.config.intermediate_size):
            K, N, _, has_residual = product
            suffix = "_residual" if has_residual and kind == "descriptor" else ""
            key = {"N": N, "K": K, "bucket": bucket, "dtype": TUNED_DTYPES}
            yield Task(f"linear_{kind}{suffix}", key, _case(batch, *product), candidates, anchor)
            if kind == "descriptor" and K % GROUP == N % GROUP == 0:
                whole = [tile for tile in candidates if tile["BLOCK_N"] // tile["SUBTILES"] % GROUP == 0]
                case = _moments_case(batch, K, N) if has_residual else _normed_case(batch, *product[:3])
                found = ("_moments", whole) if has_residual else ("_normed", candidates)
                yield Task(f"linear_{kind}{found[0]}", key, case, found[1], anchor)


def _configuration(arch: str, kind: str, tile: tuple[Any, ...]) -> dict[str, Any]:
    from vilt_fast.kernels import launch

    found = dict(zip(_PARAMETERS[kind], tile, strict=True), GROUP_M=8)
    found |= {"BIAS_FIRST": False} if kind == "descriptor" and launch.family(arch) == "sm100" else {}
    return found | {"num_stages": 2, "matrix_instr_nonkdim": 16} if launch.family(arch) == "gfx942" else found
