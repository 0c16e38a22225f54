"""Every class as a program of named tensors, and every dtype as a file: equal to the live model from size 1 on."""

import pytest
import torch

import vilt_fast
from vilt_fast import export
from vilt_fast.export import aoti_file
from vilt_fast.export.axes import choose_axes
from vilt_fast.export.checking import check

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
WORDS = {"vocab_size": 50, "max_position_embeddings": 20}
# Large weights, so that what a mask hides would change the answer.
FIELDS = {
    "Vilt": {**SMALL, **WORDS, "image_size": 48, "patch_size": 16, "initializer_range": 0.3},
    "ViT": {**SMALL, "image_size": 32, "patch_size": 8, "encoder_stride": 8, "initializer_range": 0.3},
    "VisualBert": {**SMALL, **WORDS, "visual_embedding_dim": 10, "initializer_range": 0.3},
}
TWO_IMAGES = {"num_images": 2, "modality_type_vocab_size": 3}
# Those that run with `make test` have what others lack: pixels out, phrases.
FAST = {
    "ViTForMaskedImageModeling": {},
    "VisualBertForRegionToPhraseAlignment": {},
}
SLOW = {
    "ViltForMaskedLM": {},
    "ViltModel": {},
    "ViltForQuestionAnswering": {"num_labels": 5},
    "ViltForImagesAndTextClassification": TWO_IMAGES,
    "ViltForImageAndTextRetrieval": {},
    "ViltForImageTextMatching": {},
    "ViltForTokenClassification": {},
    "ViTModel": {},
    "ViTForImageClassification": {},
    "VisualBertModel": {"bypass_transformer": True},
    "VisualBertForPreTraining": {},
    "VisualBertForQuestionAnswering": {},
    "VisualBertForMultipleChoice": {},
    "VisualBertForVisualReasoning": {},
}
EVERY = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def make(name: str):
    torch.manual_seed(0)
    family = next(family for family in FIELDS if name.startswith(family))
    config = getattr(vilt_fast, f"{family}Config")(**{**FIELDS[family], **{**FAST, **SLOW}[name]})
    return getattr(vilt_fast, name)(config).eval()


def check_program(model, **options) -> None:
    """The bound is three times what the live model loses in its dtype: see `vilt_fast.export.checking`."""
    program = export.to_program(model, **options).module()
    assert check(lambda batch: program(**batch), model, choose_axes(model)).bound < 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_a_program(name):
    """Of one word, one region, one patch, and of more than the example."""
    check_program(make(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViltForQuestionAnswering", "ViTModel", "VisualBertForMultipleChoice"])
def test_a_strict_program(name):
    check_program(make(name), strict=True)


def test_every_class_is_here():
    models = {name for name in vilt_fast.__all__ if isinstance(getattr(vilt_fast, name), type)}
    models = {name for name in models if issubclass(getattr(vilt_fast, name), torch.nn.Module)}
    assert {*FAST, *SLOW} == {name for name in models if not name.endswith("PreTrainedModel")}


@pytest.mark.slow
@pytest.mark.parametrize("format", export.FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["ViltForQuestionAnswering", "VisualBertForQuestionAnswering"])
def test_dtypes(name, dtype, format, tmp_path):
    """README's table: `save` runs what it wrote and compares; what it refuses it names."""
    model = make(name).to(getattr(torch, dtype))
    if format == "aoti":
        try:
            aoti_file.refuse(model)
        except ValueError as error:
            pytest.skip(str(error))
    path = tmp_path / f"model{export.FORMATS[format]}"
    if format == "onnx" and dtype in ("bfloat16", "float64"):
        with pytest.raises(ValueError, match=f"got {dtype}, which onnxruntime does not run on a CPU"):
            export.save(model, path, format=format)
        return
    report = export.save(model, path, format=format)
    assert report.metadata["dtype"] == dtype and report.difference <= report.bound
