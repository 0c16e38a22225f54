"""Batches: the same from the same seed, of the stated distribution, in Hugging Face's form."""

import numpy as np
import pytest
import torch

from vilt_fast.bench import workloads
from vilt_fast.bench.case import Case, patch_mask, tiny_config

NAMES = list(workloads.WORKLOADS)


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides(name):
    make = workloads.WORKLOADS[name]
    assert make(16, seed=3) == make(16, seed=3)
    if name != "uniform-384":
        assert make(16, seed=3) != make(16, seed=4)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_what_the_model_packs(name):
    work = workloads.shrunk(workloads.WORKLOADS[name](4), 8, side=192)
    case = Case(work, tiny_config(work), torch.device("cpu"))
    tokens, layout = case.packed
    assert layout.cu_seqlens.diff().tolist() == work.sequences(8)
    assert len(tokens) == work.tokens(8) <= work.padded_tokens(8)
    inputs = case.inputs[0]
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (work.batch, max(work.lengths))
    assert inputs["attention_mask"].sum(1).tolist() == list(work.lengths)
    assert inputs["pixel_mask"].flatten(0, -3).shape[0] == len(work.sizes)
    padding = (inputs["pixel_mask"] == 0).unsqueeze(-3).expand_as(inputs["pixel_values"])
    assert not inputs["pixel_values"][padding].any()
    assert work.shape()


def test_vqa_mix_is_what_the_facts_say():
    """On average 201 patches and 9 words: 211 tokens per pair."""
    work = workloads.vqa_mix(4000)
    assert 205 < work.tokens() / 4000 < 217
    assert 8.5 < np.mean(work.lengths) < 9.5
    assert sum(workloads.COCO_SIZES.values()) == 100


def test_extreme_is_extreme():
    work = workloads.extreme(256)
    ratios = [max(size) / min(size) for size in work.sizes]
    assert max(ratios) >= 8 and min(ratios) == 1
    assert work.padded_tokens() > 2 * work.tokens()


def test_uniform_has_no_padding():
    work = workloads.uniform(8)
    assert work.tokens() == work.padded_tokens() == 8 * (144 + 1 + 10)


@pytest.mark.parametrize("limit", [64, 128, 200])
def test_limit(limit):
    work = workloads.WORKLOADS[f"vqa-mix-{limit}"](64)
    assert max(n - 1 - length for n, length in zip(work.sequences(), work.lengths, strict=True)) == limit
    assert work.sizes == workloads.vqa_mix(64).sizes


def test_patch_mask_keeps_the_sample_of_our_model():
    work = workloads.shrunk(workloads.WORKLOADS["vqa-mix-64"](3), 8, side=192)
    case = Case(work, tiny_config(work), torch.device("cpu"))
    kept = patch_mask(case.config, case.inputs[0])
    _, layout = case.packed
    assert kept.flatten().nonzero().flatten().tolist() == layout.patch_index.tolist()


@pytest.mark.parametrize("count", [16, 49, 144, 256, 576, 1025])
def test_patches(count):
    work = workloads.patches(count, 2)
    assert work.sequences() == [count + 11] * 2


def test_nlvr2_runs_a_text_with_both_images():
    work = workloads.nlvr2(5)
    assert (work.batch, len(work.sizes), work.pictures) == (5, 10, 2)
    plain = [n - h // 32 * (w // 32) - 1 for n, (h, w) in zip(work.sequences(), work.sizes, strict=True)]
    assert plain == [n for n in work.lengths for _ in range(2)]
