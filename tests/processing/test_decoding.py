"""Every kind of picture becomes RGB, files are read as transformers reads them, and every bad picture is named."""

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.vilt import image_processing_pil_vilt as hf

from vilt_fast import ViltImageProcessor
from vilt_fast.processing import decode_rgb

THEIRS = hf.ViltImageProcessorPil()
OURS = ViltImageProcessor()
SMALL = {"size": {"shortest_edge": 64}}


# --- kinds of pictures that transformers does not take


def rgb_pixels(image, **kwargs):
    return OURS(image, **SMALL, return_tensors="np", **kwargs).pixel_values


def test_every_pil_mode_becomes_rgb(assert_same, random_picture):
    rng = np.random.default_rng(8)
    base = Image.fromarray(random_picture(rng, 60, 90))
    for mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"):
        through = base.convert("LA") if mode == "La" else base.convert("L") if mode == "PA" else base
        image = through.convert("RGBA").convert(mode) if mode == "RGBa" else through.convert(mode)
        expected = np.asarray((image.convert("LA") if mode == "La" else image).convert("RGB"))
        np.testing.assert_array_equal(decode_rgb(image), expected, err_msg=mode)
        assert_same(OURS(image, **SMALL), THEIRS(expected, **SMALL))


def test_greyscale_repeats_and_alpha_is_dropped():
    rng = np.random.default_rng(9)
    grey = rng.integers(0, 256, (50, 60), dtype=np.uint8)
    colour = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (50, 60, 1), dtype=np.uint8)
    grey_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    for image in (
        grey,
        grey[:, :, None],
        grey[None],
        np.concatenate([grey[:, :, None], alpha], axis=2),
        Image.fromarray(grey),
        torch.from_numpy(grey),
    ):
        np.testing.assert_array_equal(decode_rgb(image), grey_rgb)
        np.testing.assert_array_equal(rgb_pixels(image), rgb_pixels(grey_rgb))
    rgba = np.concatenate([colour, alpha], axis=2)
    for image in (rgba, rgba.transpose(2, 0, 1), Image.fromarray(rgba), torch.from_numpy(rgba)):
        np.testing.assert_array_equal(decode_rgb(image), colour)


@pytest.mark.parametrize("transparency", [0, bytes(range(256))])
def test_palette_with_transparency_becomes_its_colours_without_a_warning(transparency):
    rng = np.random.default_rng(10)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    indices = rng.integers(0, 256, (40, 50), dtype=np.uint8)
    image = Image.frombytes("P", (50, 40), indices.tobytes())
    image.putpalette(palette.tobytes())
    image.info["transparency"] = transparency
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode_rgb(image), palette[indices])


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "array", "tensor", "png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(mode, tmp_path):
    values = np.random.default_rng(11).integers(0, 65536, (40, 50)).astype(np.uint16)
    values[0, :2] = 0, 65535
    expected = np.round(values / 257).astype(np.uint8)
    if mode == "I;16B":
        image = Image.frombytes(mode, (50, 40), values.astype(">u2").tobytes())
    elif mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    elif mode in ("png", "tiff"):
        image = tmp_path / f"grey.{mode}"
        Image.fromarray(values).save(image)
    else:
        image = {"I;16": Image.fromarray(values), "array": values}.get(mode)
        image = torch.from_numpy(values) if image is None else image
    np.testing.assert_array_equal(decode_rgb(image), np.repeat(expected[:, :, None], 3, axis=2))


def test_wide_integers_floats_and_bools():
    eight = np.random.default_rng(12).integers(0, 256, (30, 40), dtype=np.uint8)
    expected = np.repeat(eight[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode_rgb(Image.fromarray(eight.astype(np.int32))), expected)  # mode I, 8-bit values
    np.testing.assert_array_equal(decode_rgb(Image.fromarray(eight.astype(np.float32))), expected)  # mode F
    np.testing.assert_array_equal(decode_rgb(Image.fromarray(eight.astype(np.float32) / 255)), expected)
    np.testing.assert_array_equal(decode_rgb(eight > 127), np.where(expected > 127, 255, 0))
    np.testing.assert_array_equal(
        decode_rgb(torch.from_numpy(eight / 255.0).requires_grad_()),
        (eight / 255 * 255).astype(np.float32).astype(np.uint8)[:, :, None].repeat(3, axis=2),
    )
    assert decode_rgb(torch.rand(3, 8, 9, dtype=torch.bfloat16)).shape == (8, 9, 3)


def test_rgb_of_sixteen_bits_in_an_array():
    values = np.random.default_rng(13).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    np.testing.assert_array_equal(decode_rgb(values.astype(">u2")), decode_rgb(values))
    np.testing.assert_array_equal(decode_rgb(values), np.round(values / 257).astype(np.uint8))


@settings(deadline=None)
@given(st.data())
def test_any_layout_gives_the_same_pixels(data):
    channels = data.draw(st.sampled_from([1, 2, 3, 4]))
    height, width = data.draw(st.integers(5, 40)), data.draw(st.integers(5, 40))
    array = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    expected = array[:, :, :3] if channels > 2 else array[:, :, :1].repeat(3, axis=2)
    np.testing.assert_array_equal(decode_rgb(array), expected)
    np.testing.assert_array_equal(decode_rgb(array.transpose(2, 0, 1)), expected)
    np.testing.assert_array_equal(decode_rgb(array, "channels_last"), expected)


def test_an_ambiguous_layout_is_taken_as_transformers_does_and_can_be_given(assert_same):
    array = np.random.default_rng(14).integers(0, 256, (3, 40, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match="input_data_format"):
        first = decode_rgb(array)
    assert first.shape == (40, 3, 3)
    assert decode_rgb(array, "channels_last").shape == (3, 40, 3)
    assert_same(
        OURS(array, **SMALL, size_divisor=1, input_data_format="channels_last"),
        THEIRS(array, **SMALL, size_divisor=1, input_data_format="channels_last"),
    )
    with pytest.warns(UserWarning):
        ours = OURS(array, **SMALL, size_divisor=1)
    assert_same(ours, THEIRS(array, **SMALL, size_divisor=1))


# --- files


@pytest.fixture
def jpeg(tmp_path, random_picture):
    path = tmp_path / "picture.jpg"
    Image.fromarray(random_picture(np.random.default_rng(15), 80, 120)).save(path, quality=90)
    return path


def test_a_path_is_read_as_transformers_reads_it(jpeg, assert_same):
    assert_same(OURS(str(jpeg), **SMALL), THEIRS(str(jpeg), **SMALL))
    assert_same(OURS(jpeg, **SMALL), THEIRS(Image.open(jpeg), **SMALL))
    assert_same(OURS([jpeg, str(jpeg)], **SMALL), THEIRS([str(jpeg)] * 2, **SMALL))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_paths_only(orientation, tmp_path, assert_same, random_picture):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    stored = random_picture(np.random.default_rng(16), 60, 90)
    Image.fromarray(stored).save(path, exif=exif)
    assert_same(OURS(str(path), **SMALL), THEIRS(str(path), **SMALL))
    np.testing.assert_array_equal(decode_rgb(Image.open(path)), stored)
    assert (orientation == 1) == np.array_equal(decode_rgb(path), stored)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "webp"])
def test_file_formats(suffix, tmp_path, assert_same, random_picture):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(random_picture(np.random.default_rng(17), 40, 60)).save(path)
    assert_same(OURS(path, **SMALL), THEIRS(str(path), **SMALL))


# --- bad input


def truncated(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def test_missing_empty_broken_and_other_files(tmp_path, jpeg, random_picture):
    good = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(FileNotFoundError, match=r"images\[1\].*nowhere\.png"):
        OURS([good, str(tmp_path / "nowhere.png")])
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "text.jpg"
    text.write_text("this is no picture")
    png = tmp_path / "half.png"
    Image.fromarray(random_picture(np.random.default_rng(18), 100, 120)).save(png)
    for path, message in (
        (empty, "empty"),
        (text, "not an image"),
        (tmp_path, "directory"),
        (truncated(jpeg, 0.6), "truncated"),
        (truncated(png, 0.5), "truncated"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            OURS([good, path])
        assert "images[1]" in str(error.value) and path.name in str(error.value)
    with pytest.raises(ValueError, match="truncated"):
        OURS(Image.open(png))
    with pytest.raises(ValueError, match="download"):
        OURS("https://example.com/cat.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [10_000, 4_000])  # above Pillow's limit, and above twice the limit (its own error)
def test_decompression_bomb(limit, tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("RGB", (110, 100)).save(path)
    assert OURS(path, **SMALL)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match="decompression bomb.*MAX_IMAGE_PIXELS") as error:
        OURS([path])
    assert "images[0]" in str(error.value) and "bomb.png" in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert OURS(path, **SMALL)


NAN, INFINITE = np.full((40, 40, 3), 0.5), np.full((40, 40, 3), 0.5, np.float32)
NAN[3, 4, 1] = np.nan
INFINITE[0, 0, 0] = np.inf


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (0, 5)), "0x5"),
        (Image.new("L", (5, 0)), "5x0"),
        (np.zeros((0, 40, 3), np.uint8), "at least one pixel"),
        (np.zeros((40, 40, 5), np.uint8), r"\(40, 40, 5\)"),
        (np.zeros((5, 40, 40), np.uint8), r"\(5, 40, 40\)"),
        (np.zeros((2, 3, 4, 5, 3), np.uint8), "shape"),
        (np.zeros(7, np.uint8), r"\(7,\)"),
        (torch.zeros(()), "shape"),
        (NAN, "1 NaN or infinite"),
        (torch.from_numpy(INFINITE), "1 NaN or infinite"),
        (Image.fromarray(NAN[:, :, 1].astype(np.float32)), "1 NaN or infinite"),
        (np.full((40, 40, 3), 300), r"\[300, 300\]"),
        (np.full((40, 40, 3), -1), r"\[-1, -1\]"),
        (np.full((40, 40, 3), 1.5), "do_resize=False"),
        (np.full((40, 40, 3), 1e30), "do_resize=False"),
        (Image.fromarray(np.full((40, 40), 70000, np.int32)), "70000"),
        (Image.fromarray(np.full((40, 40), -3.0, np.float32)), "-3"),
        (np.zeros((40, 40, 3), complex), "complex128"),
        (np.full((40, 40, 3), "a"), "dtype"),
        (np.zeros((40, 40, 3), object), "object"),
        (np.zeros((1, 40, 3), np.uint8).transpose(1, 0, 2), "too elongated"),
        (Image.new("RGB", (2000, 50)), "too elongated.*crop"),
        (None, "NoneType"),
        (5, "int"),
        (b"\x89PNG", "BytesIO"),
        ({"a": 1}, "dict"),
        (io.BytesIO(), "BytesIO"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*input_data_format", "ignore:.*will be scaled again")
def test_bad_pictures_are_named(image, message):
    good = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match=message) as error:
        OURS([good, image])
    assert str(error.value).startswith("images[1]")
    with pytest.raises(ValueError, match=message):
        OURS(image)


@pytest.mark.parametrize("images", [[], (), [[], []], np.zeros((0, 40, 40, 3), np.uint8)])
def test_no_picture_at_all(images):
    with pytest.raises(ValueError, match="images: got an empty"):
        OURS(images)


def test_a_bad_picture_in_a_nested_list_is_named():
    with pytest.raises(ValueError, match=r"images\[1\]\[0\]: got int"):
        OURS([[np.zeros((40, 40, 3), np.uint8)], [5]])
