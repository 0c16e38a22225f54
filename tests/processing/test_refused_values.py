"""Arguments of the processors that cannot be right: refused by name, and none of their memory taken."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer as Theirs

from vilt_fast.processing.text import BertTokenizer
from vilt_fast.processing.vilt import ViltImageProcessor

WORDS = {word: index for index, word in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] a ##a cat".split())}
SMALL = {"size": 64, "size_divisor": 32}


@pytest.mark.parametrize(
    "settings",
    [{"rescale_factor": 1e300}, {"rescale_factor": 1e38}, {"image_std": [0.5, 1e-40, 0.5]}, {"image_mean": 1e300}],
)
def test_settings_that_make_pixels_infinite(settings):
    with pytest.raises(ValueError, match="^rescale_factor, image_mean, image_std: .* make pixels infinite"):
        ViltImageProcessor(**settings)
    processor, image = ViltImageProcessor(**SMALL), np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="make pixels infinite"):
        processor(image, **settings)
    assert processor(image, **settings, do_rescale=False, do_normalize=False)


@pytest.mark.parametrize("kind", ["array", "tensor", "floats"])
def test_views_of_nothing_that_is_larger_than_any_image(kind):
    images = {
        "array": np.broadcast_to(np.uint8(0), (10**6, 10**6, 3)),
        "tensor": torch.zeros(1).expand(3, 10**6, 10**6),
        "floats": np.broadcast_to(np.float32(0), (10**5, 10**5)),
    }
    with pytest.raises(ValueError, match="images: an array of shape .* could be a decompression bomb"):
        ViltImageProcessor(**SMALL)(images[kind])


def test_a_batch_that_is_larger_than_memory():
    elongated = np.broadcast_to(np.uint8(0), (2, 4_000_000, 3))
    images = [elongated, elongated.transpose(1, 0, 2)]
    with pytest.raises(ValueError, match=r"images: 2, padded to 4000000x4000000 pixels .* take [0-9.]+ GB"):
        ViltImageProcessor(do_resize=False)(images, input_data_format="channels_last")


@pytest.mark.parametrize(
    "image, named",
    [
        (torch.zeros(3, 64, 64, device="meta"), "a meta tensor"),
        (torch.zeros(3, 64, 64).to_sparse(), "a sparse tensor"),
        (torch.quantize_per_tensor(torch.zeros(3, 64, 64), 0.1, 0, torch.quint8), "a quantized tensor"),
        (torch.zeros(3, 64, 64).to(torch.float8_e4m3fn), "a tensor of torch.float8_e4m3fn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_hold_no_pixels(image, named):
    with pytest.raises(ValueError, match=rf"images\[1\]: got {named}"):
        ViltImageProcessor(**SMALL)([torch.zeros(3, 64, 64, dtype=torch.uint8), image])


def test_a_list_that_holds_itself():
    endless: list = []
    endless.append(endless)
    with pytest.raises(ValueError, match="images: got lists nested deeper than"):
        ViltImageProcessor(**SMALL)(endless)


def test_a_data_format_that_is_none_of_an_image_either():
    with pytest.raises(ValueError, match="input_data_format: got 'x'"):
        ViltImageProcessor(**SMALL)(Image.new("RGB", (64, 64)), input_data_format="x")


@pytest.mark.parametrize("device", ["x", "cuda:99", [], 1.5])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ValueError, match="^device: got .* wanted a device that is there, such as 'cpu'"):
        ViltImageProcessor(**SMALL).pack(Image.new("RGB", (64, 64)), device=device)


@pytest.mark.parametrize("resize", [True, False])
def test_bytes_in_16_bits_are_bytes_as_in_transformers(resize):
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle")
    theirs = transformers.models.vilt.image_processing_pil_vilt.ViltImageProcessorPil
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint16)
    pixels[0, 0, 0] = 255
    options = {**SMALL, "do_resize": resize}
    with pytest.warns(UserWarning, match="images: uint16 pixels of at most 255 are taken as 8-bit ones"):
        ours = ViltImageProcessor(**options)(pixels, return_tensors="np")["pixel_values"]
    wanted = theirs(**{**options, "size": {"shortest_edge": 64}})(pixels, return_tensors="np")["pixel_values"]
    assert np.array_equal(ours, wanted)


# --- texts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer():
    return BertTokenizer(vocab=WORDS)


def test_lengths_beyond_any_integer(tokenizer):
    ids = tokenizer("a cat")["input_ids"]
    assert tokenizer("a cat", truncation=True, max_length=10**30)["input_ids"] == ids
    with pytest.raises(ValueError, match="max_length: got .* wanted at most 100000"):
        tokenizer("a cat", padding="max_length", max_length=10**30)


@pytest.mark.parametrize("tokens", [3, b"a", object(), [3], [["a"]], "\ud800", ["a", "\ud800"]])
def test_what_is_no_token(tokenizer, tokens):
    with pytest.raises(ValueError, match="^tokens: "):
        tokenizer.convert_tokens_to_ids(tokens)


def test_tokens_that_are_no_text(tokenizer):
    for token in ("\ud800", {"content": "\ud800"}):
        with pytest.raises(ValueError, match="new_tokens: character 0 is a lone surrogate"):
            tokenizer.add_tokens([token])
    assert len(tokenizer) == len(WORDS)


def test_one_text_is_no_batch(tokenizer):
    with pytest.raises(ValueError, match="batch_text_or_text_pairs: got one text"):
        tokenizer.batch_encode_plus("abc")


@pytest.mark.parametrize("longest", [10**9, 0, -1, "100", True, None])
def test_a_longest_word_that_a_text_may_never_get_through(tokenizer, tmp_path, longest):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["max_input_chars_per_word"] = longest
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="max_input_chars_per_word: got") as caught:
        BertTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_steps_that_double_and_double(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    path, step = tmp_path / "tokenizer.json", {"type": "NFC"}
    for _ in range(12):
        step = {"type": "Sequence", "normalizers": [step, step]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": step}))
    start = time.perf_counter()
    with pytest.raises(ValueError, match="normalizer: got more than 32 steps"):
        BertTokenizer.from_pretrained(tmp_path)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("options", [{}, {"truncation": True, "max_length": 8}])
def test_a_text_that_would_take_all_memory(options):
    """The bound is of characters, whether the row is cut afterwards or not; below it nothing changes."""
    tokenizer, most = BertTokenizer(WORDS), 1_000_000
    with pytest.raises(ValueError, match=f"^text: got {most + 1} characters, wanted at most {most}: cut the text"):
        tokenizer("a" * (most + 1), **options)
    with pytest.raises(ValueError, match=r"^text\[1\]: got "):
        tokenizer(["a", "a " * most], **options)
    with pytest.raises(ValueError, match=r"^text_pair: got "):
        tokenizer("a", "a " * most, **options)
    with pytest.raises(ValueError, match=r"^text: got 1000004 characters"):
        tokenizer(["aaaa"] * 250_001, is_split_into_words=True, **options)
    theirs = Theirs(vocab=WORDS)
    text = " ".join(np.random.default_rng(0).choice(["a", "aa", "cat", "é"], 20_000))
    assert tokenizer(text, **options)["input_ids"] == theirs(text, **options)["input_ids"]
