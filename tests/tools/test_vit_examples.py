"""The examples of ViT's documentation, 5.17's and 4.37's, with the import changed: they print what transformers prints.

Ids of the hub become directories with small random weights, and the picture of two cats another one.
"""

import contextlib
import doctest
import inspect
import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vilt_fast

transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

CHECKPOINTS = {
    "google/vit-base-patch16-224-in21k": "ViTModel",
    "google/vit-base-patch16-224": "ViTForImageClassification",
}
# What 4.37 documents and 5.17 no longer does; the page's own text, as short as it can be.
MODEL_437 = """
>>> from transformers import AutoImageProcessor, ViTModel
>>> import torch
>>> from datasets import load_dataset
>>> image = load_dataset("huggingface/cats-image")["test"]["image"][0]
>>> image_processor = AutoImageProcessor.from_pretrained("google/vit-base-patch16-224-in21k")
>>> model = ViTModel.from_pretrained("google/vit-base-patch16-224-in21k")
>>> inputs = image_processor(image, return_tensors="pt")
>>> with torch.no_grad():
...     outputs = model(**inputs)
>>> last_hidden_states = outputs.last_hidden_state
>>> list(last_hidden_states.shape)
"""


def documented(owner) -> str:
    """The example of a docstring."""
    return inspect.getdoc(owner).split("```python")[1].split("```")[0]


EXAMPLES = {
    "ViTConfig": documented(transformers.ViTConfig),
    "ViTModel of 4.37": MODEL_437,
    "ViTForImageClassification": documented(transformers.ViTForImageClassification.forward),
    "ViTForMaskedImageModeling": documented(transformers.ViTForMaskedImageModeling.forward),
}


@pytest.fixture
def picture(monkeypatch) -> Image.Image:
    """What `datasets` and `httpx` give, neither of which is needed."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    image, content = Image.fromarray(pixels), io.BytesIO()
    image.save(content, "PNG")
    response = SimpleNamespace(read=content.getvalue)
    datasets, httpx = ModuleType("datasets"), ModuleType("httpx")
    datasets.load_dataset = lambda name: {"test": {"image": [image]}}
    httpx.stream = lambda method, url: contextlib.nullcontext(response)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setitem(sys.modules, "httpx", httpx)
    return image


@pytest.fixture(scope="module")
def directories(oracle, tmp_path_factory):
    """Of each id: 224 x 224 pixels in patches of 16, and few numbers in a row."""
    found = {}
    for name, kind in CHECKPOINTS.items():
        found[name] = tmp_path_factory.mktemp(kind)
        config = transformers.ViTConfig(
            hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=9
        )
        oracle.randomise(getattr(transformers, kind)(config)).save_pretrained(found[name])
        transformers.ViTImageProcessorPil().save_pretrained(found[name])
    return found


def printed(example: str, directories, home: ModuleType, processor: type) -> tuple[list[str], dict]:
    """What each line of an example shows, and the names that it leaves behind."""
    for name in sorted(directories, key=len, reverse=True):
        example = example.replace(f'"{name}"', repr(str(directories[name])))
    example = example.replace("from transformers import AutoImageProcessor, ", "from transformers import ")
    example = example.replace("from transformers import", f"from {home.__name__} import")
    shown, names = [], {"AutoImageProcessor": processor}
    example = example.replace("ViTConfig()", "ViTConfig(num_hidden_layers=1)")  # twelve take seconds to draw
    for step in doctest.DocTestParser().get_examples(example):
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(step.source, "example", "single"), names)
        shown.append(out.getvalue())
    return shown, names


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_prints_there(oracle, picture, directories, name):
    theirs, there = printed(EXAMPLES[name], directories, transformers, transformers.ViTImageProcessorPil)
    processor = getattr(vilt_fast, "ViTImageProcessor", transformers.ViTImageProcessorPil)
    ours, here = printed(EXAMPLES[name], directories, vilt_fast, processor)
    assert ours == theirs and type(here["model" if "model" in here else "configuration"]).__module__.startswith("vilt")
    assert name == "ViTConfig" or any(ours)
    for value in ("logits", "last_hidden_states", "pixel_values", "bool_masked_pos"):
        if value in there:
            oracle.check_close(value, here[value].float(), there[value].float(), 1e-5)
    if name == "ViTForMaskedImageModeling":
        assert ours[-1] == "[1, 3, 224, 224]\n" and here["loss"].isfinite()
