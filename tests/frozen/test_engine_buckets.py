"""Batches in the shape of buckets give what they give in their own shape; on a GPU, recorded as graphs."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vilt_fast
from vilt_fast.engine import Engine
from vilt_fast.engine.vilt import batch_limits
from vilt_fast.frozen.graphs import Bucket, bucket_sizes, choose_bucket, compute_logits, max_pairs, plan_batch
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
    # A batch that just misses a bucket computes at most a quarter too much in the next.
    assert all(big <= 1.25 * small for small, big in zip(sizes[:-1], sizes[1:], strict=True))


@given(st.integers(300, 100_000), st.integers(1, 100_000), st.integers(1, 500), st.booleans())
def test_the_smallest_bucket_that_holds_a_batch(max_tokens, tokens, pairs, is_sharing):
    sizes = bucket_sizes(max_tokens)
    bucket = choose_bucket(sizes, tokens, pairs, is_sharing)
    fitting = [size for size in sizes if size >= tokens and max_pairs(size) >= pairs]
    assert bucket == (Bucket(fitting[0], is_sharing) if fitting else None)


def test_the_largest_pair_is_a_bound(model, processor):
    """No picture becomes more patches than the buckets are made for, whatever its shape."""
    limits = batch_limits(model.config, processor.image_processor, 1000)
    rng = np.random.default_rng(0)
    for height, width in np.exp(rng.uniform(np.log(1), np.log(4000), (3000, 2))).astype(int):
        rows, columns = (side // 16 for side in resize_size(int(height), int(width), 64, 16))
        assert rows <= limits.grid_size[0] and columns <= limits.grid_size[1]
        assert rows * columns <= limits.patches


@pytest.fixture
def bucketed(processor):
    """An engine that runs in the shape of buckets, without recording, for machines without a GPU."""

    def make(model, max_tokens, **options):
        engine = Engine(model, processor, max_tokens=max_tokens, **options)
        engine._stages.use_buckets(max_tokens, is_recording=False)
        return engine

    return make


@pytest.mark.parametrize("max_tokens", [300, 1000])
@pytest.mark.parametrize("name", ["ViltForQuestionAnswering", "ViltForImageAndTextRetrieval"])
def test_buckets_change_nothing(make_model, bucketed, pairs, alone, name, max_tokens):
    model = make_model(name)
    wanted = stack(alone(model, image, text) for image, text in zip(*pairs, strict=True))
    with bucketed(model, max_tokens, max_wait_ms=100.0) as engine:
        used = record_buckets(engine)
        torch.testing.assert_close(stack(engine.logits(*pairs)), wanted, **TOLERANCE)
    assert used and None not in used and not any(bucket.is_sharing for bucket in used)


def test_buckets_with_shared_pictures(model, bucketed, pairs, alone):
    images = [pairs[0][number // 5] for number in range(40)]
    wanted = stack(alone(model, image, text) for image, text in zip(images, pairs[1], strict=True))
    with bucketed(model, 500, max_wait_ms=100.0) as engine:
        used = record_buckets(engine)
        torch.testing.assert_close(stack(engine.logits(images, pairs[1])), wanted, **TOLERANCE)
    assert any(bucket.is_sharing for bucket in used)


def test_buckets_with_a_sample_of_the_patches(make_model, bucketed, pairs, alone):
    model = make_model(max_image_length=5)
    wanted = stack(alone(model, image, text) for image, text in zip(*pairs, strict=True))
    with bucketed(model, 300) as engine:
        torch.testing.assert_close(stack(engine.logits(*pairs)), wanted, **TOLERANCE)


def record_buckets(engine):
    """The buckets that the engine's batches go to, as they come."""
    used, choose = [], engine._stages.bucketed.bucket_of

    def watched(plan):
        used.append(choose(plan))
        return used[-1]

    engine._stages.bucketed.bucket_of = watched
    return used


def test_leftovers_of_a_batch_do_not_reach_the_next(model, bucketed, pairs, alone):
    """The memory is the same for all batches: a short one follows a long one, white pictures behind its own."""
    with bucketed(model, 600, max_wait_ms=100.0) as engine:
        engine.logits(*pairs)
        engine._stages.bucketed._data.fill_(255)
        result = engine.logits(pairs[0][0], pairs[1][0])
        torch.testing.assert_close(result, alone(model, pairs[0][0], pairs[1][0]), **TOLERANCE)
        layout = engine._stages.bucketed._static(Bucket(600, False)).layout
        assert len(layout.patch_index) == 601 and layout.total_tokens == 601


def test_a_plan_of_its_own_shape_is_the_forward(model, processor, pairs, alone):
    images, texts = pairs[0][:7], pairs[1][:7]
    pixels = processor.image_processor.pack(images, device="cpu")
    plan = plan_batch(processor.tokenizer(texts)["input_ids"], pixels, model.config)
    with torch.no_grad():
        logits = compute_logits(model, plan).float()
    wanted = stack(alone(model, image, text) for image, text in zip(images, texts, strict=True))
    torch.testing.assert_close(logits, wanted, **TOLERANCE)


@pytest.mark.parametrize("limit", [-1, 5])
def test_the_plan_is_the_one_that_the_model_makes(make_model, processor, pairs, limit):
    """On the host, without checks and for any backend: the same layout as `Layout.build`."""
    images, texts = pairs[0][:9], pairs[1][:9]
    pixels = processor.image_processor.pack(images, device="cpu")
    config = make_model(max_image_length=limit).config
    with vilt_fast.backend("kernels"):
        layout = plan_batch(processor.tokenizer(texts)["input_ids"], pixels, config).layout
    mask = processor.tokenizer(texts, padding=True, return_tensors="pt")["attention_mask"] != 0
    wanted = vilt_fast.Layout.build(
        mask,
        None,
        None,
        pixels.grid_size(16),
        max_patches=limit,
        image_index=torch.zeros(9, dtype=torch.int64),
        grid=torch.tensor(pixels.grids(16)),
    )
    for field in dataclasses.fields(wanted):
        got, value = getattr(layout, field.name), getattr(wanted, field.name)
        assert torch.equal(got, value) if isinstance(value, torch.Tensor) else got == value, field.name


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
