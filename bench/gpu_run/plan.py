"""The parts of the run: steps as data. What matters most comes first, peers come after ours, compiled peers last.

A part ends within nine minutes: the limits of its steps add up to no more than that, and a step ends at its limit.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PART_SECONDS = 540
PARTS = {
    1: "does it run and agree; the encoder in a graph; microseconds per operation",
    2: "the live, the frozen and the engine's form beside transformers; the tests marked gpu",
    3: "every switch of the kernels alone and together; the table that says which to turn on",
    4: "tiles under that table, then the encoder again",
    5: "the suites without what compiles for minutes",
    6: "the peers under torch.compile",
    7: "profiler and sanitizers",
    8: "ViT-B/16 beside transformers",
    9: "VisualBERT beside transformers",
}
GPU = "a GPU"  # what a step may need, beside programs
PROFILED = "^(linear_(descriptor|pointer)|attention_kernel|_layer_norm_kernel)$"  # kernels of a block, for ncu


class Step(NamedTuple):
    """One process.

    Args:
        name: of the step and of its log.
        seconds: when it is ended.
        command: the program and its arguments.
        headline: the fact that stands for it in the summary; the last line of its output where there is none.
        environment: variables of its own.
        needs: a program without which there is no use in starting, or GPU.
    """

    name: str
    seconds: int
    command: Sequence[str]
    headline: str = ""
    environment: Mapping[str, str] = {}
    needs: str = ""


def steps(part: int, work: Path, switches: Sequence[str], *, quick: bool = False) -> list[Step]:
    """The steps of a part.

    Args:
        work: folder that they write to. switches: those of `vilt_fast.kernels.switches` that this chip can have on.
        quick: whether suites run tiny, into files that are never published.

    Raises:
        ValueError: there is no such part.
    """
    if part not in PARTS:
        raise ValueError(f"--part: got {part}, wanted one of {', '.join(map(str, PARTS))}")
    makers = (_first_light, _forms, _switches, _tuned, _suites, _compiled, _inspected, _vit, _visual_bert)
    found = makers[part - 1](work, switches)
    return [
        step._replace(command=(*step.command, "--quick")) if quick and _files_rows(step) else step for step in found
    ]


def _files_rows(step: Step) -> bool:
    """Whether a step writes result files."""
    return step.command[2:4] in (_python("cli", "bench")[2:], _python("cli", "ablate")[2:])


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"vilt_fast.{module}", *arguments)


def _measure(*arguments: str) -> tuple[str, ...]:
    return _python("bench.gpu_run.measure", *arguments)


def _first_light(work: Path, switches: Sequence[str]) -> list[Step]:
    return [
        Step("env", 20, _python("cli", "env")),
        Step("smoke_1", 60, _measure("smoke", "1"), "smoke B=1: operations that agree"),
        Step("smoke_256", 90, _measure("smoke", "256"), "smoke B=256: operations that agree"),
        Step("encoder", 180, _measure("encoder"), "encoder B=256: ours to the packed rival"),
        Step("ops", 90, _measure("ops"), "twelve blocks B=256"),
        Step("check", 100, _python("cli", "check")),
    ]


def _forms(work: Path, switches: Sequence[str]) -> list[Step]:
    found = [
        Step("live", 100, _measure("live"), "live B=1: ours to transformers"),
        Step("frozen", 70, _measure("frozen"), "frozen B=1: vilt_fast frozen + graph, packed uint8"),
        Step("engine", 90, _measure("engine"), "engine: vilt_fast Engine"),
    ]
    for folder, seconds in {"ops": 110, "frozen": 40, "models": 70, "engine": 30, "checkpoints": 30}.items():
        command = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short")
        found.append(Step(f"tests_{folder}", seconds, (*command, f"tests/{folder}")))
    return found


def _switches(work: Path, switches: Sequence[str]) -> list[Step]:
    seconds = 290 // max(1, len(switches))
    names = [*switches, "all"]
    return [
        Step("compile", 110, _python("bench.gpu_run.candidates", "compile")),
        *(Step(f"switch_{name}", min(40, seconds), _candidate(name), _of_switch(name)) for name in names[:-1]),
        Step("switch_all", 50, _candidate("all"), _of_switch("all")),
        Step("choose", 30, _python("bench.gpu_run.choose", str(work / "facts.jsonl"), str(work / "configs"))),
        Step("chosen", 60, _candidate("table"), _of_switch("table")),
    ]


def _candidate(name: str) -> tuple[str, ...]:
    return _python("bench.gpu_run.candidates", name)


def _of_switch(name: str) -> str:
    return f"switch {name}: encoder B=256"


def _tuned(work: Path, switches: Sequence[str]) -> list[Step]:
    return [
        Step("tune", 300, _python("cli", "tune", "--out", str(work / "configs")), needs=GPU),
        Step("encoder_tuned", 180, _measure("encoder"), "encoder B=256: ours to the packed rival"),
        Step("ops_tuned", 60, _measure("ops"), "twelve blocks B=256"),
    ]


def _inspected(work: Path, switches: Sequence[str]) -> list[Step]:
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # inside a block of PyTorch's no access is out of bounds
    every = uncached | {"VILT_FAST_SWITCHES": ",".join(switches)}
    profile = ("ncu", "--clock-control", "none", "--set", "full", "-k", f"regex:{PROFILED}", "-c", "6", "--kill", "yes")
    small = _python("cli", "check", "--small")

    def sanitizer(tool: str) -> tuple[str, ...]:
        return ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *small)

    return [
        Step("ncu", 90, (*profile, "-f", "-o", str(work / "ncu"), *_measure("smoke", "256")), needs="ncu"),
        Step("ncu_details", 10, ("ncu", "-i", f"{work / 'ncu'}.ncu-rep", "--page", "details", "--csv"), needs="ncu"),
        # Compile outside the sanitizer, under which everything is slow.
        Step("check_small", 60, small),
        Step("check_switches", 60, small, environment=every),
        Step("memcheck", 100, sanitizer("memcheck"), environment=uncached, needs="compute-sanitizer"),
        Step("memcheck_switches", 110, sanitizer("memcheck"), environment=every, needs="compute-sanitizer"),
        Step("racecheck", 110, sanitizer("racecheck"), environment=every, needs="compute-sanitizer"),
    ]


def _bench(work: Path, suite: str, minutes: float, *more: str) -> tuple[str, ...]:
    out = str(work / "bench" / "results")  # unpacked in the root of a checkout, they lie where `make report` reads
    return _python("cli", "bench", "--suite", suite, "--minutes", str(minutes), "--out", out, *more)


def _suites(work: Path, switches: Sequence[str]) -> list[Step]:
    plain = "--no-compile"
    ablate = _python("cli", "ablate", "--minutes", "0.8", "--out", str(work / "bench" / "results"))
    return [
        Step("latency", 110, _bench(work, "latency", 1.4, plain, "--batch", "1", "--batch", "8")),
        Step("model", 130, _bench(work, "model", 1.8, plain, "--batch", "64", "--batch", "256")),
        Step("end_to_end", 90, _bench(work, "end-to-end", 1.2, plain)),
        Step("suite_ops", 80, _bench(work, "ops", 1.0, plain, "--batch", "256")),
        Step("memory", 60, _bench(work, "memory", 0.7, plain)),
        Step("ablate", 70, ablate),
    ]


def _compiled(work: Path, switches: Sequence[str]) -> list[Step]:
    ratio = "compiled B=256: ours to the packed rival"
    rest = _bench(work / "compiled", "model", 3.5, "--compile", "--batch", "256")
    return [Step("compiled", 270, _measure("compiled"), ratio), Step("model_compiled", 270, rest)]


def _vit(work: Path, switches: Sequence[str]) -> list[Step]:
    suite = _bench(work, "vit", 3.5, "--no-compile", "--batch", "64", "--batch", "256")
    ratio = "vit-224 B=256: ours to compiled transformers"
    return [Step("vit", 270, _measure("vit"), ratio), Step("suite_vit", 270, suite)]


def _visual_bert(work: Path, switches: Sequence[str]) -> list[Step]:
    batches = [part for batch in (1, 8, 64, 256) for part in ("--batch", str(batch))]
    suite = _bench(work, "visual_bert", 3.2, "--no-compile", *batches)
    ratio = "visual-bert-mixed B=256: ours to compiled transformers"
    return [Step("visual_bert", 290, _measure("visual_bert"), ratio), Step("suite_visual_bert", 250, suite)]
