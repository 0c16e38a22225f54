"""Directories that transformers 4.37.2 really wrote (tests/data/transformers-4.37/make.py), and what it answered."""

import json
from pathlib import Path

import pytest
import torch

import vilt_fast

DATA = Path(__file__).parents[1] / "data" / "transformers-4.37"
NAMES = (
    "ViltModel",
    "ViltForMaskedLM",
    "ViltForMaskedLM-tied",
    "ViltForMaskedLM-bin",
    "ViltForMaskedLM-tied-bin",
    "ViltForQuestionAnswering",
    "ViltForQuestionAnswering-sharded",
    "ViltForImagesAndTextClassification",
    "ViltForImageAndTextRetrieval",
    "ViltForTokenClassification",
)


def _inputs(expected):
    """Pixels are not stored: value i is sin(0.37 i) inside a picture, zero in the padding."""
    mask = torch.zeros(2, 24, 32, dtype=torch.long)
    for row, (height, width) in zip(mask, expected["picture_sizes"], strict=True):
        row[:height, :width] = 1
    if expected["num_images"] > 1:
        mask = mask.unsqueeze(1).repeat(1, expected["num_images"], 1, 1)
    values = torch.sin(0.37 * torch.arange(3 * mask.numel())).reshape(*mask.shape[:-2], 3, 24, 32)
    texts = {name: torch.tensor(rows) for name, rows in expected["texts"].items()}
    return {**texts, "pixel_values": values * mask.unsqueeze(-3), "pixel_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_437(name, tmp_path):
    expected = json.loads((DATA / name / "expected.json").read_text())
    inputs = _inputs(expected)
    cls = getattr(vilt_fast, name.split("-")[0])
    model = cls.from_pretrained(DATA / name)
    model.save_pretrained(tmp_path)
    for loaded in (model, cls.from_pretrained(tmp_path)):
        outputs = loaded(**inputs)
        for field, values in expected["outputs"].items():
            if field == "text_rows":
                real = inputs["attention_mask"].bool()
                got, wanted = outputs.last_hidden_state[:, :6][real], torch.tensor(values)[real]
            else:
                got, wanted = outputs[field], torch.tensor(values)
            if cls is vilt_fast.ViltForTokenClassification or cls is vilt_fast.ViltForMaskedLM:
                got, wanted = got[inputs["attention_mask"].bool()], wanted[inputs["attention_mask"].bool()]
            # fp32: a sum of some tens of products in another order; the values are about one.
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if "MaskedLM" in name])
def test_the_tie_of_437(name):
    model = vilt_fast.ViltForMaskedLM.from_pretrained(DATA / name)
    tied = model.mlm_score.decoder.weight is model.vilt.get_input_embeddings().weight
    assert tied == ("tied" in name) == model.config.tie_word_embeddings
    assert model.mlm_score.decoder.bias.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_transformers_5_reads_what_we_make_of_them(name, tmp_path):
    """Through us, 4.37's masked-word bias reaches 5.x too, which does not know its name."""
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle")
    ours = getattr(vilt_fast, name.split("-")[0]).from_pretrained(DATA / name)
    ours.save_pretrained(tmp_path)
    theirs, report = getattr(transformers, name.split("-")[0]).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    state = theirs.state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())
