"""A head whose base model has lost its pooler says so; one that reads none does not miss it."""

import pytest
import torch

import vilt_fast

SIZES = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
REGIONS = {"visual_embeds": torch.randn(2, 3, 10)}
PIXELS = {"pixel_values": torch.randn(2, 3, 32, 32)}
VILT, VISUAL_BERT = (
    (vilt_fast.ViltConfig, dict(image_size=32, patch_size=16)),
    (
        vilt_fast.VisualBertConfig,
        dict(visual_embedding_dim=10),
    ),
)
HEADS = [
    ("ViltForQuestionAnswering", *VILT, PIXELS),
    ("ViltForImageAndTextRetrieval", *VILT, PIXELS),
    ("VisualBertForPreTraining", *VISUAL_BERT, REGIONS),
    ("VisualBertForVisualReasoning", *VISUAL_BERT, REGIONS),
]


@pytest.mark.parametrize(("name", "config", "fields", "given"), HEADS, ids=[head[0] for head in HEADS])
@pytest.mark.parametrize("states", [False, True])
def test_it_is_said(name, config, fields, given, states):
    model = getattr(vilt_fast, name)(config(**SIZES, **fields)).eval()
    model.base_model.pooler = None
    with pytest.raises(ValueError, match="pooler: the model below the head has none"):
        model(torch.randint(50, (2, 5)), **given, output_hidden_states=states)


def test_nobody_misses_it():
    config, fields = VISUAL_BERT
    model = vilt_fast.VisualBertForQuestionAnswering(config(**SIZES, **fields)).eval()
    words = torch.randint(50, (2, 5))
    wanted = model(words, **REGIONS).logits
    model.base_model.pooler = None
    assert torch.equal(model(words, **REGIONS).logits, wanted)
