"""Runs the methods of a test class one by one, and says of each how it ended."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import re
import sys
import unittest
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch


class Outcome(NamedTuple):
    """How one test ended: "passed", "skipped" or "failed", and the reason or the exception in one line."""

    kind: str
    line: str = ""
    trace: str = ""


class _Result(unittest.TestResult):
    """Keeps one outcome for each test: the first failure of its subtests wins over a skip, a skip over success."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, Outcome] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        _seed(test)
        super().startTest(test)

    def _fail(self, test: Any, error: Any) -> None:
        name = getattr(test, "_testMethodName", str(test))
        if self.outcomes.get(name, Outcome("")).kind != "failed":
            line = one_line(f"{error[0].__name__}: {error[1]}")
            self.outcomes[name] = Outcome("failed", line, self._exc_info_to_string(error, unittest.TestCase()))

    def addError(self, test: Any, error: Any) -> None:
        self._fail(test, error)

    def addFailure(self, test: Any, error: Any) -> None:
        self._fail(test, error)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, error: Any) -> None:
        if error is not None:
            self._fail(test, error)

    def addSkip(self, test: Any, reason: str) -> None:
        test = getattr(test, "test_case", test)  # of a subtest
        self.outcomes.setdefault(getattr(test, "_testMethodName", str(test)), Outcome("skipped", one_line(reason)))

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.outcomes.setdefault(test._testMethodName, Outcome("passed"))


def run(case: type[unittest.TestCase], only: str = "") -> dict[str, Outcome]:
    """Outcome of each test method of `case` whose name contains `only`; what they print is dropped."""
    names = unittest.defaultTestLoader.getTestCaseNames(case)
    # What a decorator made of the name of a parameterized test, whose cases are tests of their own.
    names = [name for name in names if only in name and not any(other.startswith(f"{name}_0") for other in names)]
    result = _Result()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _quiet():
        unittest.TestSuite(map(case, names)).run(result)
    failed = [name for name in result.outcomes if name not in names]  # setUpClass: every test misses
    for name in names:
        result.outcomes.setdefault(name, result.outcomes[failed[0]] if failed else Outcome("failed", "did not run"))
    return {name: result.outcomes[name] for name in names}


def one_line(text: str, width: int = 100) -> str:
    """The beginning of a message, without what changes from run to run: paths, addresses, measured numbers."""
    text = re.sub(r"(/[\w.-]+){2,}/?", "PATH", " ".join(text.split()))
    text = re.sub(r"0x[0-9a-f]+", "ADDRESS", text)
    text = re.sub(r"-?\d+\.\d+(e[-+]?\d+)?", "N", text)
    text = text.replace("|", "/").replace("`", "'")
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


@contextlib.contextmanager
def _quiet() -> Any:
    """No warnings, and nothing from the handlers of today's loggers; a test that listens brings its own."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler: handler.level for logger in loggers for handler in getattr(logger, "handlers", ())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for handler in handlers:
            handler.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for handler, level in handlers.items():
                handler.setLevel(level)


def _seed(test: Any) -> None:
    """Their inputs come from four generators; the fourth is a global of the module of their test class."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    for cls in type(test).__mro__:
        generator = getattr(sys.modules.get(cls.__module__), "global_rng", None)
        if isinstance(generator, random.Random):
            generator.seed(0)


def traces(outcomes: dict[str, Outcome]) -> str:
    """The tracebacks of all failures."""
    return "\n".join(f"=== {name}\n{outcome.trace}" for name, outcome in outcomes.items() if outcome.trace)
