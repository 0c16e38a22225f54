"""Outputs are dicts in every way transformers' are: for accelerate, DataParallel, FSDP, pickle, pytrees, compilers."""

import copy
import dataclasses
import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import scatter_gather
from torch.utils import _pytree

from vilt_fast import ViltForQuestionAnswering
from vilt_fast.models import outputs
from vilt_fast.models.outputs import BaseModelOutputWithPooling, HeadOutput, SequenceClassifierOutput

CLASSES = (
    "BaseModelOutputWithPooling",
    "MaskedLMOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
    "ViltForImagesAndTextClassificationOutput",
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def example() -> SequenceClassifierOutput:
    """Without hidden states."""
    return SequenceClassifierOutput(loss=draw(1)[0], logits=draw(4, 3), attentions=(draw(4, 2), draw(4, 5)))


def check_same(got: HeadOutput, wanted: HeadOutput) -> None:
    """The same class, fields in the same order, as attributes, items and places; equal values."""
    assert type(got) is type(wanted) and list(got) == list(wanted)
    for place, name in enumerate(wanted):
        assert got[name] is getattr(got, name) is got[place]
    for ours, theirs in zip(_pytree.tree_leaves(got), _pytree.tree_leaves(wanted), strict=True):
        assert torch.equal(ours, theirs)
    for field in dataclasses.fields(wanted):
        assert (getattr(got, field.name) is None) == (getattr(wanted, field.name) is None), field.name


@pytest.fixture(params=CLASSES)
def pair(request: pytest.FixtureRequest, oracle) -> tuple[type, type]:
    """A class of ours, and transformers' of the same name."""
    theirs = oracle.transformers.modeling_outputs
    if not hasattr(theirs, request.param):
        theirs = oracle.transformers.models.vilt.modeling_vilt
    return getattr(outputs, request.param), getattr(theirs, request.param)


def test_every_way_to_make_one_gives_what_theirs_gives(pair) -> None:
    values = {field.name: draw(2, seed=i) for i, field in enumerate(dataclasses.fields(pair[1]))}
    assert [field.name for field in dataclasses.fields(pair[0])] == list(values)
    first, second, *_ = values
    ways = (
        lambda kind: kind(**values),
        lambda kind: kind(*values.values()),
        lambda kind: kind(values),
        lambda kind: kind(kind(**values)),
        lambda kind: kind({second: values[second]}),
        lambda kind: kind((name, value) for name, value in values.items()),
        lambda kind: kind([(second, values[second])]),
        lambda kind: kind(((first, values[first]), (second, values[second]))),
        lambda kind: kind(values.items()),
        lambda kind: kind({}),
        lambda kind: kind({first: None, second: values[second]}),
        lambda kind: kind(),
        lambda kind: kind((values[first], values[second])),  # a first field that is a tuple of tensors
        lambda kind: dataclasses.replace(kind(**values), **{second: values[first]}),
    )
    for number, way in enumerate(ways):
        ours, theirs = map(way, pair)
        assert type(ours) is pair[0] and list(ours) == list(theirs), number
        assert isinstance(ours, dict) and isinstance(ours, OrderedDict) and isinstance(ours, Mapping)
        for mine, wanted in zip(ours.to_tuple(), theirs.to_tuple(), strict=True):
            assert mine is wanted or all(a is b for a, b in zip(mine, wanted, strict=True)), number
        for name in values:
            assert (getattr(ours, name) is None) == (getattr(theirs, name) is None), (number, name)


def test_what_others_read_of_a_dict() -> None:
    out = example()
    names = ["loss", "logits", "attentions"]
    assert list(dict(out)) == list({**out}) == [name for name, _ in out.items()] == names
    assert dict(out)["logits"] is {**out}["logits"] is out.get("logits") is out.logits
    assert out[:2] == (out.loss, out.logits) and out[-1] is out.attentions and len(out) == 3
    assert "hidden_states" not in out and out.get("hidden_states", 3) == 3
    assert out == copy.copy(out) and out == dict(out) and out != SequenceClassifierOutput(logits=out.logits)
    assert repr(out).startswith("SequenceClassifierOutput(loss=tensor(") and "hidden_states=None" in repr(out)
    assert list(reversed(out)) == names[::-1] and (out | {"loss": out.logits}).loss is out.logits
    with pytest.raises(TypeError, match="unhashable"):
        hash(out)


def test_attributes_and_items_stay_in_step() -> None:
    out, x, y = SequenceClassifierOutput(logits=draw(2)), draw(3, seed=1), draw(4, seed=2)
    out.logits = x
    assert out["logits"] is x and out[0] is x
    out["logits"] = y
    assert out.logits is y and out[0] is y
    out.attentions = (x,)
    out.loss = x
    out["hidden_states"] = (y,)
    assert list(out) == ["loss", "logits", "hidden_states", "attentions"], (
        "the order of the fields, not of their coming"
    )
    assert out.to_tuple() == (x, y, (y,), (x,)) and list(out.values())[2] == (y,)
    out.loss = None
    out["attentions"] = None
    assert list(out) == ["logits", "hidden_states"] and out.loss is None and out.attentions is None
    for name in out:
        out[name] = x
    assert out.to_tuple() == (x, x)
    out.my_note = "kept"
    assert "my_note" not in out and copy.copy(out).my_note == "kept"
    del out.my_note
    assert not hasattr(out, "my_note")


def test_what_would_break_an_output_is_refused() -> None:
    out = example()
    before = dict(out)
    for change in (
        lambda: out.pop("loss"),
        lambda: out.popitem(),
        lambda: out.clear(),
        lambda: out.update(loss=draw(1)),
        lambda: out.setdefault("hidden_states", ()),
        lambda: out.move_to_end("loss"),
        lambda: out.__delitem__("loss"),
        lambda: out.__delattr__("loss"),
        lambda: out.__ior__({"loss": draw(1)}),
    ):
        with pytest.raises(TypeError, match="SequenceClassifierOutput stay; set one to None"):
            change()
    with pytest.raises(ValueError, match="the keys of a SequenceClassifierOutput are names, got 3"):
        out[3] = draw(1)
    with pytest.raises(ValueError, match="pairs, got an iterator of 3"):
        SequenceClassifierOutput(iter([3, 4]))
    with pytest.raises(TypeError, match="unexpected keyword argument 'logit'"):
        SequenceClassifierOutput(logit=draw(1))
    assert dict(out) == before


@pytest.mark.parametrize(
    "remake",
    [
        copy.copy,
        copy.deepcopy,
        lambda out: out.copy(),
        lambda out: pickle.loads(pickle.dumps(out)),
        lambda out: type(out)(out),
        lambda out: dataclasses.replace(out),
        lambda out: _pytree.tree_map(lambda leaf: leaf, out),
    ],
    ids=["copy", "deepcopy", "copy method", "pickle", "mapping", "replace", "tree_map"],
)
@pytest.mark.parametrize("make", [example, SequenceClassifierOutput, lambda: BaseModelOutputWithPooling(draw(2))])
def test_copies(make, remake) -> None:
    out = make()
    check_same(remake(out), out)
    assert remake(out) is not out


def test_torch_save() -> None:
    file = io.BytesIO()
    torch.save(example(), file)
    file.seek(0)
    check_same(torch.load(file, weights_only=False), example())


def test_pytree_names_its_leaves() -> None:
    out = example()
    paths = [_pytree.keystr(path) for path, _ in _pytree.tree_leaves_with_path(out)]
    assert paths == ["['loss']", "['logits']", "['attentions'][0]", "['attentions'][1]"]
    leaves, spec = _pytree.tree_flatten(out)
    assert _pytree.treespec_loads(_pytree.treespec_dumps(spec)) == spec
    check_same(_pytree.tree_unflatten(leaves, spec), out)
    only = BaseModelOutputWithPooling(last_hidden_state=draw(2))
    described = _pytree.tree_map(lambda leaf: {"shape": leaf.shape}, only)  # a mapping in the first field
    assert described.last_hidden_state == {"shape": (2,)}


def test_data_parallel_scatters_and_gathers(monkeypatch) -> None:
    """On one CPU: what torch does between devices is cut and joined here."""
    cut = staticmethod(lambda devices, sizes, dim, tensor: tensor.chunk(len(devices), dim))
    monkeypatch.setattr(scatter_gather.Scatter, "apply", cut)
    monkeypatch.setattr(scatter_gather.Gather, "apply", staticmethod(lambda device, dim, *parts: torch.cat(parts, dim)))
    out = example()
    out.loss = draw(2)
    halves = scatter_gather.scatter(out, [0, 1])
    assert [half.logits.shape for half in halves] == [(2, 3), (2, 3)] and type(halves[1]) is type(out)
    check_same(scatter_gather.gather(halves, 0), out)


def test_fully_sharded_data_parallel_moves_one() -> None:
    from torch.distributed.utils import _apply_to_tensors

    moved = _apply_to_tensors(lambda tensor: tensor.double(), example())
    assert list(moved) == list(example()) and {leaf.dtype for leaf in _pytree.tree_leaves(moved)} == {torch.float64}


def test_accelerate_moves_and_converts() -> None:
    operations = pytest.importorskip("accelerate.utils.operations", reason="accelerate is not installed")
    out = example()
    check_same(operations.send_to_device(out, "cpu"), out)
    assert operations.send_to_device(out, "meta").attentions[1].is_meta
    half = operations.recursively_apply(lambda tensor: tensor.bfloat16(), out)
    assert type(half) is type(out) and half.logits.dtype == half["attentions"][1].dtype == torch.bfloat16
    whole = operations.convert_outputs_to_fp32(lambda: half)()
    assert list(whole) == list(out) and whole.logits.dtype == whole[2][0].dtype == torch.float32
    assert operations.find_batch_size(SequenceClassifierOutput(logits=out.logits)) == 4
    joined = operations.concatenate([SequenceClassifierOutput(logits=out.logits)] * 2)
    assert type(joined) is type(out) and joined.logits.shape == (8, 3)


def test_accelerate_with_mixed_precision(oracle, small_config) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = oracle.randomise(ViltForQuestionAnswering(small_config(num_labels=3)), seed=1).eval()
    inputs = {"input_ids": torch.randint(1, 31, (2, 5)), "pixel_values": draw(2, 3, 32, 32)}
    labels = draw(2, 3).sigmoid()
    with torch.no_grad():
        expected = model(**inputs, labels=labels, output_attentions=True)
    accelerate.state.AcceleratorState._reset_state(True)  # it is one for the process: of another test, or a Trainer's
    try:
        prepared = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
        out = prepared(**inputs, labels=labels, output_attentions=True)
    finally:
        accelerate.state.AcceleratorState._reset_state(True)
    assert type(out) is type(expected) and list(out) == list(expected)
    assert {leaf.dtype for leaf in _pytree.tree_leaves(out)} == {torch.float32}
    torch.testing.assert_close(out.logits, expected.logits, rtol=0.1, atol=0.1 * expected.logits.abs().max().item())
    out["loss"].backward()
    assert model.classifier[3].weight.grad.abs().sum() > 0


class Changing(nn.Module):
    """Makes an output, reads it in every way and changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        y = self.linear(x)
        out = SequenceClassifierOutput(None, y, (x, y), None)
        out.attentions = (y * 2,)
        out.loss = (out["logits"] + out[0].sum() + out.hidden_states[1]).sum()
        out["logits"] = {**out}["logits"] + len(out)
        return type(out)({name: value for name, value in out.items()})


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_break(backend) -> None:
    model, x = Changing(), draw(5, 4)
    expected = model(x)
    assert list(expected) == ["loss", "logits", "hidden_states", "attentions"]
    out = torch.compile(model, fullgraph=True, backend=backend)(x)
    check_same(out, expected)
    out.loss.backward()
    assert model.linear.weight.grad.abs().sum() > 0


def test_exports(tmp_path) -> None:
    model, x = Changing(), draw(5, 4)
    program = torch.export.export(model, (x,))
    check_same(program.module()(x), model(x))
    torch.export.save(program, tmp_path / "program.pt2")
    check_same(torch.export.load(tmp_path / "program.pt2").module()(x), model(x))
