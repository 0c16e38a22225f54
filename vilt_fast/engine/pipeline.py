"""From single pairs to batches and back: threads, queues and nothing about models.

    submit -> load      threads of a pool, once a picture
           -> form      one thread: counts tokens, fills batches
           -> prepare   two threads: a batch's inputs, while the batch before it is computed
           -> launch    one thread: the model
           -> finish    one thread: waits for the numbers, makes results, answers the futures

Every arrow is bounded: `submit` waits while `max_pending` pairs have no answer, `form` while two batches wait for the
model, `launch` while two batches wait to be finished. What a batch costs is counted in tokens. A batch closes when the
next pair does not fit, or when its first pair has waited `max_wait_ms` and the model could take it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vilt_fast.engine.stages import AGAIN, Counts, Item, Picture, Stages, is_out_of_memory

LOG = logging.getLogger(__name__)
_WAITING_BATCHES = 2


@dataclass
class _Batch:
    items: list[Item] = field(default_factory=list)
    tokens: int = 0
    since: float = 0.0
    prepared: Future | None = None

    def append(self, item: Item) -> None:
        if not self.items:
            self.since = time.perf_counter()
        self.items.append(item)
        self.tokens += item.tokens


class Pipeline:
    """The threads. They start with the first pair.

    Args:
        stages: what is done.
        max_tokens: of a batch; a pair that is longer goes alone. Halved whenever memory runs out.
        max_pairs: of a batch.
        max_wait_ms: how long the first pair of a batch waits for others, where the model is free.
        workers: threads that load pictures; None: one a core.
        max_pending: pairs without an answer, above which `submit` waits.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        max_tokens: int,
        max_pairs: int,
        max_wait_ms: float = 5.0,
        workers: int | None = None,
        max_pending: int = 1024,
    ) -> None:
        self.stages, self.max_tokens, self.max_pairs, self.max_pending = stages, max_tokens, max_pairs, max_pending
        self.max_wait_s = max_wait_ms / 1000
        self.counts = Counts()
        # One lock for all shared state below; whoever changes it wakes all who wait.
        self._changed = threading.Condition()
        self._pictures: dict[Hashable, Picture] = {}
        self._pending: set[Item] = set()
        self._ready: deque[Item] = deque()
        self._settling = 0  # threads that are answering pairs
        self._slots = _WAITING_BATCHES
        self._closing: str | None = None  # why nothing more is accepted
        self._is_aborted = self._is_stopped = self._is_broken = False
        self._threads: list[threading.Thread] = []
        self._loaders = ThreadPoolExecutor(workers or os.cpu_count() or 1, "vilt-load")
        self._preparers = ThreadPoolExecutor(_WAITING_BATCHES, "vilt-prepare")
        self._batches: queue.SimpleQueue[_Batch | Callable[[], None] | None] = queue.SimpleQueue()
        self._launched: queue.Queue[tuple[list[Item], Any] | None] = queue.Queue(_WAITING_BATCHES)

    # --- outside --------------------------------------------------------------------------------------------------

    def submit(self, kind: str, source: Any, text: str) -> Future:
        """Send a pair in; thread-safe. Waits while `max_pending` pairs are on their way.

        Pairs whose `source` is the same object or the same path share the picture while any of them is on its way.

        Raises:
            RuntimeError: after `close`.
        """
        key = os.fspath(source) if isinstance(source, str | os.PathLike) else id(source)
        with self._changed:
            if threading.current_thread() not in self._threads:  # a callback would wait for itself
                self._changed.wait_for(lambda: len(self._pending) < self.max_pending or self._closing)
            self._start()
            picture = self._pictures.get(key)
            if is_new := picture is None:
                picture = self._pictures[key] = Picture(key, source)
            picture.users += 1
            item = Item(kind, text, picture, Future(), time.perf_counter())
            self.counts.first = self.counts.first or item.submitted
            self._pending.add(item)
            if picture.waiting is None:
                self._ready.append(item)
                self._changed.notify_all()
            else:
                picture.waiting.append(item)
        if is_new and self.stages.is_loaded(source):
            self._load(picture)
        elif is_new:
            self._in_pool(picture)
        return item.future

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the thread that launches, between two batches, and return what it returns."""
        future: Future = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._changed:
            self._start()
            self._batches.put(run)
        return future.result()

    def close(self, finish: bool = True) -> None:
        """Accept nothing more; finish what is on its way, or fail what the model has not begun with a RuntimeError."""
        if threading.current_thread() in self._threads:
            raise RuntimeError("close() was called in a future's callback, where it would wait for itself")
        with self._changed:
            self._closing = self._closing or "the engine is closed"
            self._is_aborted = self._is_aborted or not finish
            fresh = [] if finish else [item for item in self._pending if not item.is_taken]
            dropped = [item for item in fresh if self._take(item)]
            self._forget(dropped)
        self._settle(dropped, [_aborted() for _ in dropped])
        with self._changed:
            self._changed.wait_for(lambda: not self._pending and not self._settling)
            self._is_stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(1.0 if self._is_broken else None)
        self._loaders.shutdown(cancel_futures=True)
        self._preparers.shutdown()

    # --- shared state, under the lock -----------------------------------------------------------------------------

    def _start(self) -> None:
        if self._closing:
            raise RuntimeError(f"{self._closing}: it takes no more pairs")
        if not self._threads:
            for loop in (self._form, self._launch, self._finish):
                name = f"vilt{loop.__name__.replace('_', '-')}"
                self._threads.append(threading.Thread(target=self._guarded, args=(loop,), name=name, daemon=True))
                self._threads[-1].start()

    def _take(self, item: Item) -> bool:
        """Whether this pair is still to be answered; from here on its future cannot be cancelled."""
        if item not in self._pending:
            return False
        if not item.is_taken and not item.future.set_running_or_notify_cancel():
            self._forget([item])
            return False
        item.is_taken = True
        return True

    def _forget(self, items: Iterable[Item]) -> None:
        """These pairs are on their way no more, and the last one to look at a picture takes it along."""
        for item in items:
            if item not in self._pending:
                continue
            self._pending.remove(item)
            item.picture.users -= 1
            if item.picture.users == 0:
                del self._pictures[item.picture.key]
        self._changed.notify_all()

    # --- threads --------------------------------------------------------------------------------------------------

    def _in_pool(self, picture: Picture) -> None:
        try:
            self._loaders.submit(self._load, picture)
        except RuntimeError as error:  # closed, or the interpreter is ending
            picture.error = error
            self._loaded(picture)

    def _load(self, picture: Picture) -> None:
        try:
            picture.value = self.stages.load(picture.source)
        except Exception as error:
            picture.error = error
        self._loaded(picture)

    def _loaded(self, picture: Picture) -> None:
        with self._changed:
            self._ready.extend(picture.waiting)
            picture.waiting = None
            self._changed.notify_all()

    def _form(self) -> None:
        batch = _Batch()
        while (arrived := self._arrivals(batch)) is not None:
            for item in self._measured(arrived):
                if batch.items and not self._fits(batch, item):
                    self._emit(batch)
                    batch = _Batch()
                batch.append(item)
            if batch.items and (self._is_full(batch) or self._is_due(batch)):
                self._emit(batch)
                batch = _Batch()
            arrived = item = None  # or the last pictures would live until the next ones come
        self._batches.put(None)

    def _arrivals(self, batch: _Batch) -> list[Item] | None:
        """Pairs with a picture; none where `batch` has to go as it is; None at the end."""
        with self._changed:
            while not self._ready:
                wait_s = None
                if self._is_due(batch):
                    return []
                if batch.items and self._slots:
                    wait_s = batch.since + self.max_wait_s - time.perf_counter()
                elif self._is_stopped:
                    return None
                self._changed.wait(wait_s)
            arrived = list(self._ready)
            self._ready.clear()
            return arrived

    def _measured(self, items: list[Item]) -> list[Item]:
        """The pairs with their `tokens`; those that cannot be answered are settled."""
        fresh = [item for item in items if item.picture.error is None]
        try:
            self.stages.measure(fresh)
        except Exception as error:
            for item in fresh:
                item.error = error
        for item in items:
            item.error = item.error or item.picture.error
        with self._changed:
            bad = [item for item in items if item.error is not None and self._take(item)]
        self._settle(bad, [item.error for item in bad])
        return [item for item in items if item.error is None]

    def _fits(self, batch: _Batch, item: Item) -> bool:
        is_small = batch.tokens + item.tokens <= self.max_tokens and len(batch.items) < self.max_pairs
        return is_small and batch.items[0].kind == item.kind

    def _is_full(self, batch: _Batch) -> bool:
        return batch.tokens >= self.max_tokens or len(batch.items) >= self.max_pairs

    def _is_due(self, batch: _Batch) -> bool:
        """Whether a batch goes though it is not full: it has waited enough, and the model could take it."""
        waited = time.perf_counter() - batch.since
        return bool(batch.items and self._slots) and (waited >= self.max_wait_s or self._closing is not None)

    def _emit(self, batch: _Batch) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._slots)
            batch.items = [item for item in batch.items if self._take(item)]
            if not batch.items:
                return
            self._slots -= 1
        batch.prepared = self._preparers.submit(self.stages.prepare, batch.items)
        self._batches.put(batch)

    def _launch(self) -> None:
        while True:
            start = time.perf_counter()
            batch = self._batches.get()
            if batch is None:
                break
            if not isinstance(batch, _Batch):
                batch()
                continue
            batch.prepared.exception()  # waits for it
            self.counts.stall_s += time.perf_counter() - start
            self._run(batch.items, batch.prepared)
            batch = None
            with self._changed:
                self._slots += 1
                self._changed.notify_all()
        self._launched.put(None)

    def _run(self, items: list[Item], prepared: Future | None = None) -> None:
        """Launch a batch. Where that fails, its halves, down to the pair that is to blame."""
        try:
            inputs = self.stages.prepare(items) if prepared is None else prepared.result()
            start = time.perf_counter()
            launched = self.stages.launch(inputs)
        except Exception as error:
            inputs = None
            self._run_halves(items, error)
            return
        tokens = sum(item.tokens for item in items)
        self.counts.batches += 1
        self.counts.launched += len(items)
        self.counts.tokens += tokens
        self.counts.capacity += max(self.max_tokens, tokens)
        self.counts.queue_s += sum(start - item.submitted for item in items)
        self._launched.put((items, launched))

    def _run_halves(self, items: list[Item], error: BaseException) -> None:
        error.with_traceback(None)  # it would keep the tensors of the failed batch alive
        if is_out_of_memory(error):
            self.max_tokens = max(1, min(self.max_tokens, sum(item.tokens for item in items)) // 2)
            LOG.warning("out of memory with %d pairs: batches of %d tokens from here on", len(items), self.max_tokens)
            self.stages.recover()
        if len(items) == 1:
            self._settle(items, [error])
            return
        middle = len(items) // 2
        self._run(items[:middle])
        self._run(items[middle:])

    def _finish(self) -> None:
        while (entry := self._launched.get()) is not None:
            items, launched = entry
            try:
                outcomes = self.stages.finish(items, launched)
            except Exception as error:
                outcomes = [error] * len(items)
            again = [item for item, outcome in zip(items, outcomes, strict=True) if outcome is AGAIN]
            with self._changed:
                is_aborted = self._is_aborted
                self._ready.extend([] if is_aborted else again)
                self._changed.notify_all()
            outcomes = [_aborted() if outcome is AGAIN and is_aborted else outcome for outcome in outcomes]
            done = [index for index, outcome in enumerate(outcomes) if outcome is not AGAIN]
            self._settle([items[index] for index in done], [outcomes[index] for index in done])
            entry = items = launched = None  # or they would live until the next batch comes

    def _settle(self, items: Sequence[Item], outcomes: Sequence[Any]) -> None:
        """Answer taken pairs. Callbacks of their futures run here."""
        if not items:
            return
        with self._changed:
            # Before the answers: who sends the same path again once he has one wants the file to be read again.
            self._forget(items)
            self._settling += 1
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                item.future.set_exception(outcome)
            else:
                item.future.set_result(outcome)
        failed = sum(isinstance(outcome, BaseException) for outcome in outcomes)
        with self._changed:
            self._settling -= 1
            self.counts.failed += failed
            self.counts.pairs += len(items) - failed
            self.counts.last = time.perf_counter()
            self._changed.notify_all()

    def _guarded(self, loop: Callable[[], None]) -> None:
        """A thread that dies of a bug of ours must not leave anyone waiting."""
        try:
            loop()
        except BaseException as error:
            with self._changed:
                self._closing = f"the engine broke ({error!r})"
                self._is_aborted = self._is_stopped = self._is_broken = True
                lost, self._pending = self._pending, set()
                self._slots = len(lost) + 1
                self._changed.notify_all()
            for item in lost:
                try:
                    item.future.set_exception(RuntimeError(f"the engine broke: {error!r}"))
                except InvalidStateError:  # cancelled, or answered in this moment
                    pass
            raise


def _aborted() -> RuntimeError:
    return RuntimeError("the engine was closed before this pair was answered")
