"""TOOLS.md: every block of Python runs, and what it calls refused is refused in its words."""

import functools
import importlib.util
import re
import socket
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "TOOLS.md"
TEXT = PAGE.read_text(encoding="utf-8")
# (section, code), in order; the first block is what the others start from.
BLOCKS = [
    (section.partition("\n")[0].strip(), code)
    for section in TEXT.split("\n## ")
    for code in re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
]
# Recipes with packages that no test has.
SHOWN = re.findall(r"^```py\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
SETUP = BLOCKS[0][1]
NEEDS = ("transformers", "peft", "accelerate", "torchao")
REFUSED = re.findall(r"^\| `(.*?)` \| `(.*?)` \| .* \|$", TEXT.partition("\n## Refused")[2], re.MULTILINE)
CHANGES = """
from functools import partial
from torch.nn.utils import prune
from vilt_fast import ViltForQuestionAnswering, freeze

load = partial(ViltForQuestionAnswering.from_pretrained, demo.WEIGHTS)
hooked, pruned, quantised, adapted = (demo.load()[0] for _ in range(4))
hooked.vilt.register_forward_hook(lambda *_: None)
prune.l1_unstructured(pruned.classifier[0], "weight", amount=0.5)
quantised = torch.ao.quantization.quantize_dynamic(quantised, {torch.nn.Linear}, dtype=torch.qint8)
"""
ADAPTED = """
from peft import LoraConfig, get_peft_model

adapted = get_peft_model(adapted, LoraConfig(target_modules=["query"]))
"""


@pytest.fixture
def one_rank(monkeypatch):
    """What torchrun sets for a single process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in dict(RANK=0, WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=port).items():
        monkeypatch.setenv(name, str(value))
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Blocks write into the directory they run in; accelerate and the registries forget what they were told."""
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("transformers"):
        from transformers.models.auto import configuration_auto, modeling_auto

        registries = [configuration_auto.CONFIG_MAPPING, modeling_auto.MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING]
        for registry in registries:
            monkeypatch.setattr(registry, "_extra_content", dict(registry._extra_content))
    yield
    if importlib.util.find_spec("accelerate"):
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)


def run(code, namespace):
    for name in NEEDS:
        if re.search(rf"^(from|import) {name}\b", code, re.MULTILINE):
            pytest.importorskip(name, reason=f"this block needs {name}")
    exec(compile(code, str(PAGE), "exec"), namespace)


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile traces as ever; the C++ compiler takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.mark.parametrize(
    "code", [code for _, code in BLOCKS[1:]], ids=[f"{i} {title}" for i, (title, _) in enumerate(BLOCKS[1:], start=1)]
)
def test_a_block_runs(code, one_rank, no_compiler):
    """In few lines, on the shipped model."""
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 6, "the page promises few lines"
    torch.manual_seed(0)
    torch._dynamo.reset()
    namespace = {}
    run(SETUP, namespace)
    if "compile()" in code:  # tracing takes seconds for each layer
        namespace["model"].vilt.encoder.layer = namespace["model"].vilt.encoder.layer[:1]
    run(code, namespace)
    if Path("out").exists():  # Trainer's
        assert type(namespace["model"]).from_pretrained("out/checkpoint-2").num_labels > 1
    for name in ("logits", "uncertainty"):
        assert namespace.get(name, torch.zeros(1)).isfinite().all()
    if "relevance" in namespace:
        assert all(maps.abs().max() > 0 for maps in namespace["relevance"])


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[call for call, _ in REFUSED])
def test_a_call_that_is_refused(call, words):
    namespace = {}
    run(SETUP + CHANGES + (ADAPTED if "adapted" in call else ""), namespace)
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)) as caught:
        eval(call, namespace)
    assert words in str(caught.value)


def test_recipes_that_are_only_shown_are_python():
    assert len(SHOWN) == 2
    for code in SHOWN:
        compile(code, str(PAGE), "exec")
        assert 'np.savez("photo.npz", features=features.' in code  # which `read_regions` takes


def test_the_page_is_whole():
    """It was parsed: there are as many fences as blocks, and a table."""
    assert TEXT.count("```") == 2 * (len(BLOCKS) + len(SHOWN)) and len(BLOCKS) > 15
    assert len(REFUSED) == 9
