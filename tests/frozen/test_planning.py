"""The plan that the host makes is the plan of the reference, in one copy to the device."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vilt_fast
from vilt_fast.frozen.planning import Words, grids_of_mask, make_plan, send
from vilt_fast.frozen.vilt import plan as plan_inputs
from vilt_fast.frozen.vilt import plan_pairs
from vilt_fast.models.inputs import Inputs
from vilt_fast.packing import Layout

CPU = torch.device("cpu")


def check_same(got: Layout, wanted: Layout) -> None:
    for field in dataclasses.fields(wanted):
        one, other = getattr(got, field.name), getattr(wanted, field.name)
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other), field.name
        else:
            assert one == other, field.name


@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from([-1, 1, 7, 100]), st.integers(0, 2**40))
def test_any_batch(batch, words, limit, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((batch, words)) < 0.7
    mask[:, rng.integers(words)] = True
    grids = rng.integers(1, 8, (batch, 2))
    grid_size = tuple(grids.max(0) + rng.integers(0, 3, 2))
    index = rng.integers(0, 5, batch)
    plan = make_plan(mask, grids, grid_size, max_patches=limit, seed=seed, image_index=index)
    wanted = Layout.build(
        torch.from_numpy(mask),
        None,
        None,
        grid_size,
        max_patches=limit,
        seed=seed,
        image_index=torch.from_numpy(index),
        grid=torch.from_numpy(grids),
    )
    check_same(plan.layout(send(plan.arrays, CPU)), wanted)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32))
def test_any_mask_of_a_rectangle(height, width, rows, columns, seed):
    """The nearest pixel decides, as in the reference, also where a side is no multiple of the patch."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, (height + 1, width + 1), (3, 2))
    mask = np.zeros((3, height, width), np.int64)
    for image, (tall, wide) in zip(mask, sizes, strict=True):
        image[:tall, :wide] = rng.integers(1, 5)
    words = torch.ones(3, 2, dtype=torch.bool)
    wanted = Layout.build(words, torch.from_numpy(mask), None, (rows, columns))
    assert grids_of_mask(mask, (rows, columns)).tolist() == wanted.grid.tolist()


@pytest.mark.parametrize(
    "hole", [(0, 0), (1, 1), (3, 3), (0, 3)], ids=["corner", "inside", "beyond", "beside the first row"]
)
def test_a_mask_that_is_no_rectangle(hole):
    mask = np.zeros((2, 5, 5), np.int64)
    mask[:, :3, :3] = 1
    assert grids_of_mask(mask, (5, 5)).tolist() == [[3, 3], [3, 3]]
    mask[1][hole] ^= 1
    assert grids_of_mask(mask, (5, 5)) is None
    assert grids_of_mask(np.zeros_like(mask), (5, 5)) is None


def test_arrays_travel_together():
    """Each at a multiple of 16 bytes, whatever was before it: a kernel compiled for one batch serves the next."""
    arrays = {
        "odd": np.arange(5),
        "input_ids": np.arange(6).reshape(2, 3) - 2**40,
        "empty": np.zeros(0, np.int32),
        "text_row": np.arange(7, dtype=np.int32)[::-1].reshape(1, 7),
        "word_row": np.arange(3, dtype=np.int32),
    }
    sent = send(arrays, CPU)
    for name, array in arrays.items():
        assert sent[name].tolist() == array.tolist() and sent[name].is_contiguous()
        assert sent[name].dtype == (torch.int64 if name in ("input_ids", "word_row") else torch.int32)
        assert sent[name].data_ptr() % 16 == 0
    assert len({tensor.untyped_storage().data_ptr() for tensor in sent.values()}) == 1


def test_words_from_rows():
    words = Words.from_rows([[5, 6], [7], [8, 9, 10]])
    assert words.input_ids.tolist() == [[5, 6, 0], [7, 0, 0], [8, 9, 10]]
    assert words.attention_mask.sum(1).tolist() == [2, 1, 3] and not words.token_type_ids.any()


@pytest.mark.parametrize("limit", [-1, 5])
@pytest.mark.parametrize("picture", [None, (0, 1, 1)])
def test_pairs_are_planned_as_the_model_plans_them(make_model, limit, picture):
    model = make_model("ViltModel", max_image_length=limit)
    patch = model.config.patch_size
    sizes = [(patch, 3 * patch), (2 * patch, 4 * patch), (patch, patch)][: 3 if picture is None else 2]
    data = torch.zeros(sum(3 * h * w for h, w in sizes), dtype=torch.uint8)
    pixels = vilt_fast.PackedPixels(data, sizes, picture=picture)
    rows = [[1, 2, 3], [4], [5, 6]]
    words = Words.from_rows(rows)
    given = {"input_ids": torch.from_numpy(words.input_ids), "attention_mask": torch.from_numpy(words.attention_mask)}
    inputs = Inputs(**given, pixel_values=pixels, image_index=torch.zeros(3, dtype=torch.int64))
    with vilt_fast.backend("reference"):
        wanted = inputs.check(model.config, CPU).layout(model.config, False, [])
    with vilt_fast.backend("kernels"):  # planning on the host is no choice of where to compute
        layout, sent = plan_pairs(rows, pixels, model.config).send(CPU)
    wanted = dataclasses.replace(wanted, copies=None) if layout.copies is None else wanted
    for field in dataclasses.fields(wanted):
        if field.name != "copies":
            check_same(dataclasses.replace(layout, copies=None), dataclasses.replace(wanted, copies=None))
    assert (layout.copies is None) == (picture is None)
    assert sent["pixel_offset"].tolist() == pixels.pair_offset.tolist()


def test_what_the_live_form_has_to_plan(make_model, make_inputs):
    """Unusual inputs, and wrong ones, whose error the live form words."""
    model = make_model("ViltForQuestionAnswering")
    config, usual = model.config, make_inputs(model)
    assert plan_inputs(Inputs(**usual), config) is not None
    unusual = [
        {"input_ids": None},
        {"input_ids": usual["input_ids"] + 1000},
        {"input_ids": usual["input_ids"].float()},
        {"input_ids": usual["input_ids"][0]},
        {"attention_mask": torch.zeros_like(usual["attention_mask"])},
        {"attention_mask": usual["attention_mask"][:, :-1]},
        {"token_type_ids": usual["token_type_ids"] - 1},
        {"pixel_values": usual["pixel_values"].int()},
        {"pixel_values": usual["pixel_values"][:-1]},
        {"pixel_values": None},
        {"pixel_mask": 1 - usual["pixel_mask"]},
        {"pixel_mask": usual["pixel_mask"][:, :-1]},
        {"seed": 3},
        {"head_mask": torch.ones(config.num_attention_heads)},
        {"image_index": torch.zeros(3, dtype=torch.int64)},
        {"image_token_type_idx": 99},
    ]
    for change in unusual:
        assert plan_inputs(Inputs(**{**usual, **change}), config) is None, change
