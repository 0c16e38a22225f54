"""Every kernel beside its reference, on whatever the machine has: a GPU, or Triton's interpreter on the CPU.

The bound is the contract of the kernels: at most twice the error that PyTorch makes in the same dtype, both measured
against the fp64 reference, plus a named floor (`vilt_fast.bench.tolerances`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Row:
    """One comparison: largest error against fp64, and what it may be."""

    operation: str
    dtype: str
    shape: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.error <= self.bound


@dataclass(frozen=True)
class _Case:
    operation: str
    tolerance: str  # key of `tolerances.FLOORS`
    shape: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def call(self, function: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of the arguments, each tensor changed first."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return function(*map(changed, self.arguments), **{key: changed(value) for key, value in self.options.items()})


def check_kernels(*, small: bool = False) -> Iterator[Row]:
    """Run every kernel once for each dtype and compare it; small sizes in the interpreter, ViT-B's on a GPU.

    Args:
        small: the small sizes on a GPU too, for compute-sanitizer.

    Raises:
        RuntimeError: Triton is not installed, or was imported without its interpreter on a machine without a GPU.
    """
    device = _device()
    large = device.type == "cuda" and not small
    from vilt_fast.bench import tolerances

    for dtype in DTYPES:
        for case in _cases(device, dtype, large=large):
            kernel, reference = _both(case.operation)
            wanted = case.call(reference, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
            rounded = case.call(reference, lambda tensor: tensor)
            got = case.call(kernel, Tensor.clone)  # a kernel may write into its first argument
            bound, _ = tolerances.bound(case.tolerance, wanted, rounded)
            error = (got.double() - wanted).abs().max().item()
            yield Row(case.tolerance, str(dtype).removeprefix("torch."), case.shape, error, bound)
    yield _check_plan(device, large=large)
    yield _check_resize(device)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, just below
    try:
        from vilt_fast.kernels import interpreter, launch
    except ModuleNotFoundError as error:
        raise RuntimeError("the kernels need Triton, which is not installed: pip install triton") from error
    if launch.INTERPRETED:
        interpreter.patch()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("no GPU, and Triton was imported without TRITON_INTERPRET=1: set it and start again")
    return torch.device("cuda")


def _both(operation: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    from vilt_fast.kernels import attention, layer_norm, linear, patch_embed, text_embed
    from vilt_fast.reference import attention as reference_attention
    from vilt_fast.reference import layer_norm as reference_layer_norm
    from vilt_fast.reference import linear as reference_linear
    from vilt_fast.reference import patch_embed as reference_patch_embed
    from vilt_fast.reference import text_embed as reference_text_embed

    return {
        "linear": (linear.linear, reference_linear.linear),
        "layer_norm": (layer_norm.layer_norm, reference_layer_norm.layer_norm),
        "attention": (attention.attention, reference_attention.attention),
        "attention_rows": (attention.attention_rows, reference_attention.attention_rows),
        "text_embed": (text_embed.text_embed, reference_text_embed.text_embed),
        "patch_embed": (patch_embed.patch_embed, reference_patch_embed.patch_embed),
    }[operation]


def _cases(device: torch.device, dtype: torch.dtype, *, large: bool) -> Iterator[_Case]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)

    rows, d, hidden, heads = (8192, 768, 3072, 12) if large else (65, 48, 96, 3)
    for activation, residual in ((None, True), ("gelu", False), ("gelu_tanh", False), ("relu", False), ("tanh", False)):
        options = {"activation": activation, "residual": random(rows, hidden) if residual else None}
        arguments = (random(rows, d), random(hidden, d, scale=d**-0.5), random(hidden))
        yield _Case("linear", f"linear {activation or ''}".strip(), f"{rows} x {hidden} x {d}", arguments, options)
    yield _Case("layer_norm", "layer_norm", f"{rows} x {d}", (random(rows, d), random(d), random(d), 1e-12), {})
    yield from _attention_cases(random, device, d, heads, large)
    yield from _embedding_cases(random, device, d, large)


def _attention_cases(
    random: Callable[..., Tensor], device: torch.device, d: int, heads: int, large: bool
) -> Iterator[_Case]:
    lengths = [1, 63, 64, 65, 197, 281] * (8 if large else 1)
    if not large:
        lengths = [1, 64, 65]
    total, longest = sum(lengths), max(lengths)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    options = {"max_seqlen": longest}
    qkv, shape = random(total, 3 * d), f"{len(lengths)} spans, {total} rows, {heads} x {d // heads}"
    yield _Case("attention", "attention", shape, (qkv, cu_seqlens, heads), options)
    queries = torch.arange(0, total, 7, device=device)
    yield _Case("attention_rows", "attention_rows", shape, (qkv, cu_seqlens, queries, heads), options)


def _plan(device: torch.device, *, large: bool) -> tuple[Any, tuple[Any, ...]]:
    """The reference's Plan of a random ragged batch, and the arguments it was made from."""
    from vilt_fast.reference.patch_sample import patch_sample

    batch, words, rows, columns, patch = (64, 16, 20, 20, 32) if large else (3, 5, 3, 4, 8)
    generator = torch.Generator().manual_seed(1)
    attention_mask = torch.arange(words) < torch.randint(1, words + 1, (batch, 1), generator=generator)
    height = torch.randint(1, rows + 1, (batch, 1, 1), generator=generator) * patch
    width = torch.randint(1, columns + 1, (batch, 1, 1), generator=generator) * patch
    pixel_mask = (torch.arange(rows * patch)[:, None] < height) & (torch.arange(columns * patch) < width)
    limit = rows * columns // 2
    arguments = (attention_mask, pixel_mask.long(), None, (rows, columns), limit, 7, torch.arange(batch))
    arguments = tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)
    return patch_sample(*arguments), arguments


def _embedding_cases(random: Callable[..., Tensor], device: torch.device, d: int, large: bool) -> Iterator[_Case]:
    plan, (attention_mask, pixel_mask, *_) = _plan(device, large=large)
    batch, words = attention_mask.shape
    patch, total = (32 if large else 8), int(plan.cu_seqlens[-1])
    tokens, shape = random(total, d), f"{batch} pairs, {total} rows"
    ids = torch.randint(0, 100, (batch, words), device=device)
    types = torch.randint(0, 2, (batch, words), device=device)
    tables = (random(100, d), random(words, d), random(2, d), random(d), random(d), random(d))
    yield _Case("text_embed", "text_embed", shape, (tokens, plan.text_row, ids, types, None, *tables, 1e-12), {})
    pixels = random(batch, 3, *pixel_mask.shape[1:])
    weight = random(d, 3, patch, patch, scale=(3 * patch**2) ** -0.5)
    rest = (random(d), random(1 + 12 * 12, d), random(d), random(3, d), torch.arange(batch, device=device) % 2 + 1)
    places = (plan.grid, plan.patch_index, plan.patch_row, plan.cls_row)
    options = {"table_size": (12, 12)}
    yield _Case("patch_embed", "patch_embed", shape, (tokens, pixels, weight, *rest, *places), options)
    # The same places in pictures of bytes, one behind the other.
    sizes = plan.grid.long().prod(1) * (3 * patch**2)
    data = torch.randint(0, 256, (int(sizes.sum()),), dtype=torch.uint8, device=device)
    grid_size = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    options |= {"grid_size": grid_size, "pixel_offset": sizes.cumsum(0) - sizes, "pixel_scale": 2 / 255}
    yield _Case("patch_embed", "patch_embed", f"{shape}, bytes", (tokens, data, weight, *rest, *places), options)


def _check_plan(device: torch.device, *, large: bool) -> Row:
    """patch_sample gives integers: nothing may differ."""
    from vilt_fast.kernels.patch_sample import patch_sample

    wanted, arguments = _plan(device, large=large)
    got = patch_sample(*arguments)
    different = sum(int((a != b).sum()) for a, b in zip(got, wanted, strict=True))
    return Row("patch_sample", "int32", f"{len(wanted.grid)} pairs", float(different), 0.0)


def _check_resize(device: torch.device) -> Row:
    """resize gives integers: not one byte may differ, in any of Pillow's pass orders."""
    from vilt_fast.contracts.pillow import RULES
    from vilt_fast.kernels.resize import resize
    from vilt_fast.reference.resize import resize as reference

    generator = torch.Generator().manual_seed(2)
    shapes, sizes = [(37, 50), (64, 20), (9, 40)], [(20, 31), (32, 40), (18, 12)]
    images = [torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8) for shape in shapes]
    different = 0
    for rule in RULES:
        got = resize([image.to(device) for image in images], sizes, rule=rule)
        wanted = reference(images, sizes, rule=rule)
        different += sum(int((a.cpu() != b).sum()) for a, b in zip(got, wanted, strict=True))
    return Row("resize", "uint8", f"{len(images)} pictures, {len(RULES)} pass orders", float(different), 0.0)
