"""Small random models and images on disk, and the command in this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vilt_fast
from vilt_fast import cli

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"a the red blue cat dog on couch is there how many what color ? . left right".split()]
ANSWERS = ("red", "blue", "yes", "no", "2", "cat", "dog")


def make_config(**overrides) -> vilt_fast.ViltConfig:
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
    )
    return vilt_fast.ViltConfig(**{**sizes, **overrides})


def save_model(directory: Path, name: str, **overrides) -> str:
    """A directory with random weights of class `name`, a vocabulary and the picture settings."""
    torch.manual_seed(len(name))
    model = getattr(vilt_fast, name)(make_config(**overrides))
    model.save_pretrained(directory)
    words = directory / "words.txt"
    words.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    pictures = vilt_fast.ViltImageProcessor(size={"shortest_edge": 64}, size_divisor=16)
    vilt_fast.ViltProcessor(pictures, vilt_fast.BertTokenizer(str(words))).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    """Directories with one model per command, and one with the matching head."""
    root = tmp_path_factory.mktemp("models")
    labels = dict(enumerate(ANSWERS))
    wanted = {
        "ask": ("ViltForQuestionAnswering", {"id2label": labels}),
        "fill": ("ViltForMaskedLM", {}),
        "match": ("ViltForImageAndTextRetrieval", {}),
        "itm": ("ViltForImageTextMatching", {}),
        "nlvr": (
            "ViltForImagesAndTextClassification",
            {"num_images": 2, "modality_type_vocab_size": 3, "id2label": {0: "False", 1: "True"}},
        ),
    }
    return {kind: save_model(root / kind, name, **options) for kind, (name, options) in wanted.items()}


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> str:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    Image.fromarray(rng.integers(0, 256, (90, 130, 3), np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="session")
def photo2(tmp_path_factory) -> str:
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("pictures") / "grey.png"
    Image.fromarray(rng.integers(0, 256, (120, 80), np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="session")
def saved() -> Callable[..., str]:
    """The function that saves a model: directory, class name, fields of the configuration -> the directory's name."""
    return save_model


@pytest.fixture
def run(capsys) -> Callable[..., str]:
    """Runs a command that succeeds and says nothing on standard error; gives its standard output."""

    def succeed(*argv: str) -> str:
        code = cli.main(list(argv))
        shown = capsys.readouterr()
        assert (code, shown.err) == (0, "")
        return shown.out

    return succeed


@pytest.fixture
def fail(capsys) -> Callable[..., str]:
    """Runs a command that is refused with code 2; gives its one line on standard error."""

    def be_refused(*argv: str) -> str:
        try:
            code = cli.main(list(argv))
        except SystemExit as stop:  # argparse's own way
            code = stop.code
        shown = capsys.readouterr()
        assert (code, shown.out) == (2, "")
        assert shown.err.endswith("\n") and shown.err.count("\n") == 1, shown.err
        assert shown.err.startswith("vilt-fast")
        return shown.err

    return be_refused
