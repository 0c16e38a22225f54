"""What tools do to a ViT: compiled, copied, hooked, checkpointed, adapted, pruned; the answers stay transformers'."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import vilt_fast

transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

CLASSES = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")


@pytest.fixture(scope="module")
def built(vit_oracle, tmp_path_factory):
    return {name: vit_oracle.pair(name, tmp_path_factory.mktemp(name)) for name in CLASSES}


@pytest.fixture
def pair(built):
    """(ours, theirs) of a class, to be changed at will."""
    return lambda name="ViTForImageClassification": copy.deepcopy(built[name])


@pytest.fixture
def pixels(vit_oracle, built):
    return vit_oracle.images(built["ViTModel"][1].config)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_compiled(oracle, pair, pixels, name):
    """The graph breaks where lengths are read back. Of one block: tracing takes seconds for each."""
    ours, _ = pair(name)
    base = ours if name == "ViTModel" else ours.vit
    base.encoder.layer = base.encoder.layer[:1]
    torch._dynamo.reset()
    got = torch.compile(ours, backend="eager")(pixels)[0]
    torch._dynamo.reset()
    oracle.check_close("compiled", got, ours(pixels)[0], 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), "torch.save", "state_dict"],
    ids=["deepcopy", "pickle", "torch.save", "state_dict"],
)
def test_copies(oracle, built, pixels, name, again):
    ours, _ = built[name]
    if again == "torch.save":
        torch.save(ours, file := io.BytesIO())
        file.seek(0)
        model = torch.load(file, weights_only=False)
    elif again == "state_dict":
        model = type(ours)(copy.deepcopy(ours.config), **({} if name != "ViTModel" else {"add_pooling_layer": True}))
        assert not any(model.load_state_dict(ours.state_dict()))
    else:
        model = again(ours)
    oracle.check_equal(name, model.eval()(pixels)[0], ours(pixels)[0])
    next(model.parameters()).data.fill_(7)
    assert next(ours.parameters()).max() < 7


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(oracle, vit_oracle, pair, pixels, reentrant):
    ours, _ = pair()
    gradients = []
    for model in (ours, copy.deepcopy(ours)):
        if gradients:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_gradient_checkpointing
        model.train()(pixels, labels=torch.tensor([1, 3])).loss.backward()
        gradients.append(vit_oracle.gradients(model))
    for name, value in gradients[0].items():
        oracle.check_equal(name, gradients[1][name], value)


def test_lora(oracle, pair, pixels, tmp_path):
    """By the names of files, query and value; saved, and loaded onto a fresh copy."""
    peft = pytest.importorskip("peft", reason="PEFT adapts")
    ours, _ = pair()
    before = ours(pixels).logits
    config = peft.LoraConfig(target_modules=["query", "value"], r=2, modules_to_save=["classifier"])
    adapted = peft.get_peft_model(copy.deepcopy(ours), config)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2 + 2 and all("lora" in name or "classifier" in name for name in trained)
    oracle.check_close("before training", adapted(pixels).logits, before, 1e-6)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = adapted(pixel_values=pixels, labels=torch.tensor([1, 3])).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(ours), tmp_path)
    with torch.no_grad():
        oracle.check_close("loaded", again.eval()(pixels).logits, adapted.eval()(pixels).logits, 1e-6)
        oracle.check_close("merged", adapted.merge_and_unload()(pixels).logits, again(pixels).logits, 1e-5)


HOOKED = [
    "vit",
    "vit.embeddings.patch_embeddings",
    "vit.embeddings.patch_embeddings.projection",
    "vit.embeddings.dropout",
    "vit.encoder",
    "vit.encoder.layer.1",
    "vit.encoder.layer.1.attention.attention.query",
    "vit.encoder.layer.0.output.dense",
    "vit.layernorm",
]


@torch.no_grad()
@pytest.mark.parametrize("place", HOOKED)
@pytest.mark.parametrize("name", CLASSES[1:])
def test_a_hook_is_called_and_changes_nothing(oracle, pair, pixels, name, place):
    """Where a fused step is not taken, its modules give the same."""
    ours, _ = pair(name)
    wanted, calls = ours(pixels)[0], []
    handle = ours.get_submodule(place).register_forward_hook(lambda module, *_: calls.append(module))
    oracle.check_close(place, ours(pixels)[0], wanted, 1e-5)
    assert calls
    handle.remove()


@pytest.mark.parametrize("place", ["vit.embeddings.patch_embeddings.projection", "vit.embeddings", "decoder"])
def test_a_hook_sees_the_mask_token_and_the_loss(oracle, pair, vit_oracle, pixels, place):
    """Masked pixels, module by module: the same loss, and the same gradient of the token."""
    ours, _ = pair("ViTForMaskedImageModeling")
    masked, results = vit_oracle.masked_positions(ours.config), []
    for hooked in (False, True):
        model = copy.deepcopy(ours)
        if hooked:
            model.get_submodule(place).register_forward_hook(lambda *_: None)
        loss = model(pixels, masked).loss
        loss.backward()
        results.append((loss.detach(), model.vit.embeddings.mask_token.grad))
    for what, got, wanted in zip(("loss", "gradient of mask_token"), results[1], results[0], strict=True):
        oracle.check_close(what, got, wanted, 1e-5)


@torch.no_grad()
def test_heads_that_are_pruned(oracle, vit_oracle, pair, pixels, tmp_path):
    """As a head mask of zero; and it can be saved and read again."""
    ours, _ = pair()
    wanted = ours(pixels, head_mask=torch.tensor([[1.0, 0.0], [1.0, 1.0]])).logits
    ours.prune_heads({0: [1]})
    oracle.check_close("pruned", ours(pixels).logits, wanted, 1e-5)
    ours.save_pretrained(tmp_path)
    again = vilt_fast.ViTForImageClassification.from_pretrained(tmp_path)
    oracle.check_equal("again", again(pixels).logits, ours(pixels).logits)


@torch.no_grad()
def test_another_module_in_the_place_of_the_projection(oracle, pair, pixels):
    """What makes one row of a patch may be anything."""
    ours, _ = pair("ViTModel")
    wanted = ours(pixels).last_hidden_state
    inner = ours.embeddings.patch_embeddings.projection
    ours.embeddings.patch_embeddings.projection = nn.Sequential(inner, nn.Identity())
    oracle.check_close("last_hidden_state", ours(pixels).last_hidden_state, wanted, 1e-5)


def test_training_takes_the_same_steps(oracle, vit_oracle, pair, pixels):
    ours, theirs = pair()
    for model in (ours, theirs):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(pixels, labels=torch.tensor([1, 3])).loss.backward()
            optimizer.step()
    states = (vit_oracle.names_of_437(model.state_dict()) for model in (theirs, ours))
    wanted, got = states
    for name, value in wanted.items():
        oracle.check_close(name, got[name], value, 1e-4)


def test_names_of_transformers_5_in_memory():
    """State dicts cross over both ways without a file."""
    from vilt_fast.checkpoints.vit import names_of_5

    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16)
    sizes |= dict(patch_size=8, encoder_stride=8)
    for name in ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"):
        theirs = getattr(transformers, name)(transformers.ViTConfig(**sizes))
        ours = getattr(vilt_fast, name)(vilt_fast.ViTConfig(**sizes))
        ours.load_state_dict(theirs.state_dict())
        named = names_of_5(ours.state_dict())
        assert named.keys() == theirs.state_dict().keys()
        assert all(torch.equal(tensor, named[key]) for key, tensor in theirs.state_dict().items())


def test_a_pipeline_takes_a_model_that_is_loaded():
    model, processor = vilt_fast.demo.load_vit()
    image, label = vilt_fast.demo.examples_vit()[0]
    pipe = transformers.pipeline("image-classification", model=model, image_processor=processor)
    assert pipe(image)[0]["label"] == label
