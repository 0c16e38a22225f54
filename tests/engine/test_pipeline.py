"""The threads, on stages that only count: no pair is lost, answered twice, leaked or left waiting."""

import gc
import random
import sys
import threading
import time
import tracemalloc
from concurrent.futures import CancelledError, wait

import pytest
import torch

from vilt_fast.engine.feeding import in_order
from vilt_fast.engine.pipeline import Pipeline
from vilt_fast.engine.stages import AGAIN

TIMEOUT_S = 60  # of a call that may deadlock


class Doubling:
    """The "model" doubles a number; what is asked is how many tokens it counts for."""

    def __init__(self, memory: int = 10**9, delay_s: float = 0.0) -> None:
        self.memory, self.delay_s = memory, delay_s
        self.batches: list[list[int]] = []
        self.loads = 0
        self.recoveries = 0
        self.gate = threading.Event()  # closed: the model waits
        self.gate.set()

    def is_loaded(self, source):
        return not isinstance(source, str)

    def load(self, source):
        self.loads += 1
        if source == "slow":
            time.sleep(0.05)
        if source == -1 or source == "bad":
            raise ValueError(f"no picture: {source}")
        return 0 if isinstance(source, str) else source

    def measure(self, items):
        for item in items:
            item.tokens = int(item.asked)

    def prepare(self, items):
        assert len({item.kind for item in items}) == 1
        if any(item.picture.value == -2 for item in items):
            raise RuntimeError("cannot be prepared")
        return [(item.picture.value, item.tokens) for item in items]

    def launch(self, prepared):
        self.gate.wait()
        time.sleep(self.delay_s)
        self.batches.append([tokens for _, tokens in prepared])
        if sum(tokens for _, tokens in prepared) > self.memory:
            raise torch.OutOfMemoryError("simulated")
        if any(value == -3 for value, _ in prepared):
            raise RuntimeError("cannot be launched")
        return [2 * value for value, _ in prepared]

    def finish(self, items, launched):
        if items[0].kind != "twice":
            return launched
        results = []
        for item, value in zip(items, launched, strict=True):
            item.state = (item.state or 0) + 1
            results.append(AGAIN if item.state < 3 else value)
        return results

    def recover(self):
        self.recoveries += 1


def make(stages, **options):
    return Pipeline(stages, **{"max_tokens": 64, "max_pairs": 16, "max_wait_ms": 1.0, "workers": 4, **options})


def within(seconds, function):
    """Run `function` in a thread; fail if it has not returned in time."""
    outcome = []

    def run():
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, "deadlock"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def soak(count):
    """`count` items with every kind of fault: pipeline, stages, numbers of wrong results, how many were cancelled."""
    rng = random.Random(0)
    stages = Doubling(memory=150)
    pipeline = make(stages, max_tokens=256, max_pending=256)
    sources = [rng.choices(["number", "bad", -1, -2, -3], [96, 1, 1, 1, 1])[0] for _ in range(count)]
    sources = [number if source == "number" else source for number, source in enumerate(sources)]
    cancelled = set()

    def pairs():
        for number, source in enumerate(sources):
            if number % 1000 == 0:
                time.sleep(0.02)  # the producer is slow
            yield source, str(1 + number % 40)

    def submit(source, text):
        future = pipeline.submit("plain", source, text)
        if rng.random() < 0.01 and future.cancel():
            cancelled.add(len(seen))
        seen.append(future)
        return future

    seen, wrong = [], []
    futures = (submit(*pair) for pair in pairs())
    for number, future in enumerate(futures):
        if number in cancelled:
            wrong += [number] * (not future.cancelled())
    for number, (source, future) in enumerate(zip(sources, seen, strict=True)):
        if number in cancelled:
            continue
        error = future.exception(timeout=TIMEOUT_S)
        is_good = isinstance(source, int) and source >= 0
        is_right = (error is None and future.result() == 2 * source) if is_good else isinstance(error, Exception)
        wrong += [] if is_right else [number]
    pipeline.close()
    return pipeline, stages, wrong, len(cancelled)


def test_soak():
    """20,000 items with bad pictures, failing batches, cancelled futures, a slow producer and too little memory."""
    pipeline, stages, wrong, cancelled = within(TIMEOUT_S, lambda: soak(20_000))
    assert wrong == []
    assert pipeline.counts.pairs + pipeline.counts.failed + cancelled == 20_000
    assert 400 < pipeline.counts.failed < 1200  # 4 %, as drawn
    assert stages.recoveries >= 1 and pipeline.max_tokens <= 150
    assert not pipeline._pending and not pipeline._pictures


def test_memory_is_flat():
    """An endless iterator: 20,000 results need no more memory than 2,000."""
    pipeline = make(Doubling(), max_pending=64)
    results = in_order(
        lambda source, text: pipeline.submit("plain", source, text), ((n, "3") for n in iter(int, 1)), 64, "raise"
    )
    peaks = []
    tracemalloc.start()
    try:
        for count in (2_000, 4_000, 4_000):
            tracemalloc.reset_peak()
            for _ in range(count):
                next(results)
            gc.collect()
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
        results.close()
        within(TIMEOUT_S, pipeline.close)
    # 8,000 futures alone would be megabytes; what differs is how full the queues happened to be.
    assert max(peaks[1:]) < peaks[0] + 300_000


def test_batches_are_filled_by_tokens():
    stages = Doubling()
    pipeline = make(stages, max_tokens=50, max_wait_ms=10_000.0, max_pairs=100)
    tokens = [20, 20, 20, 50, 10, 10, 10, 10, 10, 60, 1]
    with pipeline._lock:  # so that all arrive at once
        futures = [pipeline.submit("plain", number, str(n)) for number, n in enumerate(tokens)]
    within(TIMEOUT_S, pipeline.close)
    assert [future.result() for future in futures] == [2 * number for number in range(len(tokens))]
    assert stages.batches == [[20, 20], [20], [50], [10] * 5, [60], [1]]  # 60 is longer than a batch: alone
    assert pipeline.counts.tokens == sum(tokens) and pipeline.counts.batches == 6


def test_kinds_do_not_share_a_batch():
    stages = Doubling()
    pipeline = make(stages, max_wait_ms=1000.0)
    with pipeline._lock:  # so that all arrive at once
        futures = [pipeline.submit(kind, 1, "5") for kind in ("plain", "plain", "other", "plain")]
    within(TIMEOUT_S, pipeline.close)
    assert [f.result() for f in futures] == [2] * 4
    assert stages.batches == [[5, 5], [5], [5]]


def test_one_pair_does_not_wait_longer_than_asked():
    pipeline = make(Doubling(), max_wait_ms=50.0)
    start = time.perf_counter()
    assert pipeline.submit("plain", 4, "1").result(timeout=TIMEOUT_S) == 8
    assert time.perf_counter() - start >= 0.045
    pipeline.close()


def test_waiting_pairs_share_a_batch_while_the_model_is_busy():
    stages = Doubling()
    pipeline = make(stages, max_wait_ms=0.0, max_tokens=1000, max_pairs=1000)
    stages.gate.clear()
    futures = [pipeline.submit("plain", number, "1") for number in range(3)]
    time.sleep(0.1)
    futures += [pipeline.submit("plain", number, "1") for number in range(3, 60)]
    time.sleep(0.1)
    stages.gate.set()
    assert [future.result(timeout=TIMEOUT_S) for future in futures] == [2 * n for n in range(60)]
    assert len(stages.batches) <= 5
    pipeline.close()


def test_out_of_memory_halves_down_to_one_pair():
    stages = Doubling(memory=9)
    pipeline = make(stages, max_wait_ms=1000.0)
    futures = [pipeline.submit("plain", number, str(n)) for number, n in enumerate([8] * 7 + [10])]
    within(TIMEOUT_S, pipeline.close)
    assert [future.result() for future in futures[:7]] == [2 * n for n in range(7)]
    assert isinstance(futures[7].exception(), torch.OutOfMemoryError)  # too large even alone
    assert pipeline.max_tokens <= 8


def test_only_the_pair_that_fails_is_affected():
    pipeline = make(Doubling(), max_wait_ms=1000.0, max_pairs=16)
    sources = [1, 2, -3, 4, 5, -2, 7, "bad", 9, -1]
    futures = [pipeline.submit("plain", source, "1") for source in sources]
    within(TIMEOUT_S, pipeline.close)
    for source, future in zip(sources, futures, strict=True):
        if isinstance(source, int) and source > 0:
            assert future.result() == 2 * source
        else:
            assert isinstance(future.exception(), ValueError | RuntimeError)
    assert (pipeline.counts.pairs, pipeline.counts.failed) == (6, 4)


def test_cancelled_pairs_are_not_computed():
    stages = Doubling()
    stages.gate.clear()
    pipeline = make(stages, max_tokens=4, max_wait_ms=0.0)
    futures = [pipeline.submit("plain", number, "4") for number in range(12)]
    time.sleep(0.1)
    cancelled = [future for future in futures[6:] if future.cancel()]
    stages.gate.set()
    within(TIMEOUT_S, pipeline.close)
    assert len(cancelled) == 6  # no batch was formed of these: the model was busy
    assert len(stages.batches) == 6
    with pytest.raises(CancelledError):
        cancelled[0].result()


def test_a_pair_goes_round_again_until_it_is_done():
    pipeline = make(Doubling())
    futures = [pipeline.submit("twice", number, "2") for number in range(40)]
    within(TIMEOUT_S, pipeline.close)
    assert [future.result() for future in futures] == [2 * n for n in range(40)]
    assert pipeline.counts.launched == 120 and pipeline.counts.pairs == 40


def test_pending_pairs_share_an_image_and_later_ones_do_not():
    stages = Doubling()
    pipeline = make(stages)
    futures = [pipeline.submit("plain", "slow", "1") for _ in range(10)]
    assert [future.result(timeout=TIMEOUT_S) for future in futures] == [0] * 10
    assert stages.loads == 1
    pipeline.submit("plain", "slow", "1").result(timeout=TIMEOUT_S)  # the file may have changed since
    assert stages.loads == 2
    pipeline.close()


def test_submit_blocks_while_too_many_pairs_are_pending():
    stages = Doubling()
    stages.gate.clear()
    pipeline = make(stages, max_pending=5)
    sent = []
    thread = threading.Thread(target=lambda: sent.extend(pipeline.submit("plain", n, "1") for n in range(8)))
    thread.start()
    time.sleep(0.1)
    assert len(sent) <= 5 and len(pipeline._pending) == 5
    stages.gate.set()
    thread.join(TIMEOUT_S)
    assert [future.result(timeout=TIMEOUT_S) for future in sent] == [2 * n for n in range(8)]
    pipeline.close()


def test_eight_threads():
    pipeline = make(Doubling(), max_pending=50)
    results: dict[int, list[int]] = {}

    def client(thread):
        numbers = range(thread * 1000, thread * 1000 + 200)
        results[thread] = [pipeline.submit("plain", n, str(n % 30 + 1)).result(timeout=TIMEOUT_S) for n in numbers]

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert results == {t: [2 * n for n in range(t * 1000, t * 1000 + 200)] for t in range(8)}
    pipeline.close()


def test_close_without_finishing_fails_what_is_not_in_a_batch():
    stages = Doubling()
    stages.gate.clear()
    pipeline = make(stages, max_tokens=4, max_wait_ms=0.0)
    futures = [pipeline.submit("plain", number, "4") for number in range(12)]
    time.sleep(0.1)
    closing = threading.Thread(target=pipeline.close, kwargs={"finish": False})
    closing.start()
    wait(futures[6:], timeout=TIMEOUT_S)
    stages.gate.set()
    closing.join(TIMEOUT_S)
    assert not closing.is_alive()
    answered = [future.result() for future in futures if future.exception() is None]
    assert answered == [2 * n for n in range(len(answered))] and len(answered) <= 6
    for future in futures[len(answered) :]:
        with pytest.raises(RuntimeError, match="closed before this pair was answered"):
            future.result()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        pipeline.submit("plain", 1, "1")
    within(TIMEOUT_S, pipeline.close)  # again: nothing happens


def test_closing_frees_a_submitter_that_waits():
    stages = Doubling()
    stages.gate.clear()
    pipeline = make(stages, max_pending=2)
    outcome = []

    def submit():
        try:
            for number in range(5):
                pipeline.submit("plain", number, "1")
        except RuntimeError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=submit)
    thread.start()
    time.sleep(0.1)
    closing = threading.Thread(target=pipeline.close)
    closing.start()
    stages.gate.set()
    thread.join(TIMEOUT_S)
    closing.join(TIMEOUT_S)
    assert "the engine is closed" in outcome[0]


def test_closing_after_the_last_pairs_were_cancelled():
    """Nobody answers a cancelled pair: `close` is told that there is none left."""
    pipeline = make(Doubling(), max_wait_ms=300)
    future = pipeline.submit("plain", 1, "1")
    time.sleep(0.05)
    assert future.cancel()
    finish_in_time(pipeline.close)


def test_leaving_a_loop_over_results_and_closing():
    for _ in range(20):
        pipeline = make(Doubling(), max_wait_ms=50)
        pairs = (("plain", number, "1") for number in range(12))
        for _ in in_order(pipeline.ticket, pairs, 64, "raise"):
            break
        finish_in_time(pipeline.close)


def test_a_callback_that_exits_is_not_the_threads():
    pipeline = make(Doubling())
    futures = [pipeline.submit("plain", number, "1") for number in range(4)]
    futures[0].add_done_callback(lambda future: sys.exit(1))
    assert [future.result(TIMEOUT_S) for future in futures] == [0, 2, 4, 6]
    finish_in_time(pipeline.close)


def finish_in_time(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def test_closing_in_a_callback_is_an_error():
    pipeline = make(Doubling())
    told = []

    def callback(future):
        try:
            pipeline.close()
        except RuntimeError as error:
            told.append(str(error))

    stages_future = pipeline.submit("plain", 1, "1")
    stages_future.add_done_callback(callback)
    stages_future.result(timeout=TIMEOUT_S)
    within(TIMEOUT_S, pipeline.close)
    # Where the answer was there before the callback was added, it ran in this thread, and closed.
    assert all("callback" in message for message in told)


def test_a_callback_may_submit_while_too_many_pairs_are_pending():
    stages = Doubling()
    stages.gate.clear()
    pipeline = make(stages, max_pending=2)
    more = []
    first = pipeline.submit("plain", 1, "64")
    first.add_done_callback(lambda _: more.extend(pipeline.submit("plain", n, "1") for n in range(5)))
    pipeline.submit("plain", 2, "64")
    stages.gate.set()
    first.result(timeout=TIMEOUT_S)
    within(TIMEOUT_S, lambda: [time.sleep(0.01) for _ in iter(lambda: len(more) < 5, False)])
    within(TIMEOUT_S, pipeline.close)
    assert [future.result() for future in more] == [0, 2, 4, 6, 8]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is shown, as it should be
def test_a_bug_in_a_thread_fails_everyone_instead_of_hanging():
    class Broken(Doubling):
        def finish(self, items, launched):
            return []  # one result per pair is wanted

    pipeline = make(Broken())
    future = pipeline.submit("plain", 1, "1")
    with pytest.raises(RuntimeError, match="the engine broke"):
        future.result(timeout=TIMEOUT_S)
    with pytest.raises(RuntimeError, match="the engine broke"):
        pipeline.submit("plain", 1, "1")
    within(TIMEOUT_S, pipeline.close)


def test_an_error_of_the_producer_comes_after_the_results_before_it():
    pipeline = make(Doubling())

    def pairs():
        yield from ((n, "1") for n in range(5))
        raise KeyError("the producer's own")

    results = in_order(lambda source, text: pipeline.submit("plain", source, text), pairs(), 8, "raise")
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(KeyError, match="the producer's own"):
        next(results)
    pipeline.close()


def test_results_come_while_the_producer_waits():
    """A camera that gives one picture and then nothing: its answer is there at once."""
    pipeline = make(Doubling())
    more = threading.Event()

    def pairs():
        yield 1, "1"
        more.wait(TIMEOUT_S)
        yield 2, "1"

    results = in_order(lambda source, text: pipeline.submit("plain", source, text), pairs(), 8, "raise")
    assert within(5, lambda: next(results)) == 2
    more.set()
    assert list(results) == [4]
    pipeline.close()


def test_leaving_a_generator_stops_its_thread():
    pipeline = make(Doubling(), max_pending=4)
    taken = []

    def pairs():
        for number in range(10**9):
            taken.append(number)
            yield number, "1"

    results = in_order(lambda source, text: pipeline.submit("plain", source, text), pairs(), 4, "raise")
    assert next(results) == 0
    results.close()
    for _ in range(100):
        before = len(taken)
        time.sleep(0.02)
        if len(taken) == before:
            break
    assert len(taken) == before
    within(TIMEOUT_S, pipeline.close)
