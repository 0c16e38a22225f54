"""Every argument of a VisualBERT, alone and with others; what is wrong is refused where it enters, by name."""

import inspect
import random

import pytest
import torch

import vilt_fast
from vilt_fast import VisualBertConfig, VisualBertModel, ViTConfig, freeze
from vilt_fast.reference import visual_bert as paper

CONFIG = dict(
    vocab_size=20,
    hidden_size=24,
    visual_embedding_dim=6,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=9,
    num_labels=5,
)
CLASSES = (
    "VisualBertModel",
    "VisualBertForPreTraining",
    "VisualBertForQuestionAnswering",
    "VisualBertForVisualReasoning",
    "VisualBertForRegionToPhraseAlignment",
)
ARGUMENTS = (
    "input_ids attention_mask token_type_ids position_ids head_mask inputs_embeds visual_embeds visual_attention_mask "
    "visual_token_type_ids image_text_alignment output_attentions output_hidden_states return_dict"
).split()
# fp64: the same formula in another order.
CLOSE = dict(rtol=1e-10, atol=1e-11)
# fp32: the same products, summed in another order; the values are about one.
CLOSE_FP32 = dict(rtol=1e-5, atol=1e-5)
IDS = torch.tensor([[2, 7, 4, 3], [2, 9, 3, 0]])
WORDS = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
FEATURES = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
REGIONS = torch.tensor([[1, 1, 1], [0, 1, 1]])
ALIGNMENT = torch.tensor([[[0, 1], [2, -1], [-1, -1]], [[1, -1], [3, 0], [2, 2]]])
PHRASES = {"VisualBertForRegionToPhraseAlignment": {"region_to_phrase_position": torch.tensor([[1, 2], [1, -1]])}}
BASE = {"input_ids": IDS, "attention_mask": WORDS, "visual_embeds": FEATURES, "visual_attention_mask": REGIONS}


def given(name="VisualBertModel", **changes):
    """Two pairs for a class, changed; None leaves an argument out."""
    inputs = {**BASE, **PHRASES.get(name, {}), **changes}
    return {key: value for key, value in inputs.items() if value is not None}


@pytest.fixture(scope="module")
def models(oracle):
    """Each class, and the one whose inputs have an axis more."""
    names = (*CLASSES, "VisualBertForMultipleChoice")
    return {n: oracle.randomise(getattr(vilt_fast, n)(VisualBertConfig(**CONFIG)), 2).eval() for n in names}


# --- what is right -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLASSES, "VisualBertForMultipleChoice"])
def test_the_order_of_arguments_is_that_of_437(models, name):
    last = {"VisualBertModel": [], "VisualBertForPreTraining": ["labels", "sentence_image_labels"]}
    last["VisualBertForRegionToPhraseAlignment"] = ["region_to_phrase_position", "labels"]
    found = inspect.signature(models[name].forward).parameters
    assert [argument for argument in found if argument != "layout"] == ARGUMENTS + last.get(name, ["labels"])
    assert found["layout"].kind is inspect.Parameter.KEYWORD_ONLY


def optional(config):
    """One value for each argument that can be left out."""
    generator = torch.Generator().manual_seed(4)
    return {
        "attention_mask": torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]]),
        "token_type_ids": torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]]),
        "position_ids": torch.tensor([[3, 8, 0, 1], [2, 2, 5, 4]]),
        "head_mask": torch.tensor([[0.5, 0.0]], dtype=torch.float64),
        "inputs_embeds": torch.randn(2, 4, config.hidden_size, generator=generator, dtype=torch.float64),
        "visual_attention_mask": REGIONS,
        "visual_token_type_ids": torch.tensor([[1, 0, 0], [0, 0, 1]]),
        "image_text_alignment": torch.cat([ALIGNMENT, ALIGNMENT], 1),
    }


@torch.no_grad()
@pytest.mark.parametrize("bypass", [False, True], ids=["", "bypass"])
@pytest.mark.parametrize("number", range(20))
def test_arguments_alone_and_together(oracle, number, bypass):
    """Against the reference: each by itself, then mixtures of them, with holes in both masks."""
    config = VisualBertConfig(**{**CONFIG, "num_hidden_layers": 2 if number % 2 else 1, "bypass_transformer": bypass})
    model = oracle.randomise(VisualBertModel(config), 3).double().eval()
    values = optional(config)
    if config.num_hidden_layers == 2:
        values["head_mask"] = torch.tensor([0.25, 1.0], dtype=torch.float64)
    names = list(values)
    chosen = names[number : number + 1] if number < len(names) else random.Random(number).sample(names, number % 7 + 2)
    inputs = {"visual_embeds": FEATURES.double(), **{name: values[name] for name in chosen}}
    if "inputs_embeds" not in inputs:
        inputs["input_ids"] = IDS
    wanted = paper.encode(model.state_dict(), config, prefix="", **inputs)
    got = model(**inputs, output_hidden_states=True, output_attentions=True)
    for field in ("last_hidden_state", "pooler_output", "hidden_states", "attentions"):
        torch.testing.assert_close(got[field], getattr(wanted, field), **CLOSE)
    torch.testing.assert_close(model(**inputs).pooler_output, wanted.pooler_output, **CLOSE)


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_masks_of_every_dtype(models, name):
    wanted = models[name](**given(name))
    for words in DTYPES:
        for regions in DTYPES[:: 3 if words == torch.bool else 9]:
            got = models[name](**given(name, attention_mask=WORDS.to(words), visual_attention_mask=REGIONS.to(regions)))
            assert torch.equal(got[0], wanted[0]), (words, regions)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_indices_of_every_integer_dtype(models, dtype):
    types = {"token_type_ids": torch.zeros_like(IDS), "visual_token_type_ids": torch.zeros_like(REGIONS)}
    inputs = given(position_ids=IDS % 9, **types)
    wanted = models["VisualBertModel"](**inputs, image_text_alignment=ALIGNMENT).last_hidden_state
    small = {k: v if k == "visual_embeds" else v.to(dtype) for k, v in inputs.items()}
    alignment = ALIGNMENT if dtype == torch.uint8 else ALIGNMENT.to(dtype)
    got = models["VisualBertModel"](**small, image_text_alignment=alignment).last_hidden_state
    assert torch.equal(got, wanted)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_an_alignment_longer_than_the_regions_is_cut(models, name):
    """What is cut off is not looked at, nor checked."""
    wanted = models[name](**given(name, image_text_alignment=ALIGNMENT))
    longer = torch.cat([ALIGNMENT, torch.full((2, 2, 2), 77)], 1)
    got = models[name](**given(name, image_text_alignment=longer))
    assert torch.equal(got[0], wanted[0])


@torch.no_grad()
def test_an_alignment_with_nothing_is_none(models):
    wanted = models["VisualBertModel"](**given()).last_hidden_state
    for nothing in (torch.full((2, 3, 4), -1), torch.zeros(2, 3, 0, dtype=torch.long)):
        got = models["VisualBertModel"](**given(image_text_alignment=nothing)).last_hidden_state
        torch.testing.assert_close(got, wanted)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES[:-1])
def test_no_region_kept(models, name):
    """In one pair, in all, or none there to be kept: each pair is as its text alone."""
    text = models[name](input_ids=IDS, attention_mask=WORDS)
    some = REGIONS.clone()
    some[1] = 0
    for changes, pairs in (
        ({"visual_attention_mask": some}, slice(1, 2)),
        ({"visual_attention_mask": REGIONS * 0}, slice(0, 2)),
        ({"visual_embeds": FEATURES[:, :0], "visual_attention_mask": None}, slice(0, 2)),
    ):
        got = models[name](**given(**changes))
        for field, value in text.items():
            part = got[field][pairs]
            if value.dim() == 3:
                assert part[:, 4:].eq(0).all()
                part = part[:, :4]
            torch.testing.assert_close(part, value[pairs], **CLOSE_FP32)


@torch.no_grad()
def test_no_region_to_align(models):
    """Every region of the second pair scores the least number; the first pair is not touched."""
    name = "VisualBertForRegionToPhraseAlignment"
    some = REGIONS.clone()
    some[1] = 0
    logits = models[name](**given(name, visual_attention_mask=some)).logits
    assert logits[1].eq(torch.finfo(torch.float32).min).all()
    torch.testing.assert_close(logits[0], models[name](**given(name)).logits[0])


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in CLASSES if "Question" not in n])
def test_one_word(models, name):
    """Alone in the text, or the one that is attended to."""
    inputs = given(name, attention_mask=None)
    if "region_to_phrase_position" in inputs:
        inputs["region_to_phrase_position"] = torch.tensor([[0, 0], [0, -1]])
    single = models[name](**{**inputs, "input_ids": IDS[:, :1]})
    masked = models[name](**inputs, attention_mask=torch.tensor([[1, 0, 0, 0]] * 2))
    for field, value in single.items():
        got = masked[field]
        if value.dim() == 3 and got.shape != value.shape:
            got = torch.cat([got[:, :1], got[:, 4:]], 1)
        torch.testing.assert_close(got, value, **CLOSE_FP32)


@torch.no_grad()
def test_features_that_are_not_read(models):
    """NaN where a region is masked changes nothing; features of another dtype are cast to the weights'."""
    wanted = models["VisualBertModel"](**given()).last_hidden_state
    features = FEATURES.clone()
    features[1, 0] = float("nan")
    assert torch.equal(models["VisualBertModel"](**given(visual_embeds=features)).last_hidden_state, wanted)
    got = models["VisualBertModel"](**given(visual_embeds=FEATURES.double())).last_hidden_state
    assert got.dtype == torch.float32 and torch.equal(got, wanted)


@torch.no_grad()
def test_positions_for_all_pairs_at_once(models):
    """(1, L), as transformers broadcasts them; and a text longer than the table, whose positions come with it."""
    model, positions = models["VisualBertModel"], torch.tensor([[4, 3, 1, 8]])
    wanted = model(**given(position_ids=positions.repeat(2, 1))).last_hidden_state
    assert torch.equal(model(**given(position_ids=positions)).last_hidden_state, wanted)
    ids, again = torch.ones(1, 12, dtype=torch.long), torch.arange(12)[None] % 9
    assert model(ids, position_ids=again).last_hidden_state.shape == (1, 12, 24)


# --- what is refused -----------------------------------------------------------------------------------------------

NAN, FAR = FEATURES.clone(), ALIGNMENT.clone()
NAN[1, 2, 3] = float("nan")
FAR[1, 1, 1] = 9
WRONG = {
    "no words": (dict(input_ids=None), "exactly one of input_ids and inputs_embeds must be given, got neither"),
    "both": (dict(inputs_embeds=torch.ones(2, 4, 24)), "exactly one of input_ids and inputs_embeds .* got both"),
    "a list of words": (dict(input_ids=[[1, 2]]), "input_ids must be a torch tensor, got list"),
    "float words": (dict(input_ids=IDS.float()), "input_ids must hold integers, got torch.float32"),
    "one text": (dict(input_ids=IDS[0]), r"\(batch, words\).* got shape \(4,\)"),
    "vocabulary": (dict(input_ids=IDS + 15), r"input_ids must be in 0\.\.19 \(vocab_size\), got 2\d"),
    "long text": (dict(input_ids=IDS.repeat(1, 3), attention_mask=None), "max_position_embeddings = 9 .* got 12"),
    "embeddings": (
        dict(input_ids=None, inputs_embeds=torch.ones(2, 4, 23)),
        r"inputs_embeds must have shape \(2, 4, 24",
    ),
    "mask of words": (dict(attention_mask=WORDS[:, :3]), r"attention_mask must have shape \(2, 4\), got \(2, 3\)"),
    "joint mask": (
        dict(attention_mask=torch.ones(2, 7)),
        r"attention_mask must have shape \(2, 4\), got \(2, 7\)",
    ),
    "mask of 2": (dict(attention_mask=WORDS * 2), "attention_mask must hold 0 and 1, got 2"),
    "mask of a half": (dict(attention_mask=WORDS * 0.5), "attention_mask must hold 0 and 1, got 0.5"),
    "additive mask": (dict(attention_mask=(WORDS - 1) * 1e4), "attention_mask must hold 0 and 1, got -10000"),
    "NaN in a mask": (dict(attention_mask=WORDS / 0), "attention_mask .*(NaN|0 and 1)"),
    "nothing attended to": (dict(attention_mask=WORDS * 0), "attention_mask: row 0 has no word to attend to"),
    "types": (dict(token_type_ids=WORDS[:1]), r"token_type_ids must have shape \(2, 4\), got \(1, 4\)"),
    "type range": (dict(token_type_ids=WORDS + 1), r"token_type_ids must be in 0\.\.1 \(type_vocab_size\), got 2"),
    "positions": (dict(position_ids=IDS[:, :3]), r"position_ids must have shape \(2, 4\), got \(2, 3\)"),
    "position range": (
        dict(position_ids=WORDS * 9),
        r"position_ids must be in 0\.\.8 .*max_position_embeddings.* got 9",
    ),
    "position below": (dict(position_ids=WORDS - 1), r"position_ids must be in 0\.\.8 .* got -1"),
    "float positions": (dict(position_ids=WORDS.float()), "position_ids must hold integers"),
    "heads": (dict(head_mask=torch.ones(3)), r"head_mask must be \(2,\) or \(1, 2\), got shape \(3,\)"),
    "another detector": (
        dict(visual_embeds=torch.ones(2, 3, 5)),
        r"visual_embeds must be \(batch, regions, visual_embedding_dim=6\), got \(2, 3, 5\)",
    ),
    "regions of one pair": (dict(visual_embeds=FEATURES[0]), r"visual_embeds must be .* got \(3, 6\)"),
    "more pairs": (dict(visual_embeds=FEATURES[:1]), "visual_embeds must have as many rows as the text, 2, got 1"),
    "integer features": (dict(visual_embeds=FEATURES.long()), "visual_embeds must be floating point, got torch.int64"),
    "list of features": (dict(visual_embeds=FEATURES.tolist()), "visual_embeds must be a torch tensor, got list"),
    "array of features": (dict(visual_embeds=FEATURES.numpy()), "visual_embeds must be a torch tensor, got ndarray"),
    "NaN": (dict(visual_embeds=NAN), "visual_embeds: row 2 of pair 1 has NaN or infinite values"),
    "infinite": (dict(visual_embeds=FEATURES / 0), "visual_embeds: row 0 of pair 0 has NaN or infinite"),
    "mask of regions": (
        dict(visual_attention_mask=REGIONS[:, :2]),
        r"visual_attention_mask must have shape \(2, 3\), got \(2, 2\)",
    ),
    "regions of 2": (dict(visual_attention_mask=REGIONS * 2), "visual_attention_mask must hold 0 and 1, got 2"),
    "scores of regions": (
        dict(visual_attention_mask=REGIONS * 0.9),
        "visual_attention_mask must hold 0 and 1, got 0.89",
    ),
    "types of regions": (dict(visual_token_type_ids=REGIONS[:1]), r"visual_token_type_ids must have shape \(2, 3\)"),
    "region types": (dict(visual_token_type_ids=REGIONS + 1), r"visual_token_type_ids must be in 0\.\.1 .* got 2"),
    "short alignment": (
        dict(image_text_alignment=ALIGNMENT[:, :2]),
        r"image_text_alignment must be \(batch=2, regions=3 or more, words\), got \(2, 2, 2\)",
    ),
    "flat alignment": (dict(image_text_alignment=ALIGNMENT[..., 0]), r"image_text_alignment must be .* got \(2, 3\)"),
    "alignment of one": (dict(image_text_alignment=ALIGNMENT[:1]), r"image_text_alignment must be .* got \(1, 3, 2\)"),
    "far alignment": (dict(image_text_alignment=FAR), r"image_text_alignment must be in 0\.\.8 .* or -1, got 9"),
    "negative alignment": (dict(image_text_alignment=ALIGNMENT - 1), r"image_text_alignment must be .*or -1, got -2"),
    "float alignment": (dict(image_text_alignment=ALIGNMENT.float()), "image_text_alignment must hold integers"),
    "mask without regions": (dict(visual_embeds=None), "visual_attention_mask goes with visual_embeds"),
    "alignment without regions": (
        dict(visual_embeds=None, visual_attention_mask=None, image_text_alignment=ALIGNMENT),
        "(image_text_alignment goes with visual_embeds|visual_embeds must be given)",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=list(WRONG))
@pytest.mark.parametrize("name", CLASSES)
def test_refused(models, name, case):
    changes, words = case
    if "visual_embeds" in changes and changes["visual_embeds"] is None and "Region" in name:
        words = "visual_embeds must be given"
    with pytest.raises(ValueError, match=words):
        models[name](**given(name, **changes))


@pytest.mark.parametrize("name", ["VisualBertModel", "VisualBertForQuestionAnswering"])
def test_the_frozen_form_says_the_same(models, name):
    frozen = freeze(models[name])
    for changes, words in WRONG.values():
        with pytest.raises(ValueError, match=words):
            frozen(**given(name, **changes))


WORD_LABELS, WHOLE = torch.full((2, 7), -100), torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(1))
LABELS = {
    "a list": ("PreTraining", dict(labels=[[1]]), "labels must be a torch tensor, got list"),
    "words alone": ("PreTraining", dict(labels=IDS), r"labels must have shape \(2, 7\), got \(2, 4\)"),
    "a word": ("PreTraining", dict(labels=WORD_LABELS.clone().fill_(20)), r"labels must be in 0\.\.19 or -100, got 20"),
    "float words": ("PreTraining", dict(labels=WORD_LABELS.float()), "labels must hold integers, got torch.float32"),
    "a match": (
        "PreTraining",
        dict(sentence_image_labels=torch.tensor([0, 2])),
        r"sentence_image_labels must be in 0\.\.1 .*got 2",
    ),
    "one match": (
        "PreTraining",
        dict(sentence_image_labels=torch.tensor([0])),
        r"sentence_image_labels must have shape \(2,\), got \(1,\)",
    ),
    "answers": ("QuestionAnswering", dict(labels=torch.rand(2, 4)), r"labels must have shape \(2, 5\), got \(2, 4\)"),
    "answers by index": ("QuestionAnswering", dict(labels=torch.tensor([1, 2])), r"labels must have shape \(2, 5\)"),
    "NaN answers": ("QuestionAnswering", dict(labels=torch.rand(2, 5) * float("nan")), "labels holds NaN or infinite"),
    "negative answers": ("QuestionAnswering", dict(labels=-torch.ones(2, 5)), "labels must not be negative, got -1"),
    "a class": ("VisualReasoning", dict(labels=torch.tensor([0, 5])), r"labels must be in 0\.\.4 or -100, got 5"),
    "float classes": ("VisualReasoning", dict(labels=torch.rand(2)), "labels must hold integers"),
    "three pairs": (
        "VisualReasoning",
        dict(labels=torch.tensor([0, 1, 1])),
        r"labels must have shape \(2,\), got \(3,",
    ),
    "regions": (
        "RegionToPhraseAlignment",
        dict(labels=WHOLE[..., :2]),
        r"labels must have shape \(2, 2, 3\), got \(2, 2, 2\)",
    ),
    "negative regions": ("RegionToPhraseAlignment", dict(labels=-WHOLE), "labels must not be negative"),
    "no phrase": (
        "RegionToPhraseAlignment",
        dict(region_to_phrase_position=None),
        "region_to_phrase_position must be given",
    ),
    "phrases of one": (
        "RegionToPhraseAlignment",
        dict(region_to_phrase_position=torch.tensor([[1, 2]])),
        r"region_to_phrase_position must be \(batch=2, places\), got shape \(1, 2\)",
    ),
    "a far phrase": (
        "RegionToPhraseAlignment",
        dict(region_to_phrase_position=torch.tensor([[1, 7], [0, 0]])),
        r"region_to_phrase_position must .*-1\.\.6, got 7",
    ),
    "half a phrase": (
        "RegionToPhraseAlignment",
        dict(region_to_phrase_position=torch.tensor([[1, 0.5], [0, 0]])),
        r"region_to_phrase_position must .* got 0.5",
    ),
}


@pytest.mark.parametrize("features", [3, "x", torch.tensor(1), [[1.0]], FEATURES[0], FEATURES[:1], FEATURES.numpy()])
@pytest.mark.parametrize("name", ["PreTraining", "RegionToPhraseAlignment"])
def test_features_are_refused_before_labels(models, name, features):
    """Whose shape follows from them."""
    name, labels = f"VisualBertFor{name}", WHOLE if name == "RegionToPhraseAlignment" else WORD_LABELS
    with pytest.raises(ValueError, match="visual_embeds must"):
        models[name](**given(name, visual_embeds=features, labels=labels))


@torch.no_grad()
def test_phrases_of_every_dtype(models):
    name = "VisualBertForRegionToPhraseAlignment"
    places = torch.tensor([[1, 0], [1, 1]])
    wanted = models[name](**given(name, region_to_phrase_position=places)).logits
    for dtype in (*DTYPES, torch.uint16, torch.uint64):
        assert torch.equal(models[name](**given(name, region_to_phrase_position=places.to(dtype))).logits, wanted)
    with pytest.raises(ValueError, match="region_to_phrase_position must hold whole numbers, got torch.complex64"):
        models[name](**given(name, region_to_phrase_position=places.to(torch.complex64)))


@pytest.mark.parametrize("case", LABELS.values(), ids=list(LABELS))
@pytest.mark.parametrize("states", [False, True], ids=["packed", "states"])
def test_labels_refused(models, case, states):
    name, changes, words = case
    name = f"VisualBertFor{name}"
    with pytest.raises(ValueError, match=words):
        models[name](**given(name, **changes), output_hidden_states=states)


@pytest.mark.parametrize("states", [False, True], ids=["packed", "states"])
def test_questions_of_less_than_two_words(models, states):
    model = models["VisualBertForQuestionAnswering"]
    few = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0]])
    with pytest.raises(ValueError, match="attention_mask: text 1 has fewer than 2 words to attend to"):
        model(**given(attention_mask=few), output_hidden_states=states)
    few[1] = 0
    with pytest.raises(ValueError, match="attention_mask: row 1 has no word to attend to"):
        model(**given(attention_mask=few), output_hidden_states=states)
    with pytest.raises(ValueError, match="text 0 has fewer than 2 words"):
        model(**given(attention_mask=None, input_ids=IDS[:, :1]), output_hidden_states=states)


CHOICES = {key: torch.stack([value, value], 1) for key, value in {**BASE, "image_text_alignment": ALIGNMENT}.items()}


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(input_ids=IDS), r"input_ids must be \(batch, choices, words\), got \(2, 4\)"),
        (dict(attention_mask=WORDS), r"attention_mask must start with \(batch, choices\) = \(2, 2\), got shape \(2, 4"),
        (dict(visual_embeds=CHOICES["visual_embeds"][:, :1]), r"visual_embeds must start with .* got shape \(2, 1, 3"),
        (dict(visual_embeds=torch.ones(2, 2, 3, 5)), r"visual_embedding_dim=6"),
        (dict(labels=torch.tensor([0, 2])), r"labels must be in 0\.\.1 or -100, got 2"),
        (dict(labels=torch.tensor([0])), r"labels must have shape \(2,\), got \(1,\)"),
        (dict(image_text_alignment=ALIGNMENT[:, None]), r"image_text_alignment must start with .*\(2, 1, 3, 2\)"),
    ],
)
def test_choices_refused(models, changes, words):
    with pytest.raises(ValueError, match=words):
        models["VisualBertForMultipleChoice"](**{**CHOICES, **changes})


@torch.no_grad()
def test_alignments_of_choices(models):
    """By choice, as everything else; or flat, the one form that runs in transformers."""
    model = models["VisualBertForMultipleChoice"]
    wanted = model(**CHOICES).logits
    assert not torch.equal(wanted, model(**{k: v for k, v in CHOICES.items() if "alignment" not in k}).logits)
    flat = CHOICES["image_text_alignment"].flatten(0, 1)
    assert torch.equal(model(**{**CHOICES, "image_text_alignment": flat}).logits, wanted)


def test_a_configuration_of_another_family(visual_bert_oracle):
    with pytest.raises(ValueError, match=r"config must be a VisualBertConfig of \S+, got ViTConfig"):
        VisualBertModel(ViTConfig())
    theirs = visual_bert_oracle.transformers.VisualBertConfig(**CONFIG)
    with pytest.raises(ValueError, match=r"VisualBertConfig of transformers\S+; VisualBertConfig.from_dict"):
        VisualBertModel(theirs)
    with pytest.raises(ValueError, match="hidden_act"):
        VisualBertModel(VisualBertConfig(**{**CONFIG, "hidden_act": "no such"}))
