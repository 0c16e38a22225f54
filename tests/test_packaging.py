"""What is installed, what an import costs, and who may import whom."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vilt_fast

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("vilt_fast", "kernels", "reference", "bench")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
DEMO = ROOT / "vilt_fast" / "demo"
# The top level that the design fixes, and what every project has.
TOP_LEVEL = {
    *("vilt_fast", "kernels", "reference", "bench", "tests", ".ci"),
    *("setup.py", "pyproject.toml", "Makefile", "constraints.txt", "LICENSE", "README.md"),
    *("CONTRIBUTING.md", "CHANGELOG.md", "TOOLS.md", ".gitignore"),
}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> set[str]:
    """Names of the files in the wheel, built by the declared backend from a copy, without network."""
    copy = tmp_path_factory.mktemp("wheel") / "copy"
    copy.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    out = copy.parent / "dist"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", str(out), "."], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_the_package_alone(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert tops == {"vilt_fast", f"vilt_fast-{vilt_fast.__version__}.dist-info"}
    assert not any("__pycache__" in name or name.startswith("vilt_fast/tests") for name in wheel_names)


def test_wheel_holds_every_module(wheel_names):
    paths = [path.relative_to(ROOT).as_posix() for path in SOURCES]
    expected = {path if path.startswith("vilt_fast/") else f"vilt_fast/{path}" for path in paths}
    assert len(expected) > 20
    assert expected <= wheel_names


def test_wheel_holds_the_data(wheel_names):
    """Type information, licence, the demo model with its pictures, and the kernels' configurations."""
    assert "vilt_fast/py.typed" in wheel_names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in wheel_names)
    kinds = (".safetensors", ".json", ".txt", ".md", ".png", ".jpg")
    data = {f"vilt_fast/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.json")}
    data.add("vilt_fast/bench/gpu_run/predictions.json")
    data |= {path.relative_to(ROOT).as_posix() for path in DEMO.rglob("*") if path.suffix in kinds}
    assert any(name.endswith(".safetensors") for name in data), "the demo model's weights are not in the checkout"
    assert data <= wheel_names


def test_demo_fits_its_budget():
    files = [path for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 8 * 10**6


def run_python(code: str, *, cwd: Path, **environment: str) -> str:
    """What `code` prints in a fresh interpreter."""
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light(tmp_path):
    """No Triton, no transformers, no hub client, no GPU query at import, whatever is then taken from the package."""
    code = """
import json, sys, vilt_fast
first = sorted({name.split(".")[0] for name in sys.modules})
for name in vilt_fast.__all__:
    getattr(vilt_fast, name)
import torch
print(json.dumps({"first": first, "all": sorted({name.split(".")[0] for name in sys.modules}),
                  "names": len(vilt_fast.__all__), "cuda": torch.cuda.is_initialized()}))
"""
    # A CUDA context or query made at import would show here, where none can be made.
    seen = json.loads(run_python(code, cwd=tmp_path))
    assert seen["names"] >= 10
    assert not {"triton", "transformers", "huggingface_hub"} & set(seen["all"])
    assert seen["cuda"] is False


def test_a_configuration_needs_no_torch(tmp_path):
    """Reading and writing one is a matter of milliseconds."""
    code = """
import sys
from vilt_fast import ViltConfig, checkpoints
ViltConfig(hidden_size=24, num_labels=3).save_pretrained("here")
assert ViltConfig.from_pretrained("here").num_labels == 3
print("torch" in sys.modules, callable(checkpoints.load_weights), "torch" in sys.modules)
"""
    assert run_python(code, cwd=tmp_path) == "False True True\n"


def test_import_makes_no_gpu_query(tmp_path):
    code = """
import torch

def refuse(*args, **kwargs):
    raise AssertionError("a GPU query at import")

for name in ("is_available", "device_count", "get_device_properties", "get_device_capability", "current_device",
             "get_device_name", "init", "_lazy_init"):
    setattr(torch.cuda, name, refuse)
import vilt_fast, vilt_fast.reference, vilt_fast.ops, vilt_fast.cli, vilt_fast.kernels
for name in vilt_fast.__all__:
    getattr(vilt_fast, name)
print("fine")
"""
    assert run_python(code, cwd=tmp_path) == "fine\n"


def test_import_without_triton(tmp_path):
    """It imports, and answers, on a machine where `import triton` fails."""
    (tmp_path / "triton.py").write_text("raise ImportError('no triton here')\n")
    code = """
import torch, vilt_fast
config = vilt_fast.ViltConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                              vocab_size=30, image_size=32, patch_size=16)
model = vilt_fast.ViltModel(config).eval()
out = model(input_ids=torch.tensor([[1, 2, 3]]), pixel_values=torch.randn(1, 3, 32, 32))
print(tuple(out.pooler_output.shape))
"""
    assert run_python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path)) == "(1, 16)\n"


def test_mapped_packages_import_from_anywhere(tmp_path):
    code = "import vilt_fast.kernels, vilt_fast.reference, vilt_fast.bench; print(vilt_fast.reference.__name__)"
    assert run_python(code, cwd=tmp_path) == "vilt_fast.reference\n"


def test_kernels_package_is_a_docstring_alone():
    """Other libraries may import a top-level `kernels` when the repository's root is on sys.path."""
    (node,) = ast.parse((ROOT / "kernels" / "__init__.py").read_text()).body
    assert isinstance(node, ast.Expr) and isinstance(node.value.value, str)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "vilt_fast" else ("vilt_fast", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, inside_functions: bool = True) -> set[str]:
    """Full names of what a source file imports, anywhere in it; `from a import b` counts as a and a.b."""
    names = set()
    package = module_name(path).split(".")[: None if path.name == "__init__.py" else -1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def is_inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def layer_of(path: Path) -> str:
    """The room that a source file belongs to: reference, kernels, bench, layers, models, cli, ..."""
    return module_name(path).split(".")[1] if module_name(path).count(".") else "__init__"


MODULES = {module_name(path) for path in SOURCES} - {"vilt_fast"}
# Triton's interpreter keeps its blocks as NumPy arrays, so patching it for tests takes NumPy.
PATCHES_INTERPRETER = "vilt_fast.kernels.interpreter"
STANDARD = set(sys.stdlib_module_names) | {"__future__"}
# Which rooms each room may import, beside itself; tests import anything.
#   cli -> commands -> demo -> engine -> frozen -> models -> layers -> ops -> kernels | reference -> contracts
PLUMBING = ("packing", "padding", "pixels", "ops", "contracts", "configs", "checkpoints")
ARROWS = {
    "contracts": (),
    "checkpoints": (),
    "configs": ("checkpoints", "contracts"),
    "pixels": (),
    "reference": ("contracts",),
    "kernels": ("contracts",),
    "ops": ("kernels", "reference", "contracts"),
    "packing": ("ops", "contracts"),
    "padding": ("packing", "contracts", "reference"),
    "layers": (*PLUMBING, "reference"),
    "models": (*PLUMBING, "layers"),
    "processing": PLUMBING,
    "frozen": (*PLUMBING, "layers", "models", "reference"),
    "engine": (*PLUMBING, "frozen", "models", "processing"),
    "demo": (*PLUMBING, "engine", "models", "layers", "processing"),
    "export": (*PLUMBING, "models", "processing"),
    "commands": (*PLUMBING, "bench", "demo", "engine", "export", "frozen", "kernels", "models", "processing"),
    "cli": ("commands",),
    "__main__": ("cli",),
}
ARROWS["bench"] = tuple(room for room in ARROWS if room not in ("commands", "cli", "__main__"))
# What rooms may import from elsewhere, where that is limited.
LIBRARIES = {"contracts": ("torch", "numpy"), "reference": ("torch",), "kernels": ("torch", "triton")}


@pytest.mark.parametrize("path", [p for p in SOURCES if module_name(p) != "vilt_fast"], ids=module_name)
def test_arrows(path):
    room, names = layer_of(path), imports_of(path)
    outside = {name for name in names if not is_inside(name, "vilt_fast") and name.split(".")[0] not in STANDARD}
    # `vilt_fast` itself is its version and names that are imported when they are first used.
    inside = {name for name in names if is_inside(name, "vilt_fast") and name in MODULES}
    allowed = [f"vilt_fast.{name}" for name in (room, *ARROWS[room])]
    assert all(is_inside(name, *allowed) for name in inside), inside
    if room in LIBRARIES:
        patches = ("numpy",) if module_name(path) == PATCHES_INTERPRETER else ()
        assert all(is_inside(name, *LIBRARIES[room], *patches) for name in outside), outside
    elif room != "bench":  # which has transformers for a peer, and tunes kernels
        assert not any(is_inside(name, "transformers", "triton") for name in outside), outside


def test_no_import_circle():
    """No module imports itself by way of others, not even inside a function or for a type checker."""
    # The packages around a module are there before it: naming them imports nothing.
    graph = {
        name: {other for other in imports_of(path) & MODULES if not is_inside(name, other)}
        for path in SOURCES
        if (name := module_name(path)) in MODULES
    }
    while leaves := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, {name: sorted(imported & graph.keys()) for name, imported in graph.items()}


@pytest.mark.parametrize("operation", vilt_fast.ops.OPERATIONS)
def test_an_operation_is_a_file_in_every_room(operation):
    """One name everywhere; the five files of CONTRIBUTING are these and ops.py."""
    for path in (f"kernels/{operation}.py", f"reference/{operation}.py", f"bench/{operation}.py"):
        assert (ROOT / path).is_file(), path
    assert (ROOT / "tests" / "ops" / f"test_{operation}.py").is_file()


def test_few_modules_stand_at_the_root():
    """Eight at most, `__init__.py` counted: everything else is in a room."""
    assert len(list((ROOT / "vilt_fast").glob("*.py"))) <= 8


@pytest.mark.parametrize("path", [p for p in SOURCES if layer_of(p) not in ("kernels", "bench")], ids=module_name)
def test_kernels_are_imported_where_they_are_used(path):
    """At the head of a file, such an import would make `import vilt_fast` need Triton."""
    names = imports_of(path, inside_functions=False)
    assert not any(is_inside(name, "triton", "vilt_fast.kernels") for name in names), names


@pytest.mark.parametrize("path", [p for p in SOURCES if layer_of(p) != "kernels"], ids=module_name)
def test_no_jit_outside_kernels(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert not any("triton" in ast.unparse(d) for d in node.decorator_list), f"{path.name}: {node.name}"


def test_arrow_check_sees_what_it_should(tmp_path, monkeypatch):
    """The import finder itself, on relative, nested and aliased imports."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "vilt_fast" / "models" / "some.py"
    path.parent.mkdir(parents=True)
    path.write_text("from ..layers import x\nfrom . import y\nimport a.b as c\ndef f(): from vilt_fast import ops\n")
    assert imports_of(path) == {
        *("vilt_fast.layers", "vilt_fast.layers.x", "vilt_fast.models", "vilt_fast.models.y"),
        *("a.b", "vilt_fast", "vilt_fast.ops"),
    }


def tracked_files() -> list[Path]:
    """Files that belong to the repository, or skip where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode:
        pytest.skip("not a git checkout")
    return [Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def test_top_level_is_what_the_design_says():
    assert {path.parts[0] for path in tracked_files()} == TOP_LEVEL


def test_tests_are_no_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_path_of_anyones_machine():
    """The project names no absolute path under a home or a workplace."""
    places = ["/" + place + "/" for place in ("work", "home", "Users", "root")]
    for path in tracked_files():
        content = (ROOT / path).read_bytes()
        if b"\0" in content[:4096] or path.suffix == ".safetensors":
            continue
        text = content.decode("utf-8")
        found = [line for line in text.splitlines() if any(place in f" {line}" for place in places)]
        assert not found, f"{path}: {found[0]}"


def test_constraints_pin_what_is_imported():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in pins and "triton==3.7.1" in pins
    lines = [line for line in pins if line and not line.startswith("#")]
    assert all("==" in line for line in lines)
