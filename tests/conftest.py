"""What all tests share. Without a GPU the kernels run in Triton's interpreter: to be chosen before Triton's import."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On matrices this small threads spend their time waiting for each other, above all on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: the CPU under the interpreter (with bfloat16 corrected), a GPU otherwise."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    from vilt_fast.kernels import interpreter, launch

    if launch.INTERPRETED:
        interpreter.patch()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU, and Triton was imported without TRITON_INTERPRET=1")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """tests/models/oracle.py; tests/ is no package, so it is loaded by path."""
    spec = importlib.util.spec_from_file_location("vilt_oracle", Path(__file__).parent / "models" / "oracle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def vit_oracle() -> ModuleType:
    """tests/models/vit_oracle.py, loaded by path like the other."""
    spec = importlib.util.spec_from_file_location("vit_oracle", Path(__file__).parent / "models" / "vit_oracle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def visual_bert_oracle() -> ModuleType:
    """tests/models/visual_bert_oracle.py, loaded by path like the others."""
    path = Path(__file__).parent / "models" / "visual_bert_oracle.py"
    spec = importlib.util.spec_from_file_location("visual_bert_oracle", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Repeater:
    """Records nothing: a replay runs the function again, in the memory that it was recorded with."""

    def __init__(self) -> None:
        self.replays = 0

    def record(self, function: Callable[[], torch.Tensor]) -> Any:
        from vilt_fast.frozen.graphs import Recording

        result = function().fill_(float("nan"))  # what a replay does not write shows

        def replay() -> None:
            self.replays += 1
            result.copy_(function())

        return Recording(replay, result, 0)


@pytest.fixture
def repeater() -> Repeater:
    return Repeater()
