"""The engine's batches in the shape of buckets give what they give in their own; on a GPU, recorded as graphs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vilt_fast.engine import Engine
from vilt_fast.engine.vilt import longest_pair
from vilt_fast.frozen.graphs import bucket_sizes, choose_bucket, max_pairs
from vilt_fast.processing.settings import resize_size

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
# float64 inside, rounded to float32 at the end.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}


def stack(rows):
    return torch.stack(list(rows))


@given(st.integers(1, 200_000))
def test_bucket_sizes_ascend_to_the_largest(max_tokens):
    sizes = bucket_sizes(max_tokens)
    assert sizes == sorted(set(sizes)) and sizes[-1] == max_tokens and sizes[0] <= max(256, max_tokens)
    # A batch that just misses a bucket computes at most a sixteenth too much in the next, or 64 rows.
    assert all(big <= small + max(small // 16, 64) for small, big in zip(sizes[:-1], sizes[1:], strict=True))
    # No tile is begun for a few rows: those of small batches have 64, those of more than 4,096 tokens 128.
    assert all(size % (64 if size <= 4096 else 128) == 0 for size in sizes[:-1])


def test_what_buckets_waste():
    """The figure beside the number of buckets."""
    sizes = np.array(bucket_sizes(49_152))
    tokens = np.exp(np.random.default_rng(0).uniform(np.log(200), np.log(49_152), 20_000)).astype(int)
    wasted = sizes[sizes.searchsorted(tokens)].sum() / tokens.sum() - 1
    assert len(sizes) == 101 and wasted == pytest.approx(0.024, abs=5e-4)


@given(st.integers(300, 100_000), st.integers(1, 100_000), st.integers(1, 500), st.integers(2, 300))
def test_the_smallest_bucket_that_holds_a_batch(max_tokens, tokens, pairs, longest):
    sizes = bucket_sizes(max_tokens)
    fitting = [size for size in sizes if size >= tokens and max_pairs(size, longest) >= pairs]
    assert choose_bucket(sizes, tokens, pairs, longest) == (fitting[0] if fitting else None)


def test_images_of_one_size_fill_a_bucket_to_its_rows():
    """ViT-B/32's 50 tokens are fewer than those of the pairs that close a batch by their number."""
    assert max_pairs(12_800, 50) == 256 and max_pairs(12_800, 281) == 200


def test_the_longest_pair_is_a_bound(model, processor):
    """No image becomes more patches than the buckets are made for, whatever its shape."""
    most = longest_pair(model.config, processor.image_processor) - model.config.max_position_embeddings - 1
    rng = np.random.default_rng(0)
    for height, width in np.exp(rng.uniform(np.log(1), np.log(4000), (3000, 2))).astype(int):
        rows, columns = (side // 16 for side in resize_size(int(height), int(width), 64, 16))
        assert rows * columns <= most


@pytest.fixture
def bucketed(processor, repeater):
    """An engine that runs in the shape of buckets, without recording, for machines without a GPU."""

    def make(model, max_tokens, **options):
        engine = Engine(model, processor, max_tokens=max_tokens, **options)
        engine.model.use_buckets(repeater)
        engine.model._buckets._tokens.fill_(float("nan"))
        return engine

    return make


@pytest.mark.parametrize("max_tokens", [300, 1000])
@pytest.mark.parametrize("name", ["ViltForQuestionAnswering", "ViltForImageAndTextRetrieval", "ViltForMaskedLM"])
def test_buckets_change_nothing(make_model, bucketed, pairs, alone, name, max_tokens):
    model = make_model(name)
    wanted = [alone(model, image, text) for image, text in zip(*pairs, strict=True)]
    with bucketed(model, max_tokens, max_wait_ms=100.0) as engine:
        results = engine.logits(*pairs)
        stats = engine.model.stats()
    for got, row in zip(results, wanted, strict=True):
        torch.testing.assert_close(got, row, **TOLERANCE)
    assert stats.replayed == stats.calls > 0 and stats.too_large == 0


def test_buckets_with_shared_images(model, bucketed, pairs, alone):
    images = [pairs[0][number // 5] for number in range(40)]
    wanted = stack(alone(model, image, text) for image, text in zip(images, pairs[1], strict=True))
    with bucketed(model, 500, max_wait_ms=100.0) as engine:
        torch.testing.assert_close(stack(engine.logits(images, pairs[1])), wanted, **TOLERANCE)
        assert engine.model.stats().replayed > 0


def test_buckets_with_a_sample_of_the_patches(make_model, bucketed, pairs, alone):
    model = make_model(max_image_length=5)
    wanted = stack(alone(model, image, text) for image, text in zip(*pairs, strict=True))
    with bucketed(model, 300) as engine:
        torch.testing.assert_close(stack(engine.logits(*pairs)), wanted, **TOLERANCE)


def test_leftovers_of_a_batch_do_not_reach_the_next(model, bucketed, pairs, alone):
    """The memory is the same for all batches: a short one follows a long one."""
    with bucketed(model, 600, max_wait_ms=100.0) as engine:
        engine.logits(*pairs)
        engine.model._buckets._tokens.fill_(float("inf"))
        result = engine.logits(pairs[0][0], pairs[1][0])
        torch.testing.assert_close(result, alone(model, pairs[0][0], pairs[1][0]), **TOLERANCE)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_give_the_same_bits_in_every_batch(make_model, processor, pairs, dtype):
    """The contract of the kernels: bit for bit the same alone, in any batch, recorded or not."""
    model = make_model(dtype=dtype).cuda()
    results = []
    for options in ({"max_tokens": 400}, {"max_tokens": 4000}, {"max_tokens": 700, "cuda_graphs": False}):
        with Engine(model, processor, **options) as engine:
            engine.warmup()
            results.append(stack(engine.logits(*pairs)))
    assert torch.isfinite(results[0]).all()
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.gpu
@needs_gpu
def test_graphs_agree_with_the_reference(make_model, processor, pairs, alone):
    reference, model = make_model(), make_model(dtype=torch.float32).cuda()
    wanted = stack(alone(reference, image, text) for image, text in zip(*pairs, strict=True))
    with Engine(model, processor, max_tokens=1000) as engine:
        # fp32 against fp64, products in full fp32; logits are of size 1 to 10.
        torch.testing.assert_close(stack(engine.logits(*pairs)), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@needs_gpu
def test_no_synchronisation_in_steady_state(make_model, processor, pairs):
    """Neither preparing nor launching a batch waits for the GPU; only `finish` does, on an event."""
    model = make_model(dtype=torch.bfloat16).cuda()
    with Engine(model, processor, max_tokens=1000) as engine:
        engine.warmup()
        wanted = stack(engine.logits(*pairs))
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = stack(engine.logits(*pairs))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(result, wanted)


@pytest.mark.gpu
@needs_gpu
def test_memory_is_flat_on_the_gpu(make_model, processor, pairs):
    model = make_model(dtype=torch.bfloat16).cuda()
    with Engine(model, processor, max_tokens=1000) as engine:
        engine.warmup()
        for _ in range(3):
            engine.logits(*pairs)
        before = torch.cuda.memory_reserved()
        for _ in range(20):
            engine.logits(*pairs)
        assert torch.cuda.memory_reserved() <= before
