"""A pretend sm_90: Triton really compiles for it, and a launch is counted and dropped.

What remains is the host's work, which a machine without a GPU can then measure. Tensors are on the CPU. To be installed
before the first launch, in a process without TRITON_INTERPRET.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia

LAUNCHED: Counter[str] = Counter()  # kernel -> launches
COMPILED: Counter[str] = Counter()  # kernel -> programs that were compiled


class _Utils:
    """What Triton asks a driver about its device, answered as an H100 would."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        COMPILED[name] += 1
        return (0, 0, 0, 0, 1024)  # module, function, registers, spills, most threads

    def unload_module(self, module: int) -> None:
        pass

    def __getattr__(self, name: str) -> Any:  # the functions that encode a TMA descriptor, by version
        return lambda *arguments: None


class _Launcher(nvidia.CudaLauncher):
    """Triton's own way to a launch, up to the call into CUDA."""

    def __init__(self, src: Any, metadata: Any) -> None:
        name = metadata.name

        def launch(*arguments: Any) -> None:
            LAUNCHED[name] += 1

        signature, descriptors = dict(src.signature), getattr(metadata, "tensordesc_meta", None)
        self.launch = nvidia.wrap_handle_tensordesc(launch, signature, descriptors)
        self.num_ctas = getattr(metadata, "num_ctas", 1)
        for field in ("launch_cooperative_grid", "launch_pdl"):
            setattr(self, field, getattr(metadata, field))
        for kind in ("global_scratch", "profile_scratch"):
            setattr(self, f"{kind}_size", getattr(metadata, f"{kind}_size"))
            setattr(self, f"{kind}_align", getattr(metadata, f"{kind}_align"))
        self.arg_annotations, self.kernel_signature = (), b""  # of Triton 3.7


class _Driver:
    """As much of Triton's `DriverBase` as a launch needs."""

    launcher_cls = _Launcher

    def __init__(self) -> None:
        self.utils = _Utils()

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int) -> tuple[int, int]:
        return (9, 0)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return nvidia.ty_to_cpp(kind)

    def get_benchmarker(self) -> None:
        return None


def install() -> None:
    """Make it Triton's active driver."""
    triton.runtime.driver.set_active(_Driver())
