"""AOTInductor packages for the CPU: compiled with C++, loaded where nobody imports vilt_fast."""

import importlib.util
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location("export_cases", Path(__file__).with_name("cases.py"))
cases = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="a package is compiled, and there is no C++ compiler"
)
# fp32, of the largest magnitude: Inductor's vectorised exponentials and error function, some 1e-6 each.
TOLERANCE = 1e-4
NAMES = ("VisualBertForQuestionAnswering", "ViTForImageClassification", "ViltForQuestionAnswering")
# The C++ compiler takes most of the time, whatever the size: one class on every change.
EVERY = [name if name == NAMES[0] else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
LOADER = """
import sys, torch
package = torch._inductor.aoti_load_package(sys.argv[1])
batches = torch.load(sys.argv[2], weights_only=True)
torch.save([package(**inputs)[0] for inputs in batches], sys.argv[3])
assert "vilt_fast" not in sys.modules
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Makes (case, model, path) of a class, once."""
    folder = tmp_path_factory.mktemp("aoti")

    @cache
    def make(name):
        case = cases.BY_NAME[name]
        # An output of the library's own class cannot be made where the library is not imported: a tuple can.
        model = case.model(return_dict=False)
        program = cases.export(model, case.inputs(model), dynamic=True)
        return case, model, torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))

    return make


@pytest.mark.parametrize("name", EVERY)
def test_dynamic(name, compiled, tmp_path):
    """In another process, for batches of other sizes than the example's."""
    case, model, path = compiled(name)
    batches = [case.inputs(model, sizes, seed) for seed, sizes in enumerate((cases.EXAMPLE, *cases.OTHERS), start=1)]
    given, answers = tmp_path / "batches.pt", tmp_path / "answers.pt"
    torch.save(batches, given)
    command = [sys.executable, "-c", LOADER, path, str(given), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    for inputs, logits in zip(batches, torch.load(answers, weights_only=True), strict=True):
        with torch.no_grad():
            cases.check([logits], model(**inputs), TOLERANCE)
