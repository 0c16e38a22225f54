"""max_image_length: which patches are kept is uniform, and a function of the seed and the image's index alone."""

import pytest
import torch

from vilt_fast.models.vilt import ViltForImagesAndTextClassification, ViltModel
from vilt_fast.packing import Layout

# Same terms, other matrix shapes: the library may sum in another order. fp64, a few layers deep.
SAME_ROWS = 1e-13

LIMIT = 5  # patches per image that the sampling models keep


def picks(size=1, grid=(3, 4), *, count, seed=0, image_index=None, patch_mask=None, pixel_mask=None):
    """(B, GH, GW) bool: the patches that a layout keeps."""
    words = torch.ones(size, 2, dtype=torch.bool)
    index = None if image_index is None else torch.tensor(image_index)
    layout = Layout.build(words, pixel_mask, patch_mask, grid, max_patches=count, seed=seed, image_index=index)
    chosen = torch.zeros(size * grid[0] * grid[1], dtype=torch.bool)
    chosen[layout.patch_index.long()] = True
    # In raster order, image after image, each at the row after the one before.
    assert layout.patch_index.diff().gt(0).all()
    return chosen.view(size, *grid)


def test_the_sample_is_a_function_of_seed_and_image_index():
    first = picks(6, count=5, seed=11)
    assert first.sum((1, 2)).tolist() == [5] * 6
    assert torch.equal(first, picks(6, count=5, seed=11)), "the same seed gives another sample"
    assert not torch.equal(first, picks(6, count=5, seed=12)), "another seed gives the same sample"
    assert len({tuple(mask.flatten().tolist()) for mask in first}) > 1, "every image of the batch has the same sample"
    assert torch.equal(first, picks(6, count=5, seed=11, image_index=range(6))), "image_index is not the place"
    for place, index in enumerate((4, 0, 2)):
        several = picks(3, count=5, seed=11, image_index=(4, 0, 2))
        assert torch.equal(several[place], first[index]), f"image {index} in another batch"
        assert torch.equal(picks(count=5, seed=11, image_index=(index,))[0], first[index]), f"image {index} alone"


def test_the_sample_does_not_depend_on_padding():
    """The same 3 x 4 image inside a larger padded grid keeps the same patches."""
    tight = picks(count=5, seed=3, image_index=(9,))
    mask = torch.zeros(1, 5 * 8, 7 * 8)
    mask[:, :24, :32] = 1
    loose = picks(grid=(5, 7), count=5, seed=3, image_index=(9,), pixel_mask=mask)
    assert torch.equal(loose[:, :3, :4], tight), "padding changes the sample"
    assert loose.sum() == 5


@pytest.mark.parametrize("count", [1, 5, 11])
def test_the_sample_is_uniform(count):
    """Chi-square over the 12 patches; the critical value is p = 1e-4 at 11 degrees of freedom."""
    draws = 3000
    chosen = picks(draws, count=count, seed=5).flatten(1).double()
    assert chosen.sum(1).eq(count).all()
    p = count / 12
    # For a fixed count the twelve indicators have covariance p (1 - p) (12 I - 1) / 11, hence 11/12 and 11 d.o.f.
    statistic = ((chosen.sum(0) - draws * p) ** 2).sum() / (draws * p * (1 - p)) * 11 / 12
    assert statistic.item() < 37.4


def test_the_sample_is_uniform_over_pairs_of_patches():
    """Every pair of 12 patches is kept together equally often: 66 outcomes, p = 1e-4 at 65 degrees of freedom."""
    draws = 6000
    chosen = picks(draws, count=2, seed=6).flatten(1).double()
    together = (chosen.T @ chosen)[torch.triu_indices(12, 12, 1).unbind()]
    expected = draws / 66
    assert ((together - expected) ** 2 / expected).sum().item() < 116.2


def test_seeds_give_independent_samples():
    """Over seeds, as over images, each patch is kept equally often."""
    chosen = torch.cat([picks(count=5, seed=seed) for seed in range(500)]).flatten(1).double()
    p = 5 / 12
    statistic = ((chosen.sum(0) - 500 * p) ** 2).sum() / (500 * p * (1 - p)) * 11 / 12
    assert statistic.item() < 37.4


def test_small_images_are_not_sampled_and_dropped_patches_never_come_back():
    keep = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    chosen = picks(4, count=5, patch_mask=keep)
    assert not (chosen & ~keep).any()
    assert chosen.sum((1, 2)).tolist() == keep.sum((1, 2)).clamp(max=5).tolist()
    for count in (12, -1):
        assert torch.equal(picks(2, count=count), torch.ones(2, 3, 4, dtype=torch.bool)), f"count={count} drops patches"


@pytest.fixture(scope="module")
def sampling(oracle, small_config):
    """model64 with a limit."""
    return oracle.randomise(ViltModel(small_config(max_image_length=LIMIT)), seed=3).double().eval()


def pictures(size, seed=0):
    """The same text beside each of `size` images of 4 x 3 patches."""
    pixels = torch.randn(size, 3, 32, 24, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": torch.tensor([[1, 2, 3]]).repeat(size, 1), "pixel_values": pixels}


def test_a_sampled_pair_equals_the_same_patches_by_mask(oracle, model64, sampling):
    """max_image_length is nothing but a patch_mask drawn from the seed."""
    inputs = pictures(3)
    mask = picks(3, (4, 3), count=5, seed=21)
    with torch.no_grad():
        sampled = sampling(**inputs, seed=21).last_hidden_state
        masked = model64(**inputs, patch_mask=mask).last_hidden_state
        oracle.check_equal("last_hidden_state, sampled and masked", sampled, masked)
        both = sampling(**inputs, seed=99, patch_mask=mask).last_hidden_state
        oracle.check_equal("last_hidden_state, both at once", both, masked)
        assert not torch.equal(sampling(**inputs, seed=22).last_hidden_state, sampled), "the seed changes nothing"
    assert sampled.shape == (3, 3 + 1 + 5, 48)


def test_a_sampled_image_is_the_same_in_any_batch(oracle, sampling):
    """With its image_index an image keeps its patches alone, in a batch and in another order."""
    inputs = pictures(4)
    index = torch.tensor([40, 7, 3, 12])
    order = [2, 0, 3]
    with torch.no_grad():
        batched = sampling(**inputs, seed=5, image_index=index).last_hidden_state
        reordered = sampling(
            **{name: value[order] for name, value in inputs.items()}, seed=5, image_index=index[order]
        ).last_hidden_state
        single = {name: value[1:2] for name, value in inputs.items()}
        alone_rows = sampling(**single, seed=5, image_index=index[1:2]).last_hidden_state
        by_place = sampling(**inputs, seed=5).last_hidden_state
        counted = sampling(**inputs, seed=5, image_index=torch.arange(4)).last_hidden_state
    oracle.check_equal("rows by place", by_place, counted)
    oracle.check_close("rows in another order", reordered, batched[order], SAME_ROWS)
    oracle.check_close("rows alone", alone_rows[0], batched[1], SAME_ROWS)
    assert oracle.relative(by_place, batched) > 0.01, "image_index changes nothing"


def test_without_a_seed_evaluation_repeats_and_training_draws(oracle, small_config):
    model = oracle.randomise(ViltModel(small_config(max_image_length=LIMIT)), seed=3).eval()
    inputs = pictures(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = model(**inputs).last_hidden_state
        oracle.check_equal("evaluation, again", model(**inputs).last_hidden_state, first)
        oracle.check_equal("evaluation, seed 0", model(**inputs, seed=0).last_hidden_state, first)
        assert torch.equal(torch.get_rng_state(), state), "evaluation draws from the global generator"
        model.train()
        torch.manual_seed(1)
        drawn = [model(**inputs).last_hidden_state for _ in range(2)]
        assert not torch.equal(*drawn), "training draws the same sample twice"
        torch.manual_seed(1)
        oracle.check_equal("training, same generator state", model(**inputs).last_hidden_state, drawn[0])
        oracle.check_equal("training, seed 0", model(**inputs, seed=0).last_hidden_state, first)


def test_several_images_per_text_are_sampled_independently(oracle, small_config):
    config = small_config(max_image_length=LIMIT, num_images=2, modality_type_vocab_size=3)
    model = oracle.randomise(ViltForImagesAndTextClassification(config), seed=3).double().eval()
    inputs = pictures(4)
    inputs = {"input_ids": inputs["input_ids"][:2], "pixel_values": inputs["pixel_values"].view(2, 2, 3, 32, 24)}
    index = torch.tensor([[4, 9], [2, 0]])
    mask = picks(4, (4, 3), count=5, seed=8, image_index=[4, 9, 2, 0]).view(2, 2, 4, 3)
    with torch.no_grad():
        expected = model(**inputs, patch_mask=mask).logits
        got = model(**inputs, seed=8, image_index=index).logits
        swapped = model(**{k: v.flip(0) for k, v in inputs.items()}, seed=8, image_index=index.flip(0)).logits
    oracle.check_equal("logits", got, expected)
    oracle.check_close("logits of the batch turned round", swapped.flip(0), expected, SAME_ROWS)
