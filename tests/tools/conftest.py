"""One tiny ViLT, ours and transformers', with the same weights, and how the tests compare the two."""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TINY = dict(
    vocab_size=100,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=16,
    modality_type_vocab_size=3,
    image_size=32,
    patch_size=8,
    num_images=2,
    num_labels=4,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="session")
def both() -> ModuleType:
    """tests/tools/both.py; tests/ is no package, so it is loaded by path."""
    pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")
    spec = importlib.util.spec_from_file_location("vilt_both", Path(__file__).parent / "both.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def built(both: ModuleType) -> Callable:
    """Makes each pair of models once; who wants to change them takes `pair`."""
    made = {}

    def build(name: str = "ViltForQuestionAnswering", **changes):
        key = (name, *sorted(changes.items()))
        if key not in made:
            made[key] = both.build(name, {**TINY, **changes})
        return made[key]

    return build


@pytest.fixture
def pair(built: Callable) -> Callable:
    """pair(name, **changes): (ours, theirs, inputs), in evaluation mode, to be changed at will."""

    def make(name: str = "ViltForQuestionAnswering", **changes):
        ours, theirs, inputs = built(name, **changes)
        return copy.deepcopy(ours), copy.deepcopy(theirs), inputs

    return make
