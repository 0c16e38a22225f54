"""torch.export of every class, called as a user calls it: any batch gives what the eager model gives."""

import copy
import importlib.util
import io
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

_spec = importlib.util.spec_from_file_location("export_cases", Path(__file__).with_name("cases.py"))
cases = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

EVERY = [case.name for case in cases.CASES]


def often(*names):
    """Every class, of which these run on every change: an export takes two seconds of a core."""
    assert set(names) <= set(EVERY)
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]


# Each way through the models once, and each class in one way.
DYNAMIC = often(
    "ViltForQuestionAnswering",
    "ViltForMaskedLM",
    "ViltForImagesAndTextClassification",
    "ViTForMaskedImageModeling",
    "VisualBertModel with bypass_transformer",
    "VisualBertForPreTraining",
    "VisualBertForMultipleChoice",
    "VisualBertForRegionToPhraseAlignment",
)
STATIC = often(
    "ViltForImageAndTextRetrieval",
    "ViltForTokenClassification",
    "ViltForImageTextMatching",
    "VisualBertForVisualReasoning",
)
STRICT = often("VisualBertForQuestionAnswering")


@cache
def exported(name, *, dynamic, strict=False):
    """(case, model, program)."""
    case = cases.BY_NAME[name]
    model = case.model()
    return case, model, cases.export(model, case.inputs(model), dynamic=dynamic, strict=strict)


def others(case, model):
    """Batches of other sizes than the example's, and other values of the same."""
    return [case.inputs(model, sizes, seed) for seed, sizes in enumerate((cases.EXAMPLE, *cases.OTHERS), start=1)]


def poisoned(inputs):
    """The same with NaN in what is masked."""
    nan = float("nan")
    found = dict(inputs)
    if "pixel_mask" in inputs:
        outside = inputs["pixel_mask"].unsqueeze(-3) == 0
        found["pixel_values"] = inputs["pixel_values"].masked_fill(outside, nan)
    else:
        masked = inputs["visual_attention_mask"][..., None] == 0
        found["visual_embeds"] = inputs["visual_embeds"].masked_fill(masked, nan)
    assert any(value.isnan().any() for value in found.values() if value.is_floating_point()), "nothing is masked"
    return found


def check_option(name, change, **fields):
    """Exported with inputs that `change` makes of a batch, a class gives what it gives eagerly."""
    case = cases.BY_NAME[name]
    model = case.model(**fields)
    program = cases.export(model, change(case.inputs(model), model), dynamic=True)
    some = [change(inputs, model) for inputs in others(case, model)]
    cases.check_all(program.module(), model, some)
    return program


# --- every class ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic(name):
    """Nor does NaN in the padding reach an answer: pixels outside an image, features of masked regions."""
    case, model, program = exported(name, dynamic=True)
    run = program.module()
    cases.check_all(run, model, others(case, model))
    inputs = case.inputs(model, cases.OTHERS[1], seed=9)
    with torch.no_grad():
        cases.check(run(**poisoned(inputs)), model(**inputs))
    assert not [target for target in cases.call_targets(program) if "vilt_fast" in target]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViltModel", "ViTForMaskedImageModeling"])
def test_grids_of_one_patch(name):
    """The graph takes them; PyTorch's guard does not, unless sizes of one are traced as any other."""
    case, model, program = exported(name, dynamic=True)
    thin = [case.inputs(model, sizes, seed) for seed, sizes in enumerate(cases.THIN)]
    cases.check_all(program.module(check_guards=False), model, thin)
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = cases.export(model, case.inputs(model), dynamic=True)
    cases.check_all(program.module(), model, [*thin, *others(case, model)])


@pytest.mark.parametrize("name", STATIC)
def test_static(name):
    case, model, program = exported(name, dynamic=False)
    batch, *rest = others(case, model)
    cases.check_all(program.module(), model, [batch])
    with pytest.raises((RuntimeError, AssertionError)):  # torch's own word for other sizes than the example's
        program.module()(**rest[0])
    assert not [target for target in cases.call_targets(program) if "vilt_fast" in target]


@pytest.mark.parametrize("name", STRICT)
def test_strict(name):
    case, model, program = exported(name, dynamic=True, strict=True)
    cases.check_all(program.module(), model, others(case, model))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_strict_static(name):
    case, model, program = exported(name, dynamic=False, strict=True)
    cases.check_all(program.module(), model, others(case, model)[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViltForQuestionAnswering", "ViTModel", "VisualBertForPreTraining"])
def test_saved_and_loaded(name):
    case, model, program = exported(name, dynamic=True)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    cases.check_all(torch.export.load(file).module(), model, others(case, model))


# --- what a call may ask for, and be given ----------------------------------------------------------------------------


WANTED = dict(output_hidden_states=True, output_attentions=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_states_and_attentions(name):
    check_option(name, lambda inputs, _: {**inputs, **WANTED}, num_hidden_layers=2)


def without(*names):
    return lambda inputs, _: {name: value for name, value in inputs.items() if name not in names}


def left_padded(inputs, _):
    return {name: x.flip(1) if name in ("input_ids", "attention_mask") else x for name, x in inputs.items()}


def head_mask(inputs, _):
    return {**inputs, "head_mask": torch.tensor([0.4, 1.2])}


def embedded(inputs, model):
    ids = inputs["input_ids"]
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    return {**rest, "inputs_embeds": torch.sin(ids[..., None] * torch.arange(1.0, model.config.hidden_size + 1))}


def image_embeds(inputs, model):
    """Rows that already hold CLS and positions, some of them masked."""
    mask = inputs["pixel_mask"][:, :: cases.PATCH, :: cases.PATCH].flatten(1)
    mask = torch.cat((torch.ones_like(mask[:, :1]), mask), 1)
    rows = torch.cos(mask.cumsum(1)[..., None] * torch.arange(1.0, model.config.hidden_size + 1))
    rest = {name: value for name, value in inputs.items() if not name.startswith("pixel")}
    return {**rest, "image_embeds": torch.where(mask[..., None] != 0, rows, 1000.0), "pixel_mask": mask}


def patch_mask(inputs, _):
    """Drops every third patch, but for the first of each image."""
    mask = inputs["pixel_mask"][..., :: cases.PATCH, :: cases.PATCH]
    place = torch.arange(mask[0].numel()).view(mask.shape[1:])
    return {**inputs, "patch_mask": ((place % 3 != 2) | (place == 0)).expand(mask.shape).clone()}


def aligned(inputs, _):
    """Positions of words that go with each region."""
    batch, count = inputs["visual_attention_mask"].shape
    places = torch.arange(batch * count * 2).view(batch, count, 2) % 3 - 1
    return {**inputs, "image_text_alignment": places}


def interpolated(inputs, _):
    return {"pixel_values": inputs["pixel_values"], "interpolate_pos_encoding": True}


def several(*changes):
    def change(inputs, model):
        for one in changes:
            inputs = one(inputs, model)
        return inputs

    return change


OPTIONS = {
    "words alone": ("VisualBertModel", without("visual_embeds", "visual_attention_mask", "visual_token_type_ids")),
    "left-padded words": ("ViltForQuestionAnswering", left_padded),
    "left-padded words of VisualBERT": ("VisualBertForQuestionAnswering", left_padded),
    "left-padded words, every row": ("VisualBertModel", left_padded),
    "left-padded words to fill": ("ViltForMaskedLM", left_padded),
    "inputs_embeds": ("ViltForQuestionAnswering", embedded),
    "inputs_embeds of VisualBERT": ("VisualBertModel", embedded),
    "inputs_embeds beside bypass": ("VisualBertModel with bypass_transformer", embedded),
    "alignment": ("VisualBertModel", aligned),
    "head_mask of ViLT": ("ViltModel", head_mask),
    "head_mask of ViT": ("ViTModel", head_mask),
    "head_mask of VisualBERT": ("VisualBertForQuestionAnswering", head_mask),
    "image_embeds": ("ViltModel", image_embeds),
    "image_embeds of the answer": ("ViltForQuestionAnswering", image_embeds),
    "patch_mask of ViLT": ("ViltModel", patch_mask),
    "patch_mask of ViT": ("ViTModel", patch_mask),
    "no masks": ("ViltModel", without("attention_mask", "token_type_ids", "pixel_mask")),
    "no masks of regions": ("VisualBertForQuestionAnswering", without("attention_mask", "visual_attention_mask")),
    "no masked patches": ("ViTForMaskedImageModeling", without("bool_masked_pos")),
    "images of one size": ("ViTForImageClassification", interpolated),
}


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_option(option):
    check_option(*OPTIONS[option])


def test_many_options_of_vilt():
    """And two blocks, whose states and attentions are looked at."""
    change = several(left_padded, patch_mask, head_mask, lambda inputs, _: {**inputs, **WANTED})
    check_option("ViltModel", change, num_hidden_layers=2)


def test_many_options_of_visual_bert():
    change = several(left_padded, embedded, aligned, head_mask, lambda inputs, _: {**inputs, **WANTED})
    check_option("VisualBertModel", change, num_hidden_layers=2)


def test_embedded_images():
    check_option("ViltForQuestionAnswering", several(embedded, image_embeds))


def test_images_of_one_size():
    check_option("ViTForImageClassification", interpolated)


# --- models that users have changed -----------------------------------------------------------------------------------


class Adapter(nn.Module):
    """A projection and a product of low rank beside it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.down = nn.Linear(inner.in_features, 2, bias=False)
        self.up = nn.Linear(2, inner.out_features, bias=False)

    def forward(self, rows):
        return self.inner(rows) + self.up(self.down(rows))


def check_changed(name, change):
    """A changed model is exported changed: its answers are its own, and not those of the plain one."""
    case = cases.BY_NAME[name]
    plain = case.model()
    model = copy.deepcopy(plain)
    torch.manual_seed(0)
    change(model)
    program = cases.export(model, case.inputs(model), dynamic=True)
    some = others(case, model)[:2]
    cases.check_all(program.module(), model, some)
    with torch.no_grad(), pytest.raises(AssertionError, match="off by"):
        cases.check(plain(**some[0]), model(**some[0]))


def adapt(model):
    attention = model.base_model.encoder.layer[0].attention
    attention = getattr(attention, "attention", None) or attention.self
    attention.query, attention.value = Adapter(attention.query), Adapter(attention.value)


def hook(model):
    block = model.base_model.encoder.layer[0]
    for module in (block, block.output.dense):
        module.register_forward_hook(lambda *args: shifted(args[-1]))


def shifted(output):
    return (output[0] * 1.3, *output[1:]) if isinstance(output, tuple) else output * 1.3


def prune(model):
    model.prune_heads({0: [1]}) if hasattr(model, "prune_heads") else model.base_model.prune_heads({0: [1]})


CHANGES = {"adapters": adapt, "hooks": hook, "pruned heads": prune}
HEADS = ("ViltForQuestionAnswering", "ViTForImageClassification", "VisualBertForQuestionAnswering")


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_models(change, name):
    check_changed(name, CHANGES[change])


def test_an_adapted_model():
    check_changed("ViltForQuestionAnswering", adapt)


def test_a_pruned_model_with_hooks():
    check_changed("VisualBertForQuestionAnswering", lambda model: (prune(model), hook(model)))
