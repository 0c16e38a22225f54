"""Compiles every shipped configuration for a target without a GPU, and reads what the compiler made of it.

Each kernel file exposes `shipped_configurations(target)`; this module turns every one of them into machine code and
reads registers, spills, shared memory and matrix instructions from it. `@triton.jit` of a process under
TRITON_INTERPRET=1 makes functions that cannot be compiled, so the work is done in child processes.
"""

import importlib
import multiprocessing
import os
import re
import subprocess
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from vilt_fast.ops import OPERATIONS

TARGETS = ("sm80", "sm90", "sm100", "gfx942")
_MATRIX = {
    "wgmma": r"wgmma\.mma_async\.sync\.aligned\.(m\d+n\d+k\d+)",
    "mma": r"(?<!wg)mma\.sync\.aligned\.(m\d+n\d+k\d+)",
    "tcgen05": r"tcgen05\.mma\.cta_group::\d\.kind::(\w+)",
    "mfma": r"v_s?mfma_\w+?_(\d+x\d+x\d+)",
}


def gpu_target(target: str) -> Any:
    """Triton's GPUTarget for "sm80", "sm90", "sm100" or "gfx942".

    Raises:
        ValueError: another name.
    """
    from triton.backends.compiler import GPUTarget

    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, wanted one of {', '.join(TARGETS)}")
    if target.startswith("gfx"):
        return GPUTarget("hip", target, 64)
    return GPUTarget("cuda", int(target.removeprefix("sm")), 32)


def shipped(target: str, operations: Iterable[str] = tuple(OPERATIONS)) -> Iterator[Any]:
    """Shipped configurations of kernel files, each a `vilt_fast.kernels.shipped.Configuration`."""
    for operation in operations:
        yield from importlib.import_module(f"vilt_fast.kernels.{operation}").shipped_configurations(target)


def matrix_instructions(assembly: str) -> dict[str, list[str]]:
    """Kinds of matrix instruction in PTX or AMD assembly, each with the shapes that occur."""
    found = {kind: sorted(set(re.findall(pattern, assembly))) for kind, pattern in _MATRIX.items()}
    return {kind: shapes for kind, shapes in found.items() if shapes}


def _nvidia_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, spilled bytes per thread) of a cubin, from the cuobjdump that Triton's wheel carries."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    fields = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", report))
    # Our kernels have no arrays of their own: what is on the stack was spilled.
    return int(fields["REG"]), int(fields["STACK"]) + int(fields.get("LOCAL", 0))


def _amd_usage(assembly: str) -> tuple[int, int]:
    """(vector registers, spilled bytes per thread) from the metadata in AMD assembly."""
    fields = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", assembly, re.MULTILINE)}
    return fields["vgpr_count"], max(4 * fields["vgpr_spill_count"], fields["private_segment_fixed_size"])


def compile_one(target: str, config: Any) -> dict[str, Any]:
    """Compiles one shipped configuration and describes the result.

    Returns:
        target, kernel (name of the jit function), config, registers and spill_bytes (per thread), shared_bytes (per
        program), matrix_instructions ("wgmma", "mma", "tcgen05", "mfma" or ""), matrix_shapes (list of str).
    """
    import triton
    from triton.compiler import ASTSource

    source = ASTSource(config.function, config.signature, config.constexprs, config.attributes)
    kernel = triton.compile(source, target=gpu_target(target), options=config.options)
    nvidia = not target.startswith("gfx")
    registers, spilled = _nvidia_usage(kernel.asm["cubin"]) if nvidia else _amd_usage(kernel.asm["amdgcn"])
    matrix = matrix_instructions(kernel.asm["ptx" if nvidia else "amdgcn"])
    return {
        "target": target,
        "kernel": config.function.__name__.strip("_"),
        "config": config.name,
        "registers": registers,
        "spill_bytes": spilled,
        "shared_bytes": kernel.metadata.shared,
        "matrix_instructions": ",".join(matrix),
        "matrix_shapes": sorted(shape for shapes in matrix.values() for shape in shapes),
    }


def _without_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "0"


def _compile_share(targets: Sequence[str], operations: Sequence[str], first: int, step: int) -> list[dict[str, Any]]:
    """Rows of every `step`-th configuration from `first` on."""
    work = [(target, config) for target in targets for config in shipped(target, operations)]
    try:
        return [compile_one(target, config) for target, config in work[first::step]]
    except Exception:  # the compiler's own errors do not pass from process to process
        raise RuntimeError(f"a kernel does not compile:\n{traceback.format_exc()}") from None


def compile_all(
    targets: Sequence[str] = TARGETS, *, operations: Sequence[str] = tuple(OPERATIONS), jobs: int | None = None
) -> list[dict[str, Any]]:
    """Compiles every shipped configuration for every target, in child processes.

    Args:
        targets: names out of TARGETS.
        operations: kernel files to compile.
        jobs: processes at a time; the number of cores where None.

    Returns:
        One row per configuration, see `compile_one`.

    Raises:
        ValueError: an unknown target or operation.
        RuntimeError: a configuration does not compile; holds the compiler's words.
    """
    for target in targets:
        gpu_target(target)
    if unknown := sorted(set(operations) - set(OPERATIONS)):
        raise ValueError(f"operations: got {', '.join(unknown)}, wanted some of {', '.join(OPERATIONS)}")
    count = jobs or os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(count, _without_interpreter) as pool:
        shares = [(targets, operations, first, count) for first in range(count)]
        rows = list(chain.from_iterable(pool.starmap(_compile_share, shares, chunksize=1)))
    order = {target: i for i, target in enumerate(targets)}
    return sorted(rows, key=lambda row: (order[row["target"]], row["kernel"], row["config"]))
