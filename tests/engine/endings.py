"""Ends Python with an engine at work, in each of several ways, and prints how that went as JSON.

Each way ends in a fork of this process, as a script ends: to import PyTorch once for each would take minutes.
"""

import atexit
import gc
import io
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
import types

import torch

from vilt_fast import Engine, demo

TIMEOUT_S = 60
PENDING = 60
IMAGES: list = []
QUESTIONS: list = []
kept: list = []  # until the modules are cleared


def start() -> Engine:
    engine = Engine(*kept[0], workers=2)
    kept.append(engine)
    return engine


def submit(engine: Engine) -> None:
    """Many pairs; each prints a line when it is answered, or what is raised instead."""
    for image, question, _ in zip(itertools.cycle(IMAGES), itertools.cycle(QUESTIONS), range(PENDING), strict=False):
        future = engine.submit(image, question)
        future.add_done_callback(lambda done: print("answer" if done.exception() is None else "error", flush=True))


def pending() -> None:
    submit(start())


def iteration() -> None:
    results = start().answer(itertools.cycle(IMAGES), itertools.cycle(QUESTIONS))
    kept.append(results)
    print(next(results).answer)


def broken_off() -> None:
    for result in start().answer(iter(IMAGES * 50), iter(QUESTIONS * 50)):
        print(result.answer)
        break


def blocked_iterator() -> None:
    def images():
        yield from IMAGES
        threading.Event().wait()

    results = start().answer(images(), itertools.cycle(QUESTIONS))
    kept.append(results)
    print(next(results).answer)


def dropped() -> None:
    submit(start())
    del kept[:]


def exit_code() -> None:
    submit(start())
    sys.exit(3)


def error() -> None:
    submit(start())
    raise ValueError("mine")


def interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    start().answer(IMAGES * 5000, QUESTIONS * 5000)


def exit_handler() -> None:
    engine = start()
    engine.answer(IMAGES, QUESTIONS)
    atexit.register(lambda: print(len(engine.answer(IMAGES, QUESTIONS)), flush=True))


class Asks:
    """Asks when Python clears the modules."""

    def __init__(self, engine: Engine) -> None:
        sys.modules["asks"] = types.ModuleType("asks")
        vars(sys.modules["asks"])["it"] = self
        self.calls = [lambda: engine.submit(IMAGES[0], QUESTIONS[0]).result(5)]
        self.calls += [lambda: engine.answer(IMAGES, QUESTIONS), lambda: next(engine.answer(iter(IMAGES), "a"))]
        self.write = os.write

    def __del__(self) -> None:
        for call in self.calls:
            try:
                call()
            except RuntimeError as refusal:
                self.write(1, f"{refusal}\n".encode())


def finaliser() -> None:
    engine = start()
    engine.answer(IMAGES, QUESTIONS)
    Asks(engine)


def finaliser_of_a_new_engine() -> None:
    Asks(start())


def thread_that_goes_on() -> None:
    engine, file = start(), io.BytesIO()
    IMAGES[0].save(file, "PNG")

    def ask() -> None:
        threading.main_thread().join()
        for _ in range(3):
            print(engine.answer(file.getvalue(), QUESTIONS[0]).answer, flush=True)

    threading.Thread(target=ask).start()


ENDINGS = [pending, iteration, broken_off, blocked_iterator, dropped, exit_code, error, interrupt, exit_handler]
ENDINGS += [finaliser, finaliser_of_a_new_engine, thread_that_goes_on]


def main() -> None:
    torch.set_num_threads(1)
    kept.append(demo.load())
    images, questions = zip(*demo.examples()[:4], strict=True)
    IMAGES.extend(images)
    QUESTIONS.extend(questions)
    gc.freeze()  # or each fork looks through all of PyTorch when it ends
    begun = {}
    for ending in ENDINGS:
        streams = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        child = os.fork()
        if child == 0:
            for number, stream in enumerate(streams, 1):
                os.dup2(stream.fileno(), number)
            return ending()
        begun[ending.__name__] = (child, *streams)
    print(json.dumps({name: outcome(*parts) for name, parts in begun.items()}))


def outcome(child: int, *streams) -> dict:
    deadline = time.monotonic() + TIMEOUT_S
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if found[0] == 0:
        os.kill(child, signal.SIGKILL)
        found = os.waitpid(child, 0)
    texts = []
    for stream in streams:
        stream.seek(0)
        texts.append(stream.read().decode())
    return {"code": os.waitstatus_to_exitcode(found[1]), "stdout": texts[0], "stderr": texts[1]}


main()
