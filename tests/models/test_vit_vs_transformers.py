"""The packed ViT against transformers 5: the same directories, the same images, the same numbers."""

import functools
import tempfile

import pytest
import torch

import vilt_fast
from vilt_fast import ViTForImageClassification, ViTModel

NUM_CONFIGS = 12  # what vit_oracle.config_kwargs needs to show every switch
CLASSES = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Relative to the largest magnitude of the tensor; reasons as in test_vilt_vs_transformers.py.
OUTPUT = {torch.float32: 1e-5, torch.float64: 1e-10}
GRADIENT = {torch.float32: 1e-4, torch.float64: 1e-9}
FLOOR = {torch.float32: 1e-6, torch.float64: 1e-14}


@functools.lru_cache(maxsize=1)
def both_models(vit_oracle, name, index):
    kwargs = vit_oracle.config_kwargs(index)
    if name == "ViTForMaskedImageModeling":  # square grids of whole patches are all that it takes in transformers
        patch = kwargs["patch_size"]
        kwargs["image_size"] = patch * (2 + index % 3)
    options = {}
    if name == "ViTModel":
        options = {"add_pooling_layer": index % 3 != 0, "use_mask_token": index % 2 == 0}
    theirs = vit_oracle.build(name, kwargs, seed=index, **options)
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return theirs, getattr(vilt_fast, name).from_pretrained(directory, **options)


def inputs_for(vit_oracle, name, index, config):
    """Images, every second time of another size where transformers can, with a mask or labels where the class has."""
    shape = None
    interpolates = index % 2 == 1 and isinstance(config.image_size, int)
    if interpolates:
        patch = config.patch_size
        height = patch * (1 + index % 5)
        shape = height + index % patch, (height if "Masked" in name else patch * (2 + index % 3)) + 1
    inputs = {"pixel_values": vit_oracle.images(config, shape=shape, seed=index)}
    if interpolates or index % 4:  # None means False, too
        inputs["interpolate_pos_encoding"] = interpolates
    if name == "ViTForMaskedImageModeling" and not interpolates or (name == "ViTModel" and index % 2 == 0):
        inputs["bool_masked_pos"] = vit_oracle.masked_positions(config, shape=shape, seed=index)
    if name == "ViTForImageClassification" and config.num_labels > 0:
        inputs["labels"] = torch.arange(2) if config.num_labels > 1 else torch.tensor([0.25, -1.5])
    return inputs


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("index", range(NUM_CONFIGS), ids=lambda index: f"config{index}")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_every_class(oracle, vit_oracle, dtype, index, name):
    """Outputs, losses, hidden states and the gradient of every parameter."""
    theirs, ours = both_models(vit_oracle, name, index)
    inputs = inputs_for(vit_oracle, name, index, theirs.config)
    inputs = oracle.to_double(inputs) if dtype == torch.float64 else inputs
    outputs = []
    for model in (theirs.to(dtype), ours.to(dtype)):
        model.zero_grad()
        output = model(**inputs, output_hidden_states=True)
        vit_oracle.objective(output).backward()
        outputs.append(output)
    vit_oracle.check_outputs(outputs[1], outputs[0], OUTPUT[dtype])
    with torch.no_grad():  # where no states are asked for, heads read fewer rows
        short = ours(**inputs)
    assert list(short) == [field for field in outputs[0] if field != "hidden_states"]
    vit_oracle.check_outputs(short, {field: outputs[0][field] for field in short}, OUTPUT[dtype])
    check_gradients(vit_oracle.gradients(ours), vit_oracle.gradients(theirs), dtype)


def check_gradients(got, wanted, dtype):
    """The gradient of every parameter, by name, within GRADIENT and FLOOR."""
    assert got.keys() == wanted.keys()
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, expected in wanted.items():
        limit = GRADIENT[dtype] * expected.abs().max().item() + FLOOR[dtype] * largest
        difference = (got[name] - expected).abs().max().item()
        assert difference <= limit, f"gradient of {name}: off by {difference:.3g}, {limit:.3g} allowed"


@pytest.mark.parametrize("name", CLASSES)
def test_attentions_and_the_defaults_of_the_configuration(vit_oracle, tmp_path, name):
    ours, theirs = vit_oracle.pair(name, tmp_path, attention="eager")
    inputs = {"pixel_values": vit_oracle.images(theirs.config)}
    with torch.no_grad():
        wanted = theirs(**inputs, output_attentions=True, output_hidden_states=True)
        got = ours(**inputs, output_attentions=True, output_hidden_states=True)
        vit_oracle.check_outputs(got, wanted, OUTPUT[torch.float32])
        ours.config.output_attentions = ours.config.output_hidden_states = True
        vit_oracle.check_outputs(ours(**inputs), wanted, OUTPUT[torch.float32])
        ours.config.return_dict = False
        assert isinstance(ours(**inputs), tuple)
        plain = ours(**inputs, output_attentions=False, output_hidden_states=False, return_dict=True)
    assert set(plain) == set(wanted) - {"attentions", "hidden_states"}


@pytest.mark.parametrize("states", [False, True], ids=["plain", "states"])
@pytest.mark.parametrize(
    "name, options",
    [
        ("ViTModel", {}),
        ("ViTModel", {"add_pooling_layer": False}),
        ("ViTForImageClassification", {}),
        ("ViTForMaskedImageModeling", {}),
    ],
    ids=["with pooler", "without pooler", "classes", "pixels"],
)
def test_tuples(oracle, vit_oracle, tmp_path, name, options, states):
    """return_dict=False, with loss where there is one, and without."""
    ours, theirs = vit_oracle.pair(name, tmp_path, attention="eager", **options)
    inputs = {"pixel_values": vit_oracle.images(theirs.config)}
    targets = {"ViTForImageClassification": {"labels": torch.tensor([1, 4])}}
    targets["ViTForMaskedImageModeling"] = {"bool_masked_pos": vit_oracle.masked_positions(theirs.config)}
    asked = {"output_attentions": states, "output_hidden_states": states}
    for extra in ({}, targets.get(name, {})):
        with torch.no_grad():
            wanted = theirs(**inputs, **extra, **asked, return_dict=False)
            got = ours(**inputs, **extra, **asked, return_dict=False)
        assert isinstance(got, tuple) and len(got) == len(wanted)
        for place, (mine, other) in enumerate(zip(got, wanted, strict=True)):
            assert type(mine) is type(other), f"place {place}"
            for first, second in zip(*((x,) if torch.is_tensor(x) else x for x in (mine, other)), strict=True):
                oracle.check_close(f"place {place}", first, second, OUTPUT[torch.float32])


LABELS = {
    "one label, float": (1, None, torch.tensor([0.5, -2.0])),
    "one label, (B, 1)": (1, None, torch.tensor([[0.5], [-2.0]])),
    "classes": (5, None, torch.tensor([4, 0])),
    "classes, (B, 1)": (5, "single_label_classification", torch.tensor([[4], [0]])),
    "classes, int32": (5, None, torch.tensor([4, 0], dtype=torch.int32)),
    "classes, ignored": (5, "single_label_classification", torch.tensor([-100, 3])),
    "several": (5, None, torch.rand(2, 5, generator=torch.Generator().manual_seed(1))),
    "several by name": (5, "multi_label_classification", torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])),
    "regression of several": (5, "regression", torch.randn(2, 5, generator=torch.Generator().manual_seed(2))),
}


@pytest.mark.parametrize("case", LABELS.values(), ids=list(LABELS))
def test_losses(oracle, vit_oracle, tmp_path, case):
    num_labels, problem, labels = case
    ours, theirs = vit_oracle.pair(
        "ViTForImageClassification", tmp_path, num_labels=num_labels, problem_type=problem, num_hidden_layers=1
    )
    pixels = vit_oracle.images(theirs.config)
    with torch.no_grad():
        given = labels.long() if labels.dtype == torch.int32 else labels  # cross_entropy there wants int64
        oracle.check_close(
            "loss", ours(pixels, labels=labels).loss, theirs(pixels, labels=given).loss, OUTPUT[torch.float32]
        )


def test_the_gradient_of_pixels(oracle, vit_oracle, tmp_path):
    ours, theirs = vit_oracle.pair("ViTForImageClassification", tmp_path)
    gradients = []
    for model in (ours, theirs):
        pixels = vit_oracle.images(theirs.config, shape=(21, 35)).double().requires_grad_()
        model.double()(pixels, interpolate_pos_encoding=True).logits.square().sum().backward()
        gradients.append(pixels.grad)
    oracle.check_close("gradient of pixel_values", *gradients, GRADIENT[torch.float64])
    assert gradients[0][:, :, 16:].eq(0).all() and gradients[0][:, :, :, 32:].eq(0).all()


@pytest.fixture(scope="module")
def sized(vit_oracle, tmp_path_factory):
    ours, theirs = vit_oracle.pair("ViTModel", tmp_path_factory.mktemp("sized"), num_hidden_layers=1, image_size=35)
    return ours.double(), theirs.double()


@pytest.mark.parametrize(
    "shape", [(8, 8), (9, 15), (16, 16), (24, 40), (31, 33), (64, 72), (32, 47), (39, 32), (40, 40)]
)
def test_positions_at_many_sizes(vit_oracle, sized, shape):
    """Smaller, larger, longer than wide, and sides that are no multiple of the patch."""
    ours, theirs = sized
    pixels = vit_oracle.images(theirs.config, shape=shape).double()
    with torch.no_grad():
        wanted = theirs(pixels, interpolate_pos_encoding=True)
        vit_oracle.check_outputs(ours(pixels, interpolate_pos_encoding=True), wanted, OUTPUT[torch.float64])


@pytest.mark.parametrize("kind", ["names of modules", "names of files"])
@pytest.mark.parametrize("bare", [False, True], ids=["head", "base"])
def test_names_of_both_releases_come_in(vit_oracle, kind, bare):
    """transformers 5 has other names in memory than in files."""
    name = "ViTModel" if bare else "ViTForImageClassification"
    theirs = vit_oracle.build(name, vit_oracle.SMALL)
    state = theirs.state_dict()
    state = vit_oracle.names_of_437(state) if kind == "names of files" else state
    assert any("q_proj" in key for key in state) == (kind == "names of modules")
    for cls in (ViTModel, ViTForImageClassification):
        if cls is ViTForImageClassification and bare:
            continue  # a head without weights is refused
        options = {} if bare or cls is ViTForImageClassification else {"add_pooling_layer": False}
        ours = cls.from_pretrained(None, config=theirs.config.to_dict(), state_dict=state, **options)
        assert all(torch.equal(x, y) for x, y in zip(*values(ours, theirs, vit_oracle), strict=True))


def values(ours, theirs, vit_oracle):
    """The parameters that both have, under one name each, sorted."""
    first = {key.removeprefix("vit."): value for key, value in ours.state_dict().items()}
    second = {key.removeprefix("vit."): v for key, v in vit_oracle.names_of_437(theirs.state_dict()).items()}
    assert first.keys() <= second.keys() and len(first) > 10
    names = sorted(first)
    return [first[key] for key in names], [second[key] for key in names]


@pytest.mark.parametrize("name", CLASSES)
def test_there_and_back(vit_oracle, tmp_path, name):
    """What we write, transformers reads: the same tensors, and nothing missing or left over."""
    ours, theirs = vit_oracle.pair(name, tmp_path / "theirs", pooler_output_size=10)
    ours.save_pretrained(tmp_path / "ours")
    again, report = getattr(vit_oracle.transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    state = theirs.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    fields = again.config.to_dict()  # ours has more of its own
    wanted = {**theirs.config.to_dict(), "_name_or_path": fields["_name_or_path"]}
    assert {key: fields[key] for key in wanted} == wanted


def test_positional_arguments_and_keywords(vit_oracle, tmp_path):
    """The order of 4.37, in which pixels and the mask of a base model come first, and labels third."""
    ours, theirs = vit_oracle.pair("ViTModel", tmp_path / "model", use_mask_token=True)
    pixels, masked = vit_oracle.images(theirs.config), vit_oracle.masked_positions(theirs.config)
    with torch.no_grad():
        vit_oracle.check_outputs(ours(pixels, masked), theirs(pixels, masked), OUTPUT[torch.float32])


def test_masked_positions_of_any_type(oracle, vit_oracle, tmp_path):
    """bool, integers and floats mean the same, flat or as a grid."""
    ours, theirs = vit_oracle.pair("ViTForMaskedImageModeling", tmp_path)
    pixels, masked = vit_oracle.images(theirs.config), vit_oracle.masked_positions(theirs.config)
    with torch.no_grad():
        wanted = theirs(pixels, masked)
        for form in (masked, masked.long(), masked.float(), masked.view(2, 4, 4)):
            vit_oracle.check_outputs(ours(pixels, form), wanted, OUTPUT[torch.float32])


def test_half_precision(oracle, vit_oracle, tmp_path):
    """bfloat16 weights, float32 pixels: cast to the weights' dtype, as there."""
    ours, theirs = vit_oracle.pair("ViTForImageClassification", tmp_path)
    pixels = vit_oracle.images(theirs.config)
    with torch.no_grad():
        got, wanted = ours.bfloat16()(pixels).logits, theirs.bfloat16()(pixels).logits
    # Two layers of sums rounded to 8 bits in other places.
    oracle.check_close("logits", got, wanted, 0.05)
