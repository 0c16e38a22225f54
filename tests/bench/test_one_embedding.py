"""The files for work on attention and the embeddings: every contestant is right, and a wrong one is not timed."""

import pytest
import torch

from vilt_fast import ops

pytest.importorskip("pytest_benchmark", reason="the bench files of single operations use pytest-benchmark")
pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.bench import attention, embedding_operations, patch_embed, patch_sample, text_embed  # noqa: E402
from vilt_fast.bench import one_operation as bench  # noqa: E402


@pytest.mark.parametrize("contestant", patch_embed.CONTESTANTS)
def test_patch_embed(benchmark, contestant) -> None:
    patch_embed.test_patch_embed(benchmark, contestant)
    assert benchmark.extra_info["contestant"] == contestant


@pytest.mark.parametrize("contestant", ["vilt_fast", "torch"])
def test_the_others(benchmark, contestant) -> None:
    """One timing stands for all: a benchmark fixture takes no more."""
    dtype, right = torch.float32, []
    for operation, number in (("patch_embed", 1), ("text_embed", 0), ("patch_sample", 0), ("patch_sample", 1)):
        case = bench.find(operation, number, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        with torch.inference_mode():
            verdict = bench.verify.check(bench._calls(case, contestant, dtype)[0], case.wanted, case.bound(dtype))
        right.append(verdict.passed)
    assert right == [True] * 4
    text_embed.test_text_embed(benchmark, contestant)
    assert benchmark.extra_info["shape"].count("words") == 1


@pytest.mark.parametrize("contestant", [attention.CONTESTANTS[0], attention.CONTESTANTS[2]])
def test_attention(benchmark, contestant) -> None:
    attention.test_attention(benchmark, contestant)


def test_a_wrong_plan_is_not_timed(benchmark, monkeypatch) -> None:
    """One row that is off by one is enough."""
    right = ops.patch_sample

    def wrong(*arguments, **options):
        plan = right(*arguments, **options)
        plan.patch_row[-1] += 1
        return plan

    monkeypatch.setattr(embedding_operations.ops, "patch_sample", wrong)
    monkeypatch.setattr(bench.operations.OperationCase, "wanted", property(_right_plan))
    with pytest.raises(AssertionError, match="not timed"):
        patch_sample.test_patch_sample(benchmark, "every patch", "vilt_fast")
    benchmark(int)  # a benchmark fixture that is not used is a warning


def _right_plan(case: bench.operations.OperationCase) -> torch.Tensor:
    return case.peers["torch"](*case.sets[0])
