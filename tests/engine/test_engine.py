"""The engine on small real models: every pair gets the same answer as alone, whatever happens around it."""

import gc
import io
import itertools
import re
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import vilt_fast
from vilt_fast.engine import Answer, Engine, Filled
from vilt_fast.engine.results import fill_masks

TIMEOUT_S = 60
# float64 inside, rounded to float32 at the end.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}


def stack(rows):
    return torch.stack(list(rows))


@pytest.fixture(scope="module")
def expected(model, pairs, alone):
    return stack(alone(model, image, text) for image, text in zip(*pairs, strict=True))


def test_logits_are_those_of_each_pair_alone(model, processor, pairs, expected):
    with Engine(model, processor) as engine:
        torch.testing.assert_close(stack(engine.logits(*pairs)), expected, **TOLERANCE)


def test_logits_are_those_of_the_padded_floats(make_model, processor, pairs):
    model, (images, texts) = make_model(dtype=torch.float32), pairs
    inputs = processor(images, texts, padding=True, return_tensors="pt")
    with torch.no_grad(), Engine(model, processor) as engine:
        # fp32: normalising first and folding the normalisation round differently; logits are of size 1 to 10.
        torch.testing.assert_close(stack(engine.logits(*pairs)), model(**inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_tokens", [1, 60, 200])
def test_any_batch_size_and_order(model, processor, pairs, expected, max_tokens):
    order = torch.randperm(40, generator=torch.Generator().manual_seed(max_tokens)).tolist()
    images, texts = ([side[i] for i in order] for side in pairs)
    with Engine(model, processor, max_tokens=max_tokens) as engine:
        result = stack(engine.logits(images, texts))
        assert engine.stats().batches >= (40 if max_tokens == 1 else 4)
    torch.testing.assert_close(result, expected[order], **TOLERANCE)


@pytest.mark.parametrize("max_tokens", [1, 100])
def test_a_sample_of_the_patches_does_not_depend_on_the_batch(make_model, processor, pairs, alone, max_tokens):
    """max_image_length draws patches; the draw for an image is the same at any place in any batch."""
    model = make_model(max_image_length=7)
    images, texts = pairs[0][:20], pairs[1][:20]
    wanted = stack(alone(model, image, text) for image, text in zip(images, texts, strict=True))
    with Engine(model, processor, max_tokens=max_tokens) as engine:
        result = stack(engine.logits([*images, images[0]], [*texts, texts[0]]))
    torch.testing.assert_close(result[:20], wanted, **TOLERANCE)
    torch.testing.assert_close(result[20], wanted[0], **TOLERANCE)


def test_eight_threads_that_submit(model, processor, pairs, expected):
    results = {}

    def client(thread):
        numbers = range(thread, 40, 8)
        futures = {n: engine.submit(pairs[0][n], pairs[1][n], kind="logits") for n in numbers}
        results.update({n: future.result(timeout=TIMEOUT_S) for n, future in futures.items()})

    with Engine(model, processor, max_tokens=150) as engine:
        threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    torch.testing.assert_close(stack(results[n] for n in range(40)), expected, **TOLERANCE)


def test_two_lists_at_once(model, processor, pairs, expected):
    results = {}
    with Engine(model, processor, max_tokens=150) as engine:
        threads = [threading.Thread(target=lambda n=n: results.update({n: engine.logits(*pairs)})) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    for n in range(2):
        torch.testing.assert_close(stack(results[n]), expected, **TOLERANCE)


def test_answers_are_the_most_probable_labels(model, processor, pairs, expected):
    with Engine(model, processor, top=3) as engine:
        answers = engine.answer(*pairs)
    for answer, logits in zip(answers, expected, strict=True):
        chances, labels = logits.sigmoid().topk(3)
        assert isinstance(answer, Answer) and len(answer.top) == 3
        assert [word for word, _ in answer.top] == [model.config.id2label[i] for i in labels.tolist()]
        assert [chance for _, chance in answer.top] == pytest.approx(chances.tolist(), abs=1e-6)
        assert (answer.answer, answer.score) == answer.top[0]


@pytest.mark.parametrize("name", ["ViltForImageAndTextRetrieval", "ViltForImageTextMatching"])
def test_scores(make_model, processor, pairs, alone, name):
    model = make_model(name)
    wanted = [alone(model, image, text) for image, text in zip(*pairs, strict=True)]
    wanted = [float(row[0]) if len(row) == 1 else float(row.softmax(-1)[1]) for row in wanted]
    with Engine(model, processor, max_tokens=150) as engine:
        assert engine.score(*pairs) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        future = engine.submit(pairs[0][0], pairs[1][0])
        assert future.result(timeout=TIMEOUT_S) == pytest.approx(wanted[0], rel=1e-5, abs=1e-6)


def test_filling_equals_the_loop_of_the_command(make_model, processor, pairs):
    model = make_model("ViltForMaskedLM")
    texts = ["a [MASK] dog on the [MASK]", "[MASK]", "is there a [MASK] cat ?", "[MASK] [MASK] [MASK]"]
    images = pairs[0][:4]
    with Engine(model, processor, max_tokens=80) as engine:
        results = engine.fill(images, texts)
        words = engine.logits(images, texts)
    for image, text, result, logits in zip(images, texts, results, words, strict=True):
        inputs = processor(image, text, device="cpu")
        with torch.no_grad():
            torch.testing.assert_close(logits, model(**inputs).logits[0].float(), **TOLERANCE)
            steps = fill_masks(model, inputs, processor.tokenizer.mask_token_id)
        assert isinstance(result, Filled)
        assert [word for word, _ in result.words] == [processor.decode([word]) for word, _ in steps]
        assert [chance for _, chance in result.words] == pytest.approx([chance for _, chance in steps], abs=1e-6)
        assert result.text == processor.decode(inputs["input_ids"][0].tolist(), skip_special_tokens=True)


def test_text_without_a_mask_cannot_be_filled(make_model, processor, pairs):
    with Engine(make_model("ViltForMaskedLM"), processor) as engine:
        with pytest.raises(ValueError, match=r"item 1: .*at least one \[MASK\]"):
            engine.fill(pairs[0][:2], ["a [MASK]", "a dog"])


def test_questions_about_one_image_decode_and_embed_it_once(model, processor, pairs, alone, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(pairs[0][0]).save(path)
    with Engine(model, processor, max_wait_ms=500.0) as engine:
        loaded, packed = [], []
        load, pack = engine._stages.load, engine._stages._pack
        monkeypatch.setattr(engine._stages, "load", lambda source: loaded.append(source) or load(source))
        monkeypatch.setattr(engine._stages, "_pack", lambda p, *rest: packed.append(len(p)) or pack(p, *rest))
        results = engine.logits(str(path), pairs[1])
        assert 1 <= len(loaded) <= len(packed) < 10 and set(packed) == {1}
    for text, result in zip(pairs[1], results, strict=True):
        torch.testing.assert_close(result, alone(model, pairs[0][0], text), **TOLERANCE)


def test_every_kind_of_image(model, processor, tmp_path, alone):
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = Image.fromarray(rgb)
    kinds = {
        "path": tmp_path / "a.png",
        "str": str(tmp_path / "a.png"),
        "PIL": image,
        "array": rgb,
        "tensor": torch.from_numpy(rgb),
        "strided": rgb[:, ::1],
        "bytes": (tmp_path / "a.png").read_bytes(),
        "memoryview": memoryview((tmp_path / "a.png").read_bytes()),
        "BytesIO": io.BytesIO((tmp_path / "a.png").read_bytes()),
    }
    grey = [image.convert("L"), np.asarray(image.convert("L"))]
    with Engine(model, processor) as engine:
        same = dict(zip(kinds, engine.logits(list(kinds.values()), "how many cat"), strict=True))
        greys = engine.logits(grey, "how many cat")
        assert torch.equal(engine.logits(rgb.transpose(2, 0, 1), "how many cat"), same["path"])
    wanted = alone(model, rgb, "how many cat")
    for kind, result in same.items():
        torch.testing.assert_close(result, wanted, **TOLERANCE, msg=lambda text, kind=kind: f"{kind}: {text}")
    torch.testing.assert_close(greys[0], greys[1], **TOLERANCE)


def test_images_that_the_settings_do_not_allow(model, processor):
    """Without resizing, the sides are whole patches."""
    raw = vilt_fast.ViltImageProcessor(do_resize=False, do_rescale=False)
    with Engine(model, vilt_fast.ViltProcessor(raw, processor.tokenizer)) as engine:
        engine.warmup()
        images = [np.zeros((32, 48, 3), np.uint8), np.zeros((32, 50, 3), np.uint8), np.full((32, 48, 3), 0.3)]
        good, odd, unit = engine.logits(images, "a dog", on_error="return")
    assert isinstance(good, torch.Tensor)
    assert isinstance(odd, ValueError) and "32 x 50" in str(odd)
    assert isinstance(unit, ValueError) and "floats in [0, 1]" in str(unit)


def test_iterators_are_read_as_results_are_taken(model, processor, pairs, expected):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield pairs[0][number % 40]

    with Engine(model, processor, max_tokens=200) as engine:
        results = engine.logits(endless(), itertools.cycle(pairs[1]))
        got = stack(itertools.islice(results, 120))
        results.close()
        limit = 2 * engine._pipeline.max_pending + 3
    torch.testing.assert_close(got, expected.repeat(3, 1), **TOLERANCE)
    assert len(taken) <= 120 + limit


def test_bad_items_are_errors_in_their_place(model, processor, pairs, expected, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    images, texts = list(pairs[0]), list(pairs[1])
    images[3], images[7], images[11] = "nowhere.png", str(tmp_path / "broken.jpg"), object()
    images[12] = np.zeros((2, 900, 3), np.uint8)
    texts[20], texts[21] = "dog " * 40, None
    bad = {3: FileNotFoundError, 7: ValueError, 11: ValueError, 12: ValueError, 20: ValueError, 21: ValueError}
    with Engine(model, processor, max_tokens=150) as engine:
        results = engine.logits(images, texts, on_error="return")
        for number, result in enumerate(results):
            if number in bad:
                assert isinstance(result, bad[number]), (number, result)
            else:
                torch.testing.assert_close(result, expected[number], **TOLERANCE)
        with pytest.raises(FileNotFoundError, match="item 3: .*nowhere.png"):
            engine.logits(images, texts)
        assert isinstance(engine.submit("nowhere.png", "a").exception(timeout=TIMEOUT_S), FileNotFoundError)


def test_a_text_that_is_no_unicode_fails_alone(model, processor, pairs, expected):
    images, texts = list(pairs[0]), list(pairs[1])
    texts[4], texts[9] = "a dog \ud800", "\udfff"
    bad = {4: r"^text: character 6 is a lone surrogate.*'a dog \\ud800'", 9: r"^text: character 0 .*'\\udfff'"}
    with Engine(model, processor, max_wait_ms=50) as engine:
        results = engine.logits(images, texts, on_error="return")
        for number, result in enumerate(results):
            if number in bad:
                assert isinstance(result, ValueError) and re.search(bad[number], str(result)), (number, result)
            else:
                torch.testing.assert_close(result, expected[number], **TOLERANCE)
        with pytest.raises(ValueError, match="^text: character 0 is a lone surrogate"):
            engine.submit(images[0], "\ud800")
        with pytest.raises(ValueError, match="item 4: text: character 6"):
            engine.logits(images, texts)


def test_out_of_memory_means_smaller_batches(model, processor, pairs, expected, monkeypatch):
    with Engine(model, processor, max_tokens=600) as engine:
        launch = engine._stages.launch

        def limited(prepared):
            if prepared.batch.plan.total_tokens > 100:
                raise torch.OutOfMemoryError("simulated")
            return launch(prepared)

        monkeypatch.setattr(engine._stages, "launch", limited)
        torch.testing.assert_close(stack(engine.logits(*pairs)), expected, **TOLERANCE)
        assert engine.max_tokens <= 100


def test_soak_on_a_real_model(model, processor, pairs, expected, tmp_path, monkeypatch):
    """400 items with bad pictures, cancelled futures and too little memory now and then."""
    rng = np.random.default_rng(5)
    with Engine(model, processor, max_tokens=400, max_wait_ms=1.0) as engine:
        launch, number = engine._stages.launch, itertools.count(1)

        def limited(prepared):
            if next(number) % 7 == 0 and prepared.batch.plan.pairs > 1:
                raise torch.OutOfMemoryError("simulated")
            return launch(prepared)

        monkeypatch.setattr(engine._stages, "launch", limited)
        futures, faults = [], rng.choice(["", "bad", "cancel"], 400, p=[0.9, 0.05, 0.05])
        for n, fault in enumerate(faults):
            image = "nowhere.png" if fault == "bad" else pairs[0][n % 40]
            futures.append(engine.submit(image, pairs[1][n % 40], kind="logits"))
            if fault == "cancel":
                futures[-1].cancel()
        for n, (fault, future) in enumerate(zip(faults, futures, strict=True)):
            if fault == "bad":
                assert isinstance(future.exception(timeout=TIMEOUT_S), FileNotFoundError)
            elif not future.cancelled():
                torch.testing.assert_close(future.result(timeout=TIMEOUT_S), expected[n % 40], **TOLERANCE)


def test_closing(model, processor, pairs):
    engine = Engine(model, processor, max_wait_ms=200.0)
    future = engine.submit(pairs[0][0], pairs[1][0])
    engine.close()
    assert isinstance(future.result(timeout=0), Answer)
    for use in (engine.submit, engine.answer):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            use(pairs[0][0], "a")
    engine.close()
    with pytest.raises(ZeroDivisionError):
        with Engine(model, processor, max_wait_ms=60_000.0) as engine:
            future = engine.submit(pairs[0][0], pairs[1][0])
            raise ZeroDivisionError
    assert future.done()


def test_single_lists_and_broadcasting(model, processor, pairs):
    images, texts = pairs[0][:3], pairs[1][:3]
    with Engine(model, processor) as engine:
        one = engine.answer(images[0], texts[0])
        assert isinstance(one, Answer)
        assert engine.answer([], []) == [] and engine.answer([], "a") == []
        assert [a.answer for a in engine.answer(images[0], texts)][0] == one.answer
        assert len(engine.answer(images, "a")) == 3
        assert len(engine.answer(np.stack([images[0]] * 2), "a")) == 2  # four dimensions: a list of pictures
        assert engine.answer(tuple(images[:1]), (texts[0],))[0].answer == one.answer
        with pytest.raises(ValueError, match="texts: ended before"):
            list(engine.answer(iter(images), iter(texts[:2])))


@pytest.mark.parametrize(
    ("images", "texts"),
    [(["a.png"] * 3, ["a"] * 2), (["a.png"] * 3, 3), (7, ["a"] * 3)],
    ids=["fewer texts", "texts is a number", "images is a number"],
)
def test_sides_that_do_not_match(model, processor, images, texts):
    with Engine(model, processor) as engine, pytest.raises(ValueError, match="images|texts"):
        engine.answer(images, texts)


def test_stats(model, processor, pairs):
    with Engine(model, processor, max_tokens=200) as engine:
        engine.warmup()
        assert engine.stats().pairs == 0 and engine.stats().pairs_per_s == 0
        engine.answer([*pairs[0], "nowhere.png"], [*pairs[1], "a"], on_error="return")
        stats = engine.stats()
    lengths = [processor(image, text, return_tensors="pt") for image, text in zip(*pairs, strict=True)]
    tokens = sum(e.input_ids.shape[1] + 1 + e.pixel_values.shape[2] * e.pixel_values.shape[3] // 256 for e in lengths)
    assert (stats.pairs, stats.failed, stats.tokens) == (40, 1, tokens)
    assert 0 < stats.fill <= 1 and stats.queue_ms > 0 and stats.stall_s >= 0
    assert stats.pairs_per_s == pytest.approx(40 / stats.seconds)
    assert stats.tokens_per_s == pytest.approx(tokens / stats.seconds)


def test_progress_bar(model, processor, pairs, capsys):
    with Engine(model, processor) as engine:
        engine.answer(*pairs)
        assert capsys.readouterr().err == ""  # no terminal
        engine.answer(*pairs, progress=True)
        assert "40/40" in capsys.readouterr().err


def test_the_callers_model_is_unchanged(make_model, processor, pairs):
    model = make_model(dtype=torch.float32)
    model.train()
    with Engine(model, processor, dtype=torch.float64) as engine:
        logits = engine.logits(*pairs)
    assert model.training and model.dtype == torch.float32
    same = make_model(dtype=torch.float32).double()
    with Engine(same, processor) as engine:
        with torch.no_grad():
            same.classifier[3].weight.zero_()  # too late: the engine has a frozen copy
        torch.testing.assert_close(stack(logits), stack(engine.logits(*pairs)), **TOLERANCE)


def test_an_engine_that_is_forgotten_ends_its_threads(model, processor, pairs):
    engine = Engine(model, processor)
    future = engine.submit(pairs[0][0], pairs[1][0])
    threads = list(engine._pipeline._threads)
    frozen = weakref.ref(engine.model)
    del engine
    gc.collect()
    assert future.result(60) is not None
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    del threads, thread
    for _ in range(50):
        gc.collect()
        if frozen() is None:
            break
        time.sleep(0.1)
    assert frozen() is None


def test_a_model_that_the_caller_froze(model, processor, pairs, expected):
    frozen = vilt_fast.freeze(model)
    with Engine(frozen, processor) as engine:
        assert engine.model is frozen
        torch.testing.assert_close(stack(engine.logits(*pairs)), expected, **TOLERANCE)
    with pytest.raises(ValueError, match="dtype, device, cuda_graphs: a frozen model has its own"):
        Engine(frozen, processor, dtype=torch.float32)
    with pytest.raises(ValueError, match="model: got ViltModel"):
        Engine(vilt_fast.freeze(vilt_fast.ViltModel(model.config)), processor)


WRONG = [
    *(("max_tokens", 0), ("max_tokens", True), ("workers", -1), ("workers", "2"), ("top", 2.5), ("top", [1])),
    *(("max_wait_ms", -1), ("max_wait_ms", "1"), ("max_wait_ms", None), ("max_wait_ms", float("nan"))),
    *(("max_wait_ms", 1e300), ("max_wait_ms", 10**30), ("top", None), ("device", "cuda:99"), ("device", [])),
    *(("dtype", "float32"), ("dtype", torch.int8), ("device", "toaster"), ("device", 1.5), ("cuda_graphs", "no")),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_settings_are_named(model, processor, name, value):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        Engine(model, processor, **{name: value})


def test_wrong_arguments(model, processor):
    with pytest.raises(ValueError, match="model: got ViltModel"):
        Engine(vilt_fast.ViltModel(model.config), processor)
    with pytest.raises(ValueError, match="processor: got BertTokenizer"):
        Engine(model, processor.tokenizer)
    nearest = vilt_fast.ViltImageProcessor(size=64, size_divisor=16, resample=0)
    with pytest.raises(ValueError, match="BICUBIC"):
        Engine(model, vilt_fast.ViltProcessor(nearest, processor.tokenizer))
    with Engine(model, processor) as engine:
        with pytest.raises(ValueError, match="score: got ViltForQuestionAnswering"):
            engine.score([], [])
        with pytest.raises(ValueError, match="on_error"):
            engine.answer([], [], on_error="ignore")
        with pytest.raises(ValueError, match="kind|unknown"):
            engine.submit("a.png", "a", kind="unknown")


def test_the_demo_model_answers_as_its_forward_does():
    from vilt_fast import demo
    from vilt_fast.commands.answer import answer

    model, processor = demo.load()
    images, questions = zip(*demo.examples(), strict=True)
    with Engine(model, processor) as engine:
        results = engine.answer(list(images), list(questions))
    for image, question, result in zip(images, questions, results, strict=True):
        wanted = answer(model, processor, image, question, top=5, explain=False).answers
        assert [word for word, _ in result.top] == [word for word, _ in wanted]
        assert [p for _, p in result.top] == pytest.approx([p for _, p in wanted], abs=1e-5)
