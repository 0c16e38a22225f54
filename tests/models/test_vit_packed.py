"""Images of several sizes in one batch, padded or packed, each as it is alone; patches and heads that are left out."""

import pytest
import torch
from torch import Tensor

import vilt_fast
from vilt_fast import PackedPixels, ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from vilt_fast.reference import vit as paper

PATCH = 8
CONFIG = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=40,
    image_size=32,
    patch_size=PATCH,
    encoder_stride=PATCH,
    num_labels=5,
)
SIZES = [(32, 32), (19, 40), (8, 9), (47, 24)]  # one as the table is; sides that are no multiple of the patch
CLASSES = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")
# fp64: the same formula in another order, 1e-16 a step.
CLOSE = dict(rtol=1e-10, atol=1e-11)


@pytest.fixture(params=["size", "scale_factor"])
def rule(request) -> str:
    return request.param


@pytest.fixture
def make(oracle):
    """A random model of a class, in fp64."""

    def of(name: str, **changes):
        options = {"use_mask_token": True} if name == "ViTModel" else {}
        model = getattr(vilt_fast, name)(ViTConfig(**{**CONFIG, **changes}), **options)
        return oracle.randomise(model, 5).double().eval()

    return of


def packed(sizes=SIZES, seed: int = 0) -> PackedPixels:
    generator = torch.Generator().manual_seed(seed)
    data = [
        torch.randint(0, 256, (3 * height * width,), generator=generator, dtype=torch.uint8) for height, width in sizes
    ]
    return PackedPixels(torch.cat(data), tuple(sizes), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def padded(pixels: PackedPixels) -> tuple[Tensor, Tensor]:
    """The same images normalised by hand, NaN-free garbage in the padding, and the mask of the real pixels."""
    height, width = (max(sides) for sides in zip(*pixels.sizes, strict=True))
    values = torch.full((len(pixels), 3, height, width), 77.0, dtype=torch.float64)
    mask = torch.zeros(len(pixels), height, width, dtype=torch.long)
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in (pixels.mean, pixels.std))
    for b, ((height, width), start) in enumerate(zip(pixels.sizes, pixels.offsets, strict=False)):
        image = pixels.data[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)
        values[b, :, :height, :width] = (image.double() / 255 - mean) / std
        mask[b, :height, :width] = 1
    return values, mask


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // PATCH, size[1] // PATCH


@torch.no_grad()
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("name", CLASSES)
def test_each_image_is_as_it_is_alone(make, rule, name, form):
    model, pixels = make(name, position_interpolation=rule), packed()
    values, mask = padded(pixels)
    inputs = {"pixel_values": pixels} if form == "packed" else {"pixel_values": values, "pixel_mask": mask}
    states = {"output_hidden_states": True, "output_attentions": True}
    together, short = model(**inputs, **states), model(**inputs)
    for b, (height, width) in enumerate(SIZES):
        (rows, columns), count = grid_of((height, width)), 1 + (height // PATCH) * (width // PATCH)
        alone = model(values[b : b + 1, :, :height, :width], interpolate_pos_encoding=True, **states)
        for field, value in alone.items():
            if field in ("hidden_states", "attentions"):
                for got, wanted in zip(together[field], value, strict=True):
                    real = got[b, :count] if got.ndim == 3 else got[b, :, :count, :count]
                    torch.testing.assert_close(real, wanted[0], **CLOSE)
                    assert got[b].count_nonzero() == real.count_nonzero(), "padding is zero"
                continue
            wanted = value[0]
            for got in (together[field][b], short[field][b]):
                if field == "last_hidden_state":
                    assert got[count:].eq(0).all()
                    got = got[:count]
                elif field == "reconstruction":
                    assert got[:, rows * PATCH :].eq(0).all() and got[:, :, columns * PATCH :].eq(0).all()
                    got = got[:, : rows * PATCH, : columns * PATCH]
                torch.testing.assert_close(got, wanted, **CLOSE, msg=lambda m, f=field: f"{f}: {m}")


@torch.no_grad()
def test_both_forms_are_the_reference(make, rule):
    model, pixels = make("ViTModel", position_interpolation=rule), packed()
    values, mask = padded(pixels)
    generator = torch.Generator().manual_seed(2)
    masked, kept, heads = (torch.rand(shape, generator=generator) for shape in ((4, 5, 5), (4, 5, 5), (2, 2)))
    masked, kept, heads = masked < 0.4, kept < 0.6, heads.double()
    wanted = paper.encode(
        model.state_dict(),
        model.config,
        pixel_values=values,
        pixel_mask=mask,
        bool_masked_pos=masked,
        patch_mask=kept,
        head_mask=heads,
        rule=rule,
        prefix="",
    )
    states = {"output_hidden_states": True, "output_attentions": True}
    for given in ({"pixel_values": values, "pixel_mask": mask}, {"pixel_values": pixels}):
        got = model(**given, bool_masked_pos=masked.flatten(1), patch_mask=kept, head_mask=heads, **states)
        torch.testing.assert_close(got.last_hidden_state, wanted.last_hidden_state, **CLOSE)
        torch.testing.assert_close(got.pooler_output, wanted.pooler_output, **CLOSE)
        torch.testing.assert_close(got.hidden_states, wanted.hidden_states, **CLOSE)
        real = wanted.mask[:, None, :, None] & wanted.mask[:, None, None, :]
        for mine, other in zip(got.attentions, wanted.attentions, strict=True):
            torch.testing.assert_close(mine, other * real, **CLOSE)


@pytest.mark.parametrize("name", CLASSES)
def test_patches_that_are_dropped(make, name):
    """As the reference that attends to the rest alone; gradients too; an image may keep none but its CLS."""
    model, (values, _) = make(name), padded(packed([(32, 32)] * 3))
    kept = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    kept[2] = False
    prefix = "" if name == "ViTModel" else "vit."
    state = {key: value.detach().requires_grad_() for key, value in model.state_dict().items()}
    wanted = paper.encode(state, model.config, pixel_values=values, patch_mask=kept, prefix=prefix).last_hidden_state
    output = model(values, patch_mask=kept)
    if name == "ViTForMaskedImageModeling":  # back at their places, zero where they were dropped
        grid = torch.zeros(3, 16, 24, dtype=torch.float64)
        grid = torch.stack(
            [g.index_put((k,), w[1 : 1 + k.sum()]) for g, k, w in zip(grid, kept.flatten(1), wanted, strict=True)]
        )
        pixels = paper.reconstruct(state, model.config, torch.cat([wanted[:, :1], grid], 1), (4, 4))
        wanted = pixels * kept.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    elif name == "ViTForImageClassification":
        wanted = paper.classify(state, wanted)
    got = output[0]
    torch.testing.assert_close(got, wanted, **CLOSE)
    weights = torch.linspace(-1, 1.5, got.numel(), dtype=got.dtype).view(got.shape)
    (got * weights).sum().backward()
    (wanted * weights).sum().backward()
    for key, parameter in model.named_parameters():
        both = [torch.zeros(1) if grad is None else grad for grad in (parameter.grad, state[key].grad)]
        torch.testing.assert_close(*both, rtol=1e-9, atol=1e-10, check_dtype=False, msg=lambda m, k=key: f"{k}: {m}")


@torch.no_grad()
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_the_loss_of_masked_pixels_counts_real_ones_alone(make, form):
    """Each image's masked pixels weigh alike, as if the images were one after the other; dropped patches are none."""
    model, pixels = make("ViTForMaskedImageModeling"), packed()
    values, mask = padded(pixels)
    masked = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    kept = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(4)) < 0.7
    total, count = 0.0, 0
    for b, size in enumerate(SIZES):
        rows, columns = grid_of(size)
        one = values[b : b + 1, :, : rows * PATCH, : columns * PATCH]
        given = {"patch_mask": kept[b : b + 1, :rows, :columns], "interpolate_pos_encoding": True}
        seen = masked[b : b + 1, :rows, :columns]
        reconstruction = model(one, seen, **given).reconstruction
        seen = (seen & given["patch_mask"]).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
        total += ((reconstruction - one).abs() * seen).sum()
        count += int(seen.sum())
    inputs = {"pixel_values": pixels} if form == "packed" else {"pixel_values": values, "pixel_mask": mask}
    loss = model(**inputs, bool_masked_pos=masked.flatten(1), patch_mask=kept).loss
    # The count is rounded to fp32 where 1e-5 is added to it, as in transformers.
    torch.testing.assert_close(loss, total / count / 3, rtol=1e-6, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("by_layer", [False, True], ids=["heads", "layers x heads"])
def test_head_mask(make, name, by_layer):
    """transformers 5 has none; 4.37 multiplies the probabilities after the softmax, as the reference does."""
    model, (values, _) = make(name), padded(packed([(32, 32)] * 2))
    head_mask = torch.tensor([[0.5, 0.0], [1.0, 0.25]]) if by_layer else torch.tensor([0.0, 0.7])
    prefix, state = "" if name == "ViTModel" else "vit.", model.state_dict()
    options = {"pixel_values": values, "head_mask": head_mask, "prefix": prefix}
    wanted = paper.encode(state, model.config, **options).last_hidden_state
    if name == "ViTForImageClassification":
        wanted = paper.classify(state, wanted)
    elif name == "ViTForMaskedImageModeling":
        wanted = paper.reconstruct(state, model.config, wanted, (4, 4))
    torch.testing.assert_close(model(values, head_mask=head_mask)[0], wanted, **CLOSE)


@torch.no_grad()
def test_one_image_that_several_rows_look_at(make):
    """`picture` of PackedPixels: an image more than once, and one that nobody looks at."""
    model, pixels = make("ViTForImageClassification"), packed()
    alone = model(pixels).logits
    shared = PackedPixels(pixels.data, pixels.sizes, pixels.mean, pixels.std, picture=(3, 1, 3))
    torch.testing.assert_close(model(shared).logits, alone[[3, 1, 3]], **CLOSE)


@torch.no_grad()
def test_packed_in_float32_and_float16(make):
    """Bytes into the folded projection are as exact as normalised pixels."""
    model, pixels = make("ViTForImageClassification"), packed()
    values, mask = padded(pixels)
    wanted = model(values, pixel_mask=mask).logits
    torch.testing.assert_close(model.float()(pixels).logits.double(), wanted, rtol=1e-4, atol=1e-5)
    half = model.half()(pixels).logits
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), wanted, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_a_pixel_mask_of_everything(make):
    """is none, whatever its dtype; and an image of the table's size gives the same with and without interpolation."""
    model, (values, mask) = make("ViTForImageClassification"), padded(packed([(32, 32)] * 2))
    wanted = model(values).logits
    for given in (mask, mask.bool(), mask.double()):
        torch.testing.assert_close(model(values, pixel_mask=given).logits, wanted, **CLOSE)
    torch.testing.assert_close(model(values, interpolate_pos_encoding=True).logits, wanted, **CLOSE)
    torch.testing.assert_close(model(packed([(32, 32)] * 2), interpolate_pos_encoding=False).logits, wanted, **CLOSE)


def test_the_pixels_that_are_cut_off_are_not_read(make):
    """Nor what is behind an image in its padding: no gradient reaches it."""
    model, pixels = make("ViTForImageClassification"), packed()
    values, mask = padded(pixels)
    values.requires_grad_()
    model(values, pixel_mask=mask).logits.square().sum().backward()
    for b, size in enumerate(SIZES):
        rows, columns = grid_of(size)
        touched = values.grad[b].abs().sum(0) > 0
        assert touched[: rows * PATCH, : columns * PATCH].all()
        assert touched.sum() == rows * columns * PATCH * PATCH


def test_types_of_the_classes():
    assert issubclass(ViTModel, vilt_fast.ViTPreTrainedModel)
    assert ViTForImageClassification.base_model_prefix == ViTForMaskedImageModeling.base_model_prefix == "vit"
