"""Files of exported models: what they say and do in a process without us, what is refused, and that they are whole."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.ao.quantization import quantize_dynamic

import vilt_fast
from vilt_fast import export
from vilt_fast.export import aoti_file, checking, onnx_file, saving, torch_file
from vilt_fast.export.axes import choose_axes
from vilt_fast.export.inputs import make_batch
from vilt_fast.export.program import named_inputs

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
LABELS = {0: "yes", 1: "no", 2: "maybe"}
# How far a runtime's sums in another order may be from ours in float32: values of the order of 1, products of 40 terms.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
ALONE = """
import sys
import numpy as np
format, path = sys.argv[1:3]
inputs = dict(np.load(sys.argv[3]))
if format == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    about = session.get_modelmeta().custom_metadata_map["vilt_fast"]
    outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs)))
else:
    import torch
    inputs = {name: torch.from_numpy(value) for name, value in inputs.items()}
    if format == "torch":
        extra = {"vilt_fast.json": ""}
        program = torch.export.load(path, extra_files=extra).module()
        about = extra["vilt_fast.json"]
    else:
        program = torch._inductor.aoti_load_package(path)
        about = program.get_metadata()["vilt_fast"]
    with torch.no_grad():
        outputs = {name: value.numpy() for name, value in program(**inputs).items()}
assert "vilt_fast" not in sys.modules
assert format != "onnx" or "torch" not in sys.modules
np.savez(sys.argv[4], **outputs)
print(about)
"""


def make_vit(**fields) -> vilt_fast.ViTForImageClassification:
    torch.manual_seed(0)
    config = vilt_fast.ViTConfig(**SMALL, image_size=32, patch_size=8, id2label=LABELS, initializer_range=0.5, **fields)
    return vilt_fast.ViTForImageClassification(config).eval()


def make_visual_bert(name: str, **fields):
    torch.manual_seed(0)
    config = vilt_fast.VisualBertConfig(**SMALL, vocab_size=50, visual_embedding_dim=10, num_labels=3, **fields)
    return getattr(vilt_fast, name)(config).eval()


@pytest.fixture(scope="module")
def vit() -> vilt_fast.ViTForImageClassification:
    return make_vit()


def run_alone(format: str, path: Path, batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict]:
    """Outputs and metadata of a file, in a process that does not import vilt_fast (nor, for ONNX, torch)."""
    given, got = path.with_suffix(".in.npz"), path.with_suffix(".out.npz")
    np.savez(given, **{name: value.numpy() for name, value in batch.items()})
    command = [sys.executable, "-c", ALONE, format, *map(str, (path, given, got))]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {name: torch.from_numpy(value) for name, value in np.load(got).items()}, json.loads(done.stdout)


# Programs are run in tests/export/test_torch_export.py too; the C++ compiler takes half a minute.
FORMATS = ["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("torch", "aoti"))]


@pytest.fixture(scope="module", params=FORMATS)
def saved(request, vit, tmp_path_factory) -> export.Report:
    """A ViT's file of each format, written over an older one of ours and with the settings of a processor."""
    path = tmp_path_factory.mktemp(request.param) / f"vit{export.FORMATS[request.param]}"
    path.touch()
    if request.param == "aoti":
        try:
            aoti_file.refuse(vit)
        except ValueError as error:
            pytest.skip(str(error))
    processor = vilt_fast.ViTImageProcessor(size={"height": 32, "width": 32})
    return export.save(vit, path, format=request.param, processor=processor)


def test_runs_without_us(saved, vit):
    """On more images, larger ones, than it was made with."""
    batch = make_batch(vit, {"batch": 5, "height": 48, "width": 24}, seed=3)
    outputs, about = run_alone(saved.format, saved.path, batch)
    with torch.no_grad():
        expected = vit(**batch, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(outputs, {"logits": expected}, **TOLERANCE)
    assert about == saved.metadata
    assert about["model_class"] == "ViTForImageClassification" and about["dtype"] == "float32"
    assert about["id2label"] == {"0": "yes", "1": "no", "2": "maybe"}
    assert about["image_processor"] == vilt_fast.ViTImageProcessor(size={"height": 32, "width": 32}).to_dict()
    assert about["tokenizer"] is None
    assert about["inputs"] == {"pixel_values": ["batch", None, "height", "width"]}
    assert about["axes"]["height"] == {"least": 8, "most": None, "multiple": 8}
    assert about["versions"]["vilt_fast"] == vilt_fast.__version__ and "torch" in about["versions"]


def test_report(saved):
    assert saved.size_bytes == saved.path.stat().st_size > 10_000
    assert 0 <= saved.difference <= saved.bound < 1e-4
    assert saved.file_pairs_per_s > 0 and saved.eager_pairs_per_s > 0 and saved.seconds > 0
    assert saved.timed_sizes == {"batch": 4, "height": 32, "width": 32}
    assert [str(axis) for axis in saved.axes.values()] == ["1 or more", *["8 or more, multiples of 8"] * 2]
    assert os.listdir(saved.path.parent).count(saved.path.name) == 1 and not hidden(saved.path.parent)


@pytest.mark.slow
def test_a_program_holds_no_batch(vit, tmp_path):
    sizes = [
        export.save(vit, tmp_path / f"{batch}.pt2", format="torch", batch=batch, image_size=(64, 64)).size_bytes
        for batch in (1, 64)
    ]
    assert abs(sizes[0] - sizes[1]) < 64 * 64 * 4  # bytes of one channel of an image


def test_an_onnx_file_quantises(saved, tmp_path):
    if saved.format != "onnx":
        pytest.skip("another format")
    import onnxruntime.quantization as quantization

    quantization.quantize_dynamic(saved.path, tmp_path / "int8.onnx", weight_type=quantization.QuantType.QInt8)
    run = onnx_file.load(tmp_path / "int8.onnx")
    assert run({"pixel_values": torch.randn(3, 3, 16, 24)})["logits"].shape == (3, 3)


def test_an_onnx_file(saved):
    """Its sizes have the names of axes, and its nodes are ONNX's own."""
    if saved.format != "onnx":
        pytest.skip("another format")
    proto = onnx.load(saved.path)
    onnx.checker.check_model(proto, full_check=True)
    (pixels,) = proto.graph.input
    assert [size.dim_param or size.dim_value for size in pixels.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "8*rows",
        "8*columns",
    ]
    (logits,) = proto.graph.output
    assert (logits.name, logits.type.tensor_type.shape.dim[0].dim_param) == ("logits", "batch")
    assert {(entry.domain, entry.version >= 18) for entry in proto.opset_import} == {("", True)}
    assert not proto.functions and all(node.domain == "" for node in proto.graph.node)
    session = onnxruntime.InferenceSession(saved.path)
    for shape in ((1, 3, 20, 16), (1, 3, 4, 16), (1, 4, 16, 16)):  # no multiple of the patch, less than one, channels
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            session.run(None, {"pixel_values": np.zeros(shape, np.float32)})


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_vit_of_its_own_size_reads_its_table(vit):
    """With a dynamic batch; of another size it interpolates, which takes more steps."""
    steps = []
    for size in ((32, 32), (16, 24)):
        program = export.to_program(vit, image_size=size)
        steps.append(len(program.graph.nodes))
        batch = make_batch(vit, {"batch": 3, "height": size[0], "width": size[1]})
        with torch.no_grad():
            expected = vit(**batch, interpolate_pos_encoding=True).logits
            torch.testing.assert_close(program.module()(**batch)["logits"], expected, **TOLERANCE)
    assert steps[0] < steps[1]


def test_choices_and_regions_are_axes():
    """And fixed sizes are refused elsewhere by the program itself."""
    model = make_visual_bert("VisualBertForMultipleChoice")
    axes = choose_axes(model, regions=4)
    program = export.to_program(model, regions=4).module()
    sizes = {"batch": 1, "words": 1, "regions": 4, "choices": 1}
    for changed in ({}, {"batch": 3, "words": 9, "choices": 2}):
        batch = make_batch(model, {**sizes, **changed}, seed=1)
        with torch.no_grad():
            expected = named_inputs(model, axes)(**batch)
            torch.testing.assert_close(program(**batch), expected, **TOLERANCE)
    with pytest.raises(Exception, match="[Gg]uard|shape|size"):  # the runtime's own
        program(**make_batch(model, {**sizes, "regions": 5}))


# --- what is refused ------------------------------------------------------------------------------------------------


def small_vilt(**fields):
    config = vilt_fast.ViltConfig(**SMALL, vocab_size=50, image_size=32, patch_size=8, num_labels=3, **fields)
    return vilt_fast.ViltForQuestionAnswering(config).eval()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (make_vit, {"image_size": (32, 20)}, "image_size: got 20 for the width, wanted 8 or more, multiples of 8 "),
        (make_vit, {"image_size": (4, 32)}, "image_size: got 4 for the height"),
        (make_vit, {"image_size": 32}, "image_size: got 32, wanted \\(height, width\\)"),
        (
            make_vit,
            {"words": 4},
            "words: got 4, but a ViTForImageClassification has no such axis; it has batch, height",
        ),
        (make_vit, {"batch": 0}, "batch: got 0 for the batch, wanted 1 or more"),
        (make_vit, {"batch": 2.0}, "batch: got 2.0 for the batch, wanted an integer"),
        (small_vilt, {"words": 41}, "words: got 41 for the words, wanted 1 to 40 \\(config.max_position_embeddings"),
        (small_vilt, {"regions": 3}, "regions: got 3, but a ViltForQuestionAnswering has no such axis"),
        (lambda: small_vilt(max_image_length=2), {}, "max_image_length: got 2"),
        (lambda: small_vilt(hidden_dropout_prob=0.1).train(), {}, "dropout"),
        (lambda: make_vit(output_hidden_states=True), {}, "config.output_hidden_states: got True"),
        (lambda: make_vit(output_attentions=True), {}, "config.output_attentions: got True"),
        (lambda: make_visual_bert("VisualBertForQuestionAnswering"), {"words": 1}, "words: got 1 .*wanted 2 to 512"),
        (lambda: torch.nn.Linear(2, 2), {}, "model: got a Linear, wanted a live model"),
        (lambda: make_vit().to("meta"), {}, "model: .* is on the meta device"),
        (
            lambda: quantize_dynamic(make_vit(), {torch.nn.Linear}),
            {},
            "model: .* is a Linear, which torch.export cannot",
        ),
        (make_vit, {"batch": 10**9}, "sizes: a batch of batch = 1000000000, .* numbers, wanted at most"),
        (lambda: vilt_fast.freeze(make_vit()), {}, "model: got a .*, wanted a live model"),
    ],
)
def test_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        export.to_program(make(), **options)


def test_files_refused_by_name(vit, tmp_path, monkeypatch):
    def refuse(match: str, kind=ValueError, model=vit, name="a.pt2", format="torch", **options) -> None:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(kind, match=match):
            export.save(model, tmp_path / name, format=format, **options)
        assert sorted(tmp_path.iterdir()) == before

    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "other.pt2").write_bytes(b"PK")
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pt2")  # a zip file, too
    (tmp_path / "other.onnx").write_bytes(b"\xff\xfe no protocol buffer")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), tmp_path / "foreign.onnx")
    refuse("format: got 'tf', wanted torch, onnx, aoti", format="tf")
    refuse("wanted a name that ends in .onnx, as of onnx", format="onnx")
    refuse("is a directory", IsADirectoryError, name="folder.pt2")
    refuse("the directory of .* does not exist", FileNotFoundError, name="none/a.pt2")
    for name in ("other.pt2", "weights.pt2", "other.onnx", "foreign.onnx"):
        format = "onnx" if name.endswith("onnx") else "torch"
        refuse("exists and is no export of ours", name=name, format=format)
    refuse("processor: got a dict, wanted a processor", processor={})
    refuse("got a ViltImageProcessor for a ViT.*, wanted ViTImageProcessor", processor=vilt_fast.ViltImageProcessor())
    refuse("path: got .*wanted the name of a file", name="a\0.pt2")
    broken, nameless = make_vit(), make_vit()
    torch.nn.init.constant_(broken.classifier.bias, torch.nan)
    refuse("model: its own logits is NaN or infinite in float32", model=broken)
    nameless.config.id2label = {0: float("nan")}
    refuse("config.id2label, or .* cannot be written as JSON", model=nameless)
    refuse("got bfloat16, which onnxruntime does not run", model=make_vit().bfloat16(), name="a.onnx", format="onnx")
    monkeypatch.setattr(onnx_file, "_MOST_BYTES", 1000)
    refuse("weights, more than the 2 GB", name="a.onnx", format="onnx")
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    refuse(r"pip install 'vilt_fast\[export\]'", name="a.onnx", format="onnx")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(aoti_file.shutil, "which", lambda name: None)
    refuse("no compiler is found: install g", format="aoti")


# --- whole or not at all --------------------------------------------------------------------------------------------


@pytest.fixture
def cheap(monkeypatch, vit) -> None:
    """Files of the format torch are a few bytes, and running one runs the live model."""
    eager = named_inputs(vit, choose_axes(vit))
    entry = "/extra/vilt_fast.json"
    monkeypatch.setattr(saving, "export_axes", lambda *arguments, **options: None)
    monkeypatch.setattr(torch_file, "write", lambda program, path, about: path.write_bytes(b"whole"))
    monkeypatch.setattr(torch_file, "load", lambda path: lambda batch: eager(**batch))
    monkeypatch.setattr(torch_file, "read_entry", lambda path, ending: "{}" if ending == entry else None)


def wrong_values(outputs):
    return {name: value + 1e-2 for name, value in outputs.items()}


def not_a_number(outputs):
    return {name: value * float("nan") for name, value in outputs.items()}


def other_name(outputs):
    return {"scores": outputs["logits"]}


def other_shape(outputs):
    return {name: value[:1] for name, value in outputs.items()}


def other_dtype(outputs):
    return {name: value.double() for name, value in outputs.items()}


def broken(outputs):
    raise RuntimeError("Guard failed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_values, "logits of the file is off by 0.01, wanted at most"),
        (not_a_number, "logits of the file is off by nan"),
        (other_name, "returns scores, wanted logits"),
        (other_shape, "logits of the file is \\(1, 3\\)"),
        (other_dtype, "torch.float64, wanted"),
        (broken, "does not run on batch = 1, height = 8, width = 8: RuntimeError: Guard failed"),
    ],
)
def test_a_file_that_answers_otherwise_is_not_kept(cheap, vit, tmp_path, monkeypatch, change, message):
    """The old file stays."""
    path, load = tmp_path / "a.pt2", torch_file.load
    path.write_bytes(b"old")
    monkeypatch.setattr(torch_file, "load", lambda path: lambda batch: change(load(path)(batch)))
    with pytest.raises(ValueError, match=message):
        export.save(vit, path, format="torch")
    assert os.listdir(tmp_path) == ["a.pt2"] and path.read_bytes() == b"old"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_bound_tells_a_mask_that_is_lost(dtype):
    """In each dtype: the same model passes, and one that reads masked words as well does not."""
    model = make_visual_bert("VisualBertForVisualReasoning", initializer_range=0.5).to(dtype)
    axes = choose_axes(model)
    eager = named_inputs(model, axes)
    assert checking.check(lambda batch: eager(**batch), model, axes).difference == 0
    with pytest.raises(ValueError, match="is off by"):
        checking.check(
            lambda batch: eager(**{**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}), model, axes
        )


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_an_end_on_the_way_leaves_the_old_file(cheap, vit, tmp_path, monkeypatch, error):
    path = tmp_path / "a.pt2"
    path.write_bytes(b"old")

    def write(program, made, about):
        made.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch_file, "write", write)
    with pytest.raises(type(error)):
        export.save(vit, path, format="torch")
    assert os.listdir(tmp_path) == ["a.pt2"] and path.read_bytes() == b"old"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that is killed is a fork")
def test_the_next_save_removes_what_a_killed_one_left(cheap, vit, tmp_path, monkeypatch):
    path = tmp_path / "a.pt2"
    child = os.fork()
    if not child:
        torch_file.write = lambda program, made, about: (
            made.write_bytes(b"half"),
            os.kill(os.getpid(), signal.SIGKILL),
        )
        export.save(vit, path, format="torch")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(hidden(tmp_path)) == 2 and not path.exists()
    steps = []
    export.save(vit, path, format="torch", progress=steps.append)
    assert os.listdir(tmp_path) == ["a.pt2"] and path.read_bytes() == b"whole"
    assert [step.split()[0] for step in steps] == ["reading", "writing", "running"]
