"""Compiles every shipped configuration for a target without a GPU, and reads what the compiler made of it.

Each kernel file exposes `shipped_configurations(target)`; this module turns every one of them into machine code and
reads registers, spills, shared memory and matrix instructions from it. `@triton.jit` of a process under
TRITON_INTERPRET=1 makes functions that cannot be compiled, so the work is done in child processes:

    python -m vilt_fast.bench.compile sm80,sm90 linear,attention SHARD COUNT [counts]      one JSON row per line
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vilt_fast.bench import machine_code
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


def _cuobjdump(cubin: bytes, what: str) -> str:
    """What the cuobjdump that Triton's wheel carries says of a cubin."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _nvidia_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, spilled bytes per thread) of a cubin."""
    fields = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _cuobjdump(cubin, "-res-usage")))
    # Our kernels have no arrays of their own: what is on the stack was spilled.
    return int(fields["REG"]), int(fields["STACK"]) + int(fields.get("LOCAL", 0))


def _amd_usage(assembly: str) -> tuple[int, int]:
    """(vector registers, spilled bytes per thread) from the metadata in AMD assembly."""
    fields = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", assembly, re.MULTILINE)}
    return fields["vgpr_count"], max(4 * fields["vgpr_spill_count"], fields["private_segment_fixed_size"])


def compile_one(target: str, config: Any, *, counts: bool = False) -> dict[str, Any]:
    """Compiles one shipped configuration and describes the result.

    Args:
        counts: whether to count instructions too.

    Returns:
        target, kernel (name of the jit function), config, registers and spill_bytes (per thread), shared_bytes (per
        program), matrix_instructions ("wgmma", "mma", "tcgen05", "mfma" or ""), matrix_shapes (list of str); with
        `counts` what `machine_code.describe` says.
    """
    import triton
    from triton.compiler import ASTSource

    source = ASTSource(config.function, config.signature, config.constexprs, config.attributes)
    kernel = triton.compile(source, target=gpu_target(target), options=config.options)
    nvidia = not target.startswith("gfx")
    registers, spilled = _nvidia_usage(kernel.asm["cubin"]) if nvidia else _amd_usage(kernel.asm["amdgcn"])
    matrix = matrix_instructions(kernel.asm["ptx" if nvidia else "amdgcn"])
    row = {
        "target": target,
        "kernel": config.function.__name__.strip("_"),
        "config": config.name,
        "registers": registers,
        "spill_bytes": spilled,
        "shared_bytes": kernel.metadata.shared,
        "matrix_instructions": ",".join(matrix),
        "matrix_shapes": sorted(shape for shapes in matrix.values() for shape in shapes),
    }
    if counts and nvidia:
        row |= machine_code.describe(machine_code.read_sass(_cuobjdump(kernel.asm["cubin"], "-sass")))
    elif counts:
        row |= machine_code.describe(machine_code.read_amd(kernel.asm["amdgcn"]))
    return row


def _start(targets: Sequence[str], operations: Sequence[str], shard: int, count: int, counts: bool) -> subprocess.Popen:
    command = [sys.executable, "-m", __spec__.name, ",".join(targets), ",".join(operations), str(shard), str(count)]
    command += ["counts"] if counts else []
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def compile_all(
    targets: Sequence[str] = TARGETS,
    *,
    operations: Sequence[str] = tuple(OPERATIONS),
    jobs: int | None = None,
    counts: bool = False,
) -> list[dict[str, Any]]:
    """Compiles every shipped configuration for every target, in child processes.

    Args:
        targets: names out of TARGETS.
        operations: kernel files to compile.
        jobs: processes at a time; the number of cores where None.
        counts: whether to count instructions too.

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
    children = [_start(targets, operations, shard, count, counts) for shard in range(count)]
    order = {target: i for i, target in enumerate(targets)}
    return sorted(_rows_of(children), key=lambda row: (order[row["target"]], row["kernel"], row["config"]))


def _rows_of(children: Sequence[subprocess.Popen]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        for child in children:
            out, errors = child.communicate()
            if child.returncode:
                raise RuntimeError(f"a kernel does not compile:\n{errors}")
            rows += map(json.loads, out.splitlines())
    finally:
        for child in children:
            child.kill()
            child.wait()
    return rows


def _main(targets: str, operations: str, shard: str, count: str, counts: str = "") -> None:
    work = [(target, entry) for target in targets.split(",") for entry in shipped(target, operations.split(","))]
    for target, configuration in work[int(shard) :: int(count)]:
        print(json.dumps(compile_one(target, configuration, counts=bool(counts))), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
