"""The examples in the docstrings of the reference run, and print what they say."""

import doctest
import importlib

import pytest
import torch

from vilt_fast.ops import OPERATIONS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_examples(operation: str) -> None:
    results = doctest.testmod(importlib.import_module(f"vilt_fast.reference.{operation}"), extraglobs={"torch": torch})
    assert results.attempted and not results.failed
