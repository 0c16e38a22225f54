"""ViLT-B/32 with every head on a GPU, against transformers on photographs."""

from types import ModuleType

import pytest
import torch

import vilt_fast

HEADS = {
    "ViltModel": {},
    "ViltForMaskedLM": {},
    "ViltForQuestionAnswering": {"num_labels": 3129},
    "ViltForImagesAndTextClassification": {"num_images": 2, "modality_type_vocab_size": 3},
    "ViltForImageAndTextRetrieval": {},
    "ViltForTokenClassification": {"num_labels": 9},
}
ROWS = {"ViltModel": "last_hidden_state", "ViltForMaskedLM": "logits", "ViltForTokenClassification": "logits"}


@pytest.fixture(scope="module")
def photographs() -> dict[str, torch.Tensor]:
    """The two photographs of scikit-learn and a turned one, through our processor, with ragged random words."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn carries the photographs")
    china, flower = datasets.load_sample_images().images
    inputs = vilt_fast.ViltImageProcessor()([china, flower, china.swapaxes(0, 1)], return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (3, 12), generator=generator)
    mask = (torch.arange(12) < torch.tensor([[12], [5], [9]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask, **inputs.data}


def _real(name: str, inputs: dict[str, torch.Tensor], real: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    if name == "ViltModel":
        return output[real.to(output.device)]
    return output[inputs["attention_mask"].to(output.device) != 0] if name in ROWS else output


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_every_head_on_photographs(
    name: str, dtype: torch.dtype, photographs: dict[str, torch.Tensor], oracle: ModuleType
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    inputs = dict(photographs)
    if name == "ViltForImagesAndTextClassification":
        for key in ("pixel_values", "pixel_mask"):
            inputs[key] = torch.stack([inputs[key], inputs[key].flip(0)], 1)
    theirs = oracle.build(name, HEADS[name])
    ours = getattr(vilt_fast, name)(vilt_fast.ViltConfig(**HEADS[name])).eval()
    ours.load_state_dict(theirs.state_dict())
    field = ROWS.get(name, "logits")
    inputs = {key: value.cuda() for key, value in inputs.items()}

    def cast(to: torch.dtype) -> dict[str, torch.Tensor]:
        return {key: value.to(to) if value.is_floating_point() else value for key, value in inputs.items()}

    with torch.no_grad():
        wide, _, (real, *_) = oracle.run(theirs.cuda().double(), cast(torch.float64))
        wanted = _real(name, inputs, real, wide[field])
        same_dtype, _, _ = oracle.run(theirs.to(dtype), cast(dtype))
        theirs_error = (_real(name, inputs, real, same_dtype[field]).double() - wanted).norm() / wanted.norm()
        got = _real(name, inputs, real, ours.cuda().to(dtype)(**cast(dtype))[field])
    error = (got.double() - wanted).norm() / wanted.norm()
    # The contract of the kernels, for the whole model: twice what PyTorch loses in this dtype, and a floor for fp32,
    # where both sides are at the rounding of a few sums.
    assert error <= 2 * theirs_error + 1e-6
