"""Frozen VisualBERT gives what the live form gives, on the reference and on the kernels."""

import pickle

import pytest
import torch

import vilt_fast
from vilt_fast import VisualBertConfig
from vilt_fast.frozen import visual_bert
from vilt_fast.models.region_inputs import RegionInputs

CLASSES = (
    "VisualBertModel",
    "VisualBertForPreTraining",
    "VisualBertForQuestionAnswering",
    "VisualBertForMultipleChoice",
    "VisualBertForVisualReasoning",
    "VisualBertForRegionToPhraseAlignment",
)
CONFIG = dict(
    vocab_size=31,
    hidden_size=48,
    visual_embedding_dim=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=80,
    max_position_embeddings=12,
    num_labels=5,
)
# See test_frozen.py: copies of the weights may lie elsewhere in memory.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
IDS = torch.randint(0, 31, (4, 7), generator=torch.Generator().manual_seed(0))
WORDS = (torch.arange(7) < torch.tensor([7, 3, 2, 5])[:, None]).long()
FEATURES = torch.randn(4, 5, 20, generator=torch.Generator().manual_seed(1))
REGIONS = (torch.arange(5) < torch.tensor([2, 5, 1, 3])[:, None]).long()
ALIGNMENT = torch.randint(-1, 7, (4, 6, 2), generator=torch.Generator().manual_seed(2))
TYPES = torch.randint(0, 2, (4, 5), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=CLASSES)
def visual_name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def make_visual(oracle):
    def make(name: str, **fields):
        return oracle.randomise(getattr(vilt_fast, name)(VisualBertConfig(**{**CONFIG, **fields})), seed=3).eval()

    return make


def calls(name: str) -> dict[str, dict]:
    """One of each kind of input: what is planned on the host, and what is not."""
    text = {"input_ids": IDS, "attention_mask": WORDS}
    regions = {"visual_embeds": FEATURES, "visual_attention_mask": REGIONS}
    holes = torch.ones_like(WORDS).index_fill(1, torch.tensor([1, 3]), 0)
    some = REGIONS.index_fill(0, torch.tensor(2), 0)
    embeds = torch.randn(4, 7, 48, generator=torch.Generator().manual_seed(4))
    found = {
        "pairs": {**text, **regions},
        "no masks": {"input_ids": IDS, "visual_embeds": FEATURES},
        "holes": {**text, **regions, "attention_mask": holes, "visual_attention_mask": TYPES},
        "float masks": {**text, **regions, "attention_mask": WORDS.float(), "visual_attention_mask": REGIONS.bool()},
        "types": {**text, **regions, "token_type_ids": WORDS, "visual_token_type_ids": torch.ones_like(TYPES)},
        "other types": {**text, **regions, "visual_token_type_ids": TYPES},
        "no region of one": {**text, **regions, "visual_attention_mask": some},
        "no region at all": {**text, **regions, "visual_attention_mask": REGIONS * 0},
        "alignment": {**text, **regions, "image_text_alignment": ALIGNMENT},
        "positions": {**text, **regions, "position_ids": IDS % 12},
        "heads": {**text, **regions, "head_mask": torch.tensor([1.0, 0.0, 0.5, 1.0])},
        "embeddings": {**regions, "inputs_embeds": embeds, "attention_mask": WORDS},
        "doubles": {**text, **regions, "visual_embeds": FEATURES.double()},
    }
    if name == "VisualBertForMultipleChoice":
        return {
            kind: {k: v if k == "head_mask" else v.unflatten(0, (2, 2)) for k, v in given.items()}
            for kind, given in found.items()
        }
    if name == "VisualBertForRegionToPhraseAlignment":
        places = torch.tensor([[0, 1, -1]] * 4)
        return {kind: {**given, "region_to_phrase_position": places} for kind, given in found.items()}
    return {**found, "text": text, "text without a mask": {"input_ids": IDS}}


@torch.no_grad()
def live(model, inputs):
    return model(**inputs)


def check_equal(got, wanted, **tolerance):
    assert type(got) is type(wanted) and list(got) == list(wanted)
    for field in wanted:
        assert wanted[field].isfinite().all()
        torch.testing.assert_close(got[field], wanted[field], msg=lambda text, f=field: f"{f}: {text}", **tolerance)


@pytest.mark.parametrize("bypass", [False, True], ids=["", "bypass"])
def test_equals_live(make_visual, visual_name, bypass):
    model = make_visual(visual_name, bypass_transformer=bypass)
    frozen = vilt_fast.freeze(model)
    for kind, inputs in calls(visual_name).items():
        wanted, got = live(model, inputs), frozen(**inputs)
        assert got.keys() == wanted.keys(), kind
        check_equal(got, wanted, **TOLERANCE)
        plain = frozen(**inputs, return_dict=False)
        assert isinstance(plain, tuple) and all(map(torch.equal, plain, got.values())), kind


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_equals_live_in(make_visual, visual_name, dtype):
    """Features in float32 are cast to the weights' dtype."""
    model = make_visual(visual_name).to(dtype)
    frozen = vilt_fast.freeze(make_visual(visual_name), dtype=dtype)
    for kind in ("pairs", "alignment"):
        inputs = calls(visual_name)[kind]
        check_equal(frozen(**inputs), live(model, inputs), rtol=0, atol=0)


@pytest.mark.parametrize(
    "fields",
    [{"type_vocab_size": 3}, {"hidden_act": "gelu_new"}, {"num_hidden_layers": 0}, {"layer_norm_eps": 1e-3}],
    ids=str,
)
def test_other_configurations(make_visual, visual_name, fields):
    model = make_visual(visual_name, **fields)
    inputs = calls(visual_name)["pairs"]
    check_equal(vilt_fast.freeze(model)(**inputs), live(model, inputs), **TOLERANCE)


def test_without_pooler(oracle):
    bare = oracle.randomise(vilt_fast.VisualBertModel(VisualBertConfig(**CONFIG), add_pooling_layer=False), 1).eval()
    inputs, frozen = calls("VisualBertModel")["pairs"], vilt_fast.freeze(bare)
    check_equal(frozen(**inputs), live(bare, inputs), **TOLERANCE)
    assert len(frozen(**inputs, return_dict=False)) == len(bare(**inputs, return_dict=False))


def test_planned_regions(make_visual, visual_name):
    """Words as lists, and the regions of all pairs one after the other: as the padded call of the model."""
    model = make_visual(visual_name)
    frozen = vilt_fast.freeze(model)
    rows = [ids[mask != 0].tolist() for ids, mask in zip(IDS, WORDS, strict=True)]
    for counts in ([2, 5, 1, 3], [2, 0, 1, 0], [0, 0, 0, 0]):
        kept = torch.arange(5) < torch.tensor(counts)[:, None]
        batch = visual_bert.plan_regions(rows, FEATURES[kept], counts)
        padded = {"input_ids": IDS, "attention_mask": WORDS, "visual_embeds": FEATURES, "visual_attention_mask": kept}
        width = max(*counts, 1)
        padded |= {key: padded[key][:, :width] for key in ("visual_embeds", "visual_attention_mask")}
        if visual_name == "VisualBertForMultipleChoice":
            batch = batch._replace(asked={"choices": 2})
            padded = {key: value.unflatten(0, (2, 2)) for key, value in padded.items()}
        if visual_name == "VisualBertForRegionToPhraseAlignment":
            padded["region_to_phrase_position"] = torch.zeros(4, 1, dtype=torch.long)
            batch = batch._replace(asked={"chosen": padded["region_to_phrase_position"]})
        with torch.inference_mode():
            got = frozen.run(batch)
        check_equal(got, live(model, padded), **TOLERANCE)


def test_what_is_planned_on_the_host(make_visual):
    """The usual calls are, and read no tensor back from the device; the others are planned as by the live form."""
    config = make_visual("VisualBertModel").config
    unusual = {"alignment", "positions", "heads", "embeddings", "other types"}
    for kind, inputs in calls("VisualBertModel").items():
        assert (visual_bert.plan(RegionInputs(**inputs), config) is None) == (kind in unusual), kind


def test_buckets(make_visual, visual_name, repeater):
    """A replay repeats what was recorded, in the memory of the recording; what it does not write is NaN."""
    model = make_visual(visual_name, num_hidden_layers=1)
    frozen = vilt_fast.freeze(model, max_tokens=64, max_seqlen=16)
    frozen.use_buckets(repeater)
    frozen.warmup()
    given = calls(visual_name)
    for kind in ("pairs", "holes", "no region at all", "alignment", "positions", "text", "embeddings", "pairs"):
        if kind in given:
            check_equal(frozen(**given[kind]), live(model, given[kind]), **TOLERANCE)
    stats = frozen.stats()
    assert stats.replayed == stats.calls >= 7


def test_on_the_kernels(make_visual, visual_name, repeater, device):
    """Live, and frozen in a bucket: fp32 through a block, sums in another order than BLAS, a few 1e-7 each."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    model = make_visual(visual_name, num_hidden_layers=1, hidden_size=32, intermediate_size=32).to(device)
    frozen = vilt_fast.freeze(model, max_tokens=64, max_seqlen=16)
    if device.type == "cpu":
        frozen.use_buckets(repeater)
    for kind in ("pairs", "alignment") if visual_name == "VisualBertModel" else ("pairs",):
        inputs = {key: value.to(device) for key, value in calls(visual_name)[kind].items()}
        wanted = live(model, inputs)
        # The kernels sum in fp32 in another order than the BLAS that PyTorch calls.
        with vilt_fast.backend("kernels"):
            check_equal(frozen(**inputs), wanted, rtol=1e-5, atol=1e-5)
            check_equal(live(model, inputs), wanted, rtol=1e-5, atol=1e-5)
    assert frozen.stats().replayed > 0


def test_same_pair_same_bits(make_visual, device):
    """On the kernels a pair's result is the same alone, in any batch and at any place of it."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    model = make_visual("VisualBertForQuestionAnswering", num_hidden_layers=1, hidden_size=32, intermediate_size=32)
    frozen = vilt_fast.freeze(model.to(device))
    rows = [ids[mask != 0].tolist() for ids, mask in zip(IDS, WORDS, strict=True)]
    regions = [found[mask != 0] for found, mask in zip(FEATURES, REGIONS, strict=True)]

    def answer(*chosen):
        features = torch.cat([regions[n] for n in chosen])
        batch = visual_bert.plan_regions([rows[n] for n in chosen], features, [len(regions[n]) for n in chosen])
        with vilt_fast.backend("kernels"), torch.inference_mode():
            return frozen.run(batch).logits

    alone = torch.cat([answer(n) for n in range(4)])
    for order in ((0, 1, 2, 3), (3, 3, 0)):
        assert torch.equal(answer(*order), alone[list(order)])


def test_stale_copied_and_refused(make_visual, visual_name):
    model = make_visual(visual_name, bypass_transformer=visual_name == "VisualBertForVisualReasoning")
    frozen = vilt_fast.freeze(model)
    frozen.warmup()
    assert not frozen.is_stale(model)
    inputs = calls(visual_name)["pairs"]
    check_equal(pickle.loads(pickle.dumps(frozen))(**inputs), live(model, inputs), **TOLERANCE)
    for key, parameter in model.named_parameters():
        before, unread = parameter.detach().clone(), ()
        if visual_name == "VisualBertForRegionToPhraseAlignment":  # its words are not scored, its values not read
            unread = ("cls.", "attention.value.", "visual_bert.pooler.")
        elif visual_name == "VisualBertForQuestionAnswering":
            unread = ("visual_bert.pooler.",)
        if not key.startswith(unread) and "visual_position" not in key:
            with torch.no_grad():
                parameter.flatten()[-1:].add_(1)
            assert frozen.is_stale(model), key
            with torch.no_grad():
                parameter.copy_(before)
    assert not frozen.is_stale(model)
    body = getattr(model, "visual_bert", model)
    body.encoder.layer[0].output.LayerNorm.register_forward_hook(lambda *_: None)
    assert frozen.is_stale(model)
    with pytest.raises(ValueError, match="LayerNorm has forward hooks"):
        vilt_fast.freeze(model)


def test_what_it_does_not_keep(make_visual):
    frozen = vilt_fast.freeze(make_visual("VisualBertForPreTraining"))
    inputs = calls("VisualBertForPreTraining")["pairs"]
    for argument in ("output_attentions", "output_hidden_states"):
        with pytest.raises(ValueError, match=f"{argument}: the frozen form keeps none"):
            frozen(**inputs, **{argument: True})
    for argument in ("labels", "sentence_image_labels"):
        with pytest.raises(ValueError, match=f"{argument}: the frozen form computes no loss"):
            frozen(**inputs, **{argument: torch.zeros(4, dtype=torch.long)})
    with pytest.raises(ValueError, match="visual_embeds requires a gradient"):
        frozen(IDS, visual_embeds=FEATURES.clone().requires_grad_())
