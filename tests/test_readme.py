"""The lines of Python in README.md run, one block after the other."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vilt_fast
from vilt_fast import cli, demo

README = Path(__file__).resolve().parent.parent / "README.md"
SHIPPED = {
    "dandelin/vilt-b32-finetuned-vqa": demo.WEIGHTS,
    "google/vit-base-patch16-224": demo.WEIGHTS_VIT,
    "google-bert/bert-base-uncased": demo.WEIGHTS,  # its words
    "uclanlp/visualbert-vqa": "visual_bert",
}


pytestmark = pytest.mark.skipif(not README.exists(), reason="not a checkout")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with an image of one shape for the photograph, and the ONNX file of the README's own command."""
    folder = tmp_path_factory.mktemp("readme")
    demo.examples_vit()[0][0].save(folder / "photo.jpg", quality=95)
    (line,) = re.findall(r"^    vilt-fast (export .*?) *(?:#.*)?$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert cli.main([word.replace("vqa.onnx", str(folder / "vqa.onnx")) for word in line.split()]) == 0
    return folder


def blocks_of_python() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_onnx_runtime_answers_alone(place):
    """Where neither torch nor vilt_fast can be imported, with the answer and the logits of the live model."""
    (block,) = [block for block in blocks_of_python() if "onnxruntime" in block]
    barred = "import sys\nsys.modules.update(torch=None, vilt_fast=None, transformers=None)\n"
    told = "\nprint(json.dumps(logits.tolist()))\n"
    command = [sys.executable, "-c", barred + block + told]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer, logits = done.stdout.splitlines()
    model, processor = demo.load()
    encoded = processor(str(place / "photo.jpg"), "what color is the shape?", return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).logits
    assert answer == model.config.id2label[expected.argmax(-1).item()] == demo.examples_vit()[0][1].split()[0]
    # Pixels are normalised in another order, and layers summed in one; logits are below 30.
    torch.testing.assert_close(torch.tensor(json.loads(logits)), expected, atol=1e-4, rtol=0)


def test_blocks_run(place, monkeypatch, capsys):
    """With an image of one shape for the photograph; and the models that ship and a fresh VisualBERT for the hub's."""
    blocks = blocks_of_python()
    assert len(blocks) >= 6
    label = demo.examples_vit()[0][1]
    monkeypatch.chdir(place)
    small = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=2000)
    config = vilt_fast.VisualBertConfig(**small, visual_embedding_dim=10)
    vilt_fast.VisualBertForQuestionAnswering(config).save_pretrained("visual_bert")
    np.savez("regions.npz", features=np.random.default_rng(0).normal(size=(5, 10)))
    names = {"paths": ["photo.jpg"] * 2, "questions": ["what color is the shape?"] * 2}
    said = []
    for block in blocks:
        for name, path in SHIPPED.items():
            block = block.replace(f'"{name}"', repr(str(path)))
        exec(compile(block, str(README), "exec"), names)
        said += capsys.readouterr().out.splitlines()
    assert label in said, said  # what the ViT said
    color = label.split()[0]
    assert [answer.answer for answer in names["answers"]] == [color] * 2
