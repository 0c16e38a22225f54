"""What tools do to a VisualBERT: copied, compiled, adapted, trained, resized, moved; as for transformers'."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import vilt_fast

transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

PRE, QA, PHRASES = "VisualBertForPreTraining", "VisualBertForQuestionAnswering", "VisualBertForRegionToPhraseAlignment"
CLASSES = ("VisualBertModel", PRE, QA, "VisualBertForMultipleChoice", "VisualBertForVisualReasoning", PHRASES)


def backward(oracle, model, inputs, labels):
    """Gradients by name, of a loss that every class has."""
    model.zero_grad()
    oracle.objective(model(**inputs, **labels), inputs).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_copies(oracle, visual_built, visual_inputs, name, way):
    ours, _ = visual_built(name)
    inputs, _ = visual_inputs(name)
    if way == "torch.save":
        torch.save(ours, file := io.BytesIO())
        file.seek(0)
        model = torch.load(file, weights_only=False)
    elif way == "state_dict":
        model = type(ours)(copy.deepcopy(ours.config))
        assert not any(model.load_state_dict(ours.state_dict()))
    else:
        model = copy.deepcopy(ours) if way == "deepcopy" else pickle.loads(pickle.dumps(ours))
    oracle.check_equal(name, model.eval()(**inputs)[0], ours(**inputs)[0])
    next(model.parameters()).data.fill_(7)
    assert next(ours.parameters()).max() < 7
    if hasattr(ours, "cls") and hasattr(ours.cls, "predictions"):
        assert model.cls.predictions.bias is model.cls.predictions.decoder.bias


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["VisualBertModel", PRE, PHRASES])
def test_compiled(oracle, visual_pair, visual_inputs, name):
    """The graph breaks where lengths are read back. Of one block: tracing takes seconds for each."""
    ours, _ = visual_pair(name)
    ours.base_model.encoder.layer = ours.base_model.encoder.layer[:1]
    inputs, _ = visual_inputs(name)
    torch._dynamo.reset()
    got = torch.compile(ours, backend="eager")(**inputs)[0]
    torch._dynamo.reset()
    oracle.check_close("compiled", got, ours(**inputs)[0], 1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("bypass", [False, True])
def test_gradient_checkpointing(oracle, visual_bert_oracle, visual_pair, visual_inputs, bypass, reentrant):
    """The same gradients, with dropout; every block runs twice, the one behind `bypass_transformer` too."""
    ours, _ = visual_pair(QA, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, bypass_transformer=bypass)
    (inputs, labels), found, runs = visual_inputs(), [], []
    for checkpointed in (False, True):
        model, count = copy.deepcopy(ours).train(), []
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_gradient_checkpointing
        blocks = [*model.visual_bert.encoder.layer, *([model.visual_bert.additional_layer] if bypass else [])]
        for block in blocks:
            block.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(0)
        found.append(backward(visual_bert_oracle, model, inputs, labels))
        runs.append(len(count))
    assert runs == [len(blocks), 2 * len(blocks)]
    for name, value in found[0].items():
        oracle.check_equal(name, found[1][name], value)


@pytest.mark.parametrize("name", [PRE, QA, PHRASES])
def test_training_takes_the_same_steps(oracle, visual_pair, visual_inputs, name):
    ours, theirs = visual_pair(name)
    inputs, labels = visual_inputs(name)
    for model in (ours, theirs):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(**inputs, **labels).loss.backward()
            optimizer.step()
    got = ours.state_dict()
    for key, value in theirs.state_dict().items():
        if key in got:
            oracle.check_close(key, got[key], value, 1e-4)


def test_lora(oracle, visual_pair, visual_inputs, tmp_path):
    """By the names of files: query, value and the projection of regions; as on transformers' model."""
    peft = pytest.importorskip("peft", reason="PEFT adapts")
    ours, theirs = visual_pair()
    inputs, labels = visual_inputs()
    before, losses = copy.deepcopy(ours), []
    targets = ["query", "value", "visual_projection"]
    config = peft.LoraConfig(target_modules=targets, r=2, modules_to_save=["cls"], lora_dropout=0.0)
    adapted = peft.get_peft_model(ours, config)
    for model in (adapted, peft.get_peft_model(theirs, copy.deepcopy(config))):
        generator = torch.Generator().manual_seed(0)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        assert len(trained) == 2 * (2 * 2 + 1) + 2 and all("lora" in name or "cls" in name for name, _ in trained)
        for name, parameter in trained:
            if "lora" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        optimizer = torch.optim.SGD([p for _, p in trained], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(**inputs, **labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    oracle.check_close("losses", torch.stack(losses[:3]), torch.stack(losses[3:]), 1e-4)
    assert losses[2] < losses[0]
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(before, tmp_path)
    with torch.no_grad():
        wanted = adapted.eval()(**inputs).logits
        oracle.check_close("loaded", again.eval()(**inputs).logits, wanted, 1e-6)
        oracle.check_close("merged", adapted.merge_and_unload()(**inputs).logits, wanted, 1e-5)


@torch.no_grad()
def test_heads_that_are_pruned(oracle, visual_pair, visual_inputs, tmp_path):
    """As a head mask of zero; and the model can be saved and read again."""
    ours, _ = visual_pair()
    inputs, _ = visual_inputs()
    wanted = ours(**inputs, head_mask=torch.tensor([[1.0, 0.0], [1.0, 1.0]])).logits
    ours.prune_heads({0: [1]})
    oracle.check_close("pruned", ours(**inputs).logits, wanted, 1e-5)
    ours.save_pretrained(tmp_path)
    again = vilt_fast.VisualBertForQuestionAnswering.from_pretrained(tmp_path)
    oracle.check_equal("again", again(**inputs).logits, ours(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", [PRE, PHRASES])
def test_a_vocabulary_of_another_size(visual_bert_oracle, visual_pair, visual_inputs, tmp_path, name, tied):
    """The decoder's bias stays one parameter with the head's, through copies and files that transformers reads."""
    ours, _ = visual_pair(name, tie_word_embeddings=tied)
    inputs, _ = visual_inputs(name)
    inputs["input_ids"] = inputs["input_ids"].clamp(max=29)
    for rows in (41, 30):
        ours.resize_token_embeddings(rows)
        for model in (ours, copy.deepcopy(ours)):
            head = model.cls.predictions
            assert head.bias is head.decoder.bias and head.bias.shape == (rows,) and model.config.vocab_size == rows
            assert (head.decoder.weight is model.get_input_embeddings().weight) == tied
        ours.save_pretrained(tmp_path / str(rows))
        theirs = getattr(transformers, name).from_pretrained(tmp_path / str(rows)).eval()
        visual_bert_oracle.check_outputs(ours(**inputs), theirs(**inputs), inputs, 1e-5)


@torch.no_grad()
def test_a_vocabulary_of_another_size_is_that_of_transformers(visual_bert_oracle, visual_pair, visual_inputs):
    ours, theirs = visual_pair(PRE)
    inputs, _ = visual_inputs(PRE)
    for model in (ours, theirs):
        model.resize_token_embeddings(30)
    inputs["input_ids"] = inputs["input_ids"].clamp(max=29)
    visual_bert_oracle.check_outputs(ours(**inputs), theirs(**inputs), inputs, 1e-5)


@torch.no_grad()
def test_another_decoder(visual_pair, visual_inputs):
    """`set_output_embeddings` puts its bias in the place of the head's."""
    ours, _ = visual_pair(PRE)
    decoder = nn.Linear(ours.config.hidden_size, 9)
    ours.set_output_embeddings(decoder)
    assert ours.cls.predictions.bias is decoder.bias
    assert ours(**visual_inputs(PRE)[0]).prediction_logits.shape[-1] == 9


@torch.no_grad()
@pytest.mark.parametrize("bypass", [False, True])
def test_offloaded_and_dispatched(oracle, visual_pair, visual_inputs, bypass):
    """Weights that are somewhere else between the calls; a map of devices keeps blocks whole."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate moves weights")
    ours, _ = visual_pair(PRE, bypass_transformer=bypass)
    inputs, _ = visual_inputs(PRE)
    wanted = ours(**inputs)
    sizes = accelerate.utils.compute_module_sizes(ours)
    places = accelerate.infer_auto_device_map(
        ours, {0: sizes[""] // 2, "cpu": 2 * sizes[""]}, no_split_module_classes=ours._no_split_modules
    )
    parts = ("embeddings", "encoder.layer.0", "encoder.layer.1", *(["additional_layer"] if bypass else []))
    for part in parts:
        assert len({place for name, place in places.items() if f"visual_bert.{part}".startswith(name)}) == 1, part
    moved = accelerate.cpu_offload(copy.deepcopy(ours), execution_device="cpu")
    dispatched = accelerate.dispatch_model(copy.deepcopy(ours), dict.fromkeys(places, "cpu"), force_hooks=True)
    for model in (moved, dispatched):
        for field, value in model(**inputs).items():
            oracle.check_close(field, value, wanted[field], 1e-5)


@pytest.mark.parametrize("is_hooked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_weights_that_nothing_can_be_computed_with(visual_pair, visual_inputs, training, is_hooked):
    """On the meta device, where nobody moves them in, and of 8 bits."""
    inputs, _ = visual_inputs()
    for change, message in (({"device": "meta"}, "meta device"), ({"dtype": torch.float8_e4m3fn}, "float8")):
        ours, _ = visual_pair()
        ours.to(**change)
        if is_hooked:
            ours.visual_bert.embeddings.LayerNorm.register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match=message), torch.set_grad_enabled(training):
            ours(**inputs)


@torch.no_grad()
def test_a_device_map_names_one_device(oracle, visual_pair, visual_inputs, tmp_path):
    ours, _ = visual_pair()
    inputs, _ = visual_inputs()
    ours.save_pretrained(tmp_path)
    again = vilt_fast.VisualBertForQuestionAnswering.from_pretrained(tmp_path, device_map={"": "cpu"})
    oracle.check_equal("logits", again(**inputs).logits, ours(**inputs).logits)
    with pytest.raises(ValueError, match="wanted one device"):
        places = {"visual_bert": "cpu", "cls": "disk"}
        vilt_fast.VisualBertForQuestionAnswering.from_pretrained(tmp_path, device_map=places)


@pytest.mark.parametrize("name", [QA, PHRASES])
def test_trainer(oracle, visual_pair, visual_inputs, tmp_path, name):
    """Two steps of transformers.Trainer: transformers' losses and weights; its checkpoint loads."""
    pytest.importorskip("accelerate", reason="transformers.Trainer needs it")

    class Trainer(vilt_fast.TrainerMixin, transformers.Trainer):
        """What users write."""

    inputs, labels = visual_inputs(name)
    rows = [{key: value[i] for key, value in {**inputs, **labels}.items()} for i in range(2)]
    models, logs = visual_pair(name), []
    for model, trainer in zip(models, (Trainer, transformers.Trainer), strict=True):
        options = dict(max_steps=2, save_steps=2, logging_steps=1, learning_rate=1e-2, use_cpu=True, report_to=[])
        folder = str(tmp_path / trainer.__module__.split(".")[0])
        arguments = transformers.TrainingArguments(folder, disable_tqdm=True, optim="sgd", **options)
        run = trainer(model, arguments, train_dataset=rows)
        run.train()
        logs.append(torch.tensor([entry["loss"] for entry in run.state.log_history if "loss" in entry]))
        if model is models[0]:
            saved = f"{folder}/checkpoint-2"
    oracle.check_close("losses", *logs, 1e-4)
    again = getattr(vilt_fast, name).from_pretrained(saved).state_dict()
    for key, value in models[0].state_dict().items():
        oracle.check_equal(key, again[key], value)
        oracle.check_close(key, value, models[1].state_dict()[key], 1e-4)


@pytest.mark.parametrize("field", ["attentions", "hidden_states"])
def test_gradients_of_attention_maps(oracle, visual_bert_oracle, visual_built, visual_inputs, field):
    """What methods of explanation read, at places that are attended to."""
    (inputs, _), found = visual_inputs(), []
    real = visual_bert_oracle.real_rows(inputs)
    both = real[:, None, :, None] & real[:, None, None, :]
    for model in visual_built(QA):
        output = model(**inputs, output_attentions=True, output_hidden_states=True)
        gradients = torch.autograd.grad(output.logits.max(-1).values.sum(), output[field])
        found.append([g[real] if g.ndim == 3 else g[both.expand_as(g)] for g in gradients])
    for index, (got, wanted) in enumerate(zip(*found, strict=True)):
        oracle.check_close(f"{field}[{index}]", got, wanted, 5e-5)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_are_assigned_are_tied_again(oracle, visual_pair, visual_inputs, tmp_path, tied):
    """By `load_state_dict(assign=True)`, and by accelerate into a model that was made without memory."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate loads into empty models")
    ours, _ = visual_pair(PRE, tie_word_embeddings=tied)
    inputs, _ = visual_inputs(PRE)
    assigned = copy.deepcopy(ours)
    assigned.load_state_dict({name: value.clone() for name, value in ours.state_dict().items()}, assign=True)
    ours.save_pretrained(tmp_path)
    with accelerate.init_empty_weights():
        empty = type(ours)(ours.config)
    for model in (assigned, empty):
        model.tie_weights()
    loaded = accelerate.load_checkpoint_and_dispatch(empty, tmp_path, device_map={"": "cpu"}).eval()
    for model in (assigned, loaded):
        head = model.cls.predictions
        assert head.bias is head.decoder.bias and (head.decoder.weight is model.get_input_embeddings().weight) == tied
        oracle.check_equal("logits", model(**inputs)[0], ours(**inputs)[0])


@pytest.mark.parametrize("tied", [True, False])
def test_a_resize_ties_what_assigned_weights_left_apart(visual_pair, tied):
    ours, _ = visual_pair(PRE, tie_word_embeddings=tied)
    ours.load_state_dict({name: value.clone() for name, value in ours.state_dict().items()}, assign=True)
    ours.resize_token_embeddings(30)
    head = ours.cls.predictions
    assert head.bias is head.decoder.bias and (head.decoder.weight is ours.get_input_embeddings().weight) == tied
    assert len(head.bias) == len(head.decoder.weight) == 30


def test_weights_behind_parametrizations(oracle, visual_pair, visual_inputs):
    """Weight norm of the projection of regions, pruned weights of a block: logits, and the gradient of what is new."""
    from torch.nn.utils import parametrizations, prune

    (inputs, labels), found = visual_inputs(), []
    for model in visual_pair():
        projection = model.visual_bert.embeddings.visual_projection
        parametrizations.weight_norm(projection)
        prune.l1_unstructured(model.visual_bert.encoder.layer[0].output.dense, "weight", amount=0.5)
        model(**inputs, **labels).loss.backward()
        found.append((model(**inputs).logits.detach(), projection.parametrizations.weight.original1.grad))
    for what, got, wanted in zip(("logits", "gradient"), *found, strict=True):
        oracle.check_close(what, got, wanted, 1e-5)


@torch.no_grad()
def test_products_of_8_bits(oracle, visual_pair, visual_inputs):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao quantises")
    inputs, _ = visual_inputs()
    models = visual_pair()
    for model in models:
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    got, wanted = (model(**inputs).logits for model in models)
    oracle.check_close("logits", got, wanted, 1e-4)


def test_derivatives_by_features(oracle, visual_pair, visual_inputs):
    """torch.func: gradients, and forward-mode derivatives, of features that are not masked; several models at once."""
    inputs, _ = visual_inputs()
    features, kept = inputs.pop("visual_embeds").clamp(-3, 3), inputs["visual_attention_mask"].bool()
    (ours, theirs), found = visual_pair(), []
    for model in (ours, theirs):

        def logits(features, model=model):
            return model(**inputs, visual_embeds=features).logits

        gradient = torch.func.grad(lambda x, logits=logits: logits(x).square().sum())(features)
        found.append((gradient[kept], torch.func.jvp(logits, (features,), (torch.ones_like(features),))[1]))
    for what, got, wanted in zip(("gradient", "derivative"), *found, strict=True):
        oracle.check_close(what, got, wanted, 5e-5)
    models = [ours, getattr(vilt_fast, QA)(ours.config).eval()]
    stacked = torch.func.stack_module_state(models)
    inputs["visual_embeds"] = features
    both = torch.func.vmap(lambda p, b: torch.func.functional_call(ours, (p, b), kwargs=inputs).logits)(*stacked)
    for logits, model in zip(both, models, strict=True):
        oracle.check_close("logits", logits, model(**inputs).logits, 1e-5)


@torch.no_grad()
def test_functional_call(oracle, visual_pair, visual_inputs):
    """Other parameters under the same modules, those of regions too."""
    ours, theirs = visual_pair()
    inputs, _ = visual_inputs()
    changed = {name: value * 1.1 for name, value in theirs.named_parameters()}
    got, wanted = (torch.func.functional_call(model, changed, kwargs=inputs).logits for model in (ours, theirs))
    oracle.check_close("logits", got, wanted, 1e-5)
