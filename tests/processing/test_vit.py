"""ViT's picture processor against transformers' PIL classes: bit for bit, with every setting, and packed."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import image_transforms, image_utils
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vilt_fast import ViTFeatureExtractor, ViTImageProcessor
from vilt_fast.processing.arithmetic import center
from vilt_fast.processing.settings import aspect_size, output_size

THEIRS = ViTImageProcessorPil()
OURS = ViTImageProcessor()
SMALL = {"size": {"height": 32, "width": 40}}
SIZES = [
    40,
    (30, 50),
    [30, 50],
    {"height": 31, "width": 17},
    {"shortest_edge": 33},
    {"shortest_edge": 33, "longest_edge": 47},
    {"max_height": 40, "max_width": 60},
]


def random_overrides(rng):
    options = {
        "size": SIZES[rng.integers(len(SIZES))],
        "resample": int(rng.integers(6)),
        "do_resize": bool(rng.random() < 0.8),
        "do_rescale": bool(rng.random() < 0.8),
        "rescale_factor": float(rng.choice([1 / 255, 1 / 127.5, 0.01, 2.0])),
        "do_normalize": bool(rng.random() < 0.8),
        "image_mean": rng.random(3).tolist() if rng.random() < 0.5 else float(rng.random()),
        "image_std": (rng.random(3) + 0.1).tolist() if rng.random() < 0.5 else float(rng.random() + 0.1),
        "do_center_crop": bool(rng.random() < 0.5),
        "crop_size": int(rng.integers(10, 90)) if rng.random() < 0.5 else rng.integers(10, 90, 2).tolist(),
    }
    chosen = {name: value for name, value in options.items() if name == "size" or rng.random() < 0.5}
    if "crop_size" not in chosen:
        chosen.pop("do_center_crop", None)
    return chosen


@pytest.mark.parametrize("seed", range(50))
def test_random_pictures_equal_transformers_bit_for_bit(seed, assert_same, random_picture):
    """500 random pictures in batches of 10, with random overrides of every setting."""
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng, 10, 80) for _ in range(10)]
    pictures = [Image.fromarray(picture) if rng.random() < 0.5 else picture for picture in pictures]
    overrides = random_overrides(rng) if seed % 5 else dict(SMALL)
    assert_same(OURS(pictures, **overrides), THEIRS(pictures, **overrides))
    assert_same(ViTImageProcessor(**overrides)(pictures), ViTImageProcessorPil(**overrides)(pictures))


def test_the_defaults_are_those_of_transformers(assert_same, random_picture):
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn carries the photographs")
    pictures = [*datasets.load_sample_images().images, random_picture(np.random.default_rng(0), 30, 900)]
    batch = OURS(pictures, return_tensors="pt")
    assert_same(batch, THEIRS(pictures, return_tensors="pt"))
    assert batch.pixel_values.shape == (3, 3, 224, 224) and list(batch) == ["pixel_values"]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb_as_with_do_convert_rgb(mode, assert_same, random_picture):
    image = Image.fromarray(random_picture(np.random.default_rng(1), 40, 60)).convert(mode)
    assert_same(OURS(image, **SMALL), THEIRS(image, **SMALL, do_convert_rgb=True))
    assert_same(OURS(image, **SMALL), OURS(image, **SMALL, do_convert_rgb=True))


def test_alpha_and_16_bits_are_those_of_any_other_processor():
    rng = np.random.default_rng(2)
    grey = rng.integers(0, 65536, (30, 40), dtype=np.uint16)
    for image in (Image.fromarray(grey), grey):
        wanted = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)[:, :, None].repeat(3, axis=2)
        np.testing.assert_array_equal(OURS(image, **SMALL).pixel_values, OURS(wanted, **SMALL).pixel_values)
    coloured = rng.integers(0, 256, (30, 40, 4), dtype=np.uint8)
    np.testing.assert_array_equal(OURS(coloured, **SMALL).pixel_values, OURS(coloured[..., :3], **SMALL).pixel_values)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("is_unit", [False, True])
@pytest.mark.parametrize("do_resize", [True, False])
@pytest.mark.filterwarnings("ignore:.*already and will be scaled")
def test_arrays_and_tensors_equal_transformers(dtype, is_unit, do_resize, assert_same):
    rng = np.random.default_rng(7)
    array = (rng.random((45, 70, 3)) if is_unit else rng.integers(0, 256, (45, 70, 3))).astype(dtype)
    crop = {"do_center_crop": True, "crop_size": (40, 77)}  # one side is cut, the other filled up
    for flags in ({}, {"do_rescale": False}, {"do_normalize": False}, {"do_rescale": False, **crop}):
        arguments = {**SMALL, "do_resize": do_resize, **flags}
        assert_same(OURS(array, **arguments), THEIRS(array, **arguments))
        tensor = torch.from_numpy(array.transpose(2, 0, 1).copy())
        assert_same(OURS(tensor, **arguments), THEIRS(tensor, **arguments))


def test_batches_in_every_form_equal_transformers(assert_same):
    batch = np.random.default_rng(1).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    for images in (batch, torch.from_numpy(batch), list(batch), [list(batch[:2]), [batch[2]]], batch[0]):
        for kind in (None, "np", "pt"):
            assert_same(OURS(images, **SMALL, return_tensors=kind), THEIRS(images, **SMALL, return_tensors=kind))


def test_data_format_is_honoured_as_in_4_37(random_picture):
    pictures = [random_picture(np.random.default_rng(seed), 20, 40) for seed in range(2)]
    first, last = (
        OURS(pictures, **SMALL, return_tensors="np", data_format=f"channels_{name}").pixel_values
        for name in ("first", "last")
    )
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), first)
    turned = [picture.transpose(2, 0, 1) for picture in pictures]
    again = OURS(turned, **SMALL, return_tensors="np", input_data_format="channels_first").pixel_values
    np.testing.assert_array_equal(again, first)


# --- sizes


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 800), st.integers(1, 800), st.integers(0, 2))
def test_sizes_equal_those_of_transformers(height, width, edge, limit, kind):
    if kind == 0:
        size = {"shortest_edge": edge}
        shape_only = np.broadcast_to(np.uint8(0), (3, height, width))
        theirs = image_transforms.get_resize_output_image_size(
            shape_only, edge, default_to_square=False, input_data_format="channels_first"
        )
    elif kind == 1:
        size = {"shortest_edge": edge, "longest_edge": limit}
        theirs = image_transforms.get_size_with_aspect_ratio((height, width), edge, limit)
    else:
        size = {"max_height": edge, "max_width": limit}
        theirs = image_utils.get_image_size_for_max_height_width((height, width), edge, limit)
    assert aspect_size(height, width, size) == tuple(theirs)


@settings(deadline=None, max_examples=100)
@given(*[st.integers(1, 12)] * 4)
def test_centres_equal_those_of_transformers(height, width, crop_height, crop_width):
    whole = np.arange(1, 1 + height * width).reshape(1, height, width)
    inside, taken = center((height, width), (crop_height, crop_width))
    ours = np.zeros((crop_height, crop_width), whole.dtype)
    ours[inside] = whole[0][taken]
    theirs = image_transforms.center_crop(whole, (crop_height, crop_width), input_data_format="channels_first")
    np.testing.assert_array_equal(ours, theirs[0])


def test_a_number_that_is_no_square(assert_same, random_picture):
    picture = random_picture(np.random.default_rng(3), 30, 60)
    for given_size in ({"size": 24, "default_to_square": False}, {"size": 24, "default_to_square": True}):
        theirs = ViTImageProcessorPil(**given_size)(picture)
        assert_same(ViTImageProcessor(**given_size)(picture), theirs)
        assert_same(OURS(picture, **given_size), theirs)
        assert OURS.pack(picture, **given_size).sizes == (theirs["pixel_values"][0].shape[1:],)


def test_the_size_that_comes_out():
    for own, wanted in (
        ({}, (224, 224)),
        ({"size": {"shortest_edge": 32}}, (32, 64)),
        ({"do_resize": False}, (50, 100)),
        ({"do_center_crop": True, "crop_size": (9, 8)}, (9, 8)),
    ):
        processor = ViTImageProcessor(**own)
        assert output_size(processor, "image", 50, 100) == wanted
        assert processor(np.zeros((50, 100, 3), np.uint8))["pixel_values"][0].shape == (3, *wanted)


def test_pictures_of_several_sizes(random_picture):
    pictures = [random_picture(np.random.default_rng(seed), 20, 60) for seed in range(3)]
    for arguments in ({"do_resize": False}, {"size": {"shortest_edge": 24}}):
        alone = OURS(pictures, **arguments).pixel_values
        assert len({value.shape for value in alone}) == 3
        for kind in ("pt", "np"):
            with pytest.raises(ValueError, match=r"do_pad: got False with images of 3 sizes.*do_pad=True.*pack\(\)"):
                OURS(pictures, **arguments, return_tensors=kind)
        for batch in (
            OURS(pictures, **arguments, do_pad=True, return_tensors="pt"),
            ViTImageProcessor(do_pad=True, **arguments)(pictures, return_tensors="pt"),
        ):
            assert list(batch) == ["pixel_values", "pixel_mask"] and batch.pixel_mask.dtype == torch.int64
            for values, mask, wanted in zip(batch.pixel_values, batch.pixel_mask, alone, strict=True):
                height, width = wanted.shape[1:]
                np.testing.assert_array_equal(values[:, :height, :width], wanted)
                assert mask.sum() == mask[:height, :width].sum() == height * width
                assert not values[:, height:].any() and not values[..., width:].any()
        packed = OURS.pack(pictures, **arguments)
        assert packed.sizes == tuple(value.shape[1:] for value in alone)


# --- packed


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"size": {"shortest_edge": 30, "longest_edge": 45}},
        {"do_center_crop": True, "crop_size": {"height": 20, "width": 61}},
        {"do_center_crop": True, "crop_size": 25, "do_resize": False},
        {"do_resize": False},
    ],
    ids=str,
)
def test_packed_bytes_are_those_that_are_normalised(arguments, resample, random_picture):
    rng = np.random.default_rng(11)
    pictures = [random_picture(rng, 10, 90) for _ in range(6)]
    raw = {**SMALL, "resample": resample, **arguments}
    packed = OURS.pack(pictures, **raw)
    wanted = OURS(pictures, **raw, do_rescale=False, do_normalize=False)["pixel_values"]
    assert packed.mean == packed.std == (0.5,) * 3 and packed.rescale_factor == 1 / 255
    assert packed.sizes == tuple(value.shape[1:] for value in wanted)
    for index, value in enumerate(wanted):
        got = packed.data[packed.offsets[index] : packed.offsets[index + 1]].view(*packed.sizes[index], 3)
        np.testing.assert_array_equal(got.permute(2, 0, 1), value)


def test_other_filters_are_not_packed(random_picture):
    picture = random_picture(np.random.default_rng(0), 20, 30)
    with pytest.raises(ValueError, match="resample: got LANCZOS, wanted BICUBIC or BILINEAR"):
        OURS.pack(picture, resample=Image.Resampling.LANCZOS)
    with pytest.raises(TypeError, match="pack.* 'size_divisor'"):
        OURS.pack(picture, size_divisor=32)


# --- arguments


def test_warnings_name_the_callers_line():
    with pytest.warns(UserWarning, match="do_rescale=False") as caught:
        OURS(np.random.default_rng(6).random((32, 32, 3)), **SMALL)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="do_convert_rgb: got False, but every image becomes RGB"):
        ViTImageProcessor(do_convert_rgb=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OURS(np.random.default_rng(6).random((32, 32, 3)), **SMALL, do_rescale=False, do_convert_rgb=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_resize", "yes"),
        ("do_pad", 1),
        ("do_center_crop", "yes"),
        ("do_convert_rgb", 1),
        ("rescale_in_float64", 1),
        ("default_to_square", 1),
        ("size", 0),
        ("size", True),
        ("size", "224"),
        ("size", (3, 4, 5)),
        ("size", {"height": 3}),
        ("size", {"longest_edge": 3}),
        ("size", {"min_pixels": 3, "max_pixels": 9}),
        ("size", {"height": 3, "width": 4, "shortest_edge": 5}),
        ("size", {"height": 3, "width": 0}),
        ("size", {"shortest_edge": 10**9}),
        ("size", (10**5, 10**5)),
        ("size", 10**30),
        ("crop_size", {"shortest_edge": 3}),
        ("crop_size", {"height": 3, "width": -4}),
        ("crop_size", 10**6),
        ("crop_size", "224"),
        ("resample", 9),
        ("rescale_factor", float("nan")),
        ("image_mean", [0.5, 0.5]),
        ("image_std", [0.5, 0.0, 0.5]),
    ],
)
def test_bad_settings_are_named(name, value):
    picture = np.zeros((40, 40, 3), np.uint8)
    for call in (lambda **given: ViTImageProcessor(**given), lambda **given: OURS(picture, **given)):
        with pytest.raises(ValueError, match=f"^{name}"):
            call(**{name: value})
    with pytest.raises(ValueError, match=f"^{name}"):
        OURS.pack(picture, **{name: value})


def test_arguments_that_do_not_go_together():
    picture = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="crop_size: got None with do_center_crop=True"):
        ViTImageProcessor(do_center_crop=True)
    with pytest.raises(ValueError, match="crop_size: got None with do_center_crop=True"):
        OURS(picture, do_center_crop=True)
    with pytest.raises(ValueError, match="pad_size: got 300, wanted None"):
        ViTImageProcessor(do_pad=True, pad_size=300)
    with pytest.raises(TypeError, match="preprocess.* 'do_rezize'"):
        OURS(picture, do_rezize=True)
    with pytest.raises(ValueError, match=r"images: .*2x3000 .*too elongated: its shorter side becomes 0"):
        OURS(np.zeros((2, 3000, 3), np.uint8), size={"max_height": 9, "max_width": 90})
    with pytest.raises(ValueError, match="images: an image would become 20000x10000 pixels"):
        OURS(np.zeros((20, 10, 3), np.uint8), size={"shortest_edge": 10_000})
    assert OURS(picture, device="cpu", disable_grouping=True)["pixel_values"][0].shape == (3, 224, 224)


def test_settings_by_place():
    """In the order of transformers 4.37, for the class and for one call."""
    places = (True, {"height": 24, "width": 20}, 3, True, 1 / 127.5, True, [0.4] * 3, [0.6] * 3)
    by_place = ViTImageProcessor(*places)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    wanted = by_place(picture, return_tensors="np").pixel_values
    called = OURS.preprocess(picture, *places, "np", "channels_last", "channels_last").pixel_values
    np.testing.assert_array_equal(called.transpose(0, 3, 1, 2), wanted)
    theirs = ViTImageProcessorPil(
        size={"height": 24, "width": 20},
        resample=3,
        rescale_factor=1 / 127.5,
        image_mean=[0.4] * 3,
        image_std=[0.6] * 3,
    )
    np.testing.assert_array_equal(wanted, theirs(picture, return_tensors="np").pixel_values)


def test_the_old_name():
    with pytest.warns(FutureWarning, match="ViTImageProcessor"):
        extractor = ViTFeatureExtractor(size=30)
    assert isinstance(extractor, ViTImageProcessor) and extractor.size == {"height": 30, "width": 30}
    assert extractor.to_dict()["image_processor_type"] == "ViTImageProcessor"


def test_deits_defaults_equal_transformers(assert_same, random_picture):
    picture = random_picture(np.random.default_rng(5), 100, 300)
    deit = ViTImageProcessor.from_dict({"image_processor_type": "DeiTImageProcessor"})
    assert_same(deit(picture), DeiTImageProcessorPil()(picture))
