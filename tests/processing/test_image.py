"""The picture processor against transformers' PIL class: bit for bit, with every setting, saved and loaded."""

import errno
import json
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.vilt import image_processing_pil_vilt as hf

from vilt_fast import ViltFeatureExtractor, ViltImageProcessor
from vilt_fast.processing import BatchFeature, resize_size

THEIRS = hf.ViltImageProcessorPil()
OURS = ViltImageProcessor()
SMALL = {"size": {"shortest_edge": 64}}
# In Hugging Face's order.
SETTINGS = (
    "do_resize size size_divisor resample do_rescale rescale_factor do_normalize image_mean image_std do_pad"
).split()


def random_overrides(rng):
    options = {
        "size": {"shortest_edge": int(rng.integers(64, 120))},
        "size_divisor": int(rng.choice([1, 8, 16, 32])),
        "resample": int(rng.integers(6)),
        "do_resize": bool(rng.random() < 0.8),
        "do_rescale": bool(rng.random() < 0.8),
        "rescale_factor": float(rng.choice([1 / 255, 1 / 127.5, 0.01, 2.0])),
        "do_normalize": bool(rng.random() < 0.8),
        "image_mean": rng.random(3).tolist() if rng.random() < 0.5 else float(rng.random()),
        "image_std": (rng.random(3) + 0.1).tolist() if rng.random() < 0.5 else float(rng.random() + 0.1),
        "do_pad": bool(rng.random() < 0.8),
    }
    return {name: value for name, value in options.items() if name == "size" or rng.random() < 0.5}


@pytest.mark.parametrize("seed", range(50))
def test_random_pictures_equal_transformers_bit_for_bit(seed, assert_same, random_picture):
    """500 random pictures in batches of 10, padded, with random overrides of every setting."""
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng) for _ in range(10)]
    pictures = [Image.fromarray(picture) if rng.random() < 0.5 else picture for picture in pictures]
    overrides = random_overrides(rng) if seed % 5 else dict(SMALL)
    assert_same(OURS(pictures, **overrides), THEIRS(pictures, **overrides))


@pytest.mark.parametrize("seed", range(6))
def test_full_size_equals_transformers(seed, assert_same, random_picture):
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng, 30, 900) for _ in range(2)]
    assert_same(OURS(pictures, return_tensors="pt"), THEIRS(pictures, return_tensors="pt"))


def test_photographs_equal_transformers(assert_same):
    datasets = pytest.importorskip("sklearn.datasets")
    photographs = list(datasets.load_sample_images().images)
    batch = OURS(photographs, return_tensors="pt")
    assert_same(batch, THEIRS(photographs, return_tensors="pt"))
    assert batch.pixel_values.shape == (2, 3, 384, 576)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("is_unit", [False, True])
@pytest.mark.parametrize("do_resize", [True, False])
@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.filterwarnings("ignore:.*already and will be scaled")
def test_arrays_and_tensors_equal_transformers(dtype, is_unit, do_resize, channels_first, assert_same):
    rng = np.random.default_rng(7)
    pixels = rng.random((45, 70, 3)) if is_unit else rng.integers(0, 256, (45, 70, 3))
    array = pixels.astype(dtype)
    array = array.transpose(2, 0, 1) if channels_first else array
    for flags in ({}, {"do_rescale": False}, {"do_normalize": False}, {"do_rescale": False, "do_normalize": False}):
        arguments = {**SMALL, "do_resize": do_resize, **flags}
        assert_same(OURS(array, **arguments), THEIRS(array, **arguments))
        assert_same(OURS(torch.from_numpy(array), **arguments), THEIRS(torch.from_numpy(array), **arguments))


def test_batches_in_every_form_equal_transformers(assert_same):
    rng = np.random.default_rng(1)
    batch = rng.integers(0, 256, (4, 40, 50, 3), dtype=np.uint8)
    for images in (
        batch,
        torch.from_numpy(batch),
        list(batch),
        tuple(batch),
        [batch[:2], batch[2:]],
        [[batch[0], batch[1]], [batch[2]], [batch[3]]],
        batch[0],
        [batch[0]],
    ):
        assert_same(OURS(images, **SMALL), THEIRS(images, **SMALL))
    pairs = OURS([[batch[0], batch[1]], [batch[2], batch[3]]], **SMALL, return_tensors="pt").pixel_values
    assert pairs.unflatten(0, (2, 2)).shape == (2, 2, 3, 64, 64)


@pytest.mark.parametrize("kind", [None, "np", "pt"])
@pytest.mark.parametrize("do_pad", [True, False])
def test_return_tensors(kind, do_pad, assert_same):
    picture = np.random.default_rng(2).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    ours, theirs = (
        processor([picture, picture], **SMALL, do_pad=do_pad, return_tensors=kind) for processor in (OURS, THEIRS)
    )
    assert_same(ours, theirs)
    assert all(type(ours[key]) is type(theirs[key]) for key in theirs)


@settings(deadline=None)
@given(
    height=st.integers(1, 6000), width=st.integers(1, 6000), shortest=st.integers(1, 800), divisor=st.integers(1, 64)
)
def test_resize_size_equals_transformers(height, width, shortest, divisor):
    shape_only = np.broadcast_to(np.uint8(0), (3, height, width))
    theirs = hf.get_resize_output_image_size(
        shape_only, shortest, int(1333 / 800 * shortest), divisor, input_data_format="channels_first"
    )
    assert resize_size(height, width, shortest, divisor) == theirs


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (384, 512)),
        ((640, 480), (512, 384)),
        ((100, 100), (384, 384)),
        ((427, 640), (384, 576)),  # 640 * 384 / 427 = 575.6, rounded before it is floored to a multiple of 32
        ((384, 640), (352, 608)),  # 640 is above 639: 383.4 x 639
        ((100, 1000), (64, 608)),  # 63.9 x 639
        ((1, 21), (0, 608)),  # 30.4 x 639
    ],
)
def test_resize_size_by_hand(size, expected):
    assert resize_size(*size) == expected


def test_padding_is_zero_and_masked():
    tall, wide = np.full((80, 50, 3), 200, np.uint8), np.full((50, 80, 3), 200, np.uint8)
    batch = OURS([tall, wide], **SMALL, return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 96, 96)
    assert batch.pixel_mask.dtype == torch.int64
    assert batch.pixel_mask.sum(dim=(1, 2)).tolist() == [96 * 64, 64 * 96]
    assert (batch.pixel_values[batch.pixel_mask[:, None].expand(-1, 3, -1, -1) == 0] == 0).all()
    assert (batch.pixel_values[batch.pixel_mask[:, None].expand(-1, 3, -1, -1) == 1] != 0).all()


# --- where 4.37 and 5.x differ


def test_data_format_is_honoured_as_in_4_37(random_picture):
    rng = np.random.default_rng(3)
    pictures = [random_picture(rng) for _ in range(3)]
    first = OURS(pictures, **SMALL, return_tensors="np")
    last = OURS(pictures, **SMALL, return_tensors="np", data_format="channels_last")
    np.testing.assert_array_equal(last.pixel_values.transpose(0, 3, 1, 2), first.pixel_values)
    np.testing.assert_array_equal(last.pixel_mask, first.pixel_mask)


@pytest.mark.filterwarnings("ignore:.*will be scaled again")
def test_float_pictures_are_rescaled_in_float64_as_in_5_x():
    pixels = np.random.default_rng(4).random((32, 32, 3), dtype=np.float32)
    ours = OURS(pixels, do_resize=False, do_normalize=False, rescale_factor=0.3, return_tensors="np").pixel_values[0]
    new = (pixels.astype(np.float64) * 0.3).astype(np.float32).transpose(2, 0, 1)
    old = (pixels * np.float32(0.3)).transpose(2, 0, 1)  # 4.37: one rounding more, of the factor
    np.testing.assert_array_equal(ours, new)
    assert (ours != old).any()


def test_layout_is_inferred_for_every_picture_as_in_5_x():
    picture = np.random.default_rng(5).integers(0, 256, (40, 60, 3), dtype=np.uint8)  # 4.37 looks at the first only
    batch = OURS([picture, picture.transpose(2, 0, 1)], **SMALL, return_tensors="np").pixel_values
    np.testing.assert_array_equal(batch[0], batch[1])


def test_scaled_pictures_are_warned_of_as_in_4_37():
    with pytest.warns(UserWarning, match="do_rescale=False"):
        OURS(np.random.default_rng(6).random((32, 32, 3)), **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OURS(np.random.default_rng(6).random((32, 32, 3)), **SMALL, do_rescale=False)


# --- bad settings


def test_unequal_sizes_without_padding():
    pictures = [np.zeros((40, 40, 3), np.uint8), np.zeros((40, 64, 3), np.uint8)]
    assert [value.shape for value in OURS(pictures, do_pad=False, **SMALL).pixel_values] == [(3, 64, 64), (3, 64, 96)]
    for kind in ("pt", "np"):
        with pytest.raises(ValueError, match="do_pad"):
            OURS(pictures, do_pad=False, return_tensors=kind, **SMALL)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_resize", "yes"),
        ("do_pad", 1),
        ("size", {"height": 3, "width": 4}),
        ("size", (3, 4)),
        ("size", 0),
        ("size", {"shortest_edge": -1}),
        ("size", True),
        ("size", "384"),
        ("size_divisor", 0),
        ("size_divisor", 1.5),
        ("resample", 9),
        ("resample", "bicubic"),
        ("rescale_factor", "1/255"),
        ("rescale_factor", float("nan")),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", "0.5"),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_std", 0),
        ("image_std", [0.5, None, 0.5]),
    ],
)
def test_bad_settings_are_named(name, value):
    picture = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match=f"^{name}"):
        ViltImageProcessor(**{name: value})
    with pytest.raises(ValueError, match=f"^{name}"):
        OURS(picture, **{name: value})
    processor = ViltImageProcessor()
    setattr(processor, name, value)
    with pytest.raises(ValueError, match=f"^{name}"):
        processor(picture)


@pytest.mark.parametrize("name", ["size", "image_mean", "image_std", "do_resize"])
def test_none_is_a_default_of_the_constructor_alone(name):
    picture = np.zeros((40, 40, 3), np.uint8)
    processor = ViltImageProcessor(**({} if name == "do_resize" else {name: None}))
    assert getattr(processor, name) == getattr(OURS, name)
    setattr(processor, name, None)
    for call in (processor, processor.pack):
        with pytest.raises(ValueError, match=f"^{name}: got None, wanted"):
            call(picture)
        call(picture, **{name: getattr(OURS, name)})


def test_bad_arguments_of_a_call():
    picture = np.zeros((40, 40, 3), np.uint8)
    for name in ("return_tensors", "data_format", "input_data_format"):
        with pytest.raises(ValueError, match=f"^{name}"):
            OURS(picture, **{name: "tf"})
    with pytest.raises(ValueError, match=r"channels_first, wanted 1, 2, 3 or 4 channels"):
        OURS(picture, input_data_format="channels_first")
    with pytest.raises(TypeError, match="do_rezize"):
        OURS(picture, do_rezize=True)
    with pytest.raises(TypeError, match="multiple values for argument 'do_resize'"):
        OURS(picture, False, do_resize=False)


# --- settings in and out


SETTINGS = {
    "do_resize": False,
    "size": {"shortest_edge": 96},
    "size_divisor": 16,
    "resample": 2,
    "do_rescale": False,
    "rescale_factor": 0.5,
    "do_normalize": False,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "do_pad": False,
}


def test_saved_settings_load_in_transformers_and_back(tmp_path):
    ours = ViltImageProcessor(**SETTINGS)
    assert ours.save_pretrained(tmp_path) == [str(tmp_path / "preprocessor_config.json")]
    theirs = hf.ViltImageProcessorPil.from_pretrained(tmp_path)
    for name, value in SETTINGS.items():
        got = getattr(theirs, name)
        assert (list(got) if isinstance(value, list) else dict(got) if isinstance(value, dict) else got) == value, name
    theirs.save_pretrained(tmp_path / "theirs")
    again = ViltImageProcessor.from_pretrained(tmp_path / "theirs")
    assert again.to_dict() == ours.to_dict()
    assert json.loads(ours.to_json_string()) == {**SETTINGS, "image_processor_type": "ViltImageProcessor"}


def test_configs_of_older_versions(tmp_path):
    # As the first ViLT checkpoints on the hub have it, and with what 4.3x wrote beside it.
    path = tmp_path / "preprocessor_config.json"
    path.write_text(
        json.dumps(
            {
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "ViltFeatureExtractor",
                "resample": 3,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
                "pad_and_return_pixel_mask": True,
                "size": 384,
                "size_divisor": 32,
                "_valid_processor_keys": ["images"],
                "processor_class": "ViltProcessor",
            }
        )
    )
    for source in (tmp_path, str(tmp_path), path):
        assert ViltImageProcessor.from_pretrained(source).to_dict() == OURS.to_dict()
    assert ViltImageProcessor.from_pretrained(tmp_path, do_pad=False).do_pad is False
    assert ViltImageProcessor.from_pretrained(tmp_path, pad_and_return_pixel_mask=False).do_pad is False


def test_nested_settings_of_5_x_come_first_and_are_kept_up_to_date(tmp_path):
    nested = tmp_path / "processor_config.json"
    nested.write_text(json.dumps({"image_processor": {**SETTINGS, "size": {"shortest_edge": 33}}, "other": 1}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    assert ViltImageProcessor.from_pretrained(tmp_path).size == {"shortest_edge": 33}
    ViltImageProcessor(size=55).save_pretrained(tmp_path)
    assert hf.ViltImageProcessorPil.from_pretrained(tmp_path).size.shortest_edge == 55
    assert ViltImageProcessor.from_pretrained(tmp_path).size == {"shortest_edge": 55}
    assert json.loads(nested.read_text())["other"] == 1


def test_from_pretrained_overrides_and_errors(tmp_path):
    ViltImageProcessor(extra_note="kept").save_pretrained(tmp_path)
    loaded, unused = ViltImageProcessor.from_pretrained(tmp_path, size=64, foo=1, return_unused_kwargs=True)
    assert (loaded.size, loaded.extra_note, unused) == ({"shortest_edge": 64}, "kept", {"foo": 1})
    assert ViltImageProcessor.from_pretrained(tmp_path, use_fast=False, local_files_only=True).to_dict() == {
        **OURS.to_dict(),
        "extra_note": "kept",
    }
    with pytest.raises(TypeError, match="foo"):
        ViltImageProcessor.from_pretrained(tmp_path, foo=1)
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json"):
        ViltImageProcessor.from_pretrained(tmp_path.parent)
    for content in ("{", "[1]", "\xff"):
        (tmp_path / "preprocessor_config.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match="preprocessor_config.json"):
            ViltImageProcessor.from_pretrained(tmp_path)


def test_a_full_disk_leaves_the_old_settings(tmp_path, monkeypatch):
    ViltImageProcessor(size=77).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ViltImageProcessor(size=88).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="save_directory"):
        OURS.save_pretrained(tmp_path / "preprocessor_config.json")


def test_deprecated_names():
    with pytest.warns(FutureWarning, match="ViltImageProcessor"):
        extractor = ViltFeatureExtractor(pad_and_return_pixel_mask=False)
    assert isinstance(extractor, ViltImageProcessor) and extractor.do_pad is False
    picture = np.zeros((40, 40, 3), np.uint8)
    assert list(OURS(picture, pad_and_return_pixel_mask=False)) == ["pixel_values"]
    assert list(extractor(picture, pad_and_return_pixel_mask=True)) == ["pixel_values", "pixel_mask"]


# --- the returned dictionary


def test_batch_feature():
    batch = BatchFeature({"pixel_values": [[0.5, 1.5]], "pixel_mask": [[1, 0]]}, "pt")
    assert batch.pixel_values is batch["pixel_values"] and dict(**batch).keys() == batch.keys()
    moved = batch.to("cpu", torch.float16)
    assert moved is batch and batch.pixel_values.dtype == torch.float16 and batch.pixel_mask.dtype == torch.int64
    assert batch.to(torch.float64).pixel_values.dtype == torch.float64
    assert batch.to("meta").pixel_values.device.type == "meta"
    again = pickle.loads(pickle.dumps(OURS(np.zeros((40, 40, 3), np.uint8), **SMALL, return_tensors="pt")))
    assert again.pixel_values.shape == (1, 3, 64, 64) and again.copy().keys() == again.keys()
    with pytest.raises(AttributeError, match="input_ids"):
        _ = batch.input_ids
    with pytest.raises(ValueError, match="pixel_values.*do_pad=True"):
        BatchFeature({"pixel_values": [np.zeros((3, 2)), np.zeros((3, 4))]}, "pt")


def test_pictures_are_not_changed():
    picture = np.random.default_rng(19).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    before = picture.copy()
    OURS([picture, Image.fromarray(picture)], **SMALL)
    OURS(picture, do_resize=False, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values.fill_(0)
    np.testing.assert_array_equal(picture, before)


def test_settings_by_place():
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    places = (True, {"shortest_edge": 32}, 16, 2, False)
    named = dict(zip(("do_resize", "size", "size_divisor", "resample", "do_rescale"), places, strict=True))
    wanted = OURS(picture, **named, return_tensors="pt")["pixel_values"]
    assert torch.equal(OURS(picture, *places, return_tensors="pt")["pixel_values"], wanted)
    assert torch.equal(ViltImageProcessor(*places)(picture, return_tensors="pt")["pixel_values"], wanted)


def test_every_setting_goes_by_place(random_picture):
    """In Hugging Face's order, for the class and for one call."""
    settings = (True, {"shortest_edge": 64}, 16, 2, True, 1 / 127.5, True, [0.4] * 3, [0.6] * 3, False)
    by_place = ViltImageProcessor(*settings)
    assert [getattr(by_place, name) for name in SETTINGS] == list(settings)
    image = random_picture(np.random.default_rng(0))
    called = OURS.preprocess(image, *settings, "np", "channels_last", "channels_last")
    assert list(called) == ["pixel_values"] and called["pixel_values"].shape[-1] == 3
    wanted = by_place(image, return_tensors="np")["pixel_values"]
    assert np.array_equal(called["pixel_values"].transpose(0, 3, 1, 2), wanted)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ViltImageProcessor(*[None] * 11), "ViltImageProcessor.__init__"),
        (lambda: ViltImageProcessor(True, do_resize=True), "ViltImageProcessor.__init__"),
        (lambda: OURS.preprocess(1, *[None] * 14), "ViltImageProcessor.preprocess"),
        (lambda: OURS.preprocess(1, True, do_resize=True), "ViltImageProcessor.preprocess"),
        (lambda: OURS.preprocess(1, colour=3), "preprocess"),
        (lambda: OURS.pack(1, colour=3), "pack"),
    ],
)
def test_a_wrong_argument_names_the_function_that_was_called(call, named):
    with pytest.raises(TypeError, match=rf"^{named}\(\) "):
        call()


def test_a_key_of_any_name_is_kept(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"target_size": [1, 2], "size_divisor": 16}))
    processor = ViltImageProcessor.from_pretrained(tmp_path)
    assert processor.target_size == [1, 2] and processor.to_dict()["target_size"] == [1, 2]
    assert processor(np.zeros((64, 64, 3), np.uint8), return_tensors="np")["pixel_values"].shape == (1, 3, 384, 384)
