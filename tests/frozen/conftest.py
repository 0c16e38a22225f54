"""Random models of every class, ragged batches for them, and buckets without a GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import vilt_fast
from vilt_fast.frozen.graphs import Recording

CLASSES = (
    "ViltModel",
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForImagesAndTextClassification",
    "ViltForImageAndTextRetrieval",
    "ViltForImageTextMatching",
    "ViltForTokenClassification",
)


@pytest.fixture(params=CLASSES)
def name(request: pytest.FixtureRequest) -> str:
    """Each class; a test that asks for it runs once for each."""
    return request.param


@pytest.fixture(scope="session")
def make_model(oracle) -> Callable[..., Any]:
    """Makes a model: class name, number of the oracle's configuration, dtype, fields of the configuration."""

    def make(name: str, index: int = 0, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
        config = vilt_fast.ViltConfig(**{**oracle.config_kwargs(index), "max_image_length": -1, **fields})
        model = getattr(vilt_fast, name)(config)
        return oracle.randomise(model, seed=index).to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_inputs(oracle) -> Callable[..., dict[str, Any]]:
    """Makes ragged inputs without labels for a model."""

    def make(model: Any, seed: int = 0, size: int = 3) -> dict[str, Any]:
        inputs = oracle.inputs_for(type(model).__name__, model.config, seed, size)
        inputs.pop("labels", None)
        return {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}

    return make


class Repeater:
    """Records nothing: a replay runs the function again, in the memory that it was recorded with."""

    def __init__(self) -> None:
        self.replays = 0

    def record(self, function: Callable[[], torch.Tensor]) -> Recording:
        result = function().fill_(float("nan"))  # what a replay does not write shows

        def replay() -> None:
            self.replays += 1
            result.copy_(function())

        return Recording(replay, result, 0)


@pytest.fixture
def repeater() -> Repeater:
    return Repeater()
