"""Writes the VisualBERT directories beside this file. Run it with transformers==4.37.2 (numpy<2).

Each directory is what `save_pretrained` of that version writes for a small random model, and expected.json holds calls
and the model's outputs; the tests only read them. Features are not stored: `regions` is the shape of visual_embeds,
`words` that of inputs_embeds, and value i of either is sin(0.37 i).
"""

import json
import sys
from pathlib import Path

import torch
import transformers

SIZES = dict(
    vocab_size=20,
    hidden_size=12,
    visual_embedding_dim=6,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=9,
)
PRETRAINING, ALIGNMENT = "VisualBertForPreTraining", "VisualBertForRegionToPhraseAlignment"
VARIANTS = {  # directory: class, fields of the configuration, arguments of the class, arguments of save_pretrained
    "VisualBertModel": ("VisualBertModel", {"hidden_act": "relu", "layer_norm_eps": 1e-5}, {}, {}),
    "VisualBertModel-bin": ("VisualBertModel", {}, {"add_pooling_layer": False}, {"safe_serialization": False}),
    "VisualBertModel-bypass": ("VisualBertModel", {"bypass_transformer": True}, {}, {}),
    PRETRAINING: (PRETRAINING, {}, {}, {}),
    PRETRAINING + "-untied": (PRETRAINING, {"tie_word_embeddings": False}, {}, {}),
    PRETRAINING + "-sharded": (PRETRAINING, {}, {}, {"max_shard_size": "4KB"}),
    "VisualBertForQuestionAnswering": ("VisualBertForQuestionAnswering", {"num_labels": 5}, {}, {}),
    "VisualBertForMultipleChoice": ("VisualBertForMultipleChoice", {"special_visual_initialize": False}, {}, {}),
    "VisualBertForVisualReasoning": ("VisualBertForVisualReasoning", {"type_vocab_size": 3}, {}, {}),
    ALIGNMENT: (ALIGNMENT, {}, {}, {}),
    ALIGNMENT + "-bin": (ALIGNMENT, {}, {}, {"safe_serialization": False}),
}
TEXT = {"input_ids": [[2, 7, 11, 5, 3], [2, 19, 3, 0, 0]], "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]}
REGIONS = {"regions": [2, 3, 6], "visual_attention_mask": [[1, 1, 1], [1, 1, 0]]}
PAIRS = {**TEXT, **REGIONS}
HOLES = {**TEXT, **REGIONS, "attention_mask": [[1, 0, 1, 0, 1], [1, 1, 0, 0, 1]]}
TYPES = {"token_type_ids": [[0, 0, 0, 1, 1], [0, 0, 1, 1, 0]], "visual_token_type_ids": [[1, 0, 1], [0, 0, 1]]}
ALIGNED = {  # four regions, one more than there are
    "image_text_alignment": [[[1, 2], [3, -1], [-1, -1], [4, 4]], [[1, -1], [0, 2], [-1, 1], [0, 0]]],
    "position_ids": [[0, 1, 2, 4, 3], [5, 6, 7, 8, 8]],
}
ALL = {"output_hidden_states": True, "output_attentions": True}
HEADS = {"head_mask": [[0.5, 0.0]]}
# No label stands where a word or region is masked: transformers counts those.
WORDS = {"labels": [[2, -100, 4, 5, -100, 9, -100, 1], [-100, 3, 3, -100, -100, 7, 2, -100]]}
FEWER_WORDS = {"labels": [[2, -100, 4, -100, 8, 9, -100, 1], [-100, 3, -100, -100, 6, 7, 2, -100]]}
MATCHES = {"sentence_image_labels": [0, 1]}
ANSWERS = {"labels": [[0.0, 0.3, 0.0, 1.0, 0.0], [1.0, 0.0, 0.6, 0.3, 0.0]]}
CHOICES = {
    "input_ids": [TEXT["input_ids"], [[2, 4, 6, 8, 3], [2, 1, 9, 3, 0]]],
    "attention_mask": [TEXT["attention_mask"], [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]],
    "regions": [2, 2, 3, 6],
    "visual_attention_mask": [[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 1, 1]]],
}
PHRASES = {"region_to_phrase_position": [[1, 3, 0], [2, 1, -1]]}
MATCHED = {
    "labels": [[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0], [0.2, 0.8, 0.0], [0.0] * 3]]
}
CALLS = {  # class: arguments of calls
    "VisualBertModel": [
        PAIRS,
        TEXT,
        {"input_ids": TEXT["input_ids"], "regions": [2, 4, 6]},
        {**HOLES, **TYPES, **ALIGNED, **ALL},
        {**PAIRS, **HEADS, **ALL},
        {"words": [2, 4, 12], "regions": [2, 2, 6]},
    ],
    PRETRAINING: [{**PAIRS, **ALL}, {**PAIRS, **TYPES, **WORDS}, {**HOLES, **ALIGNED, **FEWER_WORDS, **MATCHES}],
    "VisualBertForQuestionAnswering": [{**PAIRS, **ALL}, {**PAIRS, **TYPES, **ALIGNED}, {**PAIRS, **ANSWERS}],
    "VisualBertForMultipleChoice": [{**CHOICES, **ALL}, {**CHOICES, "labels": [1, 0]}],
    "VisualBertForVisualReasoning": [{**PAIRS, **ALL}, {**HOLES, **TYPES, "labels": [1, 0]}],
    ALIGNMENT: [{**PAIRS, **PHRASES, **ALL}, {**PAIRS, **ALIGNED, **PHRASES, **MATCHED}],
}


def arguments(call: dict) -> dict:
    """Of the model: lists as tensors, and features of those shapes."""
    given = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in call.items()}
    for shape, name in (("regions", "visual_embeds"), ("words", "inputs_embeds")):
        if shape in given:
            size = given.pop(shape).tolist()
            given[name] = torch.sin(0.37 * torch.arange(torch.Size(size).numel())).view(size)
    return given


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
        config = transformers.VisualBertConfig(**SIZES, **fields)
        model = getattr(transformers, class_name)(config, **made_with).eval()
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(root / name, **saved_with)
        calls = CALLS[class_name] if name == class_name else CALLS[class_name][:2]
        expected = []
        for call in [TEXT] if "bypass" in name else calls:  # with regions the bypass crashes
            output, plain = model(**arguments(call)), model(**arguments(call), return_dict=False)
            kinds = [
                None if item is None else list(item.shape) if torch.is_tensor(item) else len(item) for item in plain
            ]
            outputs = {key: nested(value) for key, value in output.items()}
            expected.append({"call": call, "outputs": outputs, "tuple": kinds})
        (root / name / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
