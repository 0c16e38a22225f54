"""Each of ConfigTester's checks as a test of its own."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from types import ModuleType
from typing import Any


def cases(importer: Callable[[str], ModuleType], tester: Any, config_class: type, **options: Any) -> type:
    """The test class of a configuration.

    Args:
        importer: imports one of transformers' test modules.
        tester: what makes a small model, under the names that their mixin asks for.
        config_class: what is checked.
        options: of ConfigTester.
    """
    checker = importer("test_configuration_common").ConfigTester

    def test(name: str) -> Callable[[Any], None]:
        def method(self: Any) -> None:
            self.model_tester = tester
            getattr(checker(self, config_class=config_class, hidden_size=36, **options), name)()

        return method

    names = [name for name in vars(checker) if name.startswith(("create_and_test", "check"))]
    return type("Configuration", (unittest.TestCase,), {f"test_{name}": test(name) for name in names})
