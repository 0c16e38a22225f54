"""`vilt-fast env`: the machine and the versions, for a bug report."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import vilt_fast

PACKAGES = ("torch", "triton", "numpy", "pillow", "tokenizers", "safetensors", "huggingface_hub", "transformers")


def env(arguments: argparse.Namespace) -> None:
    """Print the environment, as a table or as JSON."""
    found = environment()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value if value is not None else 'not installed'}")


def environment() -> dict[str, str | None]:
    """Names and values; None for a package that is not installed."""
    found: dict[str, str | None] = {
        "vilt_fast": vilt_fast.__version__,
        "installed at": str(Path(vilt_fast.__file__).parent),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores",
    }
    return found | {name: _version(name) for name in PACKAGES} | _torch_details()


def _version(package: str) -> str | None:
    # The metadata, not an import: a package that is broken still has a version.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    name = ""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    elif sys.platform == "darwin":
        name = _first_line("sysctl", "-n", "machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine()


def _torch_details() -> dict[str, str | None]:
    try:
        import torch
    except Exception as error:  # a broken install is what a bug report is about
        return {"torch import": f"{type(error).__name__}: {error}"}
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    details: dict[str, str | None] = {
        "torch built for": built_for if torch.version.cuda or torch.version.hip else "CPU",
        "torch threads": str(torch.get_num_threads()),
    }
    if not torch.cuda.is_available():
        return {**details, "gpu": "none that torch can use"}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        details[f"gpu {index}"] = f"{device.name}, sm_{device.major}{device.minor}, {memory}"
    driver = _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    details["gpu driver"] = driver or "unknown: no answer from nvidia-smi"
    return {**details, "cudnn": str(torch.backends.cudnn.version())}


def _first_line(*command: str) -> str:
    """The first line that a program prints; empty if it fails or is not installed."""
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return shown.partition("\n")[0].strip()
