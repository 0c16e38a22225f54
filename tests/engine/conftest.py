"""Small random models, images of several sizes, and texts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import vilt_fast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"a the red blue cat dog on couch is there how many what color ? . left right".split()]
ANSWERS = ("red", "blue", "yes", "no", "2", "cat", "dog")


def _make(name: str = "ViltForQuestionAnswering", dtype: torch.dtype = torch.float64, **fields: Any) -> Any:
    sizes = dict(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=64,
        patch_size=16,
        max_position_embeddings=16,
        initializer_range=0.5,
        id2label=dict(enumerate(ANSWERS)),
    )
    torch.manual_seed(len(name))
    return getattr(vilt_fast, name)(vilt_fast.ViltConfig(**{**sizes, **fields})).to(dtype).eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """The function that makes a model: class name, dtype, fields of the configuration.

    float64, so that the order of sums is no excuse: a difference of more than 1e-6 means dependence on the batch.
    """
    return _make


@pytest.fixture(scope="session")
def model(make_model) -> Any:
    return make_model()


@pytest.fixture(scope="session")
def processor(tmp_path_factory) -> Any:
    words = tmp_path_factory.mktemp("vocabulary") / "words.txt"
    words.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    pictures = vilt_fast.ViltImageProcessor(size={"shortest_edge": 64}, size_divisor=16)
    return vilt_fast.ViltProcessor(pictures, vilt_fast.BertTokenizer(str(words)))


@pytest.fixture(scope="session")
def pairs() -> tuple[list[np.ndarray], list[str]]:
    """40 images of many sizes, each with a text of 1 to 9 words."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(40, 150, (40, 2))
    images = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]
    texts = [" ".join(rng.choice(WORDS[5:], rng.integers(1, 10))) for _ in images]
    return images, texts


@pytest.fixture(scope="session")
def alone(processor) -> Callable[..., torch.Tensor]:
    """The logits of one pair by the model's own forward, float32."""

    @torch.no_grad()
    def compute(model: Any, image: Any, text: str) -> torch.Tensor:
        inputs = processor(image, text, device="cpu")
        return model(**inputs, image_index=torch.zeros(1, dtype=torch.int64)).logits[0].float()

    return compute
