"""accelerate: mixed precision, offloading, dispatching, and its files."""

import pytest
import torch

import vilt_fast

accelerate = pytest.importorskip("accelerate", reason="these are tests with accelerate")
pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

from accelerate import utils  # noqa: E402

QA, MLM, WORDS, NLVR = (
    *("ViltForQuestionAnswering", "ViltForMaskedLM", "ViltForTokenClassification"),
    "ViltForImagesAndTextClassification",
)
CLASSES = ("ViltModel", QA, MLM, WORDS, NLVR)
ALL = dict(output_attentions=True, output_hidden_states=True)


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """accelerate collects garbage after each file, which takes a second in a process that has imported much."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


@pytest.fixture
def accelerator():
    """Makes an Accelerator on the CPU; it is a singleton, and forgets itself here."""

    def make(**options):
        accelerate.state.AcceleratorState._reset_state(True)
        return accelerate.Accelerator(cpu=True, **options)

    yield make
    accelerate.state.AcceleratorState._reset_state(True)


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


@pytest.mark.parametrize("name", CLASSES)
def test_operations_on_outputs(both, built, name):
    """What accelerate rebuilds as `type(output)(mapping)` holds what it held."""
    ours, _, inputs = built(name)
    output = both.call(ours, inputs, **ALL)
    moved = utils.send_to_device(output, "cpu")
    half = utils.convert_to_fp32(utils.recursively_apply(lambda t: t.half(), output))
    for got in (moved, half):
        assert type(got) is type(output) and list(got) == list(output)
        for a, b in zip(leaves(got), leaves(output), strict=True):
            assert a.dtype == torch.float32 and a.shape == b.shape
    field = "last_hidden_state" if name == "ViltModel" else "logits"
    assert torch.equal(moved[field], output[field]) and torch.equal(moved[field], getattr(moved, field))
    only = type(output)({field: output[field]})
    assert utils.find_batch_size(only) == 3
    assert utils.slice_tensors(only, slice(0, 2))[field].shape[0] == 2
    assert utils.concatenate([only, only])[field].shape[0] == 6


@pytest.mark.parametrize("name", CLASSES)
def test_mixed_precision(both, pair, accelerator, name):
    """Accelerator(mixed_precision="bf16"): outputs come back in fp32, and one step is that of transformers' model."""
    ours, theirs, inputs = pair(name)
    outputs, losses, gradients = [], [], []
    for model in (ours, theirs):
        wrapper = accelerator(mixed_precision="bf16")
        model, optimizer = wrapper.prepare(model.train(), torch.optim.SGD(model.parameters(), lr=0.1))
        output = both.call(model, inputs)
        assert all(leaf.dtype == torch.float32 for leaf in leaves(output))
        loss = output.loss if "loss" in output else both.loss_of(output, inputs)
        wrapper.backward(loss)
        optimizer.step()
        outputs.append(both.values(output, inputs))
        losses.append(loss.detach())
        gradients.append(both.gradients(wrapper.unwrap_model(model)))
    # Both round to bf16 (eps = 2 ** -8) in other places.
    both.check("values", *outputs, 0.05)
    both.check("loss", *losses, 0.05)
    assert gradients[0].keys() == gradients[1].keys()


def test_convert_outputs_to_fp32(both, built):
    ours, _, inputs = built()
    model = utils.convert_outputs_to_fp32(lambda **given: ours(**given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs, **ALL)
    assert output.loss is not None and output.logits.dtype == torch.float32
    assert all(leaf.dtype == torch.float32 for leaf in leaves(output))


@pytest.mark.parametrize("name", CLASSES)
def test_cpu_offload(both, pair, name):
    """Weights are on the meta device but inside the forward of the module that owns them."""
    ours, theirs, inputs = pair(name)
    wanted = both.scores(theirs, inputs)
    ours = accelerate.cpu_offload(ours, execution_device="cpu")
    assert all(p.is_meta for p in ours.parameters())
    both.check("scores", both.scores(ours, inputs), wanted)
    assert all(p.is_meta for p in ours.parameters())
    accelerate.hooks.remove_hook_from_submodules(ours)
    both.check("scores without hooks", both.scores(ours, inputs), wanted)


@pytest.mark.parametrize("name", [QA, MLM])
def test_disk_offload(both, pair, tmp_path, name):
    ours, theirs, inputs = pair(name)
    ours = accelerate.disk_offload(ours, str(tmp_path), execution_device="cpu")
    both.check("scores", both.scores(ours, inputs), both.scores(theirs, inputs))


def test_offloaded_with_attentions(both, pair):
    ours, theirs, inputs = pair()
    ours = accelerate.cpu_offload(ours, execution_device="cpu")
    with torch.no_grad():
        got, wanted = both.call(ours, inputs, **ALL), both.call(theirs, inputs, **ALL)
    both.check("last state", got.hidden_states[-1][inputs.real], wanted.hidden_states[-1][inputs.real])


def test_no_split_modules(pair):
    """They name classes that the model has, and those classes own what their forward reads."""
    ours = pair()[0]
    assert set(ours._no_split_modules) <= {type(module).__name__ for module in ours.modules()}
    assert type(ours.vilt.embeddings).__name__ in ours._no_split_modules


@pytest.mark.parametrize("name", [QA, MLM])
def test_dispatch(both, pair, tmp_path, name):
    """Half of the model in memory, half on disk, split where `_no_split_modules` allows it."""
    ours, theirs, inputs = pair(name)
    size = sum(p.numel() * 4 for p in ours.parameters())
    device_map = accelerate.infer_auto_device_map(
        ours, max_memory={"cpu": size * 4 // 5, "disk": size * 9}, no_split_module_classes=ours._no_split_modules
    )
    assert {*device_map.values()} == {"cpu", "disk"}
    ours = accelerate.dispatch_model(ours, device_map, main_device="cpu", offload_dir=str(tmp_path))
    both.check("scores", both.scores(ours, inputs), both.scores(theirs, inputs))


@pytest.mark.parametrize("name", [QA, MLM])
def test_load_checkpoint_and_dispatch(both, built, tmp_path, name):
    """An empty model on the meta device, filled from the directory that transformers saved."""
    ours, theirs, inputs = built(name)
    theirs.save_pretrained(tmp_path / "model")
    with accelerate.init_empty_weights():
        empty = getattr(vilt_fast, name)(ours.config)
    assert all(p.is_meta for p in empty.parameters())
    if name == MLM:
        empty.tie_weights()
    device_map = {"vilt.embeddings": "cpu", "vilt.encoder": "disk", "vilt.layernorm": "cpu", "vilt.pooler": "disk"}
    device_map["classifier" if name == QA else "mlm_score"] = "cpu"
    model = accelerate.load_checkpoint_and_dispatch(
        empty, str(tmp_path / "model"), device_map, offload_folder=str(tmp_path / "offload")
    ).eval()
    both.check("scores", both.scores(model, inputs), both.scores(theirs, inputs))


@pytest.mark.parametrize("name", [QA, MLM])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_save_model(both, pair, accelerator, tmp_path, name, safe):
    """A file of our model loads on transformers' and on ours."""
    ours, theirs, inputs = pair(name)
    wanted = both.scores(theirs, inputs)
    wrapper = accelerator()
    wrapper.save_model(wrapper.prepare(ours), str(tmp_path), safe_serialization=safe)
    for model in (ours, theirs):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        accelerate.load_checkpoint_in_model(model, str(tmp_path))
        both.check(f"scores of {type(model).__module__}", both.scores(model, inputs), wanted)


@pytest.mark.parametrize("name", [QA, MLM])
def test_save_state(both, pair, accelerator, tmp_path, name):
    """Weights, optimizer and random numbers come back: the same next step."""
    ours, _, inputs = pair(name, hidden_dropout_prob=0.1)
    wrapper = accelerator()
    model, optimizer = wrapper.prepare(ours.train(), torch.optim.AdamW(ours.parameters(), lr=1e-2))

    def step():
        optimizer.zero_grad()
        loss = both.loss_of(both.call(model, inputs), inputs)
        wrapper.backward(loss)
        optimizer.step()
        return loss.item()

    step()
    wrapper.save_state(str(tmp_path))
    first = [step(), step()]
    wrapper.load_state(str(tmp_path))
    assert [step(), step()] == pytest.approx(first, rel=1e-6)


def test_accumulated_gradients(both, pair, accelerator):
    """Two batches of one step, with gradient clipping."""
    ours, theirs, inputs = pair()
    for model in (ours, theirs):
        wrapper = accelerator(gradient_accumulation_steps=2)
        model, optimizer = wrapper.prepare(model.train(), torch.optim.SGD(model.parameters(), lr=0.1))
        for scale in (1.0, 0.5):
            with wrapper.accumulate(model):
                output = both.call(model, inputs.but(pixel_values=inputs["pixel_values"] * scale))
                wrapper.backward(output.loss)
                if wrapper.sync_gradients:
                    wrapper.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    both.check_tensors("weights", dict(ours.state_dict()), dict(theirs.state_dict()), 1e-4)
