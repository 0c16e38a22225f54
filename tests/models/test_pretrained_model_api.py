"""The methods of transformers' PreTrainedModel that people and tools call: here they mean the same."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import vilt_fast

CLASSES = {
    "ViltModel": {},
    "ViltForMaskedLM": {},
    "ViltForQuestionAnswering": {"num_labels": 5},
    "ViltForImagesAndTextClassification": {"num_images": 2, "modality_type_vocab_size": 3, "num_labels": 3},
    "ViltForImageAndTextRetrieval": {},
    "ViltForTokenClassification": {"num_labels": 4},
}
SIZES = dict(
    vocab_size=30,
    max_position_embeddings=10,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    image_size=16,
    patch_size=8,
)


def make(name="ViltForMaskedLM", **fields):
    return getattr(vilt_fast, name)(vilt_fast.ViltConfig(**{**SIZES, **CLASSES.get(name, {}), **fields}))


@pytest.fixture
def pair(oracle):
    """(ours, theirs) with the same weights."""

    def make_pair(name, **fields):
        theirs = oracle.build(name, {**SIZES, **CLASSES[name], **fields})
        ours = make(name, **fields).eval()
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs

    return make_pair


def words_and_pixels(rows=2):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 20, (rows, 6), generator=generator)
    return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}


# --- what it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_numbers_and_names_are_those_of_transformers(pair, name):
    ours, theirs = pair(name, tie_word_embeddings=name == "ViltForMaskedLM")
    ours.tie_weights()
    for model in (ours, theirs):
        (model.vilt if name != "ViltModel" else model).encoder.requires_grad_(False)
    for only_trainable in (False, True):
        for exclude in (False, True):
            assert ours.num_parameters(only_trainable, exclude) == theirs.num_parameters(only_trainable, exclude)
    without_buffers = theirs.get_memory_footprint(return_buffers=False)
    assert ours.get_memory_footprint(return_buffers=False) == without_buffers
    ours.register_buffer("extra", torch.zeros(3, dtype=torch.int16))
    assert ours.get_memory_footprint() - ours.get_memory_footprint(return_buffers=False) == 6
    for attribute in ("main_input_name", "base_model_prefix", "supports_gradient_checkpointing", "input_modalities"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert ours.can_generate() is theirs.can_generate() is False
    assert (ours.base_model is ours) == (theirs.base_model is theirs) == (name == "ViltModel")
    assert ours.base_model is getattr(ours, "vilt", ours)
    assert ours.all_tied_weights_keys == theirs.all_tied_weights_keys
    assert ours._tied_weights_keys == theirs._tied_weights_keys
    assert ours.framework == "pt" and ours.dtype == torch.float32 and ours.device == torch.device("cpu")
    assert ours.half().dtype == torch.float16 and ours.float().dtype == torch.float32


def test_modules_that_must_stay_whole_are_there():
    """accelerate reads class names."""
    model = make()
    names = {type(module).__name__ for module in model.modules()}
    assert model._no_split_modules and set(model._no_split_modules) <= names


def test_dtype_is_that_of_the_first_floating_point_parameter():
    model = make("ViltModel")
    first = next(iter(dict(model.named_parameters())))
    parent, _, attribute = first.rpartition(".")
    integers = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    setattr(model.get_submodule(parent), attribute, integers)
    assert model.dtype == torch.float32


def test_device_where_accelerate_keeps_the_weights_elsewhere(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="it keeps them there")
    model = make("ViltForQuestionAnswering")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).is_meta and model.device == torch.device("cpu")
    assert make().to("meta").device == torch.device("meta")


def test_weights_that_accelerate_keeps_elsewhere_are_saved_from_its_state_dict(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="it keeps them there")
    model = make("ViltForQuestionAnswering")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"no dense tensors with data: .*state_dict=accelerate\.utils\.modeling\.get_sta"
    ):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    state_dict = accelerate.utils.modeling.get_state_dict_offloaded_model(model)
    model.save_pretrained(tmp_path / "out", state_dict=state_dict)
    loaded = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path / "out").state_dict()
    assert loaded.keys() == before.keys() and all(torch.equal(loaded[name], before[name]) for name in before)


def test_a_configuration_of_transformers_is_refused_with_what_to_do(oracle):
    theirs = oracle.transformers.ViltConfig(**SIZES)
    with pytest.raises(ValueError, match=r"got ViltConfig of transformers\S+; ViltConfig\.from_dict\(config\.to_dict"):
        vilt_fast.ViltModel(theirs)
    vilt_fast.ViltModel(vilt_fast.ViltConfig.from_dict(theirs.to_dict()))


# --- gradient checkpointing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kwargs", [None, {}, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_gradient_checkpointing(kwargs, frozen, monkeypatch):
    """The same gradients, with the checkpointing that was asked for; with frozen embeddings too."""
    model = make("ViltForQuestionAnswering", num_labels=5, hidden_dropout_prob=0.2).train()
    model.vilt.embeddings.requires_grad_(not frozen)
    used = []
    original = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        torch.utils.checkpoint, "checkpoint", lambda *args, **kw: used.append(kw) or original(*args, **kw)
    )

    def gradients():
        torch.manual_seed(1)
        model.zero_grad()
        model(**words_and_pixels(), labels=torch.rand(2, 5, generator=torch.Generator().manual_seed(2))).loss.backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    plain = gradients()
    assert not used and not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable() if kwargs is None else model.gradient_checkpointing_enable(kwargs)
    assert model.is_gradient_checkpointing and model.vilt.is_gradient_checkpointing
    checkpointed = gradients()
    assert [kw["use_reentrant"] for kw in used] == 2 * [bool(kwargs and kwargs.get("use_reentrant"))]
    assert checkpointed.keys() == plain.keys() and len(plain) == sum(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(checkpointed, plain)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    torch.testing.assert_close(gradients(), plain)
    assert len(used) == 2


@pytest.mark.parametrize("bad", [True, False, "reentrant", {"reentrant": True}])
def test_gradient_checkpointing_refuses_what_it_does_not_know(bad):
    model = make()
    with pytest.raises(ValueError, match=r"gradient_checkpointing_kwargs: got .*use_reentrant"):
        model.gradient_checkpointing_enable(bad)
    for extra in ({"every_n_layers": 2}, {"offload": True}):
        with pytest.raises(ValueError, match="every_n_layers=.*offload="):
            model.gradient_checkpointing_enable(**extra)
    assert not model.is_gradient_checkpointing


# --- embeddings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_input_and_output_embeddings(name):
    model = make(name)
    words = model.get_input_embeddings()
    assert words is model.base_model.embeddings.text_embeddings.word_embeddings
    other = nn.Embedding(40, 16)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is model.base_model.get_input_embeddings() is other
    model.eval()
    inputs = words_and_pixels(1)
    if name == "ViltForImagesAndTextClassification":
        inputs["pixel_values"] = inputs["pixel_values"][:, None].expand(-1, 2, -1, -1, -1)
    first = model(**inputs)[0]
    with torch.no_grad():
        other.weight.mul_(2)
    assert not torch.allclose(first, model(**inputs)[0])
    if name != "ViltForMaskedLM":
        assert model.get_output_embeddings() is None
        with pytest.raises(ValueError, match=f"{name} has no output embeddings"):
            model.set_output_embeddings(nn.Linear(16, 40))
        return
    assert model.get_output_embeddings() is model.mlm_score.decoder
    model.set_output_embeddings(decoder := nn.Linear(16, 40))
    assert model.mlm_score.decoder is decoder and model(**inputs).logits.shape[-1] == 40


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [40, 20])
def test_resize_token_embeddings_against_transformers(pair, tied, size, tmp_path):
    ours, theirs = pair("ViltForMaskedLM", tie_word_embeddings=tied)
    ours.tie_weights()
    words = ours.get_input_embeddings()
    assert ours.resize_token_embeddings(size, mean_resizing=True) is words is ours.get_input_embeddings()
    theirs.resize_token_embeddings(size)
    assert ours.config.vocab_size == theirs.config.vocab_size == words.num_embeddings == size
    assert ours.mlm_score.decoder.out_features == size
    assert (ours.mlm_score.decoder.weight is words.weight) == tied
    kept = min(size, 30)
    for name, tensor in theirs.state_dict().items():
        if name == "mlm_score.bias":  # their second name of the decoder's bias
            continue
        got = ours.state_dict()[name]
        assert got.shape == tensor.shape, name
        assert torch.equal(got[:kept], tensor[:kept]) if tensor.shape[:1] == (size,) else torch.equal(got, tensor), name
        # Theirs draws around the mean with a hair's spread.
        torch.testing.assert_close(got, tensor, rtol=1e-4, atol=1e-4)
    inputs = words_and_pixels()
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="input_ids"):
        ours(**{**inputs, "input_ids": torch.full((2, 6), size)})
    ours.save_pretrained(tmp_path)
    again = vilt_fast.ViltForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, ours(**inputs).logits)


def test_new_rows_are_drawn_as_fresh_weights_are():
    model = make(pad_token_id=3, initializer_range=0.5)
    model.get_input_embeddings().weight.requires_grad_(False)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(7)
    held = model.get_input_embeddings().weight.clone()
    called = []
    model.get_input_embeddings().register_forward_hook(lambda *args: called.append(args))
    words = model.resize_token_embeddings(1000, pad_to_multiple_of=64, mean_resizing=False)
    assert words.weight.shape == (1024, 16) and model.config.vocab_size == 1024 and words.padding_idx == 3
    assert torch.equal(words.weight[:30], held) and not words.weight.requires_grad
    assert words.weight[30:].mean().abs() < 0.05 and 0.48 < words.weight[30:].std() < 0.52
    assert model.mlm_score.decoder.weight.requires_grad and not model.mlm_score.decoder.bias[30:].any()
    assert 0.48 < model.mlm_score.decoder.weight[30:].std() < 0.52
    assert model.resize_token_embeddings() is words and model.resize_token_embeddings(1024) is words
    words(torch.tensor([1]))
    assert called  # the module is the same, and what hangs on it
    assert model.resize_token_embeddings(2).padding_idx is None
    base = make("ViltModel")
    assert base.resize_token_embeddings(None, 16).weight.shape == (32, 16)


@pytest.mark.parametrize("arguments", [(0,), (-1,), ("40",), (True,), (40, 0), (40, 1.5)], ids=str)
def test_resize_refuses_no_numbers(arguments):
    model = make()
    with pytest.raises(ValueError, match=r"(new_num_tokens|pad_to_multiple_of): got .*, wanted a positive integer"):
        model.resize_token_embeddings(*arguments)
    assert model.config.vocab_size == 30


def test_resize_refuses_what_is_no_plain_table():
    model = make()
    nn.utils.parametrizations.weight_norm(model.get_input_embeddings())
    with pytest.raises(ValueError, match="wanted an Embedding with a plain weight to resize"):
        model.resize_token_embeddings(40)
    assert model.config.vocab_size == 30 and model.mlm_score.decoder.out_features == 30


def test_tie_weights_does_what_the_configuration_says():
    """accelerate and transformers call it on any model."""
    model = make(tie_word_embeddings=False)
    model.tie_weights()
    assert model.mlm_score.decoder.weight is not model.get_input_embeddings().weight
    assert model._keys_to_ignore_on_save is None and model.all_tied_weights_keys == {}
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.mlm_score.decoder.weight is model.get_input_embeddings().weight
    assert model._keys_to_ignore_on_save == ["mlm_score.decoder.weight"]
    model.untie_weights()
    assert model.mlm_score.decoder.weight is not model.get_input_embeddings().weight
    make("ViltModel").tie_weights()
    make("ViltModel").untie_weights()


def test_input_require_grads():
    """For adapters: everything is frozen, and the first layer's input wants a gradient all the same."""
    model = make("ViltForQuestionAnswering", num_labels=5).requires_grad_(False).train()
    model.vilt.encoder.layer[1].requires_grad_(True)
    seen = []
    model.vilt.encoder.layer[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    inputs = {**words_and_pixels(), "labels": torch.rand(2, 5)}
    for _ in range(2):
        model.enable_input_require_grads()
        pickle.loads(pickle.dumps(copy.deepcopy(model.get_input_embeddings())))
        model(**inputs).loss.backward()
        model.disable_input_require_grads()
        model.disable_input_require_grads()
        assert not model.get_input_embeddings()._forward_hooks
        model(**inputs)
    assert seen == [True, False, True, False]


# --- a user's own class --------------------------------------------------------------------------------------------


class Backbone(vilt_fast.ViltPreTrainedModel):
    """As the guides of transformers write a model."""

    base_model_prefix = "backbone"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = vilt_fast.ViltModel(config)
        self.head = nn.Linear(config.hidden_size, 3)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self.head:
            module.weight.data.fill_(5)


def test_a_subclass_with_a_prefix_of_its_own(tmp_path, caplog):
    model = Backbone(vilt_fast.ViltConfig(**SIZES))
    assert (model.head.weight == 5).all() and model.base_model is model.backbone
    assert model.get_input_embeddings() is model.backbone.get_input_embeddings()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path / "whole")
    again = Backbone.from_pretrained(tmp_path / "whole")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    # Its checkpoint into a base model is not asked for: the base model cannot know the prefix. The other way is.
    for base in (model.backbone, make("ViltForQuestionAnswering")):
        base.save_pretrained(tmp_path / "base")
        loaded, info = Backbone.from_pretrained(tmp_path / "base", strict=False, output_loading_info=True)
        assert info["missing_keys"] == {"head.weight", "head.bias"} and (loaded.head.weight == 5).all()
        wanted = base.base_model.state_dict()
        assert all(torch.equal(loaded.backbone.state_dict()[name], tensor) for name, tensor in wanted.items())


# --- the hub -------------------------------------------------------------------------------------------------------


class FakeApi:
    """Keeps what it is asked to upload."""

    asked: list = []
    cards: dict = {}

    def __init__(self, token=None):
        self.asked.append(("token", token))

    def create_repo(self, repo_id, **options):
        self.asked.append(("create_repo", repo_id, options))
        return type("Url", (), {"repo_id": repo_id if "/" in repo_id else f"me/{repo_id}"})

    def create_branch(self, repo_id, **options):
        self.asked.append(("create_branch", repo_id, options))

    def hf_hub_download(self, repo_id, filename):
        from huggingface_hub.utils import EntryNotFoundError

        if repo_id not in self.cards:
            raise EntryNotFoundError("no card")
        return self.cards[repo_id]

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **options):
        files = {name: (folder_path / name).read_bytes() for name in allow_patterns}
        self.asked.append(("upload_folder", repo_id, files, options))
        return "the commit"


@pytest.fixture
def api(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    FakeApi.asked, FakeApi.cards = [], {}
    return FakeApi


def test_push_to_hub(api, tmp_path):
    model = make("ViltForQuestionAnswering")
    commit = model.push_to_hub(
        "mine",
        commit_message="a better one",
        commit_description="because",
        private=True,
        token="hf_x",
        revision="trial",
        create_pr=True,
        max_shard_size="20KB",
        variant="fp16",
    )
    assert commit == "the commit"
    token, repository, branch, (_, repo_id, files, options) = api.asked
    assert token == ("token", "hf_x")
    assert repository == ("create_repo", "mine", {"private": True, "exist_ok": True})
    assert branch == ("create_branch", "me/mine", {"branch": "trial", "exist_ok": True})
    assert repo_id == "me/mine"
    assert options == {
        "commit_message": "a better one",
        "commit_description": "because",
        "revision": "trial",
        "create_pr": True,
    }
    assert "config.json" in files and "model.safetensors.index.fp16.json" in files and "README.md" not in files
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    loaded = vilt_fast.ViltForQuestionAnswering.from_pretrained(tmp_path, variant="fp16")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("has_card", [False, True])
def test_tags_go_to_the_model_card(api, tmp_path, has_card):
    if has_card:
        card = tmp_path / "README.md"
        card.write_text("---\nlicense: mit\ntags:\n- vqa\n- old\n---\n\nMine.\n")
        api.cards["team/it"] = str(card)
    model = make("ViltModel")
    model.add_model_tags("vqa")
    model.add_model_tags(["vqa", "small"])
    assert model.model_tags == ["vqa", "small"] and make("ViltModel").model_tags is None
    model.push_to_hub("team/it", tags=["own"])
    text = api.asked[-1][2]["README.md"].decode()
    held = "- vqa\n- old\n- small\n- own\n" if has_card else "- vqa\n- small\n- own\n"
    assert f"tags:\n{held}" in text and ("license: mit" in text and "Mine." in text) == has_card


def test_save_and_push(api, tmp_path):
    model = make("ViltModel")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/secret.txt").write_text("not to be uploaded")
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, token="hf_x", commit_message="first")
    _, (_, created, _), (_, repo_id, files, options) = api.asked
    assert created == "mine" and repo_id == "me/mine" and options["commit_message"] == "first"
    assert set(files) == {"config.json", "model.safetensors"}
    assert files["model.safetensors"] == (tmp_path / "mine/model.safetensors").read_bytes()
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="team/other")
    assert api.asked[-1][1] == "team/other"


# --- the signatures of transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    "num_parameters gradient_checkpointing_enable gradient_checkpointing_disable resize_token_embeddings "
    "get_memory_footprint set_input_embeddings set_output_embeddings add_model_tags enable_input_require_grads".split(),
)
def test_arguments_have_their_names_and_order(oracle, method):
    ours = list(inspect.signature(getattr(vilt_fast.ViltForMaskedLM, method)).parameters)
    theirs = list(inspect.signature(getattr(oracle.transformers.ViltForMaskedLM, method)).parameters)
    wanted = ["value" if name == "new_embeddings" and method == "set_input_embeddings" else name for name in theirs]
    assert ours == wanted
