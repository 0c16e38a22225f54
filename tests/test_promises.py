"""Every promise of the README has a test that is there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_each_row_names_a_test():
    text = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    section = re.search(r"## What we promise when things go wrong\n(.*?)\n## ", text, re.S)
    assert section
    rows = [line for line in section[1].splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 15
    for row in rows:
        named = re.fullmatch(r"\| .+ \| .+ \| `([\w/]+\.py)::(\w+)` \|", row)
        assert named, row
        tree = ast.parse((TESTS / named[1]).read_text(encoding="utf-8"))
        assert any(isinstance(node, ast.FunctionDef) and node.name == named[2] for node in tree.body), row
