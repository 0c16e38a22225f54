"""Random models of every class, and ragged batches for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import vilt_fast

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
