"""Measures a short list of tiles for each kernel on the GPU at hand and writes the table that launchers then read.

The lists are short because compiling takes longer than measuring, and because what wins is known by family: few large
tiles for many rows, many small ones for few. Every tile of `linear` must give the same bits as one that is the same for
all size classes, or it is left out: a pair's answer may not depend on the size of its batch.

Tiles are measured in bf16 and serve fp16 too, whose instructions take the same time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilt_fast.checkpoints.files import write_atomically

# Rows of 1, 8, 64 and 256 pairs of 211 tokens, one in each size class.
ROWS = (226, 1688, 13504, 53831)
DTYPES = ["bfloat16", "float16"]

_DESCRIPTOR = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "FLATTEN", "programs", "SUBTILES")
_POINTER = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")
_MANY_ROWS = {
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
_FEW_ROWS = {
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
_LAYER_NORM = [(1, 1), (2, 1), (4, 1), (1, 2), (4, 2), (4, 4), (8, 4)]  # (ROWS, num_warps)
_ATTENTION = [(64, 32, 4, 3), (64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 8, 3), (128, 64, 8, 3)]


@dataclass(frozen=True)
class Task:
    """One entry of the table to be.

    Args:
        op: name of the kernel in the tables.
        key: N, K, bucket and dtype of the entry, as far as it has them.
        call: runs the operation, with the configuration that is forced meanwhile.
        candidates: configurations to measure.
        anchor: configuration whose result every candidate must give, bit for bit; within rounding where None.
    """

    op: str
    key: dict[str, Any]
    call: Callable[[], Tensor]
    candidates: list[dict[str, Any]]
    anchor: dict[str, Any] | None = None


def tune(
    *,
    hidden_size: int = 768,
    intermediate_size: int = 3072,
    num_heads: int = 12,
    rows: Sequence[int] = ROWS,
    directory: str | Path | None = None,
    measure: Callable[[Callable[[], Tensor]], float] | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Measure on the current GPU and write its table.

    Args:
        hidden_size, intermediate_size, num_heads: sizes of the model that the table is for.
        rows: numbers of packed tokens; each stands for its size class.
        directory: where the table goes; launchers read $VILT_FAST_CONFIGS, by default ~/.cache/vilt_fast/configs.
        measure: milliseconds of a call; the median of a replayed CUDA graph where None.
        report: is told of every entry, one line each.

    Returns:
        Path of the table, named by GPU and Triton version.

    Raises:
        ValueError: no GPU, or a number of rows that is not positive.
        OSError: the table cannot be written.
    """
    from vilt_fast.kernels import launch  # Triton is imported where it is used

    if measure is None and not torch.cuda.is_available():
        raise ValueError("tune: got no CUDA GPU, wanted one to measure on")
    if not rows or min(rows) < 1:
        raise ValueError(f"tune: rows: got {tuple(rows)}, wanted positive numbers")
    entries = []
    for task in _tasks(hidden_size, intermediate_size, num_heads, rows):
        if entry := _best(task, measure or _median_ms):
            entries.append(entry)
            report(f"{task.op} {task.key}: {entry['config']}, {entry['why']}")
    table = _about(launch.arch_of(torch.empty(0, device=_device()))) | {"entries": entries}
    folder = Path(directory) if directory else launch.tuned_tables()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / launch.table_name(table["gpu"], table["triton"])
    write_atomically(path, json.dumps(table, indent=1) + "\n")
    launch.forget_configurations()
    return path


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _about(arch: str) -> dict[str, Any]:
    import triton

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else arch
    return {"gpu": gpu, "arch": arch, "triton": triton.__version__, "torch": torch.__version__}


def _median_ms(call: Callable[[], Tensor]) -> float:
    from triton.testing import do_bench_cudagraph

    # A replayed graph: for few rows a launch from Python would take longer than the kernel.
    return do_bench_cudagraph(call, rep=20, return_mode="median")


def _best(task: Task, measure: Callable[[Callable[[], Tensor]], float]) -> dict[str, Any] | None:
    """The entry of the fastest candidate that runs and gives the right result; None where none does."""
    from triton.errors import TritonError

    from vilt_fast.kernels import launch

    today = measure(task.call)
    with launch.forced(task.op, task.anchor) if task.anchor else contextlib.nullcontext():
        wanted = task.call()
    same = torch.equal if task.anchor else _close
    best, best_ms, left_out = None, float("inf"), 0
    for config in task.candidates:
        with launch.forced(task.op, config):
            try:
                fits = same(task.call(), wanted)
            except TritonError:  # too much shared memory for this chip, or more than its compiler can do
                fits = False
            took = measure(task.call) if fits else float("inf")
        left_out += not fits
        if took < best_ms:
            best, best_ms = config, took
    if best is None:
        return None
    why = f"{best_ms:.4f} ms, {today:.4f} before; {len(task.candidates)} measured, {left_out} left out"
    return {"op": task.op, **task.key, "why": why, "config": best}


def _close(got: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(got.float(), wanted.float(), rtol=2e-2, atol=2e-2)


def _tasks(hidden: int, intermediate: int, heads: int, rows: Sequence[int]) -> Iterator[Task]:
    from vilt_fast.kernels import launch

    arch = launch.arch_of(torch.empty(0, device=_device()))
    for count in rows:
        yield from _linear_tasks(arch, hidden, intermediate, count)
    # One tile for every size class, chosen where most time goes.
    yield _layer_norm_task(hidden, max(rows))
    yield _attention_task(hidden, heads, max(rows))


def _linear_tasks(arch: str, hidden: int, intermediate: int, rows: int) -> Iterator[Task]:
    from vilt_fast.kernels import launch
    from vilt_fast.kernels.linear import linear

    few = launch.size_bucket(rows) in ("tiny", "small")
    kind = "descriptor" if launch.family(arch) in ("sm90", "sm100") else "pointer"
    tiles = _FEW_ROWS[kind] if few else _MANY_ROWS[kind]
    anchor, *candidates = (_linear_config(arch, kind, tile) for tile in (_FEW_ROWS[kind][0], *tiles))
    shapes = [(3 * hidden, hidden, None, False), (hidden, hidden, None, True)]
    shapes += [(intermediate, hidden, "gelu", False), (hidden, intermediate, None, True)]
    for N, K, activation, has_residual in shapes:
        x, w, bias = (_random(*shape) for shape in ((rows, K), (N, K), (N,)))
        options = {"activation": activation, "residual": _random(rows, N) if has_residual else None}
        suffix = "_residual" if has_residual and kind == "descriptor" else ""
        key = {"N": N, "K": K, "bucket": launch.size_bucket(rows), "dtype": DTYPES}

        def call(x: Tensor = x, w: Tensor = w, bias: Tensor = bias, options: dict = options) -> Tensor:
            return linear(x, w, bias, **options)

        yield Task(f"linear_{kind}{suffix}", key, call, candidates, anchor)


def _linear_config(arch: str, kind: str, tile: tuple) -> dict[str, Any]:
    from vilt_fast.kernels import launch

    config = dict(zip(_DESCRIPTOR if kind == "descriptor" else _POINTER, tile, strict=True), GROUP_M=8)
    if launch.family(arch) == "gfx942":
        config |= {"num_stages": 2, "matrix_instr_nonkdim": 16}
    return config


def _layer_norm_task(hidden: int, rows: int) -> Task:
    from vilt_fast.kernels.layer_norm import layer_norm

    x, weight, bias = (_random(*shape) for shape in ((rows, hidden), (hidden,), (hidden,)))
    candidates = [{"ROWS": count, "num_warps": warps} for count, warps in _LAYER_NORM]
    key = {"N": hidden, "dtype": DTYPES}
    return Task("layer_norm", key, lambda: layer_norm(x, weight, bias, 1e-12), candidates)


def _attention_task(hidden: int, heads: int, rows: int) -> Task:
    from vilt_fast.kernels.attention import attention

    # Spans of 181 to 241 tokens, as many as fit: vqa-mix has 211 on average.
    mean = min(rows, 211)
    lengths = torch.randint(mean - mean // 7, mean + mean // 7 + 1, (max(rows // 211, 1),))
    ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    qkv, cu_seqlens = _random(int(ends[-1]), 3 * hidden), ends.int().to(_device())
    longest = int(lengths.max())
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")
    candidates = [dict(zip(names, tile, strict=True)) for tile in _ATTENTION]
    key = {"N": hidden // heads, "dtype": DTYPES}
    return Task("attention", key, lambda: attention(qkv, cu_seqlens, heads, max_seqlen=longest), candidates)


def _random(*shape: int) -> Tensor:
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(0))
        .mul_(shape[-1] ** -0.5)
        .to(_device(), torch.bfloat16)
    )
