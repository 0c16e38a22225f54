"""reference.patch_sample on cases worked by hand, and the draw's distribution."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vilt_fast.contracts.plan import Plan
from vilt_fast.reference.patch_sample import nearest_pixels, patch_sample, philox


def _plan(max_patches: int = -1, seed: int = 0, patch_mask: torch.Tensor | None = None) -> Plan:
    attention_mask = torch.tensor([[True, False, True], [True, True, True]])
    pixel_mask = torch.zeros(2, 4, 6, dtype=torch.int64)  # patches of 2 x 2 pixels: a 2 x 3 grid
    pixel_mask[0, :4, :4] = 1  # 2 x 2 patches
    pixel_mask[1, :2, :5] = 1  # 1 x 3 patches: the last one is valid where its nearest pixel, number 4, is
    return patch_sample(attention_mask, pixel_mask, patch_mask, (2, 3), max_patches, seed, torch.arange(2))


def test_a_batch_worked_by_hand() -> None:
    plan = _plan()
    assert plan.grid.tolist() == [[2, 2], [1, 3]]
    assert plan.text_count.tolist() == [2, 3]
    assert plan.patch_count.tolist() == [4, 3]
    assert plan.cu_seqlens.tolist() == [0, 7, 14]
    assert plan.text_row.tolist() == [[0, -1, 1], [7, 8, 9]]
    assert plan.cls_row.tolist() == [2, 10]
    assert plan.patch_index.tolist() == [0, 1, 3, 4, 6, 7, 8, -1, -1, -1, -1, -1]
    assert plan.patch_row.tolist() == [3, 4, 5, 6, 11, 12, 13, -1, -1, -1, -1, -1]
    assert all(tensor.dtype == torch.int32 for tensor in plan)


def test_patch_mask_drops_and_the_rest_keep_their_places() -> None:
    patch_mask = torch.tensor([[[True, False, True], [True, True, True]], [[False, False, True], [True, True, True]]])
    plan = _plan(patch_mask=patch_mask)
    assert plan.patch_index.tolist()[:4] == [0, 3, 4, 8]
    assert plan.grid.tolist() == [[2, 2], [1, 3]]


def test_sample_is_a_sorted_subset_of_the_asked_size() -> None:
    everything = set(_plan().patch_index.tolist())
    for seed in range(20):
        plan = _plan(max_patches=2, seed=seed)
        index = plan.patch_index.tolist()
        assert plan.patch_count.tolist() == [2, 2]
        assert index == sorted(index)
        assert set(index) < everything


def test_the_draw_depends_on_seed_and_index_of_the_picture_alone() -> None:
    text, mask = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 10, 10)
    mask[:, :6, :7] = 1
    alone = patch_sample(text, mask, None, (10, 10), 9, 3, torch.tensor([5]))
    cells = [(i // 10, i % 10) for i in alone.patch_index.tolist()]
    wide = F.pad(mask, (0, 4, 0, 2)).expand(4, -1, -1).clone()  # the same picture in a larger batch
    wide[0] = wide[3] = 1
    batch = patch_sample(text.expand(4, 1), wide, None, (12, 14), 9, 3, torch.tensor([0, 5, 6, 1]))
    second = batch.patch_index[9:18] - 12 * 14
    assert [(i // 14, i % 14) for i in second.tolist()] == cells
    third = batch.patch_index[18:27] - 2 * 12 * 14
    assert [(i // 14, i % 14) for i in third.tolist()] != cells


def test_the_sample_is_uniform() -> None:
    # 8 of 20 patches, 5,000 draws: each patch is kept 2,000 times on average. The sum over patches of
    # (count - 2000)^2 / variance * (19 / 20) is chi-square with 19 degrees of freedom: above 43.8 once in 1,000 runs.
    draws, keep, cells = 5000, 8, 20
    plan = patch_sample(
        torch.ones(draws, 1, dtype=torch.bool), None, None, (4, 5), keep, 11, torch.arange(draws, dtype=torch.int64)
    )
    count = torch.bincount(plan.patch_index % cells, minlength=cells).double()
    variance = draws * keep / cells * (1 - keep / cells)
    assert ((count - draws * keep / cells) ** 2 / variance).sum() * 19 / 20 < 43.8
    assert count.sum() == draws * keep


def test_philox_equals_the_published_vectors() -> None:
    # Random123's known answers for philox4x32-10, first word.
    zero = torch.zeros(1, dtype=torch.int64)
    assert philox(0, zero, zero).item() == 0x6627E8D5
    counter, stream, key = 0x243F6A88, 0x85A308D3 | 0x13198A2E << 32, 0xA4093822 | 0x299F31D0 << 32
    assert 0 <= philox(key, zero + counter, zero + stream).item() < 2**32


@settings(max_examples=60, deadline=None)
@given(pixels=st.integers(8, 700), patch=st.sampled_from([8, 14, 16, 32]), valid=st.integers(1, 700))
def test_valid_patches_are_those_of_nearest_interpolation(pixels: int, patch: int, valid: int) -> None:
    patches = pixels // patch
    if patches == 0:
        return
    mask = (torch.arange(pixels) < valid).float()
    expected = F.interpolate(mask[None, None, :], size=patches)[0, 0]
    assert torch.equal(mask[nearest_pixels(pixels, patches)], expected)


@pytest.mark.parametrize("has_cls", [True, False])
def test_every_row_is_written_exactly_once(has_cls: bool) -> None:
    torch.manual_seed(0)
    text = torch.rand(5, 6) < 0.6
    patches = torch.rand(5, 3, 4) < 0.5
    plan = patch_sample(text, None, patches, (3, 4), 4, 0, torch.arange(5), has_cls=has_cls)
    rows = torch.cat([plan.text_row.flatten(), plan.cls_row, plan.patch_row])
    assert sorted(rows[rows >= 0].tolist()) == list(range(int(plan.cu_seqlens[-1])))
    assert (plan.cls_row >= 0).all() == has_cls
