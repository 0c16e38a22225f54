"""Writes the directories beside this file. Run it with transformers==4.37.2 (numpy<2); the tests only read them.

Each directory is what `save_pretrained` of that version writes for a small random model, and expected.json holds an
input and the model's outputs. Pixels are not stored: value i is sin(0.37 i).
"""

import json
import sys
from pathlib import Path

import torch
import transformers

SIZES = dict(
    vocab_size=30,
    max_position_embeddings=12,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=20,
    image_size=32,
    patch_size=8,
)
VARIANTS = {  # directory: class, fields of the configuration, arguments of save_pretrained
    "ViltModel": ("ViltModel", {}, {}),
    "ViltForMaskedLM": ("ViltForMaskedLM", {}, {}),
    "ViltForMaskedLM-tied": ("ViltForMaskedLM", {"tie_word_embeddings": True}, {}),
    "ViltForMaskedLM-bin": ("ViltForMaskedLM", {}, {"safe_serialization": False}),
    "ViltForMaskedLM-tied-bin": ("ViltForMaskedLM", {"tie_word_embeddings": True}, {"safe_serialization": False}),
    "ViltForQuestionAnswering": ("ViltForQuestionAnswering", {"num_labels": 5}, {}),
    "ViltForQuestionAnswering-sharded": ("ViltForQuestionAnswering", {"num_labels": 5}, {"max_shard_size": "8KB"}),
    "ViltForImagesAndTextClassification": (
        "ViltForImagesAndTextClassification",
        {"num_images": 2, "modality_type_vocab_size": 3, "num_labels": 3},
        {},
    ),
    "ViltForImageAndTextRetrieval": ("ViltForImageAndTextRetrieval", {}, {}),
    "ViltForTokenClassification": ("ViltForTokenClassification", {"num_labels": 4}, {}),
}
TEXTS = {
    "input_ids": [[2, 7, 11, 29, 5, 3], [2, 19, 8, 3, 0, 0]],
    "attention_mask": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]],
    "token_type_ids": [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]],
}
PICTURE_SIZES = [[24, 32], [16, 24]]


def pictures(num_images: int) -> dict[str, torch.Tensor]:
    """pixel_values and pixel_mask: sin(0.37 i) inside each image, zero in the padding."""
    mask = torch.zeros(len(PICTURE_SIZES), 24, 32, dtype=torch.long)
    for row, (height, width) in zip(mask, PICTURE_SIZES, strict=True):
        row[:height, :width] = 1
    if num_images > 1:
        mask = mask.unsqueeze(1).repeat(1, num_images, 1, 1)
    values = torch.sin(0.37 * torch.arange(3 * mask.numel())).reshape(*mask.shape[:-2], 3, 24, 32)
    return {"pixel_values": values * mask.unsqueeze(-3), "pixel_mask": mask}


@torch.no_grad()
def main(root: Path) -> None:
    assert transformers.__version__ == "4.37.2", f"wanted transformers 4.37.2, got {transformers.__version__}"
    for number, (name, (class_name, fields, options)) in enumerate(VARIANTS.items()):
        generator = torch.Generator().manual_seed(number)
        config = transformers.ViltConfig(**SIZES, **fields)
        model = getattr(transformers, class_name)(config).eval()
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(root / name, **options)
        texts = {key: torch.tensor(value) for key, value in TEXTS.items()}
        outputs = model(**texts, **pictures(config.num_images))
        if class_name == "ViltModel":  # the rows of patches come in random order
            answers = {"text_rows": outputs.last_hidden_state[:, :6], "pooler_output": outputs.pooler_output}
        else:
            answers = {"logits": outputs.logits}
        expected = {
            "texts": TEXTS,
            "picture_sizes": PICTURE_SIZES,
            "num_images": config.num_images,
            "outputs": {key: value.tolist() for key, value in answers.items()},
        }
        (root / name / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
