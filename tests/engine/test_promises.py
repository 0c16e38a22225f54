"""What the engine promises beside its answers: batches of one's own, and refusals where waiting would never end."""

import concurrent.futures
import copy
import io
import itertools
import json
import os
import pickle
import queue
import select
import signal
import threading
import time

import pytest
import torch
from PIL import Image
from tqdm import tqdm

from vilt_fast.engine import Answer, Engine

TIMEOUT_S = 60


def test_floats_in_0_to_1_mean_one_thing_or_nothing(model, processor, pairs):
    """The processor divides them by 255 once more, as Hugging Face's does, and warns; the engine asks for bytes."""
    unit, text = pairs[0][0] / 255, "how many cat"
    with Engine(model, processor) as engine, pytest.raises(ValueError, match=r"floats in \[0, 1\].*0\.\.255"):
        engine.logits(unit, text)
    with pytest.warns(UserWarning, match="will be scaled again"):
        processor(unit, text)


def test_bytes_that_are_no_image(model, processor):
    with Engine(model, processor) as engine:
        for content in (b"", b"no picture", io.BytesIO(b"\x89PNG")):
            with pytest.raises(ValueError, match="image: a file of .* bytes is"):
                engine.logits(content, "a")
        with open(__file__, "rb") as file, pytest.raises(ValueError, match="got BufferedReader"):
            engine.logits(file, "a")


def test_engines_that_are_dropped_leave_no_threads(model, processor, pairs, tmp_path):
    Image.fromarray(pairs[0][0]).save(tmp_path / "a.png")
    before = set(threading.enumerate())
    for number in range(8):
        engine = Engine(model, processor)
        engine.logits([tmp_path / "a.png", pairs[0][1]], pairs[1][0])
        if number % 2:
            next(engine.logits(iter(pairs[0]), pairs[1][1]))
    del engine
    deadline = time.monotonic() + TIMEOUT_S
    while (left := {t for t in threading.enumerate() if t.name.startswith("vilt-")} - before) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert not left


def test_a_batch_of_its_own(make_model, processor, pairs):
    """The same pairs give the same bits, whatever else is asked, also beside an image that cannot be read."""
    model, (images, texts) = make_model(dtype=torch.float32), pairs
    some = list(zip(images, texts, strict=True))[3:16]
    with Engine(model, processor) as engine:
        wanted = [future.result(TIMEOUT_S) for future in engine.submit_batch(some)]
        assert engine.stats().batches == 1
        for seed in range(5):
            noise = [engine.submit(images[seed], text) for text in texts]
            futures = engine.submit_batch([*some[:5], ("nowhere.png", "a"), *some[5:]])
            noise += engine.submit_batch([(images[seed], "a dog")] * 200)  # more than may be pending
            bad = futures.pop(5)
            assert [future.result(TIMEOUT_S) for future in futures] == wanted
            assert isinstance(bad.exception(TIMEOUT_S), FileNotFoundError)
            assert all(future.result(TIMEOUT_S) for future in noise)
        assert engine.submit_batch([]) == [] and isinstance(wanted[0], Answer)
        with pytest.raises(ValueError, match="text: got int"):
            engine.submit_batch([(images[0], "a"), (images[0], 3)])
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit_batch(some)


def test_a_batch_that_lacks_its_image_when_all_is_aborted(model, processor, pairs, monkeypatch):
    engine, loading, go_on = Engine(model, processor, workers=1), threading.Event(), threading.Event()
    monkeypatch.setattr(engine._stages, "load", lambda source: (loading.set(), go_on.wait(TIMEOUT_S)))
    futures = engine.submit_batch([("a.png", "a"), ("b.png", "a")])
    assert loading.wait(TIMEOUT_S)
    closing = threading.Thread(target=engine.close, args=(False,))
    closing.start()
    for future in futures:
        with pytest.raises(RuntimeError, match="closed before"):
            future.result(TIMEOUT_S)
    go_on.set()
    closing.join(TIMEOUT_S)
    assert not closing.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_told_at_once(model, processor, pairs):
    """In the child all that would wait for the parent's threads is refused; leaving it is not."""
    images, texts = pairs
    with Engine(model, processor) as engine:
        begun = engine.answer(iter(images), iter(texts))
        next(begun)
        pending = engine.submit(images[0], texts[0])
        done = engine.submit(images[0], texts[0])
        done.result(TIMEOUT_S)
        calls = {
            "answer": lambda: engine.answer(images, texts),
            "submit": lambda: engine.submit(images[0], texts[0]),
            "submit_batch": lambda: engine.submit_batch([(images[0], texts[0])]),
            "warmup": engine.warmup,
            "begun": lambda: list(begun),
        }
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            said = {}
            for name, call in calls.items():
                try:
                    said[name] = repr(call())
                except Exception as error:
                    said[name] = f"{type(error).__name__}: {error}"
            said["done"] = type(done.result()).__name__
            engine.close()
            os.write(writer, json.dumps(said).encode())
            os._exit(0)
        os.close(writer)
        ready, _, _ = select.select([reader], [], [], TIMEOUT_S)
        if not ready:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = json.loads(os.read(reader, 10_000))
        os.close(reader)
        assert said.pop("done") == "Answer" and set(said) == set(calls)
        for name, message in said.items():
            assert message.startswith("RuntimeError: ") and "fork" in message, (name, message)
        assert pending.result(TIMEOUT_S) and engine.answer(images[0], texts[0])  # the parent goes on
        begun.close()


WAITS = ["result", "exception", "wait", "as_completed", "answer", "answer an iterator", "warmup", "close"]


@pytest.mark.parametrize("call", WAITS)
def test_a_callback_cannot_wait_for_its_own_thread(model, processor, pairs, call):
    image, text, said = pairs[0][0], pairs[1][0], queue.SimpleQueue()
    engine = Engine(model, processor)
    calls = {
        "result": lambda: engine.submit(image, text).result(),
        "exception": lambda: engine.submit(image, text).exception(),
        "wait": lambda: concurrent.futures.wait([engine.submit(image, text), blocker]),
        "as_completed": lambda: list(concurrent.futures.as_completed([blocker, engine.submit(image, text)])),
        "answer": lambda: engine.answer(image, text),
        "answer an iterator": lambda: list(engine.answer(iter([image]), text)),
        "warmup": engine.warmup,
        "close": engine.close,
    }

    def callback(future):
        try:
            said.put(calls[call]())
        except Exception as error:
            said.put(error)

    hold = threading.Event()
    blocker = engine.submit(image, text)
    blocker.add_done_callback(lambda future: hold.wait(TIMEOUT_S))  # so that the next is not answered yet
    engine.submit(image, text).add_done_callback(callback)
    hold.set()
    error = said.get(timeout=TIMEOUT_S)
    assert isinstance(error, RuntimeError) and "callback" in str(error)
    engine.close()


def test_waiting_for_several_futures(model, processor, pairs):
    """Elsewhere it is allowed, and in a callback too where there is nothing to wait for."""
    (images, texts), said = pairs, queue.SimpleQueue()
    with Engine(model, processor) as engine:
        futures = [engine.submit(image, text) for image, text in zip(images, texts, strict=True)]
        assert len(list(concurrent.futures.as_completed(futures, TIMEOUT_S))) == len(futures)
        again = [engine.submit(image, text) for image, text in zip(images, texts, strict=True)]
        assert not concurrent.futures.wait(again, TIMEOUT_S).not_done

        def callback(future):
            said.put(len(concurrent.futures.wait(futures).done) + len(list(concurrent.futures.as_completed(again))))

        engine.submit(images[0], texts[0]).add_done_callback(callback)
        assert said.get(timeout=TIMEOUT_S) == len(futures) + len(again)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda function: function.__name__)
def test_an_engine_cannot_be_copied(model, processor, copied):
    with Engine(model, processor) as engine, pytest.raises(TypeError, match=r"an Engine has threads.*make an Engine"):
        copied(engine)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (None, "pairs: got NoneType, wanted a list of pairs"),
        (3, "pairs: got int"),
        ("ab", "pairs: got str"),
        (itertools.repeat(("a.png", "a")), "pairs: got repeat"),
        ([("a.png", "a"), 3], r"pairs\[1\]: got int, wanted a pair \(image, text\)"),
        ([("a.png",)], r"pairs\[0\]: got tuple of 1"),
        (["ab"], r"pairs\[0\]: got str"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_list_of_pairs(model, processor, pairs, message):
    with Engine(model, processor) as engine:
        with pytest.raises(ValueError, match=message):
            engine.submit_batch(pairs)
        assert engine.stats().pairs == 0


def test_words_that_the_model_lacks(make_model, processor, pairs):
    """As the live form says it, and the other pairs are answered."""
    model, images = make_model(vocab_size=19), pairs[0]
    long = "how many cat ?"
    with pytest.raises(ValueError) as wanted:
        model(**processor(images[0], long, return_tensors="pt"))
    with Engine(model, processor) as engine:
        result, error = engine.answer(images[:2], ["a", long], on_error="return")
        assert isinstance(result, Answer) and isinstance(error, ValueError)
        assert str(wanted.value) in str(error) and "input_ids must be in 0..18" in str(error)
        assert str(engine.submit(images[0], long).exception(TIMEOUT_S)) == str(error)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("ViltForQuestionAnswering", "classifier.0"),
        ("ViltForImageTextMatching", "vilt.pooler.dense"),
        ("ViltForMaskedLM", "mlm_score.transform.dense"),
    ],
)
def test_numbers_that_overflow_are_no_answer(make_model, processor, pairs, name, layer):
    """Weights that are finite, and large enough for a norm of what they make, or for its product, to overflow."""
    model = make_model(name, dtype=torch.float32, layer_norm_eps=1e-6)
    with torch.no_grad():
        model.get_submodule(layer).weight.mul_(1e38)
        if name == "ViltForImageTextMatching":
            model.itm_score.fc.weight.copy_(1e38 * torch.ones_like(model.itm_score.fc.weight))
    with Engine(model, processor) as engine:
        for text in ("[MASK] cat", "[MASK] [MASK]"):
            error = engine.submit(pairs[0][0], text).exception(TIMEOUT_S)
            assert isinstance(error, ValueError) and "overflow in torch.float32" in str(error), error


def test_a_system_that_has_no_more_threads(model, processor, pairs, monkeypatch):
    """The one that asked is told so, and whoever asks next does not wait for the thread that is missing."""
    begin, left = threading.Thread.start, iter([True, False])

    def start(thread):
        if not next(left, False):
            raise RuntimeError("can't start new thread")
        begin(thread)

    engine = Engine(model, processor)
    monkeypatch.setattr(threading.Thread, "start", start)
    for message in ("can't start new thread", "the engine broke.*takes no more pairs"):
        with pytest.raises(RuntimeError, match=message):
            engine.submit(pairs[0][0], "a")
    engine.close()


def test_a_progress_bar_leaves_no_thread(model, processor, pairs, monkeypatch):
    monkeypatch.setattr(tqdm, "monitor", None)
    with Engine(model, processor) as engine:
        engine.answer(*pairs, progress=True)
    assert tqdm.monitor is None and tqdm.monitor_interval > 0
