"""README's table of classes and formats says what the tests hold, cell by cell."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
HEAD = ("class", "axes of any size", "torch.export", "ONNX", "AOTInductor")
# Which test holds which word of a cell.
TESTS = {
    "torch.export": {"static": "test_static", "dynamic": "test_dynamic", "strict": "test_strict"},
    "ONNX": {"fp32": "test_dynamic", "fp16": "test_half"},
    "AOTInductor": {"fp32": "test_dynamic"},
}
FILES = {"torch.export": "test_torch_export.py", "ONNX": "test_onnx.py", "AOTInductor": "test_aoti.py"}


def load(name):
    spec = importlib.util.spec_from_file_location(f"{name}_of_the_table", Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names_of(test):
    """The classes that a test is run with, on every change or by `make test-slow`."""
    (values,) = [mark.args[1] for mark in test.pytestmark if mark.name == "parametrize" and mark.args[0] == "name"]
    return {value if isinstance(value, str) else value.values[0] for value in values}


def wanted_rows():
    held = {}
    for column, words in TESTS.items():
        module = load(FILES[column].removesuffix(".py"))
        held[column] = {word: names_of(getattr(module, test)) for word, test in words.items()}
    for case in load("cases").CASES:
        name, _, rest = case.name.partition(" ")
        cells = [", ".join(word for word, names in held[column].items() if case.name in names) for column in TESTS]
        yield (" ".join(filter(None, (f"`{name}`", rest))), ", ".join(case.dynamic_axes), *cells)


@pytest.mark.skipif(not README.exists(), reason="not a checkout")
def test_every_cell_is_held_by_a_test():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="test_onnx.py needs it")
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *wanted_rows())]
    found = re.search(rf"^\| {HEAD[0]} \| {HEAD[1]} .*?(?=\n\n)", README.read_text(encoding="utf-8"), re.S | re.M)
    assert found, "README.md has no table of exports"
    assert found[0].splitlines() == lines
    for file in FILES.values():
        assert f"`tests/export/{file}`" in README.read_text(encoding="utf-8")
