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


@pytest.fixture(scope="session")
def visual_built(visual_bert_oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """Makes (ours, theirs) of each class of VisualBERT once; who wants to change them takes `visual_pair`."""
    made = {}

    def build(name: str, **changes):
        key = (name, *sorted(changes.items()))
        if key not in made:
            changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **changes}
            made[key] = visual_bert_oracle.pair(name, tmp_path_factory.mktemp(name), **changes)
        return made[key]

    return build


@pytest.fixture
def visual_pair(visual_built: Callable) -> Callable:
    """visual_pair(name, **changes): (ours, theirs), in evaluation mode, to be changed at will."""
    return lambda name="VisualBertForQuestionAnswering", **changes: copy.deepcopy(visual_built(name, **changes))


@pytest.fixture
def visual_inputs(visual_bert_oracle: ModuleType, visual_built: Callable) -> Callable:
    """visual_inputs(name): a ragged batch of VisualBERT with an alignment, and labels."""

    def make(name: str = "VisualBertForQuestionAnswering"):
        config = visual_built(name)[1].config
        inputs = visual_bert_oracle.inputs_for(name, config, 3)
        return inputs, visual_bert_oracle.labels_for(name, config, inputs, 3)

    return make
