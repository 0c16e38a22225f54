"""A frozen model whose attention has its switches on, in the interpreter or on a GPU."""

import pytest
import torch

import vilt_fast

pytest.importorskip("triton", reason="the kernels need Triton")
from vilt_fast.kernels import switches  # noqa: E402


@pytest.mark.parametrize("way", [("resident",), ("span_list",), ("resident", "span_list", "pdl")], ids="+".join)
def test_same_pair_same_bits(make_model, repeater, device, way):
    """Within rounding of the answer without switches, and the same bits alone, in any batch and in any bucket."""
    model = make_model(
        "ViltForQuestionAnswering", 0, torch.bfloat16, num_channels=3, num_hidden_layers=1, num_attention_heads=1
    ).to(device)
    patch = model.config.patch_size
    sizes, lengths = [(patch * 10, patch * 13), (patch * 2, patch), (patch, patch * 3)], [5, 2, 3]
    images = [torch.randint(0, 256, (3 * height * width,), dtype=torch.uint8) for height, width in sizes]
    ids = torch.randint(0, model.config.vocab_size, (3, 5))

    def answer(frozen, *chosen):
        pixels = vilt_fast.PackedPixels(torch.cat([images[n] for n in chosen]), [sizes[n] for n in chosen])
        mask = torch.arange(5) < torch.tensor([lengths[n] for n in chosen])[:, None]
        with vilt_fast.backend("kernels"):
            return frozen(input_ids=ids[list(chosen)], attention_mask=mask, pixel_values=pixels).logits

    plain = answer(vilt_fast.freeze(model, graphs=False), 0, 1, 2)
    with switches.forced(**dict.fromkeys(way, True)):
        frozen = vilt_fast.freeze(model, max_tokens=200, max_seqlen=300)
        if device.type == "cpu":
            frozen.use_buckets(repeater)
        got = answer(frozen, 0, 1, 2)
        for order in ((0,), (2, 1)):
            assert torch.equal(answer(frozen, *order), got[list(order)])
        assert frozen.stats().replayed == 3
        assert torch.equal(answer(vilt_fast.freeze(model, graphs=False), 2, 1, 0), got.flip(0))
    torch.testing.assert_close(got, plain, rtol=0, atol=0 if "resident" not in way else 0.05 * plain.abs().max().item())
