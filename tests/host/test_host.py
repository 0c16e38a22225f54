"""What the host does for a call, counted on a pretend sm_90: no launch, copy or compilation may be added unseen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")

BLOCKS = 2
# A block: LayerNorm, qkv, attention, out + residual, LayerNorm, up + GELU, down + residual.
ENCODER = {"_layer_norm_kernel": 2 * BLOCKS, "attention_kernel": BLOCKS, "linear_descriptor": 4 * BLOCKS}
# On top of ViLT: LayerNorm, pooler; product, LayerNorm, product; of ViT: LayerNorm, product. Seven labels of two bytes
# are no rows for TMA.
HEADS = {
    "vilt": {"_layer_norm_kernel": 2, "linear_descriptor": 2, "linear_pointer": 1},
    "vit": {"_layer_norm_kernel": 1, "linear_pointer": 1},
}
INSIDE = {
    family: {name: ENCODER.get(name, 0) + head.get(name, 0) for name in {**ENCODER, **head}}
    for family, head in HEADS.items()
}
EMBEDDINGS = {"vilt": {"text_embed_kernel": 1, "patch_embed_kernel": 1}, "vit": {"patch_embed_kernel": 1}}
# Of PyTorch's operations, the first rows, twice; and the activation of ViLT's head.
BETWEEN = {"vilt": {"index": 2, "gelu": 1}, "vit": {"index": 2}}


@pytest.fixture(scope="module")
def counted():
    """By family, counted in a process of its own: here kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("measure.py")), "--counts"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["counts"]


@pytest.fixture(params=["vilt", "vit"])
def family(request):
    return request.param


@pytest.fixture
def counts(counted, family):
    return counted[family]


@pytest.mark.parametrize("form", ["live", "frozen"])
def test_launches(counts, family, form):
    assert counts[form]["launches"] == {**INSIDE[family], **EMBEDDINGS[family]}


@pytest.mark.parametrize("form", ["live", "frozen"])
def test_no_launch_specialises_on_a_batch(counts, form):
    """Eight batch sizes of one size class, among them 1 and 16, padded and packed: all were compiled by the first."""
    assert counts[f"{form}: compiled for more batch sizes"] == {}


def test_what_a_graph_holds(counts, family):
    """Launches of the encoder and the head, and what is between them."""
    assert counts["captured"] == {"launches": INSIDE[family], "operations": BETWEEN[family]}


def test_what_is_done_around_a_replay(counts, family):
    """The embeddings, a copy of the places, and the caller's own logits; words and pixels are where they are."""
    wanted = {"launches": EMBEDDINGS[family], "operations": {"copy_": 1, "clone": 1}}
    assert counts["around a replay"] == wanted


def test_the_frozen_form_without_graphs(counts, family):
    """Rows for the embeddings, and what is between launches."""
    assert counts["frozen"]["operations"] == {"empty": 1, **BETWEEN[family]}


def test_warmup_compiles_everything(counts):
    assert counts["compiled after warmup"] == {}
