"""The whole tiny model through the Triton kernels, against transformers; in the interpreter on a CPU, or on a GPU."""

from types import ModuleType

import pytest
import torch

import vilt_fast
from vilt_fast import ops

pytest.importorskip("triton", reason="the kernels need Triton")

# Head size 12, patches of 8 x 8, an activation that is fused; NLVR2 with two images per text.
CONFIG = dict(
    vocab_size=37,
    max_position_embeddings=9,
    modality_type_vocab_size=3,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=80,
    hidden_act="gelu",
    image_size=24,
    patch_size=8,
    num_images=2,
    num_labels=5,
)


def _ours(name: str, theirs: torch.nn.Module) -> torch.nn.Module:
    ours = getattr(vilt_fast, name)(vilt_fast.ViltConfig(**CONFIG)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours


def test_every_head_on_the_kernels(name: str, oracle: ModuleType, device: torch.device) -> None:
    theirs = oracle.build(name, CONFIG)
    inputs = oracle.inputs_for(name, theirs.config, seed=1, size=2)
    with torch.no_grad():
        wanted, _, real = oracle.run(theirs, inputs)
        ours = _ours(name, theirs).to(device)
        with vilt_fast.backend("kernels"):
            got = ours(**{key: value.to(device) for key, value in inputs.items()})
    # fp32 through two blocks: sums in another order than BLAS, a few 1e-7 each, as in the reference's own 5e-6.
    for key in set(got) & set(wanted) - {"last_hidden_state"}:
        if key == "logits" and got[key].ndim == 3:  # one row per word
            words = inputs["attention_mask"] != 0
            oracle.check_close("logits of real words", got[key].cpu()[words], wanted[key][words], 1e-5)
        else:
            oracle.check_close(key, got[key].cpu(), wanted[key], 1e-5)
    if name == "ViltModel":
        oracle.check_rows("last_hidden_state", got.last_hidden_state.cpu(), wanted.last_hidden_state, real[0], 1e-5)


def test_states_maps_head_masks_and_samples(oracle: ModuleType, device: torch.device) -> None:
    """What no head shows above; the reference backend, which agrees with transformers, is the judge."""
    theirs = oracle.build("ViltModel", CONFIG)
    ours = vilt_fast.ViltModel(vilt_fast.ViltConfig(**CONFIG, max_image_length=3)).eval()
    ours.load_state_dict(theirs.state_dict())
    ours.to(device)
    inputs = {key: value.to(device) for key, value in oracle.batch(theirs.config, 2, 3).items()}
    options = dict(
        output_hidden_states=True,
        output_attentions=True,
        head_mask=torch.tensor([[1.0, 0.0, 0.5, 1.0], [1.0, 1.0, 2.0, 0.0]], device=device),
        seed=5,
    )
    with torch.no_grad():
        with vilt_fast.backend("reference"):
            wanted = ours(**inputs, **options)
        with vilt_fast.backend("kernels"):
            got = ours(**inputs, **options)
    for key in wanted:
        pairs = [(got[key], wanted[key])] if torch.is_tensor(got[key]) else zip(got[key], wanted[key], strict=True)
        for layer, (ours_part, reference_part) in enumerate(pairs):
            oracle.check_close(f"{key}[{layer}]", ours_part, reference_part, 1e-5)
            if key != "attentions":
                oracle.check_equal(f"zeros of {key}[{layer}]", ours_part == 0, reference_part == 0)


@pytest.mark.parametrize("operation", [name for name, known in ops.OPERATIONS.items() if known.ablation])
def test_each_kernel_can_stand_in_for_its_reference(operation: str, oracle: ModuleType, device: torch.device) -> None:
    theirs = oracle.build("ViltForQuestionAnswering", CONFIG)
    ours = _ours("ViltForQuestionAnswering", theirs).to(device)
    inputs = {key: value.to(device) for key, value in oracle.batch(theirs.config, 4, 2).items()}
    with torch.no_grad(), vilt_fast.backend("reference"):
        wanted = ours(**inputs).logits
        with vilt_fast.backend(**{operation: "kernels"}):
            got = ours(**inputs).logits
    oracle.check_close(f"logits with the kernel of {operation}", got, wanted, 1e-5)


def test_a_backward_pass_through_the_kernels_says_that_there_is_none(oracle: ModuleType, device: torch.device) -> None:
    theirs = oracle.build("ViltForQuestionAnswering", CONFIG)
    ours = _ours("ViltForQuestionAnswering", theirs).to(device)
    inputs = {key: value.to(device) for key, value in oracle.batch(theirs.config, 4, 1).items()}
    with vilt_fast.backend("kernels"):
        logits = ours(**inputs).logits
    with pytest.raises((RuntimeError, NotImplementedError), match="autograd|backward"):
        logits.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_pair_is_bit_for_bit_the_same_in_any_batch(dtype: torch.dtype, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs a CUDA GPU")
    torch.manual_seed(0)
    config = vilt_fast.ViltConfig(num_labels=100)
    model = vilt_fast.ViltForQuestionAnswering(config).to(device, dtype).eval()
    sizes = [(384, 512), (512, 384), (384, 576), (384, 384)]
    count = 256
    pixel_mask = torch.zeros(count, 512, 576, dtype=torch.long, device=device)
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        pixel_mask[i, :height, :width] = 1
    pixels = torch.randn(count, 3, 512, 576, device=device, dtype=dtype)
    lengths = torch.randint(5, 17, (count, 1), device=device)
    mask = (torch.arange(16, device=device) < lengths).long()
    ids = torch.randint(1, config.vocab_size, (count, 16), device=device)

    def logits(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(
                input_ids=ids[rows], attention_mask=mask[rows], pixel_values=pixels[rows], pixel_mask=pixel_mask[rows]
            ).logits

    everything = torch.arange(count, device=device)
    together = logits(everything)
    backwards = logits(everything.flip(0)).flip(0)
    assert torch.equal(together, backwards), "logits depend on the order of the batch"
    for pair in (0, 1, 100, 255):
        assert torch.equal(logits(everything[pair : pair + 1])[0], together[pair]), f"pair {pair} differs alone"
