"""What the engine promises beside its answers: batches of one's own, and refusals where waiting would never end."""

import io
import json
import os
import queue
import select
import signal
import threading
import time

import pytest
import torch
from PIL import Image

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


@pytest.mark.parametrize("call", ["result", "exception", "answer", "answer an iterator", "warmup", "close"])
def test_a_callback_cannot_wait_for_its_own_thread(model, processor, pairs, call):
    image, text, said = pairs[0][0], pairs[1][0], queue.SimpleQueue()
    engine = Engine(model, processor)
    calls = {
        "result": lambda: engine.submit(image, text).result(),
        "exception": lambda: engine.submit(image, text).exception(),
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
