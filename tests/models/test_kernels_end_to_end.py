"""The whole tiny model through the Triton kernels, against transformers; the interpreter on a CPU, or a real GPU."""

from types import ModuleType

import pytest
import torch

import vilt_fast
from vilt_fast import ops

pytest.importorskip("triton", reason="the kernels need Triton")

# Of head size 12, patches of 8, sampled patches, an activation that is fused; NLVR2 with two pictures a text.
CONFIG = dict(
    vocab_size=37, max_position_embeddings=9, modality_type_vocab_size=3, hidden_size=48, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=80, hidden_act="gelu", image_size=24, patch_size=8, num_images=2,
    num_labels=5,
)  # fmt: skip
CLASSES = (
    "ViltModel",
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForImagesAndTextClassification",
    "ViltForImageAndTextRetrieval",
    "ViltForTokenClassification",
)


@pytest.fixture(scope="module")
def device() -> torch.device:
    from vilt_fast.kernels import interpreter, launch

    if launch.INTERPRETED:
        interpreter.patch()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU, and Triton was imported without TRITON_INTERPRET=1")
    return torch.device("cuda")


def _ours(name: str, theirs: torch.nn.Module) -> torch.nn.Module:
    ours = getattr(vilt_fast, name)(vilt_fast.ViltConfig(**CONFIG)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours


@pytest.mark.parametrize("name", CLASSES)
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
        if key == "logits" and got[key].ndim == 3:  # a row a word
            words = inputs["attention_mask"] != 0
            assert oracle.relative(got[key].cpu()[words], wanted[key][words]) <= 1e-5
        else:
            assert oracle.relative(got[key].cpu(), wanted[key]) <= 1e-5, key
    if name == "ViltModel":
        oracle.assert_rows(got.last_hidden_state.cpu(), wanted.last_hidden_state, real[0], 1e-5)


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
        for ours_part, reference_part in pairs:
            assert ours_part.shape == reference_part.shape
            assert torch.equal(ours_part == 0, reference_part == 0) or key == "attentions"
            assert oracle.relative(ours_part, reference_part) <= 1e-5, key


def test_each_operation_can_stand_in_for_the_other(oracle: ModuleType, device: torch.device) -> None:
    theirs = oracle.build("ViltForQuestionAnswering", CONFIG)
    ours = _ours("ViltForQuestionAnswering", theirs).to(device)
    inputs = {key: value.to(device) for key, value in oracle.batch(theirs.config, 4, 2).items()}
    with torch.no_grad(), vilt_fast.backend("reference"):
        wanted = ours(**inputs).logits
        for operation in set(ops.OPERATIONS) - {"resize"}:
            with vilt_fast.backend(**{operation: "kernels"}):
                assert oracle.relative(ours(**inputs).logits, wanted) <= 1e-5, operation


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
    assert torch.equal(together, backwards)
    for pair in (0, 1, 100, 255):
        assert torch.equal(logits(everything[pair : pair + 1])[0], together[pair])
