from collections.abc import Callable
from types import ModuleType

import pytest

from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.models.vilt import ViltModel

CLASSES = (
    "ViltModel",
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForImagesAndTextClassification",
    "ViltForImageAndTextRetrieval",
    "ViltForTokenClassification",
)


# The fields of a small configuration: two layers, a position table of 4 x 4 patches.
SMALL = dict(
    vocab_size=31,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=60,
    max_position_embeddings=24,
    image_size=32,
    patch_size=8,
    layer_norm_eps=1e-12,
)


@pytest.fixture(scope="session")
def small_config() -> Callable[..., ViltConfig]:
    """Makes the small configuration, with changes."""
    return lambda **changes: ViltConfig(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def model64(oracle: ModuleType) -> ViltModel:
    """The small model in fp64, every parameter random."""
    return oracle.randomise(ViltModel(ViltConfig(**SMALL)), seed=3).double().eval()


@pytest.fixture(params=CLASSES)
def name(request: pytest.FixtureRequest) -> str:
    """Each of transformers' six classes; a test that asks for it runs once for each."""
    return request.param
