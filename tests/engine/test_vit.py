"""The engine on small ViTs: every image gets the same result as alone, whatever else is asked."""

import itertools
import threading

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import vilt_fast
from vilt_fast.engine import Classified, Engine
from vilt_fast.engine.vit import fixed_size, longest_image

TIMEOUT_S = 60
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}  # float64 inside, rounded to float32 at the end
# fp32 pixels of the live form, bytes of the engine's: the normalisation, folded into the weight, rounds differently.
FROM_BYTES = {"rtol": 1e-4, "atol": 1e-4}
LABELS = ("cat", "dog", "red car", "tree", "sea", "none")
PROCESSORS = {
    "square": {"size": 64},
    "shortest": {"size": {"shortest_edge": 50}},
    "limited": {"size": {"shortest_edge": 50, "longest_edge": 70}},
    "within": {"size": {"max_height": 70, "max_width": 90}},
    "as they are": {"do_resize": False},
    "cropped": {"size": {"shortest_edge": 70}, "do_center_crop": True, "crop_size": (53, 64)},
}


def make(name="ViTForImageClassification", dtype=torch.float64, **fields):
    sizes = dict(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=64,
        patch_size=16,
        initializer_range=0.5,
        id2label=dict(enumerate(LABELS)),
    )
    options = {"add_pooling_layer": fields.pop("add_pooling_layer")} if "add_pooling_layer" in fields else {}
    torch.manual_seed(len(name))
    return getattr(vilt_fast, name)(vilt_fast.ViTConfig(**{**sizes, **fields}), **options).to(dtype).eval()


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*rng.integers(40, 120, 2), 3), np.uint8) for _ in range(14)]


@pytest.fixture(scope="module")
def square():
    return vilt_fast.ViTImageProcessor(size=64)


@torch.no_grad()
def alone(model, processor, image):
    """The live model's output for one image."""
    return model(processor(image, return_tensors="pt").pixel_values.to(model.dtype), interpolate_pos_encoding=True)


def logits_alone(model, processor, images):
    return torch.stack([alone(model, processor, image).logits[0].float() for image in images])


@pytest.mark.parametrize(("kind", "rule"), [*((kind, "size") for kind in PROCESSORS), ("shortest", "scale_factor")])
def test_logits_are_those_of_each_image_alone(images, kind, rule):
    """Also of images of several sizes in one batch, at the table's size among them, sides cut to whole patches."""
    model, processor = make(position_interpolation=rule), vilt_fast.ViTImageProcessor(**PROCESSORS[kind])
    images = [*images, images[3], np.full((64, 64, 3), 7, np.uint8)]
    wanted = logits_alone(model, processor, images)
    with Engine(model, processor, max_tokens=200, max_wait_ms=50) as engine:
        result = engine.logits(images)
        assert 1 <= engine.stats().batches < 12 and engine.stats().pairs == len(images)
        assert engine.stats().tokens == sum(
            1 + count(size, 16)
            for size in (processor(image, return_tensors="np").pixel_values.shape[2:] for image in images)
        )
    torch.testing.assert_close(torch.stack(result), wanted, **FROM_BYTES)


def count(size, patch):
    return size[0] // patch * (size[1] // patch)


@pytest.mark.parametrize("kind", ["square", "shortest"])
def test_no_result_depends_on_the_batch(model, images, kind):
    processor = vilt_fast.ViTImageProcessor(**PROCESSORS[kind])
    images = [*images, np.full((64, 64, 3), 7, np.uint8)]
    results = []
    for max_tokens in (1, 100, 4096):
        with Engine(model, processor, max_tokens=max_tokens) as engine:
            results.append(torch.stack(engine.logits(images)))
            rest = engine.submit_batch(images[::-1])
            assert [future.result(TIMEOUT_S).label for future in rest] == [LABELS[i] for i in results[0].argmax(1)][
                ::-1
            ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], **TOLERANCE)


@pytest.mark.parametrize("problem", [None, "single_label_classification", "multi_label_classification", "regression"])
def test_labels_and_scores(images, square, problem):
    model = make(problem_type=problem)
    wanted = logits_alone(model, square, images)
    scores = wanted.sigmoid() if problem == "multi_label_classification" else wanted.softmax(-1)
    with Engine(model, square, top=3) as engine:
        for top, number in ((None, 3), (1, 1), (6, 6), (50, 6)):
            for result, row in zip(engine.classify(images, top=top), scores, strict=True):
                best = row.sort(descending=True)
                assert isinstance(result, Classified) and (result.label, result.score) == result.top[0]
                assert [label for label, _ in result.top] == [LABELS[i] for i in best.indices[:number].tolist()]
                assert [score for _, score in result.top] == pytest.approx(best.values[:number].tolist(), abs=1e-5)


def test_numbers_of_labels_that_differ_in_a_batch(model, images, square):
    with Engine(model, square, max_wait_ms=200) as engine:
        results = {}
        threads = [
            threading.Thread(target=lambda n=n: results.update({n: engine.classify(images, top=n)})) for n in (1, 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert engine.stats().batches < 2 * len(images)
    for one, four in zip(results[1], results[4], strict=True):
        assert len(one.top) == 1 and len(four.top) == 4 and one.label == four.label


def test_equal_scores_are_in_the_order_of_the_labels(images, square):
    model = make()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 2, 1, 2, 1, 1]))
    with Engine(model, square, top=6) as engine:
        assert [label for label, _ in engine.classify(images[0]).top] == [LABELS[i] for i in (1, 3, 0, 2, 4, 5)]


@pytest.mark.parametrize("has_pooler", [True, False])
@pytest.mark.parametrize("kind", ["square", "shortest"])
def test_vectors(images, kind, has_pooler):
    model, processor = make("ViTModel", add_pooling_layer=has_pooler), vilt_fast.ViTImageProcessor(**PROCESSORS[kind])
    outputs = [alone(model, processor, image) for image in images]
    wanted = {"cls": torch.cat([output.last_hidden_state[:, 0] for output in outputs]).float()}
    if has_pooler:
        wanted["pooler"] = torch.cat([output.pooler_output for output in outputs]).float()
    with Engine(model, processor, max_tokens=150) as engine:
        engine.warmup()
        for pool, rows in wanted.items():
            result = torch.stack(engine.embed(images, pool=pool))
            assert result.dtype == torch.float32
            torch.testing.assert_close(result, rows, **FROM_BYTES)
        torch.testing.assert_close(engine.submit(images[0]).result(TIMEOUT_S), rows[0], **FROM_BYTES)
        futures = engine.submit_batch(images[:3])
        torch.testing.assert_close(torch.stack([f.result(TIMEOUT_S) for f in futures]), rows[:3], **FROM_BYTES)
        if not has_pooler:
            with pytest.raises(ValueError, match="^pool: got 'pooler', but the model was made without one"):
                engine.embed(images, pool="pooler")
        with pytest.raises(ValueError, match="^pool: got 'mean', wanted 'cls' or 'pooler'"):
            engine.embed(images, pool="mean")


def test_the_body_of_a_classifier_embeds(model, images, square):
    with Engine(model.vit, square) as engine:
        rows = torch.stack(engine.embed(images)).double()
    torch.testing.assert_close(model.classifier(rows).float(), logits_alone(model, square, images), **FROM_BYTES)


def test_lists_iterators_and_single_images(model, images, square, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    with Engine(model, square) as engine:
        engine.warmup()
        assert engine.stats().pairs == 0
        one = engine.classify(images[0])
        assert isinstance(one, Classified) and engine.classify([]) == []
        kinds = [
            tmp_path / "a.png",
            str(tmp_path / "a.png"),
            (tmp_path / "a.png").read_bytes(),
            Image.fromarray(images[0]),
        ]
        assert [result.label for result in engine.classify(kinds)] == [one.label] * 4
        assert len(engine.classify(np.stack([images[0]] * 2))) == 2
        endless = engine.classify(itertools.cycle(images), top=1)
        assert [result.label for result in itertools.islice(endless, 3)] == [
            result.label for result in engine.classify(images[:3])
        ]
        endless.close()
        assert engine.submit(images[0]).result(TIMEOUT_S).label == one.label
        assert engine.submit(images[0], kind="logits").result(TIMEOUT_S).shape == (6,)


def test_an_image_that_is_asked_about_twice_is_embedded_once(model, square, images, monkeypatch):
    with Engine(model, square, max_wait_ms=500) as engine:
        packed, pack = [], engine._stages._pack
        monkeypatch.setattr(engine._stages, "_pack", lambda p, *rest: packed.append(len(p)) or pack(p, *rest))
        results = engine.logits([images[0]] * 5)
        assert packed == [1]
    torch.testing.assert_close(torch.stack(results), logits_alone(model, square, images[:1]).repeat(5, 1), **FROM_BYTES)


def test_bad_images_are_errors_in_their_place(model, images, tmp_path):
    raw = vilt_fast.ViTImageProcessor(do_resize=False, do_rescale=False)
    with Engine(model, raw) as engine:
        given = [images[0], "nowhere.png", np.zeros((15, 90, 3), np.uint8), np.full((32, 32, 3), 0.3), 7, images[1]]
        results = engine.classify(given, on_error="return")
        assert [type(result) for result in results] == [
            *(Classified, FileNotFoundError, ValueError, ValueError, ValueError, Classified)
        ]
        assert "15 x 90 pixels, wanted at least one patch of 16 x 16" in str(results[2])
        assert "do_rescale=True" in str(results[3])
        with pytest.raises(FileNotFoundError, match="item 1: .*nowhere.png"):
            engine.classify(given)


def test_a_large_image_has_a_batch_of_its_own(model, images):
    """Without resizing nothing bounds it."""
    raw, large = vilt_fast.ViTImageProcessor(do_resize=False), np.tile(images[0], (8, 8, 1))[:400, :500]
    wanted = logits_alone(model, raw, [images[0], large, images[1]])
    with Engine(model, raw, max_tokens=60) as engine:
        torch.testing.assert_close(torch.stack(engine.logits([images[0], large, images[1]])), wanted, **FROM_BYTES)
        assert engine.stats().batches == 3


@pytest.mark.parametrize("kind", ["square", "shortest"])
@pytest.mark.parametrize("name", ["ViTForImageClassification", "ViTModel"])
def test_buckets_change_nothing(images, repeater, kind, name):
    """In the shape of recorded batches, without recording, for machines without a GPU."""
    model, processor = make(name), vilt_fast.ViTImageProcessor(**PROCESSORS[kind])
    with Engine(model, processor) as engine:
        wanted = [future.result(TIMEOUT_S) for future in engine.submit_batch(images)]
    with Engine(model, processor, max_tokens=300, max_wait_ms=100) as engine:
        engine.model.use_buckets(repeater)
        engine.model._buckets._tokens.fill_(float("nan"))
        results = [future.result(TIMEOUT_S) for future in [engine.submit(image) for image in images]]
        stats = engine.model.stats()
    assert stats.replayed == stats.calls > 0 and stats.too_large == 0
    for result, row in zip(results, wanted, strict=True):
        if name == "ViTModel":
            torch.testing.assert_close(result, row, **TOLERANCE)
        else:
            assert result.label == row.label and result.score == pytest.approx(row.score, abs=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", ["square", "shortest"])
@pytest.mark.parametrize("name", ["ViTForImageClassification", "ViTModel"])
def test_graphs_give_the_same_bits_in_every_batch(images, kind, name):
    """Alone and in any batch, recorded or not; and what the live form gives on the CPU."""
    live, processor = make(name), vilt_fast.ViTImageProcessor(**PROCESSORS[kind])
    model, results = make(name, dtype=torch.float32).cuda(), []
    for options in ({"max_tokens": 100}, {"max_tokens": 4000}, {"max_tokens": 700, "cuda_graphs": False}):
        with Engine(model, processor, **options) as engine:
            engine.warmup()
            results.append(torch.stack(engine.embed(images) if name == "ViTModel" else engine.logits(images)))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    outputs = [alone(live, processor, image) for image in images]
    wanted = torch.cat([output.pooler_output if name == "ViTModel" else output.logits for output in outputs])
    torch.testing.assert_close(results[0], wanted.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_longest_image_is_a_bound(model, kind):
    processor = vilt_fast.ViTImageProcessor(**PROCESSORS[kind])
    most = longest_image(model.config, processor)
    if kind in ("shortest", "as they are"):
        assert most > 16
        return
    sizes = {
        processor(np.zeros((height, width, 3), np.uint8)).pixel_values[0].shape[1:]
        for height, width in itertools.product((20, 50, 70, 300), repeat=2)
        if max(height, width) < 4 * min(height, width)
    }
    assert max(count(size, 16) for size in sizes) == most - 1
    assert fixed_size(processor) in (None, *sizes) and (fixed_size(processor) is None) == (len(sizes) > 1)


def test_wrong_pairs(model, processor, square, images):
    """`processor` is ViLT's."""
    with pytest.raises(ValueError, match="^processor: got ViltProcessor, wanted a vilt_fast.ViTImageProcessor"):
        Engine(model, processor)
    with pytest.raises(ValueError, match="^processor: got ViltImageProcessor"):
        Engine(model, processor.image_processor)
    with pytest.raises(ValueError, match="^model: got ViTForMaskedImageModeling"):
        Engine(make("ViTForMaskedImageModeling"), square)
    with pytest.raises(ValueError, match="num_channels=1"):
        Engine(make(num_channels=1), square)
    with pytest.raises(ValueError, match="NEAREST"):
        Engine(model, vilt_fast.ViTImageProcessor(resample=0))
    with pytest.raises(ValueError, match="at least one patch"):
        Engine(model, vilt_fast.ViTImageProcessor(size=15))
    with Engine(model, square) as engine:
        for call in (engine.answer, engine.score, engine.fill):
            with pytest.raises(ValueError, match="got ViTForImageClassification, wanted Vilt"):
                call(images[0], "is it red ?")
        with pytest.raises(ValueError, match="^embed: .*wanted ViTModel; of a ViT with a head, that is model.vit"):
            engine.embed(images)
        for call in (engine.submit, engine.logits):
            with pytest.raises(ValueError, match="got str, wanted none: ViTForImageClassification reads images alone"):
                call(images[0], "is it red ?")
        with pytest.raises(TypeError, match="positional"):
            engine.classify(images, ["is it red ?"] * len(images))
        for top in (0, True, "3", 1.0):
            with pytest.raises(ValueError, match="^top: got"):
                engine.classify(images, top=top)
        with pytest.raises(ValueError, match="^pairs: got ndarray, wanted a list of images"):
            engine.submit_batch(images[0])
    with Engine(make("ViTModel"), square) as engine:
        with pytest.raises(ValueError, match="^logits: got ViTModel"):
            engine.logits(images)
    with Engine(make(num_labels=0, id2label=None), square) as engine:
        with pytest.raises(ValueError, match="num_labels is 0"):
            engine.classify(images)


def test_what_is_vit_s_is_refused_of_vilt(make_model, processor, images):
    model = make_model()
    with pytest.raises(ValueError, match="^processor: got ViTImageProcessor, wanted a vilt_fast.ViltProcessor"):
        Engine(model, vilt_fast.ViTImageProcessor())
    with Engine(model, processor) as engine:
        for call in (engine.classify, engine.embed):
            with pytest.raises(ValueError, match="got ViltForQuestionAnswering, wanted ViT"):
                call(images)
        with pytest.raises(ValueError, match="^texts: got NoneType"):
            engine.logits(images)
        with pytest.raises(ValueError, match="^text: got NoneType"):
            engine.submit(images[0])


@pytest.mark.parametrize("name", ["ViTForImageClassification", "ViTModel"])
def test_numbers_that_overflow_are_no_result(images, square, name):
    model = make(name, dtype=torch.float32, layer_norm_eps=1e-6)
    with torch.no_grad():
        model.get_submodule("classifier" if name != "ViTModel" else "layernorm").weight.fill_(3e38)
        model.get_parameter("vit.layernorm.weight" if name != "ViTModel" else "pooler.dense.weight").mul_(1e38)
    with Engine(model, square) as engine:
        error = engine.submit(images[0]).exception(TIMEOUT_S)
    assert isinstance(error, ValueError) and "overflow in torch.float32" in str(error)


def test_a_model_that_the_caller_froze(model, images, square):
    frozen = vilt_fast.freeze(model)
    with Engine(frozen, square) as engine:
        assert engine.model is frozen
        torch.testing.assert_close(
            torch.stack(engine.logits(images)), logits_alone(model, square, images), **FROM_BYTES
        )


def test_a_progress_bar_counts_images(model, images, square, capsys):
    with Engine(model, square) as engine:
        engine.classify(images, progress=True)
    assert "14/14" in (shown := capsys.readouterr().err) and "images" in shown


# One label with "single_label_classification" is refused there.
PROBLEMS = [(None, 6), (None, 1), ("single_label_classification", 6), ("multi_label_classification", 6)]
PROBLEMS += [("multi_label_classification", 1), ("regression", 6), ("regression", 1)]


@pytest.mark.parametrize(("problem", "count"), PROBLEMS)
def test_labels_and_scores_are_those_of_the_pipeline_of_transformers(images, square, tmp_path, problem, count):
    model = make(dtype=torch.float32, problem_type=problem, id2label=dict(enumerate(LABELS[:count])))
    model.save_pretrained(tmp_path)
    square.save_pretrained(tmp_path)
    theirs = transformers.pipeline(
        "image-classification",
        model=str(tmp_path),
        image_processor=transformers.ViTImageProcessorPil.from_pretrained(tmp_path),
        device="cpu",
    )
    with Engine(model, square) as engine:
        for result, wanted in zip(engine.classify(images), theirs([Image.fromarray(i) for i in images]), strict=True):
            assert [label for label, _ in result.top] == [entry["label"] for entry in wanted]
            assert [score for _, score in result.top] == pytest.approx([entry["score"] for entry in wanted], abs=1e-4)


def test_an_image_that_would_stall_all_others_is_refused():
    """A shorter side of 8 pixels leaves the longer one free: all scores are a square of it."""
    from PIL import Image

    sizes = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=16, image_size=16)
    model = vilt_fast.ViTModel(vilt_fast.ViTConfig(**sizes, patch_size=8))
    processor = vilt_fast.ViTImageProcessor(size={"shortest_edge": 8})
    with vilt_fast.Engine(model, processor, max_tokens=50) as engine:
        thin, usual = engine.embed([Image.new("RGB", (4, 20_000)), Image.new("RGB", (4, 12))], on_error="return")
        assert "makes 5000 patches, wanted at most 4095" in str(thin) and usual.shape == (24,)


def test_a_processor_of_another_size_is_said():
    sizes = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=16, image_size=16)
    model = vilt_fast.ViTModel(vilt_fast.ViTConfig(**sizes, patch_size=8))
    with pytest.warns(UserWarning, match="makes images of 24 x 24 pixels, the model was made for 16 x 16"):
        vilt_fast.Engine(model, vilt_fast.ViTImageProcessor(size=24)).close()
