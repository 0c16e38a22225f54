"""Frozen ViT gives what the live form gives, on the reference and on the kernels."""

import pickle

import pytest
import torch

import vilt_fast
from vilt_fast import PackedPixels, ViTConfig

CLASSES = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")
CONFIG = dict(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=80,
    image_size=24,
    patch_size=8,
    encoder_stride=8,
    num_labels=5,
)
# See test_frozen.py: copies of the weights may lie elsewhere in memory.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(params=CLASSES)
def vit_name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def make_vit(oracle):
    def make(name: str, **fields):
        options = {"use_mask_token": True} if name == "ViTModel" else {}
        model = getattr(vilt_fast, name)(ViTConfig(**{**CONFIG, **fields}), **options)
        return oracle.randomise(model, seed=3).eval()

    return make


def packed(*sizes: tuple[int, int], picture=None) -> PackedPixels:
    count = sum(3 * height * width for height, width in sizes)
    return PackedPixels(torch.randint(0, 256, (count,), dtype=torch.uint8), sizes, picture=picture)


def calls(name: str) -> dict[str, dict]:
    """One of each kind of input: what is planned on the host, and what is not."""
    mask = torch.zeros(2, 40, 33, dtype=torch.int64)
    mask[0, :17, :33] = 1
    mask[1, :40, :9] = 1
    found = {
        "squares": {"pixel_values": torch.randn(3, 3, 24, 24)},
        "larger": {"pixel_values": torch.randn(2, 3, 43, 16), "interpolate_pos_encoding": True},
        "packed squares": {"pixel_values": packed((24, 24), (24, 24))},
        "packed": {"pixel_values": packed((24, 24), (8, 32), (40, 16))},
        "packed and cut": {"pixel_values": packed((25, 31), (8, 33))},
        "shared": {"pixel_values": packed((24, 24), (16, 32), picture=[1, 0, 1, 1])},
        "padded": {"pixel_values": torch.randn(2, 3, 40, 33), "pixel_mask": mask},
        "dropped": {"pixel_values": torch.randn(3, 3, 24, 24), "patch_mask": torch.rand(3, 3, 3) < 0.5},
        "dropped of packed": {"pixel_values": packed((24, 24), (8, 16)), "patch_mask": torch.rand(2, 3, 3) < 0.5},
        "heads": {"pixel_values": torch.randn(2, 3, 24, 24), "head_mask": torch.tensor([1.0, 0.0, 0.5, 1.0])},
    }
    if name != "ViTForImageClassification":
        found["masked"] = {"pixel_values": torch.randn(2, 3, 24, 24), "bool_masked_pos": torch.rand(2, 9) < 0.5}
    return found


@torch.no_grad()
def live(model, inputs):
    output = model(**inputs)
    output.loss = None  # of masked image modelling, which the frozen form does not compute
    return output


def check_equal(got, wanted, **tolerance):
    assert type(got) is type(wanted) and list(got) == list(wanted)
    for field in wanted:
        assert wanted[field].isfinite().all()
        torch.testing.assert_close(got[field], wanted[field], msg=lambda text, f=field: f"{f}: {text}", **tolerance)


def test_equals_live(make_vit, vit_name):
    model = make_vit(vit_name)
    frozen = vilt_fast.freeze(model)
    for kind, inputs in calls(vit_name).items():
        wanted = live(model, inputs)
        got = frozen(**inputs)
        assert got.keys() == wanted.keys(), kind
        check_equal(got, wanted, **TOLERANCE)


@pytest.mark.parametrize("rule", ["size", "scale_factor"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_equals_live_in(make_vit, vit_name, dtype, rule):
    model = make_vit(vit_name, position_interpolation=rule).to(dtype)
    frozen = vilt_fast.freeze(make_vit(vit_name, position_interpolation=rule), dtype=dtype)
    inputs = {"pixel_values": torch.randn(2, 3, 40, 16), "interpolate_pos_encoding": True}
    check_equal(frozen(**inputs), live(model, inputs), rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "quick_gelu"])
def test_a_pooler_of_another_width_and_activation(make_vit, activation):
    model = make_vit("ViTModel", pooler_output_size=20, pooler_act=activation)
    inputs = {"pixel_values": torch.randn(2, 3, 24, 24)}
    wanted = live(model, inputs)
    assert wanted.pooler_output.shape == (2, 20)
    check_equal(vilt_fast.freeze(model)(**inputs), wanted, **TOLERANCE)


def test_without_pooler_mask_token_or_classifier(make_vit, oracle):
    bare = oracle.randomise(vilt_fast.ViTModel(ViTConfig(**CONFIG), add_pooling_layer=False), seed=1).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 24, 24)}
    for model in (bare, make_vit("ViTForImageClassification", num_labels=0)):
        check_equal(vilt_fast.freeze(model)(**inputs), live(model, inputs), **TOLERANCE)
    got = vilt_fast.freeze(bare)(**inputs, return_dict=False)
    assert len(got) == len(bare(**inputs, return_dict=False)) == 1


def test_on_the_kernels(make_vit, vit_name, repeater, device):
    """Live, and frozen in a bucket: fp32 through two blocks, sums in another order than BLAS, a few 1e-7 each."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    model = make_vit(vit_name, num_hidden_layers=1, intermediate_size=48).to(device)
    frozen = vilt_fast.freeze(model, max_tokens=48, max_seqlen=16)
    if device.type == "cpu":
        frozen.use_buckets(repeater)
    for kind in ("larger", "packed", "masked") if vit_name == "ViTModel" else ("squares", "dropped"):
        inputs = calls(vit_name).get(kind)
        if inputs is None:
            continue
        inputs = {k: v.to(device) if hasattr(v, "to") else v for k, v in inputs.items()}
        wanted = live(model, inputs)
        # The kernels sum in fp32 in another order than the BLAS that PyTorch calls.
        with vilt_fast.backend("kernels"):
            check_equal(frozen(**inputs), wanted, rtol=1e-5, atol=1e-5)
            check_equal(live(model, inputs), wanted, rtol=1e-5, atol=1e-5)
    assert frozen.stats().replayed > 0


def test_same_image_same_bits(make_vit, device):
    """On the kernels an image's result is the same alone, in any batch and at any place of it."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    model = make_vit("ViTForImageClassification", num_hidden_layers=1, intermediate_size=48)
    frozen = vilt_fast.freeze(model.to(device))
    sizes = [(24, 24), (8, 32), (16, 16), (40, 8)]
    images = [torch.randint(0, 256, (3 * height * width,), dtype=torch.uint8) for height, width in sizes]

    def answer(*chosen):
        pixels = PackedPixels(torch.cat([images[n] for n in chosen]), [sizes[n] for n in chosen])
        with vilt_fast.backend("kernels"):
            return frozen(pixels).logits

    alone = torch.cat([answer(n) for n in range(4)])
    for order in ((0, 1, 2, 3), (3, 3, 0)):
        assert torch.equal(answer(*order), alone[list(order)])


def test_what_is_wrong_is_refused_as_live(make_vit):
    model = make_vit("ViTModel")
    frozen = vilt_fast.freeze(model)
    pixels = torch.randn(2, 3, 24, 24)
    for wrong in (
        {"pixel_values": None},
        {"pixel_values": pixels[0]},
        {"pixel_values": pixels[:, :2]},
        {"pixel_values": pixels.long()},
        {"pixel_values": torch.randn(2, 3, 32, 24)},
        {"pixel_values": torch.randn(2, 3, 7, 24), "interpolate_pos_encoding": True},
        {"pixel_values": packed((24, 7))},
        {"pixel_values": packed((24, 32)), "interpolate_pos_encoding": False},
        {"pixel_values": pixels, "pixel_mask": torch.ones(2, 24, 23)},
        {"pixel_values": pixels, "pixel_mask": torch.zeros(2, 24, 24)},
        {"pixel_values": pixels, "patch_mask": torch.ones(2, 9)},
        {"pixel_values": pixels, "bool_masked_pos": torch.ones(2, 8)},
        {"pixel_values": pixels.index_fill(0, torch.tensor(1), torch.nan)},
        {"pixel_values": pixels, "interpolate_pos_encoding": "yes"},
    ):
        with pytest.raises(ValueError) as said:
            model(**wrong)
        with pytest.raises(ValueError) as got:
            frozen(**wrong)
        assert str(got.value) == str(said.value)
    for argument in ("output_attentions", "output_hidden_states"):
        with pytest.raises(ValueError, match=f"{argument}: the frozen form keeps none"):
            frozen(pixels, **{argument: True})


def test_a_size_that_only_the_table_knows_is_refused_as_live(make_vit):
    """30 pixels make a table of 3 x 3 patches, as 24 do: without interpolation an image has 30."""
    model = make_vit("ViTModel", image_size=30)
    for form in (model, vilt_fast.freeze(model)):
        with pytest.raises(ValueError, match="must be 30 x 30 pixels, as config.image_size says, got 24 x 24"):
            form(packed((24, 24)), interpolate_pos_encoding=False)
        assert form(packed((24, 24))).last_hidden_state.shape == (1, 10, 48)


def test_stale_copied_and_refused(make_vit, vit_name):
    model = make_vit(vit_name)
    frozen = vilt_fast.freeze(model)
    frozen.warmup()
    assert not frozen.is_stale(model)
    inputs = {"pixel_values": torch.randn(2, 3, 32, 24), "interpolate_pos_encoding": True}
    check_equal(pickle.loads(pickle.dumps(frozen))(**inputs), live(model, inputs), **TOLERANCE)
    model.config.position_interpolation = "scale_factor"
    assert frozen.is_stale(model)
    model.config.position_interpolation = None
    (model.vit if vit_name != "ViTModel" else model).layernorm.register_forward_hook(lambda *_: None)
    assert frozen.is_stale(model)
    with pytest.raises(ValueError, match="layernorm has forward hooks"):
        vilt_fast.freeze(model)
