"""check --small reaches what the kernels' switches change, so that sanitizers do."""

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")
import vilt_fast  # noqa: E402
from vilt_fast.bench import check, choices  # noqa: E402
from vilt_fast.kernels import launch, linear  # noqa: E402


@pytest.fixture
def launched(monkeypatch):
    """What an H100 would be asked to run with some switches on: kernels, each with its configuration."""
    device = check.kernel_device()
    if device.type == "cuda":
        pytest.skip("on a GPU the real ones are run")
    found = [case for case, _ in check.switched_cases(device, check._COPIES)]
    sets = [case.sets_in(check.torch.bfloat16)[0] for case in found]

    def launched(*on: str) -> set[tuple]:
        monkeypatch.setattr(launch, "recording", launch.Recording("sm90", []))
        with choices.Choice(on).held(), check.torch.inference_mode(), vilt_fast.backend("kernels"):
            for case, tensors in zip(found, sets, strict=True):
                case.ours(*tensors)
        return {(kernel.__name__, *sorted(named.items(), key=str)) for kernel, _, named in launch.recording.launches}

    return launched


def test_every_switch_changes_what_a_small_check_runs(launched) -> None:
    off = launched()
    for name in choices.switches():
        if name != "fold_norm":  # its operations are there without it
            assert launched(name) != off, name
    kinds = [dict(pair for pair in named if isinstance(pair, tuple)) for _, *named in off]
    assert any(kind.get("FLATTEN") and kind["BLOCK_M"] == 128 for kind in kinds), "large tiles"
    assert {"linear_descriptor", "attention_kernel"} <= {name for name, *_ in off}


def test_folded_norms_are_checked(monkeypatch) -> None:
    """Also the result that comes with the moments of its rows: each part by its own bound."""
    found = {case.operation: case for case, _ in check.switched_cases(check.kernel_device(), 1)}
    assert "LayerNorm in linear" in found
    case = found["linear + residual, moments"]
    assert check.compare(case, check.torch.bfloat16).passed
    real = linear.linear_and_moments

    def wrong(*tensors):
        product, moments = real(*tensors)
        return product, 1.1 * moments

    monkeypatch.setattr(linear, "linear_and_moments", wrong)
    assert not check.compare(case, check.torch.bfloat16).passed
