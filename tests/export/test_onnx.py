"""ONNX, written by torch.onnx.export as a user calls it, and run by onnxruntime: what the eager model gives."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

onnx = pytest.importorskip("onnx", reason="pip install 'vilt_fast[export]'")
pytest.importorskip("onnxscript", reason="torch.onnx.export(dynamo=True) needs it")
runtime = pytest.importorskip("onnxruntime", reason="it runs what was written")

_spec = importlib.util.spec_from_file_location("export_cases", Path(__file__).with_name("cases.py"))
cases = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

ERRORS = runtime.capi.onnxruntime_pybind11_state
OPSET = 18
# fp32, of the largest magnitude: another library's sums, exponentials and error function, each to some 1e-6.
TOLERANCE = 1e-4
# fp16 against the fp32 answer: 2^-11 at each of some 20 roundings of the stream, which add like a random walk: 1e-3 to
# 3e-3. Masks and positions are what the tests in fp32 hold.
HALF_TOLERANCE = 1e-2
HEADS = (
    "ViltForQuestionAnswering",
    "ViltForImageAndTextRetrieval",
    "ViltForMaskedLM",
    "ViTForImageClassification",
    "VisualBertForQuestionAnswering",
)


def often(names, *quick):
    """The names, of which these run on every change: a file takes seven seconds of a core."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


EVERY = often([case.name for case in cases.CASES], "ViltForQuestionAnswering")
HALVES = often([*HEADS, "ViTModel", "VisualBertForRegionToPhraseAlignment"], "VisualBertForQuestionAnswering")


def write(model, inputs, path, *, dynamic=True, opset=OPSET):
    """The names of the outputs."""
    with torch.no_grad():
        names = list(cases.flat(model(**inputs)))
        torch.onnx.export(
            model,
            (),
            path,
            kwargs=inputs,
            output_names=names,
            dynamic_shapes=cases.dynamic_shapes(model.config, inputs) if dynamic else None,
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return names


@cache
def session(path):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path, inputs):
    """Outputs by name. An input that changes no output of this class is none of the file's."""
    one = session(path)
    given = {node.name: inputs[node.name].numpy() for node in one.get_inputs()}
    values = one.run(None, given)
    return {node.name: torch.from_numpy(value) for node, value in zip(one.get_outputs(), values, strict=True)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Makes (case, model in fp32, path) of a class and dtype, once."""
    folder = tmp_path_factory.mktemp("onnx")

    @cache
    def make(name, dtype=torch.float32):
        case = cases.BY_NAME[name]
        model = case.model()
        path = folder / f"{name} {dtype}.onnx"
        write(case.model().to(dtype), in_dtype(case.inputs(model), dtype), str(path))
        return case, model, str(path)

    yield make
    session.cache_clear()


def in_dtype(inputs, dtype):
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def batches(case, model):
    return [case.inputs(model, sizes, seed) for seed, sizes in enumerate((cases.EXAMPLE, *cases.OTHERS), start=1)]


@pytest.mark.parametrize("name", EVERY)
def test_dynamic(name, written):
    """The file says by name which axes may have any size. A grid of one patch is one like any other."""
    case, model, path = written(name)
    onnx.checker.check_model(path, full_check=True)
    proto = onnx.load(path)
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] >= OPSET
    assert not [node.op_type for node in proto.graph.node if "vilt" in node.domain]
    named = {size for node in session(path).get_inputs() for size in node.shape if isinstance(size, str)}
    axes = {"height": f"{cases.PATCH}*rows", "width": f"{cases.PATCH}*columns"}
    assert named >= {axes.get(axis, axis) for axis in case.dynamic_axes}
    thin = [case.inputs(model, sizes) for sizes in cases.THIN]
    for inputs in [*batches(case, model), *thin]:
        with torch.no_grad():
            cases.check(run(path, inputs), cases.flat(model(**inputs)), TOLERANCE)


@pytest.mark.parametrize("name", HALVES)
def test_half(name, written):
    """Weights and activations of fp16, beside the fp32 model on the same values."""
    case, model, path = written(name, torch.float16)
    for inputs in batches(case, model):
        given = in_dtype(inputs, torch.float16)
        with torch.no_grad():
            wanted = cases.flat(model(**in_dtype(given, torch.float32)))
        got = run(path, given)
        assert {value.dtype for value in got.values()} == {torch.float16}
        cases.check(got, wanted, HALF_TOLERANCE, same_dtype=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_static(name, tmp_path):
    case = cases.BY_NAME[name]
    model, path = case.model(), str(tmp_path / "static.onnx")
    write(model, case.inputs(model), path, dynamic=False)
    inputs, other, *_ = batches(case, model)
    with torch.no_grad():
        cases.check(run(path, inputs), cases.flat(model(**inputs)), TOLERANCE)
    with pytest.raises(ERRORS.InvalidArgument, match="Got invalid dimensions"):
        run(path, other)


@pytest.mark.slow
def test_the_attention_of_a_later_opset(tmp_path):
    """From 23 on attention is a node of its own, of which onnxruntime wants a mask for every query."""
    case = cases.BY_NAME["ViltForQuestionAnswering"]
    model, path = case.model(), str(tmp_path / "later.onnx")
    write(model, case.inputs(model), path, opset=23)
    assert "Attention" in {node.op_type for node in onnx.load(path).graph.node}
    for inputs in batches(case, model):
        with torch.no_grad():
            cases.check(run(path, inputs), cases.flat(model(**inputs)), TOLERANCE)


@pytest.mark.slow
def test_a_side_that_no_patch_divides_is_the_runtimes_error(written):
    case, model, path = written("ViTForImageClassification")
    inputs = {name: x[..., :-3] for name, x in case.inputs(model).items()}
    with pytest.raises((ERRORS.Fail, ERRORS.RuntimeException, ERRORS.InvalidArgument)):
        run(path, inputs)
