"""torch.compile of the live form: where it breaks, how often it compiles, and that nothing else changes."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.utils import counters

import vilt_fast

VILT = (
    "ViltModel",
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForImagesAndTextClassification",
    "ViltForImageAndTextRetrieval",
    "ViltForImageTextMatching",
    "ViltForTokenClassification",
)
VIT = ("ViTModel", "ViTForMaskedImageModeling", "ViTForImageClassification")
VISUAL_BERT = (
    "VisualBertModel",
    "VisualBertForPreTraining",
    "VisualBertForQuestionAnswering",
    "VisualBertForVisualReasoning",
    "VisualBertForMultipleChoice",
    "VisualBertForRegionToPhraseAlignment",
)
SMALL = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40, num_labels=5)
IMAGES = dict(image_size=32, patch_size=8)
WORDS = dict(vocab_size=31, max_position_embeddings=24)
SLOW = pytest.mark.slow
QUICK = ("ViltModel", "ViltForQuestionAnswering", "ViTForMaskedImageModeling", "VisualBertForPreTraining")


def each(*quick):
    """Every class, those that are not named in the slow run alone."""
    return [pytest.param(name, marks=() if name in quick else SLOW) for name in (*VILT, *VIT, *VISUAL_BERT)]


# Sums in another order than eager's: fp32 rounding of values near one.
CLOSE = {"rtol": 0, "atol": 5e-6}


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()
    counters.clear()


@pytest.fixture
def make(oracle):
    """A small model of a class, no parameter at its initial value."""

    def make(name, **changes):
        if name in VIT:
            config = vilt_fast.ViTConfig(**SMALL, **IMAGES, encoder_stride=8, **changes)
        elif name in VILT:
            several = dict(num_images=2, modality_type_vocab_size=3)
            config = vilt_fast.ViltConfig(**SMALL, **IMAGES, **WORDS, **several, **changes)
        else:
            config = vilt_fast.VisualBertConfig(**SMALL, **WORDS, visual_embedding_dim=10, **changes)
        return oracle.randomise(getattr(vilt_fast, name)(config), seed=3).eval()

    return make


def ragged(name, seed=0):
    """A batch in which everything is of its own size: pairs, words, regions, images and their masks."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    batch, given = int(draw(2, 6)), {}
    several = {"ViltForImagesAndTextClassification": (2,), "VisualBertForMultipleChoice": (2,)}.get(name, ())
    if name in VISUAL_BERT:
        lead, regions = (batch, *several), int(draw(2, 9))
        given["visual_embeds"] = torch.randn(*lead, regions, 10, generator=generator)
        given["visual_attention_mask"] = (torch.arange(regions) < draw(1, regions + 1, *lead, 1)).long()
        if name == "VisualBertForRegionToPhraseAlignment":
            given["region_to_phrase_position"] = draw(0, 2, batch, 2)
    else:
        lead, sides = (batch,), 8 * draw(2, 9, batch, *several, 2)
        height, width = sides.flatten(0, -2).amax(0).tolist()
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        given["pixel_mask"] = ((rows < sides[..., 0, None, None]) & (columns < sides[..., 1, None, None])).long()
        given["pixel_values"] = torch.randn(batch, *several, 3, height, width, generator=generator)
        if name == "ViTForMaskedImageModeling":
            given["bool_masked_pos"] = draw(0, 2, batch, height // 8 * (width // 8))
        if name in VIT:
            return given
    length = int(draw(6, 20))
    given["input_ids"] = draw(0, 31, *lead, length)
    given["attention_mask"] = (torch.arange(length) < draw(2, length + 1, *lead, 1)).long()
    return given


class Graphs:
    """A backend that runs what it gets as it is, and keeps it."""

    def __init__(self):
        self.made = []

    def __call__(self, graph, example_inputs):
        self.made.append(graph)
        return graph.forward


def breaks():
    return sum(counters["graph_break"].values())


def check_equal(got, wanted):
    assert list(got) == list(wanted)
    torch.testing.assert_close(dict(got), dict(wanted), **CLOSE)


# --- breaks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each(*QUICK))
def test_one_break_and_one_graph(make, name):
    """The plan is the break; all that has an operation is behind it, in one graph."""
    model, inputs, graphs = make(name), ragged(name), Graphs()
    with torch.no_grad():
        check_equal(torch.compile(model, backend=graphs)(**inputs), model(**inputs))
    assert (breaks(), len(graphs.made)) == (1, 1), dict(counters["graph_break"])


@pytest.mark.parametrize(
    "name, options",
    [
        pytest.param("ViltForMaskedLM", {"output_attentions": True}, marks=pytest.mark.slow),
        pytest.param("ViltForImagesAndTextClassification", {"output_hidden_states": True}, marks=SLOW),
        pytest.param("VisualBertModel", {"output_attentions": True, "output_hidden_states": True}, marks=SLOW),
        pytest.param("ViTForMaskedImageModeling", {"output_attentions": True}, marks=SLOW),
    ],
)
def test_maps_and_states_add_no_break(make, name, options):
    model, inputs = make(name), ragged(name)
    with torch.no_grad():
        check_equal(torch.compile(model, backend="eager")(**inputs, **options), model(**inputs, **options))
    assert breaks() == 1, dict(counters["graph_break"])


@SLOW
def test_hooks_add_no_break(make):
    name = "ViltForQuestionAnswering"
    model, inputs = make(name), ragged(name)
    before = model(**inputs).logits
    model.vilt.register_forward_hook(lambda *_: None)  # so that it is called as a module
    model.vilt.encoder.layer[0].attention.attention.query.register_forward_hook(lambda *seen: 1.5 * seen[2])
    wanted, got = model(**inputs), torch.compile(model, backend="eager")(**inputs)
    assert not torch.allclose(before, wanted.logits)
    check_equal(got, wanted)
    assert breaks() == 1, dict(counters["graph_break"])


@pytest.mark.parametrize("name", each("ViltForImagesAndTextClassification", "VisualBertForMultipleChoice"))
def test_no_break_from_a_layout(make, name):
    model, inputs = make(name), ragged(name)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        check_equal(compiled(**inputs, layout=model.plan(**inputs)), model(**inputs))


def test_no_break_on_the_kernels(make, device):
    if device.type != "cpu":
        pytest.skip("the interpreter's launches are what is traced here")
    name = "ViltForQuestionAnswering"
    model, inputs = make(name), ragged(name)
    wanted = model(**inputs)
    with vilt_fast.backend("kernels"), torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        check_equal(compiled(**inputs, layout=model.plan(**inputs)), wanted)


# --- recompiles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ViltForQuestionAnswering", *(pytest.param(n, marks=SLOW) for n in ("ViTModel", "VisualBertModel"))]
)
def test_fifty_ragged_batches_compile_three_times(make, name):
    """Once for the first sizes, once for any; a size that stayed the same between the two costs one more."""
    model, graphs = make(name), Graphs()
    compiled = torch.compile(model, backend=graphs)
    with torch.no_grad():
        for seed in range(50):
            inputs = ragged(name, seed)
            got = compiled(**inputs)
            if seed % 10 == 9:
                check_equal(got, model(**inputs))
    assert len(graphs.made) <= 3


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "p, recomputed", [(0.0, False), pytest.param(0.2, False, marks=SLOW), pytest.param(0.2, True, marks=SLOW)]
)
def test_loss_and_gradients(make, p, recomputed):
    """From a layout that was planned with the labels, in one graph; dropout of rows draws as in eager."""
    name = "ViltForQuestionAnswering"
    model, inputs = make(name, hidden_dropout_prob=p).train(), ragged(name)
    inputs["labels"] = torch.rand(len(inputs["input_ids"]), 5, generator=torch.Generator().manual_seed(0))
    if recomputed:
        model.gradient_checkpointing_enable()

    def gradients(call, **given):
        model.zero_grad()
        torch.manual_seed(0)
        loss = call(**inputs, **given).loss
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]

    wanted = gradients(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = gradients(compiled, layout=model.plan(**inputs))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)  # gradients are sums over 50 rows of what CLOSE is for


@SLOW
def test_dropped_probabilities_are_finite_and_other_than_eagers(make):
    """Attention drops by PyTorch's generator in the padded form: as many, not the same."""
    name = "ViltForQuestionAnswering"
    model, inputs = make(name, attention_probs_dropout_prob=0.5).train(), ragged(name)
    compiled = torch.compile(model, backend="aot_eager")
    first, second = compiled(**inputs).logits, compiled(**inputs).logits
    assert first.isfinite().all() and not torch.equal(first, second)
    first.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@SLOW
@pytest.mark.parametrize("name", ["ViltForQuestionAnswering", "ViTForImageClassification", "VisualBertModel"])
def test_inductor(make, name):
    """Machine code for three sizes; vectorised sums add in yet another order, which CLOSE allows for."""
    model = make(name)
    compiled = torch.compile(model)
    with torch.no_grad():
        for seed in range(3):
            inputs = ragged(name, seed)
            check_equal(compiled(**inputs), model(**inputs))


# --- values ---------------------------------------------------------------------------------------------------------


def wrong_id(inputs):
    inputs["input_ids"][0, 0] = 99
    return r"input_ids must be in 0\.\.30"


def infinite_pixel(inputs):
    inputs["pixel_values"][1, 0, 0, 0] = torch.inf
    return "image 1 has NaN or infinite pixels"


def hole_in_a_mask(inputs):
    inputs["pixel_mask"][0, 0, 0] = 0
    return "must form one rectangle"


def wrong_label(inputs):
    inputs["labels"] = torch.full((len(inputs["input_ids"]),), 7)
    return r"labels must be in 0\.\.1, got 7"


def other_length(inputs):
    inputs["attention_mask"] = inputs["attention_mask"][:, 1:]
    return "attention_mask must have shape"


@pytest.mark.parametrize("spoil", [wrong_id, infinite_pixel, hole_in_a_mask, wrong_label, other_length])
def test_values_are_checked_as_in_eager(make, spoil):
    name = "ViltForImageAndTextRetrieval"
    model, inputs = make(name), ragged(name)
    message = spoil(inputs)
    for call in (model, model.plan, torch.compile(model, backend="eager")):
        with pytest.raises(ValueError, match=message):
            call(**inputs)


# --- plan -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VILT, *VIT, *VISUAL_BERT])
def test_a_layout_changes_nothing(make, name):
    model, inputs = make(name), ragged(name)
    with torch.no_grad():
        wanted, got = model(**inputs), model(**inputs, layout=model.plan(**inputs))
    assert all(torch.equal(got[field], wanted[field]) for field in wanted)


def test_a_layout_of_inference_mode_trains(make):
    model, inputs = make("ViltForQuestionAnswering"), ragged("ViltForQuestionAnswering")
    with torch.inference_mode():
        layout = model.plan(**inputs)
    model(**inputs, layout=layout).logits.sum().backward()
    assert model.classifier[0].weight.grad is not None
    model.zero_grad()


def test_a_layout_holds_the_sample(make):
    name = "ViltModel"
    model, inputs = make(name, max_image_length=3), ragged(name)
    with torch.no_grad():
        wanted = model(**inputs, seed=7).last_hidden_state
        got = model(**inputs, layout=model.plan(**inputs, seed=7)).last_hidden_state
        other = model(**inputs, layout=model.plan(**inputs, seed=8)).last_hidden_state
    assert torch.equal(got, wanted) and not torch.equal(other, wanted)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda given: {key: value[1:] for key, value in given.items()}, r"\(pairs, words\)"),
        (lambda given: {**given, **{k: given[k][:, 1:] for k in ("input_ids", "attention_mask")}}, r"\(pairs, words\)"),
        (lambda given: {**given, **{k: given[k][..., :-8] for k in ("pixel_values", "pixel_mask")}}, "a grid of"),
    ],
)
def test_a_layout_of_another_batch_is_refused(make, change, message):
    model, inputs = make("ViltModel"), ragged("ViltModel")
    with pytest.raises(ValueError, match=rf"layout is of another batch: it has {message} .*plan\(\) this one"):
        model(**change(inputs), layout=model.plan(**inputs))


def test_what_is_no_layout_is_refused(make):
    model, inputs = make("ViltModel"), ragged("ViltModel")
    with pytest.raises(ValueError, match=r"layout must be what plan\(\) of the model gave, got dict"):
        model(**inputs, layout={})


@pytest.mark.parametrize("argument", ["image", "layout"])
def test_an_argument_that_is_none_of_forward(make, argument):
    model, inputs = make("ViltModel"), ragged("ViltModel")
    with pytest.raises(ValueError, match=rf"plan: got {argument}, wanted arguments of ViltModel\.forward: input_ids"):
        model.plan(**inputs, **{argument: None})


def test_images_that_run_one_by_one_take_no_layout(make):
    name = "ViltForImagesAndTextClassification"
    model, inputs = make(name), ragged(name)
    layout = model.plan(**inputs)
    assert layout.batch_size == 2 * len(inputs["input_ids"])
    with pytest.raises(ValueError, match="layout: with output_attentions.* images run one by one"):
        model(**inputs, layout=layout, output_attentions=True)


@SLOW
def test_a_wrapped_base_model_plans_by_itself(make):
    """Then there are more breaks, and the numbers are the same."""
    name = "ViltForQuestionAnswering"
    model, inputs = make(name), ragged(name)
    wanted = model(**inputs)
    model.vilt = Wrapper(model.vilt)
    with pytest.raises(ValueError, match="plan: below the head is a Wrapper, wanted a ViltModel"):
        model.plan(**inputs)
    check_equal(torch.compile(model, backend="eager")(**inputs), wanted)


class Wrapper(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_the_frozen_form_takes_no_layout(make):
    model, inputs = make("ViltForQuestionAnswering"), ragged("ViltForQuestionAnswering")
    with pytest.raises(TypeError, match="unexpected argument 'layout'"):
        vilt_fast.freeze(model)(**inputs, layout=model.plan(**inputs))


def test_the_compiler_is_imported_by_nobody_else():
    """Its import takes a second; nothing is compiled here."""
    code = """
import sys, torch, vilt_fast
model = vilt_fast.ViTModel(vilt_fast.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                                               intermediate_size=8, image_size=8, patch_size=4)).eval()
pixels = torch.zeros(1, 3, 8, 8)
model(pixels, layout=model.plan(pixel_values=pixels))
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
