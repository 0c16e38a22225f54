"""ViT's workloads, and its peers on images that they cannot take as they are."""

from dataclasses import replace

import pytest
import torch

from vilt_fast.bench import verify, vit
from vilt_fast.bench.contestant import Contestant, Unavailable

FP32, CPU = torch.float32, torch.device("cpu")


def small(name: str, batch: int = 3) -> vit.ViTCase:
    return vit.ViTCase.of(vit.WORKLOADS[name](batch, seed=4), CPU, 1, False, quick=True)


@pytest.mark.parametrize("name", vit.WORKLOADS)
def test_tokens_are_what_the_model_packs(name):
    case = small(name)
    tokens, layout = case.packed
    assert layout.cu_seqlens.diff().tolist() == case.lengths
    assert len(tokens) == case.workload.tokens(8) <= case.workload.padded_tokens(8)
    assert "words" not in case.workload.shape() and case.describe()["workload"] == name


def test_sizes():
    """Squares of 196 patches, or 98 of them; COCO's shapes with a shorter side of 224, whose rows padding doubles."""
    assert vit.squares(2).sequences() == [197, 197] and vit.half(2).sequences() == [99, 99]
    work = vit.mixed(256)
    assert work == vit.mixed(256) != vit.mixed(256, seed=1)
    assert {min(size) for size in work.sizes} <= {208, 224} and max(map(max, work.sizes)) <= 373
    height, width = (max(size[axis] for size in work.sizes) for axis in (0, 1))
    assert 256 * (1 + height * width // 256) > 1.9 * work.tokens(16)
    assert "98 patches of each dropped" in vit.half(2).shape()


@pytest.mark.parametrize("make", [vit.transformers_calls, vit.one_by_one_calls])
def test_transformers_on_images_of_several_sizes(make):
    pytest.importorskip("transformers", minversion="5.0", reason="it is the peer")
    case = small("vit-mixed")
    assert len(set(case.workload.sizes)) > 1
    with torch.inference_mode():
        assert verify.error_of(make(case, FP32)[0], case.wanted) < 1e-5


def test_what_is_not_masked_is_caught(run):
    """transformers by itself, on the padded images: it attends to padding, and stretches positions over it."""
    pytest.importorskip("transformers", minversion="5.0", reason="it is the peer")
    case = small("vit-mixed")

    def plain(case):
        model, pixels = vit.transformers_model(case, FP32), case.inputs[0]["pixel_values"]
        return [lambda: model(pixel_values=pixels, interpolate_pos_encoding=True).logits]

    (row,) = run.time("vit", case, [Contestant("plain", FP32, plain)])
    assert row.status.startswith("wrong: error") and row.median_ms is None


def test_who_keeps_every_patch_says_so():
    """And nobody else is timed with another answer."""
    for name, make in vit.WORKLOADS.items():
        found = vit.contestants(make(2), FP32)
        loose = {one.name for one in found if one.approximates}
        assert all(("another answer" in one.note) == one.approximates for one in found)
        assert loose == {one.name for one in found if name == "vit-half" and _keeps_all(one.name)}
        assert len({(one.name, one.scope) for one in found}) == len(found)


def _keeps_all(name: str) -> bool:
    return name.endswith("every patch") or name in ("transformers eager", "transformers + torch.compile")


def test_every_patch_is_the_answer_of_the_whole_image():
    case = small("vit-half")
    (one,) = (
        one for one in vit.contestants(case.workload, FP32) if one.name == "vilt_fast live, reference, every patch"
    )
    whole = vit.ViTCase(replace(case.workload, dropped=0), case.config, CPU, 1)
    with torch.inference_mode():
        got = one.calls(case)[0]()
    assert verify.relative_error(got, whole.wanted) < 1e-5 < verify.relative_error(got, case.wanted)


def test_one_by_one_is_for_images_of_other_sizes():
    with pytest.raises(Unavailable, match="images are of other sizes"):
        vit.one_by_one_calls(small("vit-224"), FP32)
