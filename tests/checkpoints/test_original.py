"""Checkpoints of the original repository: a small ViLT under its names, written here from the paper, is the oracle."""

import argparse
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vilt_fast
from vilt_fast import checkpoints

HIDDEN, HEADS, DEPTH, PATCH, TABLE, WORDS, LENGTH = 32, 4, 2, 8, 3, 40, 12
TASKS = {
    "mlm_itm": "ViltForMaskedLM",
    "vqa": "ViltForQuestionAnswering",
    "nlvr2": "ViltForImagesAndTextClassification",
    "irtr": "ViltForImageAndTextRetrieval",
    "itm": "ViltForImageTextMatching",
}


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); query, key and value in one product, eps 1e-6 (timm)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN, eps=1e-6), nn.LayerNorm(HIDDEN, eps=1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(HIDDEN, 48), nn.Linear(48, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, HIDDEN // HEADS))
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
        weights = (q @ k.transpose(-1, -2) * (HIDDEN // HEADS) ** -0.5).softmax(-1)
        x = x + self.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Transform(nn.Module):
    """BERT's step before a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class Original(nn.Module):
    """The modules of the original for one task, by its names; no padding, so no masks."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.text_embeddings = nn.Module()
        self.text_embeddings.word_embeddings = nn.Embedding(WORDS, HIDDEN)
        self.text_embeddings.position_embeddings = nn.Embedding(LENGTH, HIDDEN)
        self.text_embeddings.token_type_embeddings = nn.Embedding(2, HIDDEN)
        self.text_embeddings.LayerNorm = nn.LayerNorm(HIDDEN, eps=1e-12)
        self.text_embeddings.register_buffer("position_ids", torch.arange(LENGTH)[None])
        self.token_type_embeddings = nn.Embedding(3 if task == "nlvr2" else 2, HIDDEN)
        self.transformer = nn.Module()
        self.transformer.cls_token = nn.Parameter(torch.zeros(1, 1, HIDDEN))
        self.transformer.pos_embed = nn.Parameter(torch.zeros(1, 1 + TABLE * TABLE, HIDDEN))
        self.transformer.patch_embed = nn.Module()
        self.transformer.patch_embed.proj = nn.Conv2d(3, HIDDEN, PATCH, PATCH)
        self.transformer.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.transformer.norm = nn.LayerNorm(HIDDEN, eps=1e-6)
        self.pooler = nn.Module()
        self.pooler.dense = nn.Linear(HIDDEN, HIDDEN)
        if task in ("mlm_itm",):
            self.mlm_score = nn.Module()
            self.mlm_score.transform = Transform()
            self.mlm_score.decoder = nn.Linear(HIDDEN, WORDS, bias=False)
            self.mlm_score.bias = nn.Parameter(torch.zeros(WORDS))
            self.mpp_score = nn.Module()
            self.mpp_score.transform, self.mpp_score.decoder = Transform(), nn.Linear(HIDDEN, 256 * 3)
        if task in ("mlm_itm", "itm", "irtr"):
            self.itm_score = nn.Module()
            self.itm_score.fc = nn.Linear(HIDDEN, 2)
        if task == "irtr":
            self.rank_output = nn.Linear(HIDDEN, 1)
        if task in ("vqa", "nlvr2"):
            width = HIDDEN * (2 if task == "nlvr2" else 1)
            head = nn.Sequential(
                nn.Linear(width, 2 * HIDDEN),
                nn.LayerNorm(2 * HIDDEN),
                nn.GELU(),
                nn.Linear(2 * HIDDEN, 7 if task == "vqa" else 2),
            )
            setattr(self, f"{task}_classifier", head)
        generator = torch.Generator().manual_seed(len(task))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    def infer(self, ids: torch.Tensor, types: torch.Tensor, pixels: torch.Tensor, modality: int = 1):
        """(rows of words, pooled row), one picture a text."""
        text = self.text_embeddings
        words = text.word_embeddings(ids) + text.token_type_embeddings(types)
        words = text.LayerNorm(words + text.position_embeddings.weight[: ids.shape[1]])
        patches = self.transformer.patch_embed.proj(pixels)
        table = self.transformer.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (TABLE, TABLE))
        table = F.interpolate(table, size=patches.shape[2:], mode="bilinear", align_corners=True)
        cls = self.transformer.cls_token + self.transformer.pos_embed[:, :1]
        image = torch.cat([cls.expand(len(ids), -1, -1), (patches + table).flatten(2).transpose(1, 2)], dim=1)
        x = torch.cat(
            [words + self.token_type_embeddings.weight[0], image + self.token_type_embeddings.weight[modality]], dim=1
        )
        for block in self.transformer.blocks:
            x = block(x)
        x = self.transformer.norm(x)
        return x[:, : ids.shape[1]], torch.tanh(self.pooler.dense(x[:, 0]))

    @torch.no_grad()
    def answer(self, task: str, ids: torch.Tensor, types: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of a task."""
        if task == "nlvr2":
            pooled = [self.infer(ids, types, pixels[:, i], i + 1)[1] for i in (0, 1)]
            return self.nlvr2_classifier(torch.cat(pooled, dim=-1))
        words, pooled = self.infer(ids, types, pixels)
        if task == "mlm_itm":
            return self.mlm_score.decoder(self.mlm_score.transform(words)) + self.mlm_score.bias
        heads = {"vqa": "vqa_classifier", "irtr": "rank_output"}
        return self.itm_score.fc(pooled) if task == "itm" else getattr(self, heads[task])(pooled)


def hyper_parameters(**fields):
    """As the original's configuration names them; image_size is not what sizes its position table."""
    return {
        "config": {
            "num_heads": HEADS,
            "hidden_size": HIDDEN,
            "drop_rate": 0.1,
            "max_image_len": 200,
            "vit": "vit_base_patch32_384",
            "image_size": 384,
            "patch_size": 32,
            "max_text_len": LENGTH,
            "loss_names": {"itm": 1, "mlm": 1},
            **fields,
        }
    }


def inputs(task: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    pictures = (3, 2) if task == "nlvr2" else (3,)
    return (
        torch.randint(0, WORDS, (3, 9), generator=generator),
        torch.randint(0, 2, (3, 9), generator=generator),
        torch.randn(*pictures, 3, 16, 40, generator=generator),
    )


@pytest.fixture
def lightning(monkeypatch):
    """The trainer's classes that a checkpoint of PyTorch Lightning 1.1 names: they exist while it is written."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    package = types.ModuleType("pytorch_lightning")
    callbacks = types.ModuleType("pytorch_lightning.callbacks")
    for holder, name in ((module, "ModelCheckpoint"), (module, "AttributeDict")):
        cls = type(name, (dict,) if name == "AttributeDict" else (), {"__module__": module.__name__})
        setattr(holder, name, cls)
    with monkeypatch.context() as patch:
        for made in (package, callbacks, module):
            patch.setitem(sys.modules, made.__name__, made)
        yield module


def checkpoint(model: nn.Module, **more) -> dict:
    """What Lightning puts around the weights."""
    state = model.state_dict()
    state["train_vqa_loss.scalar"] = torch.tensor(3.0)
    state["val_itm_accuracy.total"] = torch.tensor(3)
    state["transformer.head.weight"] = torch.ones(2, 2)
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    return {
        "epoch": 3,
        "global_step": 25_000,
        "pytorch-lightning_version": "1.1.4",
        "state_dict": state,
        "optimizer_states": [optimizer],
        "lr_schedulers": [{"last_epoch": 3}],
        **more,
    }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_same_answers(tmp_path, task, dtype, caplog):
    oracle = Original(task).to(dtype)
    torch.save(checkpoint(oracle, hyper_parameters=hyper_parameters()), tmp_path / "vilt.ckpt")
    ids, kinds, pixels = inputs(task)
    wanted = oracle.answer(task, ids, kinds, pixels.to(dtype))
    cls = getattr(vilt_fast, TASKS[task])
    model = cls.from_pretrained(tmp_path / "vilt.ckpt", dtype=dtype)
    options = dict(input_ids=ids, token_type_ids=kinds, pixel_values=pixels.to(dtype))
    with torch.no_grad():
        got = model(**options).logits
    # The same sums in another order; an eps of 1e-12 in the blocks misses by more.
    tolerance = dict(rtol=1e-10, atol=1e-10) if dtype == torch.float64 else dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, wanted, **tolerance)
    skipped = {"mlm_itm": ["itm_score.fc.weight", "mpp_score.decoder.weight"], "irtr": ["itm_score.fc.weight"]}
    for name in skipped.get(task, []):
        assert name in caplog.text
    assert "train_vqa" not in caplog.text and "rank_output" not in caplog.text
    model.save_pretrained(tmp_path / "ours")  # and in our own format, with its eps
    with torch.no_grad():
        again = cls.from_pretrained(tmp_path / "ours", dtype=dtype)(**options).logits
    assert torch.equal(again, got)


def test_eps_matters_to_this_test():
    """With activations this small an eps of 1e-12 in the blocks would show."""
    oracle = Original("vqa").double()
    ids, kinds, pixels = inputs("vqa")
    right = oracle.answer("vqa", ids, kinds, pixels.double())
    for module in oracle.transformer.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12
    wrong = oracle.answer("vqa", ids, kinds, pixels.double())
    assert (right - wrong).abs().max() > 1e-8


def test_the_configuration(tmp_path):
    for task, name in TASKS.items():
        torch.save(checkpoint(Original(task), hyper_parameters=hyper_parameters()), tmp_path / "vilt.ckpt")
        config = vilt_fast.ViltConfig.from_pretrained(tmp_path / "vilt.ckpt")
        wanted = dict(
            vocab_size=WORDS,
            type_vocab_size=2,
            modality_type_vocab_size=3 if task == "nlvr2" else 2,
            max_position_embeddings=LENGTH,
            hidden_size=HIDDEN,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=48,
            hidden_act="gelu",
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-12,
            encoder_layer_norm_eps=1e-6,
            image_size=TABLE * PATCH,
            patch_size=PATCH,
            num_channels=3,
            qkv_bias=True,
            max_image_length=-1,
            tie_word_embeddings=False,
            num_images=2 if task == "nlvr2" else -1,
        )
        assert {field: getattr(config, field) for field in wanted} == wanted
        labels = {"vqa": {i: f"LABEL_{i}" for i in range(7)}, "nlvr2": {0: "False", 1: "True"}}
        assert config.id2label == labels.get(task, {0: "LABEL_0", 1: "LABEL_1"})
        assert config.to_dict()["architectures"] == [name]


def test_fields_may_be_overridden(tmp_path):
    torch.save(checkpoint(Original("nlvr2"), hyper_parameters=hyper_parameters()), tmp_path / "vilt.ckpt")
    path = str(tmp_path / "vilt.ckpt")
    config = vilt_fast.ViltConfig.from_pretrained(path, max_image_length=9, num_labels=4, revision="unused")
    assert (config.max_image_length, config.num_labels, config.hidden_size) == (9, 4, HIDDEN)
    assert checkpoints.read_original_fields(path)["hidden_size"] == HIDDEN


def test_weights_alone_have_heads_of_64(tmp_path):
    """Without hyperparameters: 64 a head, as in every model the paper trains."""
    state = Original("itm").state_dict()
    wide = {name: _widen(name, tensor) for name, tensor in state.items()}
    torch.save({"state_dict": wide}, tmp_path / "vilt.ckpt")
    config = vilt_fast.ViltConfig.from_pretrained(tmp_path / "vilt.ckpt")
    assert (config.hidden_size, config.num_attention_heads, config.hidden_dropout_prob) == (128, 2, 0.0)
    torch.save(state, tmp_path / "small.ckpt")  # a bare state dict, 32 wide
    with pytest.raises(ValueError, match=r"small\.ckpt: the number of attention heads .* give config="):
        vilt_fast.ViltConfig.from_pretrained(tmp_path / "small.ckpt")
    config = vilt_fast.ViltConfig(
        vocab_size=WORDS,
        max_position_embeddings=LENGTH,
        hidden_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=48,
        image_size=24,
        patch_size=PATCH,
        encoder_layer_norm_eps=1e-6,
    )
    model = vilt_fast.ViltForImageTextMatching.from_pretrained(tmp_path / "small.ckpt", config=config)
    assert torch.equal(model.itm_score.fc.weight, state["itm_score.fc.weight"])


def _widen(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point() or name in ("itm_score.fc.bias", "transformer.patch_embed.proj.weight"):
        return tensor.repeat(4, 1, 1, 1) if tensor.dim() == 4 else tensor
    inner = ".mlp.fc1." in name
    across = 4 if tensor.shape[-1] == HIDDEN else 1
    down = 4 if tensor.dim() == 2 and tensor.shape[0] in (HIDDEN, 3 * HIDDEN) and not inner else 1
    if tensor.dim() == 1:
        return tensor if inner else tensor.repeat(4)
    return tensor.repeat(*[1] * (tensor.dim() - 2), down, across)


def test_without_a_bias_of_qkv(tmp_path):
    state = {name: tensor for name, tensor in Original("itm").state_dict().items() if not name.endswith("qkv.bias")}
    torch.save({"state_dict": state, "hyper_parameters": hyper_parameters()}, tmp_path / "vilt.ckpt")
    model = vilt_fast.ViltForImageTextMatching.from_pretrained(tmp_path / "vilt.ckpt")
    assert not model.config.qkv_bias
    assert model.vilt.encoder.layer[1].attention.attention.value.bias is None
    fused = state["transformer.blocks.1.attn.qkv.weight"]
    assert torch.equal(model.vilt.encoder.layer[1].attention.attention.value.weight, fused[2 * HIDDEN :])


def test_the_head_counts_that_a_vit_name_fixes(tmp_path):
    """vit_small of timm has 8 heads, whatever num_heads says."""
    for fields, heads in (
        ({"vit": "vit_small_patch16_224"}, 8),
        ({"vit": "vit_base_patch32_384"}, HEADS),
        ({"num_heads": 16}, 16),
    ):
        torch.save(checkpoint(Original("itm"), hyper_parameters=hyper_parameters(**fields)), tmp_path / "vilt.ckpt")
        assert vilt_fast.ViltConfig.from_pretrained(tmp_path / "vilt.ckpt").num_attention_heads == heads
    torch.save(checkpoint(Original("itm"), hyper_parameters=hyper_parameters(num_heads=5)), tmp_path / "vilt.ckpt")
    with pytest.raises(ValueError, match="hidden size 32 cannot be determined .hyper_parameters say 5"):
        vilt_fast.ViltConfig.from_pretrained(tmp_path / "vilt.ckpt")


def test_objects_of_the_trainer_do_not_keep_the_weights_from_loading(tmp_path, lightning):
    """Lightning keys its callbacks by class, so its files name classes that are not installed here, or not allowed."""
    oracle = Original("vqa")
    more = dict(
        hyper_parameters=lightning.AttributeDict(hyper_parameters(data_root=Path("/data"))),
        callbacks={lightning.ModelCheckpoint: {"best_model_score": torch.tensor(0.7), "best_model_path": "x.ckpt"}},
        args=argparse.Namespace(b=2),
        object=lightning.ModelCheckpoint(),
    )
    torch.save(checkpoint(oracle, **more), tmp_path / "vilt.ckpt")
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        del sys.modules[name]
    allowed = set(torch.serialization.get_safe_globals())
    model = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "vilt.ckpt")
    assert torch.equal(model.classifier[3].weight, oracle.vqa_classifier[3].weight)
    assert model.config.num_attention_heads == HEADS
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)


class Elsewhere:
    """A class of no trainer."""


def test_other_objects_are_refused_by_name(tmp_path, monkeypatch):
    module = types.ModuleType("somebody")
    module.Elsewhere, Elsewhere.__module__ = Elsewhere, "somebody"
    monkeypatch.setitem(sys.modules, "somebody", module)
    torch.save(checkpoint(Original("vqa"), hyper_parameters={"config": Elsewhere()}), tmp_path / "vilt.ckpt")
    with pytest.raises(ValueError, match=r"vilt\.ckpt holds Python objects .* not run: somebody\.Elsewhere"):
        vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "vilt.ckpt")


def test_retrieval_before_its_training_starts_from_the_matching_head(tmp_path):
    """The original copies row 1 of itm_score into rank_output."""
    oracle = Original("itm")
    torch.save(checkpoint(oracle, hyper_parameters=hyper_parameters()), tmp_path / "vilt.ckpt")
    ids, kinds, pixels = inputs("itm")
    model = vilt_fast.ViltForImageAndTextRetrieval.from_pretrained(tmp_path / "vilt.ckpt")
    with torch.no_grad():
        got = model(input_ids=ids, token_type_ids=kinds, pixel_values=pixels).logits
    torch.testing.assert_close(got, oracle.answer("itm", ids, kinds, pixels)[:, 1:], rtol=1e-5, atol=1e-5)


def test_a_base_model_from_an_original(tmp_path):
    oracle = Original("irtr")
    torch.save(checkpoint(oracle, hyper_parameters=hyper_parameters()), tmp_path / "vilt.ckpt")
    ids, kinds, pixels = inputs("irtr")
    model = vilt_fast.ViltModel.from_pretrained(tmp_path / "vilt.ckpt")
    with torch.no_grad():
        outputs = model(input_ids=ids, token_type_ids=kinds, pixel_values=pixels)
        words, pooled = oracle.infer(ids, kinds, pixels)
    torch.testing.assert_close(outputs.pooler_output, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs.last_hidden_state[:, :9], words, rtol=1e-5, atol=1e-5)


# --- bad ones ------------------------------------------------------------------------------------------------------


def test_bad_originals_name_their_tensors(tmp_path, helpers):
    oracle = Original("vqa")
    good = checkpoint(oracle, hyper_parameters=hyper_parameters())
    torch.save(good, tmp_path / "vilt.ckpt")
    model = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "vilt.ckpt")
    before = helpers.copy(model)
    good["state_dict"]["transformer.pre_norm.weight"] = torch.ones(HIDDEN)
    del good["state_dict"]["transformer.blocks.1.attn.qkv.bias"], good["state_dict"]["vqa_classifier.3.bias"]
    torch.save(good, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError) as caught:
        checkpoints.load_weights(model, tmp_path / "bad.ckpt")
    for words in (
        "4 missing",
        "vilt.encoder.layer.1.attention.attention.query.bias",
        "classifier.3.bias",
        "1 unexpected: transformer.pre_norm.weight",
    ):
        assert words in str(caught.value)
    good["state_dict"]["transformer.blocks.1.attn.qkv.bias"] = torch.ones(3 * HIDDEN + 1)
    torch.save(good, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.bias: got shape \(97,\), wanted query, key and value"):
        checkpoints.load_weights(model, tmp_path / "bad.ckpt")
    good["state_dict"]["transformer.blocks.1.attn.qkv.bias"] = torch.ones(3 * HIDDEN)
    good["state_dict"]["nlvr2_classifier.3.bias"] = good["state_dict"]["vqa_classifier.3.bias"] = torch.ones(7)
    torch.save(good, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"two tensors of the checkpoint become classifier\.3\.bias"):
        checkpoints.load_weights(model, tmp_path / "bad.ckpt")
    assert helpers.same(model.state_dict(), before)
    with pytest.raises(ValueError, match="does not fit ViltForMaskedLM.*missing: mlm_score"):
        vilt_fast.ViltForMaskedLM.from_pretrained(tmp_path / "vilt.ckpt")


def test_no_original(tmp_path, helpers):
    with pytest.raises(FileNotFoundError, match="absent.ckpt"):
        vilt_fast.ViltConfig.from_pretrained(tmp_path / "absent.ckpt")
    torch.save(helpers.make("ViltModel").state_dict(), tmp_path / "ours.ckpt")
    with pytest.raises(ValueError, match=r"ours\.ckpt is no checkpoint of the original ViLT repository; it holds emb"):
        vilt_fast.ViltConfig.from_pretrained(tmp_path / "ours.ckpt")
    state = Original("vqa").state_dict()
    state["transformer.pos_embed"] = torch.ones(1, 12, HIDDEN)
    torch.save({"state_dict": state, "hyper_parameters": hyper_parameters()}, tmp_path / "table.ckpt")
    with pytest.raises(ValueError, match=r"pos_embed has shape \(1, 12, 32\), wanted \(1, 1 \+ n \* n, hidden\)"):
        vilt_fast.ViltConfig.from_pretrained(tmp_path / "table.ckpt")
    del state["text_embeddings.position_embeddings.weight"], state["token_type_embeddings.weight"]
    torch.save(state, tmp_path / "half.ckpt")
    with pytest.raises(ValueError, match="lacks text_embeddings.position_embeddings.weight, token_type_embeddings"):
        vilt_fast.ViltConfig.from_pretrained(tmp_path / "half.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "table.ckpt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.ckpt is truncated"):
        vilt_fast.ViltConfig.from_pretrained(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3)])
@pytest.mark.parametrize("name", ["text_embeddings.word_embeddings.weight", "transformer.pos_embed"])
def test_tensors_from_which_no_size_can_be_read(tmp_path, name, shape):
    content = checkpoint(Original("vqa"))
    content["state_dict"][name] = torch.ones(shape)
    torch.save(content, tmp_path / "vilt.ckpt")
    with pytest.raises(ValueError) as caught:
        vilt_fast.ViltConfig.from_pretrained(tmp_path / "vilt.ckpt")
    assert f"{tmp_path / 'vilt.ckpt'}: its configuration cannot be determined from tensors" in str(caught.value)
    assert f"{name} {shape}" in str(caught.value)


def test_the_file_of_a_fused_qkv_that_is_none(tmp_path):
    content = checkpoint(Original("vqa"), hyper_parameters=hyper_parameters())
    content["state_dict"]["transformer.blocks.1.attn.qkv.bias"] = torch.ones(())
    torch.save(content, tmp_path / "vilt.ckpt")
    with pytest.raises(ValueError, match=r"vilt\.ckpt: transformer\.blocks\.1\.attn\.qkv\.bias: got shape \(\)"):
        vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "vilt.ckpt")
