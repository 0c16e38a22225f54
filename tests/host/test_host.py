"""What the host does for a call, counted on a pretend sm_90: no launch, copy or compilation may be added unseen."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")

BLOCKS = 2
# A block: LayerNorm, qkv, attention, out + residual, LayerNorm, up + GELU, down + residual (VisualBERT's
# LayerNorms come after the sums).
ENCODER = {"_layer_norm_kernel": 2 * BLOCKS, "attention_kernel": BLOCKS, "linear_descriptor": 4 * BLOCKS}
# On top of ViLT: LayerNorm, pooler; product, LayerNorm, product; of ViT: LayerNorm, product; of VisualBERT: product.
# Seven labels of two bytes are no rows for TMA.
HEADS = {
    "vilt": {"_layer_norm_kernel": 2, "linear_descriptor": 2, "linear_pointer": 1},
    "vit": {"_layer_norm_kernel": 1, "linear_pointer": 1},
    "visual_bert": {"linear_pointer": 1},
}
INSIDE = {
    family: {name: ENCODER.get(name, 0) + head.get(name, 0) for name in {**ENCODER, **head}}
    for family, head in HEADS.items()
}
EMBEDDINGS = {
    "vilt": {"text_embed_kernel": 1, "patch_embed_kernel": 1},
    "vit": {"patch_embed_kernel": 1},
    "visual_bert": {"text_embed_kernel": 2, "linear_descriptor": 1},  # words; regions and their projection
}
# Of PyTorch's operations, the rows that the head reads, twice; and the activation of ViLT's head.
BETWEEN = {"vilt": {"index": 2, "gelu": 1}, "vit": {"index": 2}, "visual_bert": {"index": 2}}
# Of VisualBERT, the regions that are not masked, and their types.
BEFORE = {"vilt": {}, "vit": {}, "visual_bert": {"index": 1, "ones_like": 1}}


@pytest.fixture(scope="module")
def counted():
    """By family, counted in a process of its own: here kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("measure.py")), "--counts"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["counts"]


@pytest.fixture(params=["vilt", "vit", "visual_bert"])
def family(request):
    return request.param


@pytest.fixture
def counts(counted, family):
    return counted[family]


@pytest.mark.parametrize("form", ["live", "frozen"])
def test_launches(counts, family, form):
    assert counts[form]["launches"] == Counter(INSIDE[family]) + Counter(EMBEDDINGS[family])


@pytest.mark.parametrize("form", ["live", "frozen"])
def test_no_launch_specialises_on_a_batch(counts, form):
    """Eight batch sizes of one size class, among them 1 and 16, padded and packed: all were compiled by the first."""
    assert counts[f"{form}: compiled for more batch sizes"] == {}


def test_what_a_graph_holds(counts, family):
    """Launches of the encoder and the head, and what is between them."""
    assert counts["captured"] == {"launches": INSIDE[family], "operations": BETWEEN[family]}


def test_what_is_done_around_a_replay(counts, family):
    """The embeddings, a copy of the places, and the caller's own logits; words and pixels are where they are."""
    wanted = {"launches": EMBEDDINGS[family], "operations": {"copy_": 1, "clone": 1, **BEFORE[family]}}
    assert counts["around a replay"] == wanted


def test_the_frozen_form_without_graphs(counts, family):
    """Rows for the embeddings, what is between launches, and which rows VisualBERT's answers are read at."""
    read = {"add": 1, "sub": 1} if family == "visual_bert" else {}
    wanted = Counter({"empty": 1, **read}) + Counter(BETWEEN[family]) + Counter(BEFORE[family])
    assert counts["frozen"]["operations"] == wanted


def test_warmup_compiles_everything(counts):
    assert counts["compiled after warmup"] == {}
