"""Where a figure was measured: the columns that stand in every row of a result file."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

import torch

import vilt_fast

PACKAGES = ("triton", "transformers")


def environment(device: torch.device) -> dict[str, str]:
    """Names and values; a package that is not installed has "none"."""
    found = {"vilt_fast": vilt_fast.__version__, "commit": commit(), "device": device_name(device)}
    found["device_type"] = device.type
    found["torch"] = str(torch.__version__)  # the metadata of some wheels lacks the local part, such as "+cu130"
    found.update({name: _version(name) for name in PACKAGES})
    found["cuda"] = str(torch.version.cuda or torch.version.hip or "none")
    found["threads"] = str(torch.get_num_threads())
    # Of others, in processes that wanted to run in the last minute: what else the clock may have measured.
    found["load"] = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    found["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine() or "CPU"


def commit() -> str:
    """The commit that the sources are at, with "+changes" where they differ from it; "unknown" outside a checkout.

    VILT_FAST_COMMIT names it where the sources were copied without their history.
    """
    if os.environ.get("VILT_FAST_COMMIT"):
        return os.environ["VILT_FAST_COMMIT"]
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        # Installed below someone else's checkout, these sources are not part of it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        # Results are written into the checkout, so they do not count as a change of what was measured.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/bench/results", ":!/README.md")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def file_stem(suite: str, found: dict[str, str]) -> str:
    """What result files are called: suite, device, versions, and "quick" where the figures mean nothing."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", found["device"].removeprefix("NVIDIA ")).strip("-").lower()
    versions = f"torch-{found['torch'].split('+')[0]}_triton-{found['triton']}"
    return f"{suite}_{name}_{versions}" + ("_quick" if found.get("mode") == "quick" else "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
