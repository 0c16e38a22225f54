"""ViLT-B/32 on a CPU against transformers, on photographs."""

import numpy as np
import pytest
import torch

from vilt_fast.models.vilt import ViltForQuestionAnswering
from vilt_fast.processing import ViltImageProcessor

# Relative to the largest magnitude of the tensor; fp32, sums of up to 3072 terms in another order, eps = 6e-8.
OUTPUT = 1e-5


def photographs():
    """scikit-learn's two real photographs, (427, 640, 3) uint8 each."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn carries the photographs")
    return [np.asarray(image) for image in datasets.load_sample_images().images]


def test_full_size_on_photographs(oracle, tmp_path):
    """ViLT-B/32 with random weights: 12 layers, 768 wide, on china.jpg and flower.jpg at 384 x 576."""
    pixels = ViltImageProcessor()(photographs(), return_tensors="pt")
    with torch.device("meta"):
        theirs = oracle.transformers.ViltForQuestionAnswering(oracle.transformers.ViltConfig(num_labels=3129))
    theirs = oracle.randomise(theirs.to_empty(device="cpu"), seed=1).eval()
    for buffer, value in (("position_ids", torch.arange(40)[None]), ("token_type_ids", torch.zeros(1, 40).long())):
        getattr(theirs.vilt.embeddings.text_embeddings, buffer).copy_(value)
    theirs.save_pretrained(tmp_path)
    ours = ViltForQuestionAnswering.from_pretrained(tmp_path).eval()
    generator = torch.Generator().manual_seed(2)
    inputs = {
        "input_ids": torch.randint(0, 30522, (2, 11), generator=generator),
        "attention_mask": torch.tensor([[1] * 11, [1] * 7 + [0] * 4]),
        **pixels,
    }
    with torch.no_grad():
        expected, masks, real = oracle.run(theirs, inputs, output_hidden_states=True)
        got = ours(**inputs, output_hidden_states=True)
    assert masks[0].sum((1, 2)).tolist() == [12 * 18] * 2
    oracle.check_outputs(got, expected, inputs, real, OUTPUT)
