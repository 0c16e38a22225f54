"""The padded ViLT of vilt_fast.reference.vilt: tiny cases worked by hand, then transformers."""

import functools
import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import vilt_fast
from vilt_fast.reference import vilt

# fp64 on both sides, so what is left is the order of sums: a missing term or a wrong epsilon is 1e-6 and more.
TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    path = Path(__file__).parents[1] / "models" / "oracle.py"
    spec = importlib.util.spec_from_file_location("vilt_oracle", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_config(**changes):
    values = dict(
        patch_size=1,
        image_size=2,
        num_hidden_layers=0,
        num_attention_heads=1,
        hidden_act="relu",
        layer_norm_eps=1e-12,
    )
    return SimpleNamespace(**{**values, **changes})


def tiny_state(prefix="vilt."):
    """hidden size 2, one channel, patches of one pixel, a 2 x 2 position table."""
    state = {
        "embeddings.text_embeddings.word_embeddings.weight": [[3.0, 1.0], [0.0, 5.0]],
        "embeddings.text_embeddings.position_embeddings.weight": [[1.0, 0.0], [0.0, 0.0], [9.0, 9.0]],
        "embeddings.text_embeddings.token_type_embeddings.weight": [[0.0, 0.0], [7.0, 0.0]],
        "embeddings.text_embeddings.LayerNorm.weight": [2.0, 3.0],
        "embeddings.text_embeddings.LayerNorm.bias": [0.5, 0.0],
        "embeddings.cls_token": [[[10.0, 20.0]]],
        "embeddings.position_embeddings": [[[1.0, 1.0], [0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [6.0, 0.0]]],
        "embeddings.patch_embeddings.projection.weight": [[[[1.0]]], [[[-1.0]]]],
        "embeddings.patch_embeddings.projection.bias": [0.0, 100.0],
        "embeddings.token_type_embeddings.weight": [[0.0, 0.25], [1000.0, 0.0], [2000.0, 0.0]],
        "layernorm.weight": [1.0, 1.0],
        "layernorm.bias": [0.0, 0.0],
        "pooler.dense.weight": [[1.0, 0.0], [0.0, 0.5]],
        "pooler.dense.bias": [0.0, 1.0],
    }
    return {prefix + name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()}


def test_patches_are_cut_in_raster_order():
    pixels = torch.arange(40.0).view(1, 2, 4, 5)  # 2 channels, 4 x 5 pixels: the fifth column is no whole patch
    patches = vilt.split_patches(pixels, (2, 2))
    assert patches.shape == (1, 2, 2, 8)
    assert patches[0, 0, 1].tolist() == [2, 3, 7, 8, 22, 23, 27, 28]
    assert patches[0, 1, 0].tolist() == [10, 11, 15, 16, 30, 31, 35, 36]


@pytest.mark.parametrize(
    "size, expected",
    [
        ((2, 2), [[0, 2], [4, 6]]),
        ((3, 2), [[0, 2], [2, 4], [4, 6]]),
        ((1, 3), [[0, 1, 2]]),
        ((1, 1), [[0]]),
        ((4, 1), [[0], [4 / 3], [8 / 3], [4]]),
    ],
)
def test_positions_are_stretched_corner_to_corner(size, expected):
    table = torch.tensor([[0.0, 2.0], [4.0, 6.0]], dtype=torch.float64)[..., None]
    fitted = vilt.interpolate_positions(table, *size)[..., 0]
    torch.testing.assert_close(fitted, torch.tensor(expected, dtype=torch.float64))


def test_text_embedding_by_hand():
    # (3, 1) + (1, 0) + (0, 0) = (4, 1), normalised (1, -1); (0, 5) + (0, 0) + (7, 0) = (7, 5), normalised (1, -1);
    # (0, 5) + (9, 9) + (0, 0) = (9, 14), normalised (-1, 1). Then times (2, 3) plus (0.5, 0).
    rows = vilt.text_embedding(tiny_state(""), tiny_config(), torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]))
    expected = torch.tensor([[[2.5, -3.0], [2.5, -3.0], [-1.5, 3.0]]], dtype=torch.float64)
    torch.testing.assert_close(rows, expected)


def test_visual_embedding_by_hand():
    pixels = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[5.0, 6.0], [7.0, 8.0]]]], dtype=torch.float64)
    mask = torch.tensor([[[1, 1], [1, 1]], [[1, 0], [1, 0]]])
    rows, real = vilt.visual_embedding(tiny_state(""), tiny_config(), pixels, mask)
    # Class row (10, 20) + (1, 1); patch row (pixel, 100 - pixel) + its position. The second picture is 2 x 1: its
    # positions run down the table's first column.
    expected = torch.tensor(
        [
            [[11.0, 21.0], [1.0, 99.0], [4.0, 98.0], [7.0, 97.0], [10.0, 96.0]],
            [[11.0, 21.0], [5.0, 95.0], [11.0, 93.0], [0.0, 0.0], [0.0, 0.0]],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(rows, expected)
    assert real.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def test_patch_mask_drops_patches_and_keeps_positions():
    pixels = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]] * 2, dtype=torch.float64)
    keep = torch.tensor([[[False, True], [True, False]], [[False, False], [False, False]]])
    rows, real = vilt.visual_embedding(tiny_state(""), tiny_config(), pixels, None, keep)
    expected = torch.tensor([[11.0, 21.0], [4.0, 98.0], [7.0, 97.0]], dtype=torch.float64)
    torch.testing.assert_close(rows[0], expected)
    assert real.tolist() == [[True, True, True], [True, False, False]]
    assert rows[1, 1:].eq(0).all()


def test_attention_by_hand():
    one = torch.ones(1, 1, dtype=torch.float64)
    weights = {
        "attention.query.weight": one,
        "attention.key.weight": one,
        "attention.value.weight": 2 * one,
        "output.dense.weight": one,
        "output.dense.bias": torch.tensor([0.5], dtype=torch.float64),
    }
    x = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    p = math.e / (1 + math.e)  # query 1 scores 0 and 1
    out, probabilities = vilt.self_attention(weights, x, torch.zeros(1, 1, 1, 2, dtype=torch.float64), 1)
    torch.testing.assert_close(probabilities[0, 0], torch.tensor([[0.5, 0.5], [1 - p, p]], dtype=torch.float64))
    torch.testing.assert_close(out[0, :, 0], torch.tensor([1.5, 2 * p + 0.5], dtype=torch.float64))

    hidden = torch.tensor([[[[0.0, torch.finfo(torch.float64).min]]]], dtype=torch.float64)
    out, probabilities = vilt.self_attention(weights, x, hidden, 1)
    assert probabilities[0, 0].tolist() == [[1, 0], [1, 0]] and out[0, :, 0].tolist() == [0.5, 0.5]

    half = torch.tensor([0.5])
    out, probabilities = vilt.self_attention(weights, x, torch.zeros(1, 1, 1, 2, dtype=torch.float64), 1, half)
    torch.testing.assert_close(out[0, :, 0], torch.tensor([1.0, p + 0.5], dtype=torch.float64))
    assert probabilities[0, 0, 0].tolist() == [0.25, 0.25]


def test_whole_body_without_blocks_by_hand():
    out = vilt.encode(
        tiny_state(),
        tiny_config(),
        input_ids=torch.tensor([[0, 1]]),
        attention_mask=torch.tensor([[1, 0]]),
        pixel_values=torch.tensor([[[[1.0]]]], dtype=torch.float64),
        image_token_type_idx=2,
    )
    # z_0: (2.5, -3) + (0, 0.25), a masked word, (11, 21) + (2000, 0), (1, 99) + (2000, 0); a LayerNorm of two values
    # is +-1.
    z = [[2.5, -2.75], [0.0, 0.0], [2011.0, 21.0], [2001.0, 99.0]]
    torch.testing.assert_close(out.hidden_states[0], torch.tensor([z], dtype=torch.float64))
    last = [[1.0, -1.0], [0.0, 0.0], [1.0, -1.0], [1.0, -1.0]]
    torch.testing.assert_close(out.last_hidden_state, torch.tensor([last], dtype=torch.float64))
    pooled = [[math.tanh(1.0), math.tanh(0.5)]]
    torch.testing.assert_close(out.pooler_output, torch.tensor(pooled, dtype=torch.float64))
    assert out.mask.tolist() == [[True, False, True, True]] and out.attentions == ()


def test_block_by_hand():
    """One block whose attention is off and whose MLP takes relu(x_0) of the normalised row to the second value."""
    state = tiny_state()
    zero, block = torch.zeros(2, 2, dtype=torch.float64), "vilt.encoder.layer.0."
    for name in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
        state[f"{block}{name}.weight"] = zero
    state[f"{block}attention.output.dense.weight"] = zero
    state[f"{block}attention.output.dense.bias"] = torch.tensor([0.0, 1.0], dtype=torch.float64)
    state[f"{block}intermediate.dense.weight"] = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    state[f"{block}output.dense.weight"] = torch.tensor([[0.0], [10.0]], dtype=torch.float64)
    for name in ("layernorm_before", "layernorm_after"):
        state[f"{block}{name}.weight"] = torch.ones(2, dtype=torch.float64)
        state[f"{block}{name}.bias"] = torch.zeros(2, dtype=torch.float64)
    embeds = torch.tensor([[[6.0, 2.0], [2.0, 6.0]]], dtype=torch.float64)
    words = torch.tensor([[[0.0, 4.0]]], dtype=torch.float64)
    out = vilt.encode(state, tiny_config(num_hidden_layers=1), inputs_embeds=words, image_embeds=embeds)
    # Word (0, 4) + (1, 0) = (1, 4) normalised (-1, 1), then (-1.5, 3) + (0, .25); the pictures' rows get (1000, 0).
    # Attention adds (0, 1); relu of the normalised first value is 0 for the word and 1 for both picture rows.
    expected = [[-1.5, 4.25], [1006.0, 13.0], [1002.0, 17.0]]
    torch.testing.assert_close(out.hidden_states[1], torch.tensor([expected], dtype=torch.float64))
    torch.testing.assert_close(out.attentions[0], torch.full((1, 1, 3, 3), 1 / 3, dtype=torch.float64))


def test_image_text_matching_head_by_hand():
    weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.0, 5.0])
    state = {"itm_score.fc.weight": weight, "itm_score.fc.bias": bias}
    assert vilt.match(state, torch.tensor([[1.0, -1.0]])).tolist() == [[-1.0, 4.0]]


LOGITS = {  # of every class with one image per text, from its weights and the encoder's output
    "ViltModel": lambda state, config, out, text: None,
    "ViltForMaskedLM": lambda state, config, out, text: vilt.masked_lm(state, config, text),
    "ViltForQuestionAnswering": lambda state, config, out, text: vilt.classify(state, out.pooler_output),
    "ViltForImageAndTextRetrieval": lambda state, config, out, text: vilt.retrieve(state, out.pooler_output),
    "ViltForTokenClassification": lambda state, config, out, text: vilt.classify_tokens(state, text),
}
SEVERAL = "ViltForImagesAndTextClassification"
STATES = ("mask", "hidden_states", "attentions")
FIELDS = {
    "ViltModel": (*STATES, "last_hidden_state", "pooler_output"),
    **{name: (*STATES, "logits") for name in LOGITS if name != "ViltModel"},
    SEVERAL: ("logits",),
}


def reference(name, model, inputs, patch_masks):
    """What transformers' class `name` computes, by the reference: the encoder's output and the logits."""
    state, config = model.state_dict(), model.config
    body = {key: value for key, value in inputs.items() if key != "labels"}
    if name == SEVERAL:
        images = {key: body.pop(key) for key in ("pixel_values", "pixel_mask")}
        images["patch_mask"] = torch.stack(patch_masks, 1)
        return None, vilt.classify_pictures(state, config, images, body)
    prefix = "" if name == "ViltModel" else "vilt."
    out = vilt.encode(state, config, prefix=prefix, patch_mask=patch_masks[0], **body)
    text = out.last_hidden_state[:, : inputs["input_ids"].shape[1]]
    return out, LOGITS[name](state, config, out, text)


@functools.lru_cache(maxsize=1)
def both(oracle, name, index):
    """One forward pass of transformers and of the reference, shared by the tests of all fields, which run in a row."""
    model = oracle.build(name, oracle.config_kwargs(index), dtype=torch.float64, seed=index)
    inputs = oracle.to_double(oracle.inputs_for(name, model.config, seed=index))
    with torch.no_grad():
        theirs, masks, real = oracle.run(model, inputs, output_hidden_states=True, output_attentions=True)
        out, logits = reference(name, model, inputs, masks)
    return inputs, theirs, real[0], out, logits


@pytest.mark.parametrize(
    "name, field",
    [pytest.param(name, field, id=f"{name}-{field}") for name, fields in FIELDS.items() for field in fields],
)
@pytest.mark.parametrize("index", range(12), ids=lambda index: f"config{index}")
def test_against_transformers(oracle, index, name, field):
    """Every class on twelve configurations: logits, every hidden state and attention of real rows."""
    inputs, theirs, real, out, logits = both(oracle, name, index)
    if field == "mask":
        oracle.check_equal(field, out.mask, real)
    elif field in STATES:
        oracle.check_layers(field, getattr(out, field), theirs[field], real, TOLERANCE)
    elif field == "last_hidden_state":
        oracle.check_rows(field, out.last_hidden_state, theirs.last_hidden_state, real, TOLERANCE)
    elif field == "pooler_output":
        oracle.check_close(field, out.pooler_output, theirs.pooler_output, TOLERANCE)
    elif name in ("ViltForMaskedLM", "ViltForTokenClassification"):
        words = inputs["attention_mask"] != 0
        oracle.check_close("logits of real words", logits[words], theirs.logits[words], TOLERANCE)
    else:
        oracle.check_close(field, logits, theirs.logits, TOLERANCE)


def test_embeddings_given_against_transformers(oracle):
    """inputs_embeds, image_embeds with a mask, and another modality row."""
    model = oracle.build("ViltModel", oracle.config_kwargs(2), dtype=torch.float64)
    inputs = oracle.to_double(oracle.batch(model.config, seed=5))
    generator = torch.Generator().manual_seed(3)
    length, hidden = inputs["input_ids"].shape[1], model.config.hidden_size
    given = {
        "attention_mask": inputs["attention_mask"],
        "token_type_ids": inputs["token_type_ids"],
        "inputs_embeds": torch.randn(3, length, hidden, generator=generator, dtype=torch.float64),
        "image_embeds": torch.randn(3, 5, hidden, generator=generator, dtype=torch.float64),
        "pixel_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1]]),
        "image_token_type_idx": 2,
    }
    with torch.no_grad():
        # Its LayerNorm adds positions to inputs_embeds in place.
        theirs = model(**{**given, "inputs_embeds": given["inputs_embeds"].clone()})
        ours = vilt.encode(model.state_dict(), model.config, prefix="", **given)
    real = torch.cat([given["attention_mask"], given["pixel_mask"]], dim=1) != 0
    oracle.check_rows("last_hidden_state", ours.last_hidden_state, theirs.last_hidden_state, real, TOLERANCE)


@pytest.mark.parametrize("by_layer", [False, True], ids=["heads", "layers x heads"])
def test_head_mask_is_a_scale_on_the_columns_of_each_head(oracle, by_layer):
    """transformers 5 has no head_mask: scaling a head's probabilities is scaling its columns of the output matrix."""
    model = oracle.build("ViltModel", oracle.config_kwargs(5), dtype=torch.float64)
    config, inputs = model.config, oracle.to_double(oracle.batch(model.config, seed=6))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    generator = torch.Generator().manual_seed(4)
    scale = torch.rand((layers, heads) if by_layer else (heads,), generator=generator)
    columns = scale.double().expand(layers, heads).repeat_interleave(config.hidden_size // heads, dim=1)
    for d in range(layers):
        name = f"encoder.layer.{d}.attention.output.dense.weight"
        model.get_parameter(name).data.copy_(state[name] * columns[d])
    with torch.no_grad():
        theirs, masks, real = oracle.run(model, inputs, output_attentions=True)
        ours = vilt.encode(state, config, prefix="", head_mask=scale, patch_mask=masks[0], **inputs)
    oracle.check_rows("last_hidden_state", ours.last_hidden_state, theirs.last_hidden_state, real[0], TOLERANCE)
    expected = theirs.attentions[-1] * scale.double().expand(layers, heads)[-1][:, None, None]
    oracle.check_attentions("last attentions", ours.attentions[-1], expected, real[0], TOLERANCE)


def test_the_blocks_have_an_epsilon_of_their_own():
    """The original checkpoints normalise blocks and output with 1e-6, the words with 1e-12."""
    state, words = tiny_state(), torch.tensor([[[0.0, 1e-6]]], dtype=torch.float64)
    picture = torch.tensor([[[1e-3, -1e-3]]], dtype=torch.float64)
    state["vilt.embeddings.token_type_embeddings.weight"].zero_()
    state["vilt.embeddings.text_embeddings.position_embeddings.weight"].zero_()
    given = dict(inputs_embeds=words, image_embeds=picture)
    same = vilt.encode(state, tiny_config(), **given)
    other = vilt.encode(state, tiny_config(encoder_layer_norm_eps=1e-6), **given)
    torch.testing.assert_close(same.hidden_states, other.hidden_states)
    # Variance 1e-6: with epsilon 1e-6 the row shrinks by sqrt(2); with 1e-12 it does not.
    torch.testing.assert_close(same.last_hidden_state[0, 1, 0].item(), 1.0, atol=1e-5, rtol=0)
    torch.testing.assert_close(other.last_hidden_state[0, 1, 0].item(), 0.5**0.5, atol=1e-5, rtol=0)


def test_masked_lm_head_reads_the_word_table_without_a_decoder_of_its_own(oracle):
    model = oracle.build("ViltForMaskedLM", oracle.config_kwargs(0), dtype=torch.float64)
    state, rows = dict(model.state_dict()), torch.randn(2, 3, model.config.hidden_size, dtype=torch.float64)
    full = vilt.masked_lm(state, model.config, rows)
    bias = state.pop("mlm_score.decoder.bias")
    del state["mlm_score.decoder.weight"]
    state["mlm_score.bias"] = bias  # transformers 4.37's name
    oracle.check_equal("logits", vilt.masked_lm(state, model.config, rows), full)


def test_the_packed_model_does_not_use_it():
    for folder in ("models", "layers"):
        for path in (Path(vilt_fast.__file__).parent / folder).glob("*.py"):
            assert not re.search(r"reference(\.| import )vilt\b", path.read_text()), path


def test_it_imports_torch_only():
    source = Path(vilt.__file__).read_text()
    modules = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert modules == {"collections", "typing", "torch"}
