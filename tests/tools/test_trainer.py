"""transformers.Trainer on our models: fine-tuning, evaluation, checkpoints that load, resuming, bf16, PEFT."""

import json

import numpy as np
import pytest
import torch

import vilt_fast
from vilt_fast import demo
from vilt_fast.demo.data import make_sample
from vilt_fast.demo.questions import ANSWERS

transformers = pytest.importorskip("transformers", minversion="5.0", reason="it is what is tried here")
pytest.importorskip("accelerate", reason="transformers.Trainer needs it")


class Trainer(vilt_fast.TrainerMixin, transformers.Trainer):
    """What users write."""


@pytest.fixture(scope="module")
def processor():
    return vilt_fast.ViltProcessor.from_pretrained(demo.WEIGHTS)


@pytest.fixture(scope="module")
def pairs():
    """Questions about drawn images, as a dataset has them."""
    samples = [make_sample("train", 0, index, questions=2, short_side=96) for index in range(4)]
    return [
        {"image": sample.image, "text": question.text, "label": ANSWERS.index(question.answer)}
        for sample in samples
        for question in sample.questions
    ]


def make_model(processor, **fields):
    torch.manual_seed(0)
    config = vilt_fast.ViltConfig(
        **{
            **dict(vocab_size=len(processor.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
            **dict(intermediate_size=48, image_size=96, patch_size=32, hidden_dropout_prob=0.1),
            **dict(id2label=dict(enumerate(ANSWERS))),
            **fields,
        }
    )
    return vilt_fast.ViltForQuestionAnswering(config)


@pytest.fixture
def train(tmp_path, processor, pairs):
    """A Trainer over four steps of two pairs."""

    def collate(items):
        images, texts = [item["image"] for item in items], [item["text"] for item in items]
        labels = torch.nn.functional.one_hot(torch.tensor([item["label"] for item in items]), len(ANSWERS)).float()
        return {**processor(images, texts, padding=True, return_tensors="pt"), "labels": labels}

    def measure(predicted):
        return {"accuracy": float(np.mean(predicted.predictions.argmax(-1) == predicted.label_ids.argmax(-1)))}

    def make(model, folder="out", trainer=Trainer, **options):
        settings = dict(per_device_train_batch_size=2, max_steps=4, save_steps=2, learning_rate=1e-2, seed=1)
        settings |= dict(report_to=[], disable_tqdm=True, remove_unused_columns=False, use_cpu=True, logging_steps=1)
        arguments = transformers.TrainingArguments(str(tmp_path / folder), **{**settings, **options})
        return trainer(
            model,
            arguments,
            data_collator=collate,
            train_dataset=pairs,
            eval_dataset=pairs[:4],
            processing_class=processor,
            compute_metrics=measure,
        )

    return make


def same(first, second):
    states = [model if isinstance(model, dict) else model.state_dict() for model in (first, second)]
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_fine_tuning_evaluation_and_checkpoints(train, processor, pairs, tmp_path):
    model = make_model(processor)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = train(model, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, save_strategy="steps")
    done = trainer.train()
    assert done.global_step == 4 and done.training_loss > 0
    assert not any(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    measured = trainer.evaluate()
    assert 0 <= measured["eval_accuracy"] <= 1 and measured["eval_loss"] == pytest.approx(trainer.state.best_metric)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    # What is best is what is loaded, and a checkpoint loads by itself: weights, configuration, processor.
    assert same(vilt_fast.ViltForQuestionAnswering.from_pretrained(trainer.state.best_model_checkpoint), model)
    for step in (2, 4):
        loaded = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / f"out/checkpoint-{step}")
        assert loaded.config.id2label == model.config.id2label
        assert transformers.ViltForQuestionAnswering.from_pretrained(tmp_path / f"out/checkpoint-{step}")
        again = vilt_fast.ViltProcessor.from_pretrained(tmp_path / f"out/checkpoint-{step}")
        wanted = processor(pairs[0]["image"], pairs[0]["text"], return_tensors="pt")
        got = again(pairs[0]["image"], pairs[0]["text"], return_tensors="pt")
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_resuming_gives_the_weights_of_the_uninterrupted_run(train, processor, tmp_path):
    whole = make_model(processor)
    train(whole).train()
    resumed = make_model(processor)
    train(resumed, folder="other").train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    assert same(resumed, whole)
    assert not same(vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "out/checkpoint-2"), whole)


def test_gradient_checkpointing_changes_no_number(train, processor):
    weights = []
    for options in (
        {},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ):
        model = make_model(processor)
        train(model, save_strategy="no", **options).train()
        assert model.is_gradient_checkpointing == bool(options)
        weights.append(model.state_dict())
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-5, atol=1e-6)


def test_bf16(train, processor):
    model = make_model(processor)
    trainer = train(model, bf16=True, eval_strategy="steps", eval_steps=4, save_strategy="no")
    trainer.train()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape == (4, len(ANSWERS)) and predicted.predictions.dtype == np.float32


def test_a_tied_model_is_saved_and_resumed(tmp_path, processor, pairs):
    """The raw state dict of a tied model is no safetensors file."""
    torch.manual_seed(0)
    fields = make_model(processor).config.to_dict()
    model = vilt_fast.ViltForMaskedLM(vilt_fast.ViltConfig.from_dict(fields, tie_word_embeddings=True))

    def collate(items):
        batch = processor([i["image"] for i in items], [i["text"] for i in items], padding=True, return_tensors="pt")
        return {**batch, "labels": batch["input_ids"]}

    settings = dict(per_device_train_batch_size=2, max_steps=2, save_steps=1, report_to=[], disable_tqdm=True)
    arguments = transformers.TrainingArguments(str(tmp_path), remove_unused_columns=False, use_cpu=True, **settings)
    Trainer(model, arguments, data_collator=collate, train_dataset=pairs).train()
    loaded = vilt_fast.ViltForMaskedLM.from_pretrained(tmp_path / "checkpoint-2")
    assert same(loaded, model) and loaded.mlm_score.decoder.weight is loaded.get_input_embeddings().weight
    again = vilt_fast.ViltForMaskedLM(model.config)
    trainer = Trainer(again, arguments, data_collator=collate, train_dataset=pairs)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same(again, model) and again.mlm_score.decoder.weight is again.get_input_embeddings().weight


def test_save_model_anywhere(train, processor, tmp_path):
    trainer = train(make_model(processor), max_steps=1, save_strategy="no")
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert same(vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "elsewhere"), trainer.model)
    written = json.loads((tmp_path / "elsewhere/config.json").read_text())
    assert written["architectures"] == ["ViltForQuestionAnswering"] and written["torch_dtype"] == "float32"


def test_without_the_mixin_the_error_says_what_to_pass(train, processor, tmp_path):
    model = make_model(processor)
    train(model, max_steps=1, save_steps=1, trainer=transformers.Trainer).train()
    folder = tmp_path / "out/checkpoint-1"
    assert (folder / "model.safetensors").is_file() and not (folder / "config.json").exists()
    with pytest.raises(FileNotFoundError, match=r"no config\.json in the directory .*Give config=.*TrainerMixin"):
        vilt_fast.ViltForQuestionAnswering.from_pretrained(folder)
    assert same(vilt_fast.ViltForQuestionAnswering.from_pretrained(folder, config=model.config), model)


def test_lora(train, processor, tmp_path):
    peft = pytest.importorskip("peft", reason="it is what is tried here")
    base = make_model(processor)
    base.save_pretrained(tmp_path / "base")
    base = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = peft.get_peft_model(base, config)
    trainer = train(model, gradient_checkpointing=True)
    trainer.train()
    folder = tmp_path / "out/checkpoint-4"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tmp_path / "base")
    loaded = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "base")
    assert same(loaded, before)
    loaded = peft.PeftModel.from_pretrained(loaded, folder)
    batch = trainer.data_collator(trainer.eval_dataset)
    with torch.no_grad():
        base = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "base")
        trained, fresh, untrained = (one.eval()(**batch).logits for one in (model, loaded, base))
    assert torch.equal(trained, fresh) and not torch.allclose(trained, untrained)
