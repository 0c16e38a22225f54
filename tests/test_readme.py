"""The lines of Python in README.md run, one block after the other."""

import re
from pathlib import Path

import numpy as np
import pytest

import vilt_fast
from vilt_fast import demo

README = Path(__file__).resolve().parent.parent / "README.md"
SHIPPED = {
    "dandelin/vilt-b32-finetuned-vqa": demo.WEIGHTS,
    "google/vit-base-patch16-224": demo.WEIGHTS_VIT,
    "google-bert/bert-base-uncased": demo.WEIGHTS,  # its words
    "uclanlp/visualbert-vqa": "visual_bert",
}


@pytest.mark.skipif(not README.exists(), reason="not a checkout")
def test_blocks_run(tmp_path, monkeypatch, capsys):
    """With an image of one shape for the photograph; and the models that ship and a fresh VisualBERT for the hub's."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    image, label = demo.examples_vit()[0]
    image.save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
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
