"""PEFT's adapters on our model and on transformers': the same outputs, steps, files and merged weights."""

import copy

import pytest
import torch

import vilt_fast

peft = pytest.importorskip("peft", reason="the tests of adapters need peft")
pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

QA, MLM, WORDS = "ViltForQuestionAnswering", "ViltForMaskedLM", "ViltForTokenClassification"
EVERYTHING = ["query", "dense", "word_embeddings", "projection"]
EVERY_TABLE = r".*(word_embeddings|text_embeddings\.position_embeddings|token_type_embeddings)"


def lora(**options):
    return peft.LoraConfig(r=2, init_lora_weights=False, lora_alpha=4, **options)


CONFIGURATIONS = {
    "LoRA of query and value": (QA, lambda: lora(target_modules=["query", "value"])),
    "LoRA of all linear": (QA, lambda: lora(target_modules="all-linear")),
    "LoRA of all linear, words": (WORDS, lambda: lora(target_modules="all-linear")),
    "LoRA of the word table": (QA, lambda: lora(target_modules=["word_embeddings"])),
    "LoRA of every table": (QA, lambda: lora(target_modules=EVERY_TABLE)),
    "LoRA of the patch convolution": (QA, lambda: lora(target_modules=["projection"])),
    "LoRA of everything": (
        QA,
        lambda: lora(
            target_modules=["query", "dense", "word_embeddings", "projection"], modules_to_save=["classifier"]
        ),
    ),
    "LoRA with biases": (QA, lambda: lora(target_modules=["query", "output.dense"], bias="lora_only")),
    "LoRA of a head that is saved whole": (MLM, lambda: lora(target_modules=["query"], modules_to_save=["transform"])),
    "DoRA": (QA, lambda: lora(target_modules=["query", "value", "dense"], use_dora=True)),
    "DoRA of the word table": (QA, lambda: lora(target_modules=["word_embeddings"], use_dora=True)),
    "DoRA of the patch convolution": (QA, lambda: lora(target_modules=["projection"], use_dora=True)),
    "LNTuning": (QA, lambda: peft.LNTuningConfig(target_modules=["layernorm_before", "layernorm_after"])),
    "LNTuning of every norm": (
        QA,
        lambda: peft.LNTuningConfig(target_modules=r".*(layernorm_before|layernorm_after|layernorm|LayerNorm)"),
    ),
    "IA3": (
        QA,
        lambda: peft.IA3Config(
            target_modules=["key", "value", "output.dense"],
            feedforward_modules=["output.dense"],
            init_ia3_weights=False,
        ),
    ),
    "OFT": (QA, lambda: peft.OFTConfig(target_modules=["query", "value"], oft_block_size=4, init_weights=False)),
}


@pytest.fixture(params=CONFIGURATIONS)
def adapted(request, both, pair):
    """(ours, theirs, inputs): both with the same adapter, whose weights are not those of a fresh one."""
    name, configuration = CONFIGURATIONS[request.param]
    return adapt(both, *pair(name), configuration())


def adapt(both, ours, theirs, inputs, config):
    ours, theirs = (peft.get_peft_model(model, copy.deepcopy(config)) for model in (ours, theirs))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapter = peft.get_peft_model_state_dict(theirs)
    assert adapter
    missed = peft.set_peft_model_state_dict(ours, adapter)
    assert not missed.unexpected_keys
    return ours.eval(), theirs.eval(), inputs


def test_outputs_and_a_step_of_training(both, adapted):
    """The adapter counts; one step changes adapters alone, as it changes those of transformers' model."""
    ours, theirs, inputs = adapted
    both.check_same_scores("scores", adapted)
    frozen = {name: p.detach().clone() for name, p in ours.named_parameters() if not p.requires_grad}
    trained = {name: p.detach().clone() for name, p in ours.named_parameters() if p.requires_grad}
    both.check_same_training("training", adapted, count=2)
    parameters = dict(ours.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    assert any(not torch.equal(parameters[name], value) for name, value in trained.items())


def test_the_adapter_has_an_effect_and_merges(both, adapted):
    """`merge_and_unload` gives the adapter's output in the plain model, which freezes again."""
    ours, theirs, inputs = adapted
    wanted = both.scores(theirs, inputs)
    with ours.disable_adapter(), theirs.disable_adapter():
        plain = both.check_same_scores("scores without the adapter", adapted)
    assert both.off(wanted, plain) > 1e-3
    merged = ours.merge_and_unload()
    both.check("scores when merged", both.scores(merged, inputs), wanted, 2e-5)
    fast = vilt_fast.freeze(merged)
    given = inputs.but(labels=None)
    both.check("scores when merged and frozen", both.values(fast(**given), inputs), wanted, 2e-5)


@pytest.mark.parametrize("which", ["LoRA of everything", "LNTuning", "DoRA"])
def test_files(both, pair, tmp_path, which):
    """What our model's adapter saves loads on ours and on transformers' model."""
    ours, theirs, inputs = adapt(both, *pair(), CONFIGURATIONS[which][1]())
    wanted = both.scores(ours, inputs)
    ours.save_pretrained(tmp_path)
    bases = pair()[:2]
    for base, where in zip(bases, ("ours", "transformers"), strict=True):
        again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        both.check(f"on {where}", both.scores(again, inputs), wanted)


def test_freeze_refuses_an_adapter_by_name(pair):
    for model in (peft.get_peft_model(pair()[0], lora(target_modules=["query"])), pair()[0]):
        if not isinstance(model, peft.PeftModel):
            peft.inject_adapter_in_model(lora(target_modules=["query"]), model)
        inner = model.base_model.model if isinstance(model, peft.PeftModel) else model
        with pytest.raises(ValueError, match=r"freeze: vilt\.encoder\.layer\.0\.attention\.attention\.query"):
            vilt_fast.freeze(inner)
    with pytest.raises(ValueError, match="freeze: .*PeftModel"):
        vilt_fast.freeze(peft.get_peft_model(pair()[0], lora(target_modules=["query"])))


def test_two_adapters(both, pair):
    ours, theirs, inputs = adapt(both, *pair(), lora(target_modules=["query"]))
    first = both.scores(theirs, inputs)
    for model in (ours, theirs):
        torch.manual_seed(1)
        model.add_adapter("second", lora(target_modules=["intermediate.dense"]))
        model.set_adapter("second")
    second = both.check_same_scores("the second", (ours, theirs, inputs))
    assert both.off(second, first) > 1e-3
    for model in (ours, theirs):
        model.set_adapter("default")
    both.check("the first", both.check_same_scores("the first", (ours, theirs, inputs)), first)


@pytest.mark.parametrize("task", ["SEQ_CLS", "FEATURE_EXTRACTION", "TOKEN_CLS"])
def test_task_types(both, pair, task):
    """PEFT's classes of models pass their arguments on by name."""
    name = {"SEQ_CLS": QA, "FEATURE_EXTRACTION": "ViltModel", "TOKEN_CLS": WORDS}[task]
    config = lora(target_modules=["query"], task_type=task, modules_to_save=None)
    both.check_same_scores(task, adapt(both, *pair(name), config))


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_gradient_checkpointing_with_an_adapter(both, pair, use_reentrant):
    """As Trainer enables it; the reentrant kind needs inputs that want a gradient."""
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        if use_reentrant:
            model.enable_input_require_grads()
    adapted = adapt(both, ours, theirs, inputs, lora(target_modules=["query", "value"]))
    both.check_same_training("training", adapted)
