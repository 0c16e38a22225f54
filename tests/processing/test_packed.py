"""Pictures as packed bytes: the bytes that the padded path normalises, for every kind of picture, and its answers."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vilt_fast import BertTokenizer, ViltImageProcessor, ViltProcessor, demo, ops
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.models.vilt import ViltForQuestionAnswering
from vilt_fast.pixels import PackedPixels
from vilt_fast.processing import decoding

SMALL = {"size": {"shortest_edge": 64}}
TEXTS = ["what colour is the cat ?", "naive", "how many dogs are there"]


@pytest.fixture(scope="module")
def processor(vocab_file):
    return ViltProcessor(ViltImageProcessor(**SMALL), BertTokenizer(vocab_file, model_max_length=40))


@pytest.fixture(scope="module")
def pictures(random_picture):
    return [random_picture(np.random.default_rng(seed)) for seed in range(3)]


@pytest.fixture
def resized(monkeypatch):
    """How many pictures each call of ops.resize_packed got."""
    counts = []
    before = ops.resize_packed

    def count(source, shapes, sizes, **options):
        counts.append(len(shapes))
        return before(source, shapes, sizes, **options)

    monkeypatch.setattr(ops, "resize_packed", count)
    return counts


def assert_equals_padded(packed, padded):
    """The bytes and their meaning against pixel_values and pixel_mask of the same pictures."""
    assert len(packed) == len(padded["pixel_values"])
    for index, (height, width) in enumerate(packed.sizes):
        assert padded["pixel_mask"][index].sum() == height * width == padded["pixel_mask"][index, :height, :width].sum()
        image = packed.data[packed.offsets[index] : packed.offsets[index + 1]].view(height, width, 3).double()
        mean, std = torch.tensor(packed.mean).double(), torch.tensor(packed.std).double()
        meant = ((image * packed.rescale_factor - mean) / std).permute(2, 0, 1)
        wanted = torch.as_tensor(padded["pixel_values"][index])[:, :height, :width].double()
        # Less than a byte's step by far, so the bytes are the same; fp32 rounding of values up to 255.
        step = abs(packed.rescale_factor) / max(map(abs, packed.std))
        torch.testing.assert_close(meant, wanted, rtol=1e-6, atol=1e-3 * step)


def kinds(picture, directory):
    """One picture in many forms."""
    picture = picture.copy()  # torch warns of arrays that it may not write to
    image = Image.fromarray(picture)
    image.save(directory / "a.png")
    image.save(directory / "a.jpg", quality=80)
    noise = np.random.default_rng(0)
    return [
        picture,
        torch.from_numpy(picture).permute(2, 0, 1),
        picture.astype(np.int64),
        picture.astype(np.float32),
        picture[::2, ::-1],
        image,
        image.convert("L"),
        image.convert("P"),
        image.convert("CMYK"),
        Image.fromarray(noise.integers(0, 256, (*picture.shape[:2], 4), dtype=np.uint8)),
        directory / "a.png",
        str(directory / "a.jpg"),
        noise.integers(0, 65536, picture.shape[:2], dtype=np.uint16),
        noise.random(picture.shape[:2]) < 0.5,
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": 96, "size_divisor": 8, "resample": Image.Resampling.BILINEAR},
        {"image_mean": [0.48, 0.457, 0.408], "image_std": [0.268, 0.261, 0.275]},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_resize": False, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": -2.0},
    ],
    ids=str,
)
def test_every_kind_of_picture_under_every_setting(settings, pictures, tmp_path):
    images = kinds(pictures[0][:90, :110], tmp_path)
    padded = ViltImageProcessor(**SMALL).preprocess(images, return_tensors="pt", **settings)
    assert_equals_padded(ViltImageProcessor(**SMALL).pack(images, **settings), padded)
    assert_equals_padded(ViltImageProcessor(**{**SMALL, **settings}).pack(images), padded)


def test_random_pictures_bit_for_bit(random_picture):
    images = [random_picture(np.random.default_rng(seed), 20, 150) for seed in range(40)]
    raw = {"do_rescale": False, "do_normalize": False, "do_pad": False, "size_divisor": 8}
    padded = ViltImageProcessor(**SMALL).preprocess(images, **raw)["pixel_values"]
    packed = ViltImageProcessor(**SMALL).pack(images, size_divisor=8)
    assert len(set(packed.sizes)) > 5
    for index, values in enumerate(padded):
        got = packed.data[packed.offsets[index] : packed.offsets[index + 1]].view(*packed.sizes[index], 3)
        np.testing.assert_array_equal(got.numpy(), np.asarray(values).transpose(1, 2, 0))


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_ops_resize_is_the_installed_pillow(resample, random_picture):
    rng = np.random.default_rng(5)
    images = [random_picture(rng, 2, 60) for _ in range(12)]
    sizes = [tuple(map(int, rng.integers(1, 70, 2))) for _ in images]
    wanted = [
        np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling[resample.upper()]))
        for image, size in zip(images, sizes, strict=True)
    ]
    got = ops.resize([torch.from_numpy(image.copy()) for image in images], sizes, resample=resample)
    for ours, pillow in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(ours.numpy(), pillow)
    assert "resize" in ops.OPERATIONS and ops.resize([], []) == []


@pytest.mark.parametrize("do_rescale", [False, True])
def test_floats_in_0_to_1_are_the_bytes_that_pillow_resizes(do_rescale, pictures):
    images = [picture / np.float64(255) for picture in pictures]
    raw = {"do_rescale": do_rescale, "image_mean": 0.4}
    image_processor = ViltImageProcessor(**SMALL)
    if do_rescale:
        with pytest.warns(UserWarning, match=r"images\[.\].*in \[0, 1\] already"):
            packed = image_processor.pack(images, **raw)
        with pytest.warns(UserWarning):
            assert_equals_padded(packed, image_processor.preprocess(images, return_tensors="pt", **raw))
    else:
        packed = image_processor.pack(images, **raw)
        assert_equals_padded(packed, image_processor.preprocess(images, return_tensors="pt", **raw))


def test_what_bytes_cannot_hold(pictures):
    pack = ViltImageProcessor(**SMALL).pack
    unit = pictures[0] / 255
    for arguments, part in (
        (dict(images=pictures, resample=Image.Resampling.LANCZOS), "resample: got LANCZOS, wanted BICUBIC or BILINEAR"),
        (dict(images=[pictures[0], unit], do_rescale=False), r"images\[1\], images\[0\]: one is floats"),
        (dict(images=[pictures[0], unit], do_rescale=False, do_resize=False), r"images\[1\].*not whole numbers"),
        (dict(images=[pictures[0] + 0.5], do_resize=False), r"images\[0\].*call without device"),
        (dict(images=[pictures[0].astype(np.int64) - 300]), r"images\[0\].*call without device"),
        (dict(images=[np.zeros((2, 300, 3), np.uint8)]), r"images\[0\].*too elongated"),
        (dict(images=[]), "empty"),
        (dict(images=pictures, size_divisor=0), "size_divisor"),
        (dict(images=pictures, picture=[3]), r"picture\[0\]"),
    ):
        with pytest.raises(ValueError, match=part):
            pack(**arguments)
    with pytest.raises(TypeError, match="sizes"):
        pack(pictures, sizes=3)
    # Other filters do nothing where nothing is resized.
    assert pack(pictures, do_resize=False, resample=0).sizes == tuple(picture.shape[:2] for picture in pictures)


def test_files_are_decoded_on_threads_in_order(pictures, tmp_path, monkeypatch):
    paths = []
    for index in range(6):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(pictures[index % 3]).save(paths[-1])
    # All must be on their way before one may finish: this ends only if they run side by side.
    together = threading.Barrier(2, timeout=20)
    decode = decoding.decode

    def wait_and_decode(*arguments, **options):
        together.wait()
        return decode(*arguments, **options)

    monkeypatch.setattr(decoding.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(decoding, "decode", wait_and_decode)
    packed = ViltImageProcessor(**SMALL).pack(paths)
    monkeypatch.undo()
    plain = ViltImageProcessor(**SMALL).pack([pictures[index % 3] for index in range(6)])
    assert torch.equal(packed.data, plain.data) and packed.sizes == plain.sizes


def test_the_first_bad_file_is_named(pictures, tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(pictures[0]).save(good)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"images\[1\].*bad\.jpg"):
        ViltImageProcessor(**SMALL).pack([good, tmp_path / "bad.jpg", tmp_path / "absent.jpg", good])
    with pytest.raises(FileNotFoundError, match=r"images\[1\]\[0\].*absent"):
        ViltImageProcessor(**SMALL).pack([[good, good], [tmp_path / "absent.jpg", good]])


def test_the_processor_packs_with_a_device(processor, pictures, resized):
    batch = processor(pictures, TEXTS, padding=True, device="cpu")
    assert list(batch) == ["input_ids", "token_type_ids", "attention_mask", "pixel_values"]
    reference = processor(pictures, TEXTS, padding=True, return_tensors="pt")
    assert_equals_padded(batch.pixel_values, reference)
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert torch.equal(batch[name], reference[name])
    always = ViltProcessor(processor.image_processor, processor.tokenizer, device="cpu")
    again = always(pictures, TEXTS, padding=True, images_kwargs={"do_pad": False, "data_format": "channels_first"})
    assert torch.equal(again.pixel_values.data, batch.pixel_values.data)
    theirs = {"device": "cuda", "disable_grouping": True, "pad_and_return_pixel_mask": False}  # of Hugging Face's
    nested = [pictures[:2], pictures[2:]]  # as NLVR2 has them
    again = processor(nested, padding=True, device="cpu", images_kwargs=theirs)
    assert torch.equal(again.pixel_values.data, batch.pixel_values.data)
    assert resized == [3, 3, 3]  # one operation a batch
    assert "pixel_values" not in always(text=TEXTS, padding=True)
    alone = always(pictures)
    assert isinstance(alone.pixel_values, PackedPixels) and list(alone) == ["pixel_values"]


def test_several_texts_about_one_picture_prepare_it_once(processor, pictures, resized):
    batch = processor(pictures[:2], TEXTS, padding=True, device="cpu", picture=[1, 0, 1])
    assert batch.pixel_values.picture == (1, 0, 1) and len(batch.pixel_values) == 2
    assert resized == [2]


def test_a_batch_moves_with_its_pictures(processor, pictures):
    batch = processor(pictures, TEXTS, padding=True, device="cpu").to("meta", torch.bfloat16)
    assert batch.pixel_values.device.type == batch.input_ids.device.type == "meta"
    assert batch.pixel_values.data.dtype == torch.uint8


def test_arguments_that_do_not_go_with_a_device(processor, pictures):
    for arguments, part in (
        (dict(return_tensors="np"), "return_tensors"),
        (dict(data_format="channels_last"), "data_format"),
        (dict(device=None, picture=[0, 0, 0], return_tensors="pt"), "picture: goes with a device"),
    ):
        with pytest.raises(ValueError, match=part):
            processor(pictures, TEXTS, **{"padding": True, "device": "cpu", **arguments})


def test_the_device_is_an_argument_of_loading_and_not_saved(processor, pictures, tmp_path):
    ViltProcessor(processor.image_processor, processor.tokenizer, device="cpu").save_pretrained(tmp_path)
    assert all("device" not in path.read_text() for path in Path(tmp_path).glob("p*.json"))
    assert ViltProcessor.from_pretrained(tmp_path).device is None
    loaded = ViltProcessor.from_pretrained(tmp_path, device="cpu", size=96)
    assert loaded(pictures).pixel_values.sizes == ViltImageProcessor(size=96).pack(pictures).sizes


def test_photographs_through_a_small_model(processor):
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn carries the photographs")
    photographs = list(datasets.load_sample_images().images)
    torch.manual_seed(0)
    config = ViltConfig(
        vocab_size=processor.tokenizer.vocab_size,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=5,
        initializer_range=0.1,
    )
    model = ViltForQuestionAnswering(config).eval()
    texts, seen = [*TEXTS, "red"], [0, 1, 1, 0]
    arguments = dict(padding=True, size=384)  # the real sizes: 384 x 576
    with torch.no_grad():
        got = model(**processor(photographs, texts, device="cpu", picture=seen, **arguments)).logits
        repeated = [photographs[index] for index in seen]
        wanted = model(**processor(repeated, texts, return_tensors="pt", **arguments)).logits
    assert wanted.std() > 1e-2, "nothing to compare"
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)  # fp32, a product of 3,072 terms folded and not


def test_the_demo_answers_the_same():
    if not (demo.WEIGHTS / "model.safetensors").is_file():
        pytest.skip("this checkout has no demo weights")
    model, processor = demo.load()
    images, texts = map(list, zip(*demo.examples(), strict=True))
    with torch.no_grad():
        got = model(**processor(images, texts, padding=True, device="cpu")).logits
        wanted = model(**processor(images, texts, padding=True, return_tensors="pt")).logits
    assert torch.equal(got.argmax(1), wanted.argmax(1))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)  # fp32, logits of about 10
