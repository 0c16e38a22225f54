"""Packed tokens are what runs, and what a pair gets does not depend on the batch it stands in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import vilt_fast
from vilt_fast import ops
from vilt_fast.models.vilt import ViltForQuestionAnswering, ViltModel
from vilt_fast.packing import Layout
from vilt_fast.reference import vilt as paper

# Same terms, other matrix shapes: the library may sum in another order. fp32 has eps = 6e-8, and weights as they come
# fresh do not amplify it; fp64 leaves room for weights that do, so that nothing small can hide.
SAME_ROWS = {torch.float32: 1e-6, torch.float64: 1e-13}
# fp64 against the padded reference: another formula with eps = 1e-16.
REFERENCE = 1e-10


@pytest.fixture(scope="module")
def model(small_config):
    torch.manual_seed(3)
    return ViltModel(small_config()).eval()


def pad(inputs, words, height, width):
    """The same batch with `words`, `height` and `width` more places of padding, all masked."""
    grown = {}
    for name, value in inputs.items():
        fill = 7.0 if name == "pixel_values" else 0
        sizes = (0, width, 0, height) if name.startswith("pixel") else (0, words)
        grown[name] = torch.nn.functional.pad(value, sizes, value=fill)
    return grown


def alone(inputs, b):
    """Pair b cut out of its batch, without padding."""
    words = int(inputs["attention_mask"][b].sum())
    height = int(inputs["pixel_mask"][b, :, 0].sum())
    width = int(inputs["pixel_mask"][b, 0].sum())
    cut = {name: value[b : b + 1, :words] for name, value in inputs.items() if not name.startswith("pixel")}
    return {
        **cut,
        "pixel_values": inputs["pixel_values"][b : b + 1, :, :height, :width],
        "pixel_mask": inputs["pixel_mask"][b : b + 1, :height, :width],
    }


def rows_of(output, inputs, b):
    """(words, d) and (1 + patches, d) of pair b, without padding."""
    length = inputs["attention_mask"].shape[1]
    words = int(inputs["attention_mask"][b].sum())
    mask = inputs["pixel_mask"][b]
    patches = int(mask[:, 0].sum()) // 8 * (int(mask[0].sum()) // 8)
    rows = output.last_hidden_state[b]
    return rows[:words], rows[length : length + 1 + patches]


def check_pair(oracle, name, got, wanted, tolerance):
    """Words and patches of one pair are the same; `got` and `wanted` are arguments of rows_of."""
    for part, x, y in zip(("words", "patches"), rows_of(*got), rows_of(*wanted), strict=True):
        oracle.check_close(f"{name}: {part}", x, y, tolerance)


def count_tokens(inputs):
    mask = inputs["pixel_mask"]
    patches = (mask[:, :, 0].sum(1) // 8) * (mask[:, 0].sum(1) // 8)
    return int((inputs["attention_mask"].sum(1) + 1 + patches).sum())


def record_rows(monkeypatch, names=("linear", "layer_norm", "attention")):
    """Rows of the first argument of every call of these operations, in order."""
    rows = []
    for name in names:
        inner = getattr(ops, name)

        def wrapped(first, *args, inner=inner, **kwargs):
            rows.append(first.shape[0])
            return inner(first, *args, **kwargs)

        monkeypatch.setattr(ops, name, wrapped)
    return rows


def test_every_operation_of_the_encoder_sees_only_real_tokens(oracle, model, monkeypatch):
    inputs = oracle.batch(model.config, seed=1, size=4)
    tokens = count_tokens(inputs)
    assert tokens < 0.8 * inputs["input_ids"].shape[0] * sum(paper_shape(inputs))  # there is padding to skip
    rows = record_rows(monkeypatch)
    with torch.no_grad():
        model(**inputs)
    per_layer = 7  # layer_norm, qkv, attention, output, layer_norm, up, down
    layers = model.config.num_hidden_layers
    assert rows[: per_layer * layers] == [tokens] * (per_layer * layers)
    # What follows is the final normalisation and the pooler: the tokens once, then one row per pair.
    assert rows[per_layer * layers :] == [tokens, 4]


def paper_shape(inputs):
    """(words, CLS + patches) of the padded batch."""
    height, width = inputs["pixel_values"].shape[-2:]
    return inputs["input_ids"].shape[1], 1 + height // 8 * (width // 8)


def test_a_head_that_reads_one_row_per_pair_costs_less_in_the_last_block(oracle, small_config, monkeypatch):
    """Up to the last attention every real token; after it nothing reads more than one row per pair."""
    model = oracle.randomise(ViltForQuestionAnswering(small_config())).eval()
    inputs = oracle.batch(model.config, seed=1, size=4)
    tokens = count_tokens(inputs)
    rows = record_rows(monkeypatch)
    with torch.no_grad():
        model(**inputs)
    attention_of_the_last_block = 7 * model.config.num_hidden_layers - 5
    assert set(rows[: attention_of_the_last_block + 1]) == {tokens}
    assert set(rows[attention_of_the_last_block + 1 :]) == {4}


def test_twice_the_padding_costs_no_more(oracle, model, monkeypatch):
    inputs = oracle.batch(model.config, seed=2, size=3)
    length = inputs["input_ids"].shape[1]
    height, width = inputs["pixel_values"].shape[-2:]
    grown = pad(inputs, min(length, 24 - length), height, width)
    frozen, costs = vilt_fast.freeze(model), []
    for given_inputs in (inputs, grown):
        with monkeypatch.context() as patch, torch.no_grad():
            rows = record_rows(patch)
            output = model(**given_inputs)
            # Under the counter's global hooks, the live form computes score matrices of the padded batch.
            with FlopCounterMode(display=False) as flops:
                frozen(**given_inputs)
            costs.append((rows, flops.get_total_flops()))
        last = [rows_of(output, given_inputs, b) for b in range(3)]
        costs[-1] += (torch.cat([part for parts in last for part in parts]),)
    assert costs[0][0] == costs[1][0] and len(costs[0][0]) > 0
    assert costs[0][1] == costs[1][1] > 0
    oracle.check_close("rows with more padding", costs[1][2], costs[0][2], SAME_ROWS[torch.float32])


@pytest.fixture(params=[torch.float32, torch.float64], ids=["fp32", "fp64"])
def either(request, model, model64):
    return model if request.param == torch.float32 else model64


def cast(oracle, inputs, model):
    return oracle.to_double(inputs) if model.dtype == torch.float64 else inputs


@pytest.mark.parametrize("seed", range(4))
def test_a_pair_gets_the_same_rows_alone_in_a_batch_and_in_any_order(oracle, either, seed):
    inputs = cast(oracle, oracle.batch(either.config, seed=4 * seed, size=5), either)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    shuffled = {name: value[order] for name, value in inputs.items()}
    tolerance = SAME_ROWS[either.dtype]
    with torch.no_grad():
        batches = {
            "in its batch": (either(**inputs), inputs, range(5)),
            "in a shuffled batch": (either(**shuffled), shuffled, order.argsort().tolist()),
        }
        for b in range(5):
            single = alone(inputs, b)
            expected = either(**single)
            for where, (output, source, place) in batches.items():
                pair = f"pair {b} {where}"
                check_pair(oracle, pair, (output, source, place[b]), (expected, single, 0), tolerance)
                pooled = output.pooler_output[place[b]]
                oracle.check_close(f"{pair}: pooler_output", pooled, expected.pooler_output[0], tolerance)


def test_equal_pairs_in_one_batch_are_equal(oracle, either):
    single = cast(oracle, alone(oracle.batch(either.config, seed=5), 0), either)
    repeated = {name: value.repeat_interleave(6, dim=0) for name, value in single.items()}
    with torch.no_grad():
        expected, got = either(**single).last_hidden_state, either(**repeated).last_hidden_state
    for b in range(6):
        oracle.check_close(f"last_hidden_state of copy {b}", got[b], expected[0], SAME_ROWS[either.dtype])


def test_one_word_one_patch_beside_a_long_pair(oracle, either):
    """The most unequal batch there is."""
    inputs = {
        "input_ids": torch.randint(0, 31, (2, 24), generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.tensor([[1] * 24, [1] + [0] * 23]),
        "pixel_values": torch.randn(2, 3, 96, 120, generator=torch.Generator().manual_seed(1)),
        "pixel_mask": torch.ones(2, 96, 120, dtype=torch.long),
    }
    inputs["pixel_mask"][1, 8:] = 0
    inputs["pixel_mask"][1, :, 8:] = 0
    inputs = cast(oracle, inputs, either)
    with torch.no_grad():
        batched = either(**inputs)
        for b in range(2):
            single = alone(inputs, b)
            expected = (either(**single), single, 0)
            check_pair(oracle, f"pair {b}", (batched, inputs, b), expected, SAME_ROWS[either.dtype])


@st.composite
def ragged(draw):
    """Any word masks, any image sizes, any patches dropped, any amount of padding."""
    size = draw(st.integers(1, 4))
    length = draw(st.integers(1, 8))
    words = [draw(st.lists(st.booleans(), min_size=length, max_size=length).filter(any)) for _ in range(size)]
    sides = [(draw(st.integers(1, 30)), draw(st.integers(1, 30))) for _ in range(size)]
    height = max(8, max(h for h, _ in sides)) + draw(st.integers(0, 9))
    width = max(8, max(w for _, w in sides)) + draw(st.integers(0, 9))
    drop = draw(st.sampled_from([None, 0.2, 0.7, 1.0]))
    return words, sides, (height, width), drop, draw(st.integers(0, 2**31))


def as_inputs(words, sides, padded, drop, seed):
    generator = torch.Generator().manual_seed(seed)
    size, (height, width) = len(words), padded
    inputs = {
        "input_ids": torch.randint(0, 31, (size, len(words[0])), generator=generator),
        "attention_mask": torch.tensor(words).long(),
        "pixel_values": torch.randn(size, 3, height, width, generator=generator).double(),
        "pixel_mask": torch.zeros(size, height, width, dtype=torch.long),
    }
    for mask, (h, w) in zip(inputs["pixel_mask"], sides, strict=True):
        mask[:h, :w] = 1
    if drop is not None:
        inputs["patch_mask"] = torch.rand(size, height // 8, width // 8, generator=generator) >= drop
    return inputs


@settings(max_examples=60, deadline=None)
@given(case=ragged())
def test_any_masks_and_sizes_against_the_padded_reference(oracle, model64, case):
    """Rows, states and attentions equal the padded reference's; every padded row is exactly zero on both sides."""
    inputs = as_inputs(*case)
    with torch.no_grad():
        got = model64(**inputs, output_hidden_states=True, output_attentions=True)
        expected = paper.encode(model64.state_dict(), model64.config, prefix="", **inputs)
    for field in ("last_hidden_state", "pooler_output"):
        oracle.check_close(field, getattr(got, field), getattr(expected, field), REFERENCE)
    for field in ("hidden_states", "attentions"):
        oracle.check_layers(field, getattr(got, field), getattr(expected, field), expected.mask, REFERENCE)
    oracle.check_zero("last_hidden_state, padded rows", got.last_hidden_state[~expected.mask])


@pytest.mark.parametrize("size", [(8, 8), (24, 40), (48, 16)], ids=str)
@pytest.mark.parametrize(
    "image_size, patch_size", [((24, 40), 8), ((40, 16), 8), (8, 8), (20, 4), (32, (8, 8))], ids=str
)
def test_any_position_table(oracle, small_config, image_size, patch_size, size):
    """Tables that are not square, of one entry, or larger than the image."""
    config = small_config(image_size=image_size, patch_size=patch_size)
    model = oracle.randomise(ViltModel(config), seed=5).double().eval()
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(size[0])).double()
    inputs = {"input_ids": torch.tensor([[1, 2]]), "pixel_values": pixels}
    with torch.no_grad():
        got = model(**inputs).last_hidden_state
        expected = paper.encode(model.state_dict(), config, prefix="", **inputs).last_hidden_state
    oracle.check_close("last_hidden_state", got, expected, REFERENCE)


def test_the_padding_of_pixels_is_never_read(oracle, model):
    """NaN where the mask is zero changes nothing."""
    inputs = oracle.batch(model.config, seed=6)
    poisoned = dict(inputs)
    poisoned["pixel_values"] = inputs["pixel_values"].masked_fill((inputs["pixel_mask"] == 0)[:, None], float("nan"))
    assert poisoned["pixel_values"].isnan().any()
    with torch.no_grad():
        got, expected = model(**poisoned).last_hidden_state, model(**inputs).last_hidden_state
    oracle.check_equal("last_hidden_state", got, expected)


def test_gradients_of_padding_are_zero_and_of_weights_are_finite(oracle, model):
    inputs = oracle.batch(model.config, seed=6)
    pixels = inputs["pixel_values"].clone().requires_grad_()
    model.zero_grad()
    model(**{**inputs, "pixel_values": pixels}).last_hidden_state.square().sum().backward()
    outside = (inputs["pixel_mask"] == 0)[:, None].expand_as(pixels)
    assert outside.any()
    oracle.check_zero("gradient of the padding of pixel_values", pixels.grad[outside])
    assert pixels.grad[~outside].ne(0).any(), "no gradient reaches the pixels"
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), f"gradient of {name}"
    model.zero_grad()


def test_patch_mask_keeps_the_positions_of_the_remaining_patches(model):
    pixels = torch.randn(1, 3, 32, 24, generator=torch.Generator().manual_seed(4))
    text = {"input_ids": torch.tensor([[1, 2, 3]])}
    keep = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(5)) < 0.5
    with torch.no_grad():
        every = model(**text, pixel_values=pixels, output_hidden_states=True).hidden_states[0]
        some = model(**text, pixel_values=pixels, patch_mask=keep, output_hidden_states=True).hidden_states[0]
    chosen = torch.cat([torch.ones(4, dtype=torch.bool), keep.flatten()])
    what = "embeddings of the kept patches"
    torch.testing.assert_close(some[0], every[0, chosen], rtol=1e-6, atol=1e-6, msg=lambda text: f"{what}: {text}")


def test_the_layout_names_the_patch_at_each_place():
    """patch_grid: (y, x) of every patch row of the padded form, -1 for padding."""
    keep = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    sides = torch.tensor([[4, 5], [2, 5], [3, 1]])
    mask = torch.zeros(3, 32, 40)
    for picture, (height, width) in zip(mask, (sides * 8).tolist(), strict=True):
        picture[:height, :width] = 1
    words = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 0]]) != 0
    layout = Layout.build(words, mask, keep, (4, 5))
    places = layout.patch_grid()
    expected = [kept[:h, :w].nonzero().tolist() for kept, (h, w) in zip(keep, sides.tolist(), strict=True)]
    assert places.shape == (3, max(map(len, expected)), 2)
    for image, (got, wanted) in enumerate(zip(places.tolist(), expected, strict=True)):
        assert got == wanted + [[-1, -1]] * (places.shape[1] - len(wanted)), f"image {image}"
    # A row number in every column of its own: unpacking puts words and patches where they were planned.
    rows = torch.arange(layout.total_tokens)[:, None] + 1.0
    assert torch.equal(layout.unpack(rows)[:, : layout.text_length, 0] > 0, words), (
        "words were unpacked to other places"
    )
    assert torch.equal(layout.unpack_text(rows)[..., 0] > 0, words)
    assert layout.unpack(rows).unique().tolist() == [0, *range(1, layout.total_tokens + 1)]


def test_patch_mask_may_drop_every_patch_of_an_image(oracle, model64):
    """Its class token stays."""
    inputs = oracle.to_double(oracle.batch(model64.config, seed=8, size=2))
    height, width = inputs["pixel_values"].shape[-2:]
    inputs["patch_mask"] = torch.ones(2, height // 8, width // 8, dtype=torch.bool)
    inputs["patch_mask"][0] = False
    with torch.no_grad():
        got = model64(**inputs)
        expected = paper.encode(model64.state_dict(), model64.config, prefix="", **inputs)
    oracle.check_rows("last_hidden_state", got.last_hidden_state, expected.last_hidden_state, expected.mask, REFERENCE)
