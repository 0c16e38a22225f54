"""The packed ViLT against transformers 5: the same directories, the same inputs, the same numbers on real rows.

transformers returns the patches of the largest pictures shuffled and fills padding with random patches. Its draw is
replaced by one in raster order (oracle.raster_order), and which patches it took is handed to ours as patch_mask.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from vilt_fast.models import vilt as packed
from vilt_fast.reference import vilt as paper

NUM_CONFIGS = 24  # of oracle.config_kwargs; the fixture is not there yet when tests are collected

# Outputs, relative to the largest magnitude of the tensor. fp32: up to 3 blocks of sums of ~150 terms in another
# order, each eps = 6e-8; fp64 leaves the same formula with eps = 1e-16, so a term of 1e-10 would show.
OUTPUT = {torch.float32: 1e-5, torch.float64: 1e-10}
# Gradients, relative to the largest magnitude of each, plus FLOOR times the largest of all: a key bias has the exact
# gradient zero (softmax ignores a constant), so both sides hold nothing but rounding there.
GRADIENT = {torch.float32: 1e-4, torch.float64: 1e-9}
FLOOR = {torch.float32: 1e-6, torch.float64: 1e-14}


def load_ours(name, theirs, directory, **kwargs):
    """What our class `name` makes of the directory that transformers saves."""
    theirs.save_pretrained(directory)
    return getattr(packed, name).from_pretrained(directory, **kwargs).eval()


def run_ours(name, model, inputs, masks, **kwargs):
    """Ours with the patches that transformers picked, one mask for each pass it made."""
    several = name == "ViltForImagesAndTextClassification"
    patch_mask = torch.stack(masks, dim=1) if several else masks[0]
    return model(**inputs, patch_mask=patch_mask, **kwargs)


def check_outputs(oracle, ours, theirs, inputs, real, tolerance):
    """Every field of both outputs; rows of words only, words and patches, or none, by the field and its shape."""
    assert list(ours.keys()) == list(theirs.keys())
    words = inputs["attention_mask"] != 0
    for field, value in theirs.items():
        if field in ("hidden_states", "attentions"):
            check = oracle.assert_rows if field == "hidden_states" else oracle.assert_attentions
            a, b = (ours[field], value) if isinstance(value, list) else ([ours[field]], [value])
            assert len(a) == len(b) == len(real)
            for picture, (ours_layers, their_layers) in enumerate(zip(a, b, strict=True)):
                for x, y in zip(ours_layers, their_layers, strict=True):
                    check(x, y, real[picture], tolerance)
        elif field == "last_hidden_state":
            oracle.assert_rows(ours[field], value, real[0], tolerance)
        elif field == "logits" and value.dim() == 3:
            assert oracle.relative(ours[field][words], value[words]) <= tolerance
        else:
            assert oracle.relative(ours[field], value) <= tolerance


def objective(output, inputs, real):
    """A scalar in which every real value of the output has a weight of its own."""
    words = inputs["attention_mask"] != 0
    parts = [output[field] for field in ("loss", "pooler_output") if field in output]
    if "logits" in output:
        parts.append(output["logits"] if output["logits"].dim() == 2 else output["logits"][words])
    if "last_hidden_state" in output:
        parts.append(output["last_hidden_state"][real[0]])
    return sum((part * torch.linspace(-1, 1.5, part.numel()).to(part).view(part.shape)).sum() for part in parts)


def check_gradients(oracle, ours, theirs, dtype):
    mine = {name: parameter.grad for name, parameter in ours.named_parameters()}
    other = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert mine.keys() == other.keys()
    largest = max(grad.abs().max().item() for grad in other.values() if grad is not None)
    for name, grad in other.items():
        expected = torch.zeros_like(theirs.get_parameter(name)) if grad is None else grad
        got = torch.zeros_like(expected) if mine[name] is None else mine[name]
        limit = GRADIENT[dtype] * expected.abs().max().item() + FLOOR[dtype] * largest
        assert (got - expected).abs().max().item() <= limit, name


@pytest.mark.parametrize("index", range(NUM_CONFIGS))
def test_every_class(oracle, tmp_path, index):
    """Outputs, losses, hidden states, attentions and the gradient of every parameter, in fp32 and in fp64."""
    kwargs = oracle.config_kwargs(index)
    for name in oracle.CLASSES:
        theirs = oracle.build(name, kwargs, seed=index)
        ours = load_ours(name, theirs, tmp_path / name)
        inputs = oracle.inputs_for(name, theirs.config, seed=index)
        for dtype in (torch.float32, torch.float64):
            theirs, ours = theirs.to(dtype), ours.to(dtype)
            inputs = oracle.to_double(inputs) if dtype == torch.float64 else inputs
            theirs.zero_grad()
            ours.zero_grad()
            expected, masks, real = oracle.run(
                theirs, inputs, seed=index, output_hidden_states=True, output_attentions=True
            )
            got = run_ours(name, ours, inputs, masks, output_hidden_states=True, output_attentions=True)
            check_outputs(oracle, got, expected, inputs, real, OUTPUT[dtype])
            if dtype == torch.float64:  # without states the last block of most heads runs on one row a pair
                got = run_ours(name, ours, inputs, masks)
                expected = type(expected)(**{k: v for k, v in expected.items() if k in got})
                check_outputs(oracle, got, expected, inputs, real, OUTPUT[dtype])
            objective(expected, inputs, real).backward()
            objective(got, inputs, real).backward()
            check_gradients(oracle, ours, theirs, dtype)


def flatten(value):
    """Nested tuples and lists as a list of leaves; None is a leaf."""
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in flatten(item)]
    return [value]


def their_tuple(name, model, inputs, **asked):
    """transformers' tuple; its class for several pictures crashes where it is asked for states, so there by hand."""
    if name != "ViltForImagesAndTextClassification":
        return model(**inputs, **asked, return_dict=False)
    out = model(**inputs, **asked)
    return (*(() if out.loss is None else (out.loss,)), out.logits, out.hidden_states, out.attentions)


def test_tuples(oracle, tmp_path):
    """return_dict=False gives the same tuple, None included, whatever else was asked for."""
    kwargs = {**oracle.config_kwargs(2), "max_image_length": -1}
    for name in oracle.CLASSES:
        theirs = oracle.build(name, kwargs)
        ours = load_ours(name, theirs, tmp_path / name)
        inputs = oracle.inputs_for(name, theirs.config)
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        inputs["pixel_mask"] = torch.ones_like(inputs["pixel_mask"])  # no row is padding: every value is compared
        unlabelled = {k: v for k, v in inputs.items() if k != "labels"}
        for given in (inputs, unlabelled):
            for asked in ({}, {"output_attentions": True}, {"output_hidden_states": True, "output_attentions": True}):
                with torch.no_grad(), oracle.raster_order():
                    expected = their_tuple(name, theirs, given, **asked)
                    got = ours(**given, **asked, return_dict=False)
                assert type(got) is tuple and len(got) == len(expected)
                assert [type(item) for item in got] == [type(item) for item in expected]
                for x, y in zip(flatten(got), flatten(expected), strict=True):
                    assert (x is None) == (y is None)
                    assert x is None or oracle.relative(x, y) <= OUTPUT[torch.float32]


def test_defaults_of_the_config(oracle, tmp_path):
    """output_hidden_states, output_attentions and return_dict of config.json hold where the call says nothing."""
    kwargs = {**oracle.config_kwargs(4), "output_hidden_states": True, "output_attentions": True, "return_dict": False}
    theirs = oracle.build("ViltModel", {k: v for k, v in kwargs.items() if k != "output_attentions"})
    theirs.set_attn_implementation("eager")
    theirs.config.output_attentions = True
    ours = load_ours("ViltModel", theirs, tmp_path)
    inputs = oracle.batch(theirs.config, size=1)
    with torch.no_grad(), oracle.raster_order():
        expected, got = theirs(**inputs), ours(**inputs)
    assert type(got) is tuple
    assert [type(item) for item in got] == [type(item) for item in expected]
    assert [len(item) for item in got[2:]] == [len(item) for item in expected[2:]]
    got = ours(**inputs, return_dict=True, output_hidden_states=False, output_attentions=False)
    assert list(got.keys()) == ["last_hidden_state", "pooler_output"]


@pytest.mark.parametrize("missing", ["attention_mask", "token_type_ids", "pixel_mask"])
def test_left_out_masks_and_types(oracle, tmp_path, missing):
    """A mask that is not given is all ones, types are zeros."""
    theirs = oracle.build("ViltModel", {**oracle.config_kwargs(3), "max_image_length": -1})
    ours = load_ours("ViltModel", theirs, tmp_path)
    inputs = oracle.batch(theirs.config, seed=1)
    full = {**inputs, missing: torch.ones_like(inputs[missing])}
    if missing == "token_type_ids":
        full[missing] = torch.zeros_like(inputs[missing])
    del inputs[missing]
    with torch.no_grad():
        expected, _, real = oracle.run(theirs, full)
        got = ours(**inputs)
    oracle.assert_rows(got.last_hidden_state, expected.last_hidden_state, real[0], OUTPUT[torch.float32])


def test_words_with_holes_in_their_mask(oracle, tmp_path):
    """Any word but the first may be masked, not only the last ones."""
    theirs = oracle.build("ViltModel", oracle.config_kwargs(7))
    ours = load_ours("ViltModel", theirs, tmp_path)
    inputs = oracle.batch(theirs.config, seed=2)
    mask = torch.rand(inputs["attention_mask"].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    inputs["attention_mask"] = mask.index_fill(1, torch.tensor([0]), True).long()
    with torch.no_grad():
        expected, masks, real = oracle.run(theirs, inputs, output_attentions=True)
        got = run_ours("ViltModel", ours, inputs, masks, output_attentions=True)
    check_outputs(oracle, got, expected, inputs, real, OUTPUT[torch.float32])


def embeds(oracle, config, size, seed=0, several=None):
    """inputs_embeds and image_embeds with a ragged mask, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    lead = (size, several) if several else (size,)
    mask = torch.randint(0, 2, (*lead, 6), generator=generator)
    mask[..., 0] = 1
    return {
        "attention_mask": oracle.batch(config, seed, size)["attention_mask"],
        "inputs_embeds": torch.randn(
            *oracle.batch(config, seed, size)["input_ids"].shape, config.hidden_size, generator=generator
        ).double(),
        "image_embeds": torch.randn(*lead, 6, config.hidden_size, generator=generator).double(),
        "pixel_mask": mask,
    }


def test_embeddings_given(oracle, tmp_path):
    """inputs_embeds, image_embeds and image_token_type_idx, with the gradients of the embeddings."""
    theirs = oracle.build("ViltModel", oracle.config_kwargs(8), dtype=torch.float64)
    ours = load_ours("ViltModel", theirs, tmp_path, dtype=torch.float64)
    given = embeds(oracle, theirs.config, 3)
    real = torch.cat([given["attention_mask"], given["pixel_mask"]], 1) != 0
    gradients = []
    for model in (theirs, ours):
        words = given["inputs_embeds"].clone().requires_grad_()
        image = given["image_embeds"].clone().requires_grad_()
        # transformers adds positions to inputs_embeds in place, which a leaf does not allow.
        out = model(**{**given, "inputs_embeds": words * 1, "image_embeds": image}, image_token_type_idx=2)
        objective(out, given, [real]).backward()
        gradients.append((out, words.grad, image.grad))
    (expected, *their_grads), (got, *our_grads) = gradients
    oracle.assert_rows(got.last_hidden_state, expected.last_hidden_state, real, OUTPUT[torch.float64])
    assert oracle.relative(got.pooler_output, expected.pooler_output) <= OUTPUT[torch.float64]
    for x, y in zip(our_grads, their_grads, strict=True):
        assert oracle.relative(x, y) <= GRADIENT[torch.float64]


def test_inputs_embeds_is_left_as_it_was(oracle, tmp_path):
    """transformers adds the positions into the caller's tensor; ours does not."""
    theirs = oracle.build("ViltModel", oracle.config_kwargs(8), dtype=torch.float64)
    ours = load_ours("ViltModel", theirs, tmp_path, dtype=torch.float64)
    given = embeds(oracle, theirs.config, 2)
    before = {name: value.clone() for name, value in given.items()}
    with torch.no_grad():
        ours(**given)
    assert all(torch.equal(given[name], value) for name, value in before.items())


def test_image_embeds_for_several_pictures(oracle, tmp_path):
    """Every row keeps the place in which it was given, masked or not, in every state and attention too."""
    name = "ViltForImagesAndTextClassification"
    theirs = oracle.build(name, oracle.config_kwargs(5), dtype=torch.float64)
    ours = load_ours(name, theirs, tmp_path, dtype=torch.float64)
    given = embeds(oracle, theirs.config, 2, several=theirs.config.num_images)
    given["pixel_mask"][:, 0, -1] = 0  # a last place that no pair uses
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        # By hand: the first pass of transformers would change inputs_embeds for the second one.
        passes = [
            theirs.vilt(
                attention_mask=given["attention_mask"],
                inputs_embeds=given["inputs_embeds"].clone(),
                image_embeds=given["image_embeds"][:, i],
                pixel_mask=given["pixel_mask"][:, i],
                image_token_type_idx=i + 1,
                **asked,
            )
            for i in range(theirs.config.num_images)
        ]
        logits = theirs.classifier(torch.cat([out.pooler_output for out in passes], -1))
        got = ours(**given, **asked)
    assert oracle.relative(got.logits, logits) <= OUTPUT[torch.float64]
    for i, out in enumerate(passes):
        real = torch.cat([given["attention_mask"], given["pixel_mask"][:, i]], 1) != 0
        for x, y in zip(got.hidden_states[i], out.hidden_states, strict=True):
            oracle.assert_rows(x, y, real, OUTPUT[torch.float64])
        for x, y in zip(got.attentions[i], out.attentions, strict=True):
            oracle.assert_attentions(x, y, real, OUTPUT[torch.float64])


def test_image_embeds_without_a_mask(oracle, tmp_path):
    """transformers crashes there; all rows are real."""
    theirs = oracle.build("ViltForQuestionAnswering", oracle.config_kwargs(1), dtype=torch.float64)
    ours = load_ours("ViltForQuestionAnswering", theirs, tmp_path, dtype=torch.float64)
    given = embeds(oracle, theirs.config, 2)
    given["pixel_mask"] = torch.ones_like(given["pixel_mask"])
    with torch.no_grad():
        expected = theirs(**{**given, "inputs_embeds": given["inputs_embeds"].clone()}).logits
        del given["pixel_mask"]
        assert oracle.relative(ours(**given).logits, expected) <= OUTPUT[torch.float64]


def test_one_picture_without_the_axis_of_pictures(oracle, tmp_path):
    """With num_images 1, (B, C, H, W) pixels are taken as transformers takes them."""
    name = "ViltForImagesAndTextClassification"
    theirs = oracle.build(name, {**oracle.config_kwargs(0), "max_image_length": -1}, dtype=torch.float64)
    assert theirs.config.num_images == 1
    ours = load_ours(name, theirs, tmp_path, dtype=torch.float64)
    inputs = oracle.to_double(oracle.batch(theirs.config, seed=4))
    inputs["pixel_mask"] = inputs["pixel_mask"][:, None]
    with torch.no_grad(), oracle.raster_order():
        expected = theirs(**inputs).logits
        assert oracle.relative(ours(**inputs).logits, expected) <= OUTPUT[torch.float64]


@pytest.mark.parametrize("by_layer", [False, True])
def test_head_mask(oracle, tmp_path, by_layer):
    """transformers 5 has none; 4.37 multiplies the probabilities after the softmax, as the reference does."""
    for name in ("ViltModel", "ViltForImagesAndTextClassification", "ViltForTokenClassification"):
        theirs = oracle.build(name, {**oracle.config_kwargs(5), "max_image_length": -1}, dtype=torch.float64)
        ours = load_ours(name, theirs, tmp_path / name, dtype=torch.float64)
        config, state = theirs.config, theirs.state_dict()
        inputs = oracle.to_double(oracle.inputs_for(name, config, seed=6))
        inputs.pop("labels", None)
        shape = (config.num_hidden_layers, config.num_attention_heads)[0 if by_layer else 1 :]
        head_mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)).double()
        head_mask.view(-1)[0] = 0.0
        with torch.no_grad():
            got = ours(**inputs, head_mask=head_mask, output_attentions=True)
            if name == "ViltForImagesAndTextClassification":
                pictures = {key: inputs.pop(key) for key in ("pixel_values", "pixel_mask")}
                expected = paper.classify_pictures(state, config, pictures, {**inputs, "head_mask": head_mask})
                assert oracle.relative(got.logits, expected) <= OUTPUT[torch.float64]
                continue
            prefix = "" if name == "ViltModel" else "vilt."
            expected = paper.encode(state, config, prefix=prefix, head_mask=head_mask, **inputs)
            if name == "ViltModel":
                oracle.assert_rows(got[0], expected[0], expected.mask, OUTPUT[torch.float64])
            else:
                words = inputs["attention_mask"] != 0
                text = expected.last_hidden_state[:, : words.shape[1]]
                logits = paper.classify_tokens(state, text)
                assert oracle.relative(got.logits[words], logits[words]) <= OUTPUT[torch.float64]
        for x, y in zip(got.attentions, expected.attentions, strict=True):
            oracle.assert_attentions(x, y, expected.mask, OUTPUT[torch.float64])


def test_gradient_of_pixels(oracle, tmp_path):
    theirs = oracle.build("ViltModel", oracle.config_kwargs(9), dtype=torch.float64)
    ours = load_ours("ViltModel", theirs, tmp_path, dtype=torch.float64)
    inputs = oracle.to_double(oracle.batch(theirs.config, seed=3))
    pixels = [inputs["pixel_values"].clone().requires_grad_() for _ in range(2)]
    expected, masks, real = oracle.run(theirs, {**inputs, "pixel_values": pixels[0]})
    got = run_ours("ViltModel", ours, {**inputs, "pixel_values": pixels[1]}, masks)
    objective(expected, inputs, real).backward()
    objective(got, inputs, real).backward()
    assert oracle.relative(pixels[1].grad, pixels[0].grad) <= GRADIENT[torch.float64]


def test_float_masks_and_half_precision(oracle, tmp_path):
    """Masks may be float or bool; a bf16 model takes fp32 pixels and stays within bf16's rounding of fp32."""
    theirs = oracle.build("ViltForQuestionAnswering", {**oracle.config_kwargs(2), "max_image_length": -1})
    ours = load_ours("ViltForQuestionAnswering", theirs, tmp_path)
    inputs = oracle.batch(theirs.config, seed=8)
    with torch.no_grad(), oracle.raster_order():
        expected = ours(**inputs).logits
        for dtype in (torch.float32, torch.bool, torch.uint8):
            cast = {k: v.to(dtype) if k.endswith("mask") else v for k, v in inputs.items()}
            assert torch.equal(ours(**cast).logits, expected)
        half = packed.ViltForQuestionAnswering.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        logits = half(**inputs).logits
    assert logits.dtype == torch.bfloat16
    # eps = 2 ** -8 a rounding, some twenty roundings deep: 2 % of the largest logit was seen, five times that allowed.
    assert oracle.relative(logits.float(), expected) < 0.1


def photographs():
    """scikit-learn's two real photographs, (427, 640, 3) uint8 each."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn carries the photographs")
    return [np.asarray(image) for image in datasets.load_sample_images().images]


def test_full_size_on_photographs(oracle, tmp_path):
    """ViLT-B/32 with random weights: 12 layers, 768 wide, on china.jpg and flower.jpg at 384 x 576."""
    from vilt_fast.processing import ViltImageProcessor

    pixels = ViltImageProcessor()(photographs(), return_tensors="pt")
    with torch.device("meta"):
        theirs = oracle.transformers.ViltForQuestionAnswering(oracle.transformers.ViltConfig(num_labels=3129))
    theirs = oracle.randomise(theirs.to_empty(device="cpu"), seed=1).eval()
    for buffer, value in (("position_ids", torch.arange(40)[None]), ("token_type_ids", torch.zeros(1, 40).long())):
        getattr(theirs.vilt.embeddings.text_embeddings, buffer).copy_(value)
    ours = load_ours("ViltForQuestionAnswering", theirs, Path(tmp_path))
    generator = torch.Generator().manual_seed(2)
    inputs = {
        "input_ids": torch.randint(0, 30522, (2, 11), generator=generator),
        "attention_mask": torch.tensor([[1] * 11, [1] * 7 + [0] * 4]),
        **pixels,
    }
    with torch.no_grad():
        expected, masks, real = oracle.run(theirs, inputs, output_hidden_states=True)
        got = ours(**inputs, output_hidden_states=True)
    assert masks[0].sum((1, 2)).tolist() == [12 * 18] * 2
    check_outputs(oracle, got, expected, inputs, real, OUTPUT[torch.float32])
