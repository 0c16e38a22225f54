"""From single pairs to batches and back: threads and queues, nothing about models.

    submit -> load      a thread pool, once per image
           -> form      one thread: counts tokens, fills batches
           -> prepare   two threads: a batch's inputs, while the batch before it is computed
           -> launch    one thread: the model
           -> finish    one thread: waits for the numbers, makes results
           -> settle    answers the futures, in the thread that has the outcome

Every arrow is the method of that name, and every arrow is bounded: `submit` waits while `max_pending` pairs have no
answer, `form` while two batches wait for the model, `launch` while two batches wait to be finished. The cost of a batch
is counted in tokens. A batch closes when it is full, when the next pair does not fit, or when its first pair has waited
`max_wait_ms` (or the pipeline is closing) and the model could take it.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vilt_fast.engine.futures import Home, Process, WaitingFuture
from vilt_fast.engine.pool import Pool
from vilt_fast.engine.stages import AGAIN, Counts, Group, Item, Picture, Stages, Ticket, is_out_of_memory

LOG = logging.getLogger(__name__)
_WAITING_BATCHES = 2
_CHUNK = 256  # loaded pairs that are measured together without waiting for more
_GATHER_S = 2e-3  # the most that a loaded pair waits for others to be measured with


@dataclass
class _Batch:
    items: list[Item] = field(default_factory=list)
    tokens: int = 0
    since: float = 0.0
    prepared: Future = field(init=False)

    def append(self, item: Item, since: float) -> None:
        self.since = self.since if self.items else since
        self.items.append(item)
        self.tokens += item.tokens


class Pipeline:
    """The threads. They start with the first pair.

    Args:
        stages: what each arrow does.
        max_tokens, max_pairs: per batch; a longer pair gets a batch of its own. Fewer tokens once memory runs out.
        max_wait_ms: how long the first pair of a batch waits for others while the model is free.
        workers: threads that load images; None for one per core.
        max_pending: unanswered pairs at which `submit` blocks.
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
        self.home = Home()
        self._threads = self.home.threads
        # One lock for all shared state below, and who waits for what: the forming thread for pairs and slots,
        # submitters for room, callers for answers.
        self._lock = threading.RLock()
        self._arrived, self._room, self._settled = (threading.Condition(self._lock) for _ in range(3))
        self._pictures: dict[Hashable, Picture] = {}
        self._pending: set[Item] = set()
        self._ready: list[Item] = []
        self._ready_since = 0.0  # when the first of them was loaded
        self._has_groups = False
        self._settling = 0  # threads inside `_settle`
        self._slots = _WAITING_BATCHES
        self._closing: str | None = None  # why no more pairs are accepted
        self._is_aborted = self._is_stopped = self._is_broken = False
        self._loaders = Pool(workers or os.cpu_count() or 1, "vilt-load")
        self._preparers = Pool(_WAITING_BATCHES, "vilt-prepare")
        self._batches: queue.SimpleQueue[_Batch | Callable[[], None] | None] = queue.SimpleQueue()
        self._launched: queue.Queue[tuple[list[Item], Any] | None] = queue.Queue(_WAITING_BATCHES)

    def submit(self, kind: str, source: Any, asked: Any) -> Future:
        """Enqueue a pair; thread-safe. Blocks while `max_pending` pairs are pending.

        Pending pairs whose `source` is the same object or the same path share one loaded image.

        Raises:
            RuntimeError: after `close`.
        """
        future = WaitingFuture(self.home)
        self._enqueue(kind, source, asked, future)
        return future

    def ticket(self, kind: str, source: Any, asked: Any) -> Ticket:
        """`submit`, for one caller who waits for many results in order."""
        ticket = Ticket(self._settled)
        self._enqueue(kind, source, asked, ticket)
        return ticket

    def submit_batch(self, kind: str, pairs: Sequence[tuple[Any, Any]]) -> Sequence[Future]:
        """`submit` several pairs as a batch of their own, in this order, however many tokens they have."""
        group, futures = Group([], len(pairs)), [WaitingFuture(self.home) for _ in pairs]
        self.home.check_process()
        with self._lock:  # all or none of them: a batch that lacks one would never start
            self._wait_for_room(len(pairs))
            self._start()
            self._has_groups = True
            for (source, asked), future in zip(pairs, futures, strict=True):
                self._enqueue(kind, source, asked, future, group)
        return futures

    def _enqueue(self, kind: str, source: Any, asked: Any, future: Future | Ticket, group: Group | None = None) -> None:
        if Process.pid != self.home.pid:
            self.home.check_process()
        key = os.fspath(source) if isinstance(source, str | os.PathLike) else id(source)
        fresh = Picture(key, source)
        if key not in self._pictures and self.stages.is_loaded(source):
            self._read(fresh)  # here, as it is instant
            fresh.waiting = None
        with self._lock:
            if group is None and len(self._pending) >= self.max_pending:
                self._wait_for_room(1)
            self._start()
            picture = self._pictures.setdefault(key, fresh)
            picture.users += 1
            item = Item(kind, asked, picture, future, time.perf_counter())
            if group is not None:
                item.group = group
                group.items.append(item)
            self.counts.first = self.counts.first or item.submitted
            self._pending.add(item)
            if picture.waiting is None:
                self._make_ready([item])
            else:
                picture.waiting.append(item)
        if picture is fresh and fresh.waiting is not None:
            self._load(fresh)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the launching thread, between two batches, and return its result."""
        self.home.check_wait("warmup()")
        future: Future = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._lock:
            self._start()
            self._batches.put(run)
        return future.result()

    def close(self, finish: bool = True) -> None:
        """Accept no more pairs. Answer the pending ones, or fail those not yet in a batch with a RuntimeError."""
        if Process.pid != self.home.pid:
            return  # in a fork, which has none of the threads
        self.home.check_wait("close()")
        with self._lock:
            self._closing = self._closing or "the engine is closed"
            self._is_aborted = self._is_aborted or not finish
            # When Python shuts down nobody takes results in order any more.
            kept = () if not finish else Future if Process.is_ending else (Future, Ticket)
            fresh = [item for item in self._pending if not item.is_taken and not isinstance(item.future, kept)]
            dropped = [item for item in fresh if self._take(item)]
            self._forget(dropped)
        self._settle([(item, _aborted()) for item in dropped])
        with self._lock:
            self._room.notify_all()
            self._arrived.notify()
            self._settled.wait_for(lambda: not self._pending and not self._settling)
            self._is_stopped = True
            self._arrived.notify()
        for thread in self._threads:
            thread.join(1.0 if self._is_broken else None)
        self._loaders.close()
        self._preparers.close()

    def end(self) -> list[threading.Thread]:
        """`close`, when Python shuts down: like the end of a `with` block, it finishes unless an error brought it."""
        try:
            self.close(finish=not hasattr(sys, "last_type"))
        except KeyboardInterrupt:  # the user does not want to wait
            self.close(finish=False)
        return []

    # --- shared state: these five are called under the lock -------------------------------------------------------

    def _wait_for_room(self, count: int) -> None:
        """Until `count` more pairs may be pending; more than may ever be wait for an empty pipeline."""
        most = max(self.max_pending - count, 0)
        if len(self._pending) > most and threading.current_thread() not in self._threads:
            # A callback must not wait for its own thread.
            self._room.wait_for(lambda: len(self._pending) <= most or self._closing)

    def _start(self) -> None:
        if self._closing:
            raise RuntimeError(f"{self._closing}: it takes no more pairs")
        if self._threads:
            return
        Process.end_with(self)
        for arrow, loop in (("form", self._form_loop), ("launch", self._launch_loop), ("finish", self._finish_loop)):
            thread = threading.Thread(target=self._guard, args=(loop,), name=f"vilt-{arrow}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more: the others end
                self._closing, self._is_stopped = f"the engine broke ({error})", True
                self._arrived.notify()
                raise
            self._threads.append(thread)

    def _make_ready(self, items: Sequence[Item]) -> None:
        """These pairs can be measured; wakes the forming thread when there is something for it to do."""
        before = len(self._ready)
        self._ready.extend(items)
        if before == 0 and items:
            self._ready_since = time.perf_counter()
            self._arrived.notify()
        elif before < _CHUNK <= len(self._ready):
            self._arrived.notify()

    def _take(self, item: Item) -> bool:
        """Whether this pair still needs an answer; if so, its future can no longer be cancelled."""
        if item not in self._pending:
            return False
        if not item.is_taken and not item.future.set_running_or_notify_cancel():
            self._forget([item])
            return False
        item.is_taken = True
        return True

    def _forget(self, items: Iterable[Item]) -> None:
        """These pairs are no longer pending; an image is released with the last pair that uses it."""
        for item in items:
            if item not in self._pending:
                continue
            self._pending.remove(item)
            item.picture.users -= 1
            if item.picture.users == 0:
                del self._pictures[item.picture.key]
        self._room.notify_all()
        self._settled.notify_all()  # `close` waits for the last one

    def _load(self, picture: Picture) -> None:
        """Load an image in the pool."""
        try:
            self._loaders.submit(self._load_here, picture)
        except RuntimeError as error:  # closed, or the interpreter is shutting down
            picture.error = error
            self._loaded(picture)

    def _load_here(self, picture: Picture) -> None:
        self._read(picture)
        self._loaded(picture)

    def _read(self, picture: Picture) -> None:
        try:
            picture.value = self.stages.load(picture.source)
        except Exception as error:
            picture.error = error

    def _loaded(self, picture: Picture) -> None:
        with self._lock:
            self._make_ready(picture.waiting or ())
            picture.waiting = None

    def _form_loop(self) -> None:
        batch = _Batch()
        while (arrived := self._wait_for_pairs(batch)) is not None:
            batch = self._form(batch, *arrived)
            arrived = None  # or the last images would stay alive until the next pairs arrive
        self._batches.put(None)

    def _form(self, batch: _Batch, items: list[Item], since: float) -> _Batch:
        """Fill `batch` and pass it on when it closes; the batch that is still open is returned."""
        good = self._measure(items)
        if self._has_groups:
            self._prepare_groups(items)
            good = [item for item in good if item.group is None]
        for item in good:
            if batch.items and not self._fits(batch, item):
                self._prepare(batch)
                batch = _Batch()
            batch.append(item, since)
        is_full = batch.tokens >= self.max_tokens or len(batch.items) >= self.max_pairs
        if not is_full and not self._is_due(batch):
            return batch
        self._prepare(batch)
        return _Batch()

    def _wait_for_pairs(self, batch: _Batch) -> tuple[list[Item], float] | None:
        """Pairs whose image is loaded, and since when; none if `batch` is due; None at the end."""
        gather_s = min(_GATHER_S, self.max_wait_s / 2)
        with self._lock:
            while True:
                if self._is_stopped and not self._ready and not batch.items:
                    return None
                now = time.perf_counter()
                ends = [self._ready_since + gather_s] if self._ready else []
                ends += [batch.since + self.max_wait_s] if batch.items and self._slots else []
                is_over = self._closing is not None and bool(ends)
                if is_over or len(self._ready) >= _CHUNK or any(now >= end for end in ends):
                    break
                self._arrived.wait(min(ends) - now if ends else None)
            arrived, self._ready = self._ready, []
            return arrived, self._ready_since

    def _measure(self, items: list[Item]) -> list[Item]:
        """The pairs with their `tokens` set; those that cannot be answered are settled."""
        for item in items:
            item.error = item.picture.error
        loaded = [item for item in items if item.error is None]
        try:
            self.stages.measure(loaded)
        except Exception as error:
            for item in loaded:
                item.error = error
        with self._lock:
            bad = [item for item in items if item.error is not None and self._take(item)]
        self._settle([(item, item.error) for item in bad])
        return [item for item in items if item.error is None]

    def _prepare_groups(self, items: list[Item]) -> None:
        """Pass on the groups whose last pairs are among these."""
        for item in items:
            if item.group is not None:
                item.group.missing -= 1
                if item.group.missing == 0:
                    self._prepare(_Batch([one for one in item.group.items if one.error is None]))

    def _fits(self, batch: _Batch, item: Item) -> bool:
        is_small = batch.tokens + item.tokens <= self.max_tokens and len(batch.items) < self.max_pairs
        return is_small and batch.items[0].kind == item.kind

    def _is_due(self, batch: _Batch) -> bool:
        """Whether a batch closes before it is full: it has waited long enough, and the model could take it."""
        waited = time.perf_counter() - batch.since
        return bool(batch.items and self._slots) and (waited >= self.max_wait_s or self._closing is not None)

    def _prepare(self, batch: _Batch) -> None:
        """Pass a closed batch on: its inputs are made in the pool, and the launching thread waits for them."""
        with self._lock:
            self._arrived.wait_for(lambda: self._slots)
            batch.items = [item for item in batch.items if self._take(item)]
            if not batch.items:
                return
            self._slots -= 1
        batch.prepared = self._preparers.submit(self.stages.prepare, batch.items)
        self._batches.put(batch)

    def _launch_loop(self) -> None:
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
            self._launch(batch.items, batch.prepared)
            batch = None
            with self._lock:
                self._slots += 1
                self._arrived.notify()
        self._launched.put(None)

    def _launch(self, items: list[Item], prepared: Future | None = None) -> None:
        """Launch a batch; if that fails, its halves, down to the pair that is to blame."""
        try:
            inputs = self.stages.prepare(items) if prepared is None else prepared.result()
            start = time.perf_counter()
            launched = self.stages.launch(inputs)
        except Exception as error:
            inputs = None
            self._launch_halves(items, error)
            return
        tokens = sum(item.tokens for item in items)
        self.counts.batches += 1
        self.counts.launched += len(items)
        self.counts.tokens += tokens
        self.counts.capacity += max(self.max_tokens, tokens)
        self.counts.queue_s += sum(start - item.submitted for item in items)
        self._launched.put((items, launched))

    def _launch_halves(self, items: list[Item], error: BaseException) -> None:
        error.with_traceback(None)  # it would keep the tensors of the failed batch alive
        if is_out_of_memory(error):
            self.max_tokens = max(1, min(self.max_tokens, sum(item.tokens for item in items)) // 2)
            LOG.warning("out of memory with %d pairs: batches of %d tokens from here on", len(items), self.max_tokens)
            self.stages.recover()
        if len(items) == 1:
            self._settle([(items[0], error)])
            return
        middle = len(items) // 2
        self._launch(items[:middle])
        self._launch(items[middle:])

    def _finish_loop(self) -> None:
        while (entry := self._launched.get()) is not None:
            self._finish(*entry)
            entry = None  # or its tensors would stay alive until the next batch

    def _finish(self, items: list[Item], launched: Any) -> None:
        try:
            outcomes = self.stages.finish(items, launched)
        except Exception as error:
            outcomes = [error] * len(items)
        results = list(zip(items, outcomes, strict=True))
        with self._lock:
            if self._is_aborted:
                results = [(item, _aborted() if outcome is AGAIN else outcome) for item, outcome in results]
            self._make_ready([item for item, outcome in results if outcome is AGAIN])
        self._settle([(item, outcome) for item, outcome in results if outcome is not AGAIN])

    def _settle(self, results: Sequence[tuple[Item, Any]]) -> None:
        """Answer taken pairs with a result or an exception each. Callbacks of their futures run here."""
        if not results:
            return
        with self._lock:
            # Before the answers: a path that is submitted again after its answer has to be read again.
            self._forget(item for item, _ in results)
            self._settling += 1
        failed = 0
        for item, outcome in results:
            try:
                if isinstance(outcome, BaseException):
                    failed += 1
                    item.future.set_exception(outcome)
                else:
                    item.future.set_result(outcome)
            except BaseException:  # SystemExit, say, of a callback: not this thread's
                LOG.exception("a callback of a future raised")
        with self._lock:
            self._settling -= 1
            self.counts.failed += failed
            self.counts.pairs += len(results) - failed
            self.counts.last = time.perf_counter()
            self._settled.notify_all()

    def _guard(self, loop: Callable[[], None]) -> None:
        """Run a thread's loop; if it dies of a bug of ours, nobody is left waiting."""
        try:
            loop()
        except BaseException as error:
            with self._lock:
                self._closing = f"the engine broke ({error!r})"
                self._is_aborted = self._is_stopped = self._is_broken = True
                lost, self._pending = self._pending, set()
                self._slots = len(lost) + 1
            for item in lost:
                with suppress(InvalidStateError):  # cancelled, or answered at this moment
                    item.future.set_exception(RuntimeError(f"the engine broke: {error!r}"))
            with self._lock:
                for waiting in (self._arrived, self._room, self._settled):
                    waiting.notify_all()
            raise


def _aborted() -> RuntimeError:
    return RuntimeError("the engine was closed before this pair was answered")
