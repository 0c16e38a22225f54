"""Writes the ViT directories beside this file. Run it with transformers==4.37.2 (numpy<2); the tests only read them.

Each directory is what `save_pretrained` of that version writes for a small random model, and expected.json holds calls
and the model's outputs. Pixels are not stored: value i is sin(0.37 i).
"""

import json
import sys
from pathlib import Path

import torch
import transformers

SIZES = dict(
    hidden_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=20,
    image_size=16,
    patch_size=4,
    encoder_stride=4,
)
VARIANTS = {  # directory: class, fields of the configuration, arguments of the class, arguments of save_pretrained
    "ViTModel": ("ViTModel", {}, {}, {}),
    "ViTModel-bin": ("ViTModel", {}, {"add_pooling_layer": False}, {"safe_serialization": False}),
    "ViTForImageClassification": ("ViTForImageClassification", {"num_labels": 3, "qkv_bias": False}, {}, {}),
    "ViTForMaskedImageModeling": ("ViTForMaskedImageModeling", {}, {}, {}),
}
LARGER = {"size": [24, 24], "interpolate_pos_encoding": True}
WIDER = {"size": [13, 30], "interpolate_pos_encoding": True}
ALL = {"output_hidden_states": True, "output_attentions": True}
MASKED = {"bool_masked_pos": [[i % 3 == 0 for i in range(16)]]}
CALLS = {  # class: arguments of calls; `size` is the image's
    "ViTModel": [{}, LARGER, WIDER, ALL, {"head_mask": [0.5, 0.0], **ALL}],
    "ViTForImageClassification": [{"labels": [2]}, {**LARGER, "labels": [0]}, WIDER, ALL],
    "ViTForMaskedImageModeling": [MASKED, LARGER],
}


def arguments(call: dict) -> dict:
    """Of the model: lists as tensors, and pixels of that size."""
    given = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in call.items()}
    height, width = given.pop("size", torch.tensor([16, 16])).tolist()
    return {"pixel_values": torch.sin(0.37 * torch.arange(3 * height * width)).view(1, 3, height, width), **given}


def nested(value):
    """Tensors, tuples of tensors, as lists."""
    return [nested(item) for item in value] if isinstance(value, tuple) else rounded(value.tolist())


def rounded(value):
    return [rounded(item) for item in value] if isinstance(value, list) else float(f"{value:.7g}")


@torch.no_grad()
def main(root: Path) -> None:
    assert transformers.__version__ == "4.37.2", f"wanted transformers 4.37.2, got {transformers.__version__}"
    for number, (name, (class_name, fields, made_with, saved_with)) in enumerate(VARIANTS.items()):
        generator = torch.Generator().manual_seed(number)
        model = getattr(transformers, class_name)(transformers.ViTConfig(**SIZES, **fields), **made_with).eval()
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(root / name, **saved_with)
        calls = CALLS[class_name] if name == class_name else CALLS[class_name][:2]
        expected = []
        for call in calls:
            output = model(**arguments(call))
            plain = model(**arguments(call), return_dict=False)
            for fast, slow in zip(plain, output.to_tuple(), strict=True):
                assert type(fast) is type(slow)
            kinds = [list(item.shape) if torch.is_tensor(item) else len(item) for item in plain]
            outputs = {key: nested(value) for key, value in output.items()}
            expected.append({"call": call, "outputs": outputs, "tuple": kinds})
        (root / name / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
