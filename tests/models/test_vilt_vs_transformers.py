"""The packed ViLT against transformers 5: the same directories, the same inputs, the same numbers on real rows.

transformers returns the patches of the largest pictures shuffled and fills padding with random patches. Its draw is
replaced by one in raster order (oracle.raster_order), and which patches it took is handed to ours as patch_mask.
"""

import functools
import tempfile
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from vilt_fast.models import vilt as packed
from vilt_fast.reference import vilt as paper

NUM_CONFIGS = 24  # what oracle.config_kwargs needs to show every size, activation and switch
STATES = ("hidden_states", "attentions")
FIELDS = {
    "ViltModel": ("last_hidden_state", "pooler_output", *STATES),
    "ViltForMaskedLM": ("loss", "logits", *STATES),
    "ViltForQuestionAnswering": ("loss", "logits", *STATES),
    "ViltForImagesAndTextClassification": ("loss", "logits", *STATES),
    "ViltForImageAndTextRetrieval": ("logits", *STATES),  # no loss in transformers
    "ViltForTokenClassification": ("loss", "logits", *STATES),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}

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


def objective(output, inputs, real):
    """A scalar in which every real value of the output has a weight of its own."""
    words = inputs["attention_mask"] != 0
    parts = [output[field] for field in ("loss", "pooler_output") if field in output]
    if "logits" in output:
        parts.append(output["logits"] if output["logits"].dim() == 2 else output["logits"][words])
    if "last_hidden_state" in output:
        parts.append(output["last_hidden_state"][real[0]])
    return sum((part * torch.linspace(-1, 1.5, part.numel()).to(part).view(part.shape)).sum() for part in parts)


class Comparison(NamedTuple):
    """What both models make of one batch; `brief` is the outputs without hidden states and attentions."""

    inputs: dict[str, torch.Tensor]
    real: list[torch.Tensor]
    got: Any
    expected: Any
    brief: tuple[Any, Any] | None
    our_gradients: dict[str, torch.Tensor]
    their_gradients: dict[str, torch.Tensor]


@functools.lru_cache(maxsize=1)
def both_models(oracle: ModuleType, name: str, index: int) -> tuple[Any, Any]:
    theirs = oracle.build(name, oracle.config_kwargs(index), seed=index)
    with tempfile.TemporaryDirectory() as directory:
        return theirs, load_ours(name, theirs, directory)


def gradients(model):
    """The gradient of every parameter; zeros where nothing flowed."""
    return {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in model.named_parameters()}


@functools.lru_cache(maxsize=1)
def comparison(oracle: ModuleType, name: str, dtype: torch.dtype, index: int) -> Comparison:
    """One forward and one backward pass of both models, shared by the tests of all fields, which run in a row."""
    theirs, ours = both_models(oracle, name, index)
    for model in (theirs, ours):
        model.zero_grad()
        model.to(dtype)
    inputs = oracle.inputs_for(name, theirs.config, seed=index)
    inputs = oracle.to_double(inputs) if dtype == torch.float64 else inputs
    asked = {"output_hidden_states": True, "output_attentions": True}
    full_expected, masks, real = oracle.run(theirs, inputs, seed=index, **asked)
    full = oracle.run_ours(name, ours, inputs, masks, **asked)
    got, expected, brief = full, full_expected, None
    if dtype == torch.float64:  # without states the last block of most heads runs on one row per pair
        got = oracle.run_ours(name, ours, inputs, masks)
        expected = type(expected)(**{k: v for k, v in expected.items() if k in got})
        brief = got, expected
    objective(expected, inputs, real).backward()
    objective(got, inputs, real).backward()
    return Comparison(inputs, real, full, full_expected, brief, gradients(ours), gradients(theirs))


@pytest.mark.parametrize(
    "name, dtype, field",
    [
        pytest.param(name, dtype, field, id=f"{name}-{dtype}-{field}")
        for name, fields in FIELDS.items()
        for dtype in DTYPES
        for field in (*fields, "gradients")
    ],
)
@pytest.mark.parametrize("index", range(NUM_CONFIGS), ids=lambda index: f"config{index}")
def test_every_class(oracle, index, name, dtype, field):
    """Outputs, losses, hidden states, attentions and the gradient of every parameter, in fp32 and in fp64."""
    dtype = DTYPES[dtype]
    run = comparison(oracle, name, dtype, index)
    if field == "gradients":
        check_gradients(run.our_gradients, run.their_gradients, dtype)
        return
    assert list(run.got.keys()) == list(run.expected.keys()) == list(FIELDS[name])
    oracle.check_field(field, run.got, run.expected, run.inputs, run.real, OUTPUT[dtype])
    if run.brief is not None and field not in STATES:
        got, expected = run.brief
        assert list(got.keys()) == list(expected.keys()) == [f for f in FIELDS[name] if f not in STATES]
        oracle.check_field(field, got, expected, run.inputs, run.real, OUTPUT[dtype])


def check_gradients(got, wanted, dtype):
    """The gradient of every parameter, by name, within GRADIENT and FLOOR."""
    assert got.keys() == wanted.keys()
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, expected in wanted.items():
        limit = GRADIENT[dtype] * expected.abs().max().item() + FLOOR[dtype] * largest
        difference = (got[name] - expected).abs().max().item()
        assert difference <= limit, f"gradient of {name}: off by {difference:.3g}, {limit:.3g} allowed"


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


ASKED = {
    "plain": {},
    "attentions": {"output_attentions": True},
    "states and attentions": {"output_hidden_states": True, "output_attentions": True},
}


@pytest.fixture(scope="module", params=FIELDS)
def without_padding(request, oracle, tmp_path_factory):
    """Both models of each class and a batch in which no row is padding, so that every value is compared."""
    name = request.param
    theirs = oracle.build(name, {**oracle.config_kwargs(2), "max_image_length": -1})
    ours = load_ours(name, theirs, tmp_path_factory.mktemp(name))
    inputs = oracle.inputs_for(name, theirs.config)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    inputs["pixel_mask"] = torch.ones_like(inputs["pixel_mask"])
    return name, theirs, ours, inputs


@pytest.mark.parametrize("asked", ASKED.values(), ids=list(ASKED))
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no labels"])
def test_tuples(oracle, without_padding, labelled, asked):
    """return_dict=False gives the same tuple, None included, whatever else was asked for."""
    name, theirs, ours, inputs = without_padding
    given = {k: v for k, v in inputs.items() if labelled or k != "labels"}
    with torch.no_grad(), oracle.raster_order():
        expected = their_tuple(name, theirs, given, **asked)
        got = ours(**given, **asked, return_dict=False)
    assert type(got) is tuple and len(got) == len(expected)
    assert [type(item) for item in got] == [type(item) for item in expected]
    for place, (x, y) in enumerate(zip(flatten(got), flatten(expected), strict=True)):
        assert (x is None) == (y is None), f"leaf {place} of the tuple: got {type(x)}, wanted {type(y)}"
        if x is not None:
            oracle.check_close(f"leaf {place} of the tuple", x, y, OUTPUT[torch.float32])


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
    oracle.check_field("last_hidden_state", got, expected, full, real, OUTPUT[torch.float32])


def test_words_with_holes_in_their_mask(oracle, tmp_path):
    """Any word but the first may be masked, not only the last ones."""
    theirs = oracle.build("ViltModel", oracle.config_kwargs(7))
    ours = load_ours("ViltModel", theirs, tmp_path)
    inputs = oracle.batch(theirs.config, seed=2)
    mask = torch.rand(inputs["attention_mask"].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    inputs["attention_mask"] = mask.index_fill(1, torch.tensor([0]), True).long()
    with torch.no_grad():
        expected, masks, real = oracle.run(theirs, inputs, output_attentions=True)
        got = oracle.run_ours("ViltModel", ours, inputs, masks, output_attentions=True)
    oracle.check_outputs(got, expected, inputs, real, OUTPUT[torch.float32])


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
    for field in ("last_hidden_state", "pooler_output"):
        oracle.check_field(field, got, expected, given, [real], OUTPUT[torch.float64])
    for what, x, y in zip(("inputs_embeds", "image_embeds"), our_grads, their_grads, strict=True):
        oracle.check_close(f"gradient of {what}", x, y, GRADIENT[torch.float64])


def test_inputs_embeds_is_left_as_it_was(oracle, tmp_path):
    """transformers adds the positions into the caller's tensor; ours does not."""
    theirs = oracle.build("ViltModel", oracle.config_kwargs(8), dtype=torch.float64)
    ours = load_ours("ViltModel", theirs, tmp_path, dtype=torch.float64)
    given = embeds(oracle, theirs.config, 2)
    before = {name: value.clone() for name, value in given.items()}
    with torch.no_grad():
        ours(**given)
    for name, value in before.items():
        oracle.check_equal(name, given[name], value)


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
    oracle.check_close("logits", got.logits, logits, OUTPUT[torch.float64])
    for i, out in enumerate(passes):
        real = torch.cat([given["attention_mask"], given["pixel_mask"][:, i]], 1) != 0
        for field in STATES:
            oracle.check_layers(f"image {i}: {field}", got[field][i], out[field], real, OUTPUT[torch.float64])


def test_image_embeds_without_a_mask(oracle, tmp_path):
    """transformers crashes there; all rows are real."""
    theirs = oracle.build("ViltForQuestionAnswering", oracle.config_kwargs(1), dtype=torch.float64)
    ours = load_ours("ViltForQuestionAnswering", theirs, tmp_path, dtype=torch.float64)
    given = embeds(oracle, theirs.config, 2)
    given["pixel_mask"] = torch.ones_like(given["pixel_mask"])
    with torch.no_grad():
        expected = theirs(**{**given, "inputs_embeds": given["inputs_embeds"].clone()}).logits
        del given["pixel_mask"]
        oracle.check_close("logits", ours(**given).logits, expected, OUTPUT[torch.float64])


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
        oracle.check_close("logits", ours(**inputs).logits, expected, OUTPUT[torch.float64])


@pytest.mark.parametrize("name", ["ViltModel", "ViltForImagesAndTextClassification", "ViltForTokenClassification"])
@pytest.mark.parametrize("by_layer", [False, True], ids=["heads", "layers x heads"])
def test_head_mask(oracle, tmp_path, by_layer, name):
    """transformers 5 has none; 4.37 multiplies the probabilities after the softmax, as the reference does."""
    theirs = oracle.build(name, {**oracle.config_kwargs(5), "max_image_length": -1}, dtype=torch.float64)
    ours = load_ours(name, theirs, tmp_path, dtype=torch.float64)
    config, state = theirs.config, theirs.state_dict()
    inputs = oracle.to_double(oracle.inputs_for(name, config, seed=6))
    inputs.pop("labels", None)
    shape = (config.num_hidden_layers, config.num_attention_heads)[0 if by_layer else 1 :]
    head_mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)).double()
    head_mask.view(-1)[0] = 0.0
    tolerance = OUTPUT[torch.float64]
    with torch.no_grad():
        got = ours(**inputs, head_mask=head_mask, output_attentions=True)
        if name == "ViltForImagesAndTextClassification":
            images = {key: inputs.pop(key) for key in ("pixel_values", "pixel_mask")}
            expected = paper.classify_pictures(state, config, images, {**inputs, "head_mask": head_mask})
            oracle.check_close("logits", got.logits, expected, tolerance)
            return
        prefix = "" if name == "ViltModel" else "vilt."
        expected = paper.encode(state, config, prefix=prefix, head_mask=head_mask, **inputs)
        if name == "ViltModel":
            oracle.check_rows("last_hidden_state", got[0], expected[0], expected.mask, tolerance)
        else:
            words = inputs["attention_mask"] != 0
            logits = paper.classify_tokens(state, expected.last_hidden_state[:, : words.shape[1]])
            oracle.check_close("logits of real words", got.logits[words], logits[words], tolerance)
    oracle.check_layers("attentions", got.attentions, expected.attentions, expected.mask, tolerance)


def test_gradient_of_pixels(oracle, tmp_path):
    theirs = oracle.build("ViltModel", oracle.config_kwargs(9), dtype=torch.float64)
    ours = load_ours("ViltModel", theirs, tmp_path, dtype=torch.float64)
    inputs = oracle.to_double(oracle.batch(theirs.config, seed=3))
    pixels = [inputs["pixel_values"].clone().requires_grad_() for _ in range(2)]
    expected, masks, real = oracle.run(theirs, {**inputs, "pixel_values": pixels[0]})
    got = oracle.run_ours("ViltModel", ours, {**inputs, "pixel_values": pixels[1]}, masks)
    objective(expected, inputs, real).backward()
    objective(got, inputs, real).backward()
    oracle.check_close("gradient of pixel_values", pixels[1].grad, pixels[0].grad, GRADIENT[torch.float64])


def test_float_masks_and_half_precision(oracle, tmp_path):
    """Masks may be float or bool; a bf16 model takes fp32 pixels and stays within bf16's rounding of fp32."""
    theirs = oracle.build("ViltForQuestionAnswering", {**oracle.config_kwargs(2), "max_image_length": -1})
    ours = load_ours("ViltForQuestionAnswering", theirs, tmp_path)
    inputs = oracle.batch(theirs.config, seed=8)
    with torch.no_grad(), oracle.raster_order():
        expected = ours(**inputs).logits
        for dtype in (torch.float32, torch.bool, torch.uint8):
            cast = {k: v.to(dtype) if k.endswith("mask") else v for k, v in inputs.items()}
            oracle.check_equal(f"logits with masks in {dtype}", ours(**cast).logits, expected)
        half = packed.ViltForQuestionAnswering.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        logits = half(**inputs).logits
    assert logits.dtype == torch.bfloat16
    # eps = 2 ** -8 a rounding, some twenty roundings deep: 2 % of the largest logit was seen, five times that allowed.
    share = oracle.relative(logits.float(), expected, "logits in bf16")
    assert share < 0.1, f"logits in bf16: off by {share:.3g} of the largest logit"
