"""Files of a processor that say too much or nothing: refused by name, without a panic and without the memory."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from vilt_fast.processing.decoding import decode_rgb
from vilt_fast.processing.text import BertTokenizer
from vilt_fast.processing.vilt import ViltImageProcessor

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a b ##a ##b cat".split()


@pytest.fixture
def saved(tmp_path):
    BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    ViltImageProcessor().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def small_peak():
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def _edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# --- lengths and sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "max_length", "max_length": 10**9},
        {"padding": "max_length", "max_length": 10**30},
        {"padding": "max_length", "max_length": 10**9, "truncation": True},
        {"padding": True, "pad_to_multiple_of": 10**9},
    ],
)
def test_rows_that_no_model_reads_are_not_padded(saved, small_peak, arguments):
    tokenizer = BertTokenizer.from_pretrained(saved)
    word = "max_length" if "max_length" in arguments else "pad_to_multiple_of"
    with pytest.raises(ValueError, match=f"{word}: got 10+, wanted at most 100000 tokens"):
        tokenizer(["a cat", "b"], **arguments)
    arguments.pop("truncation", None)
    with pytest.raises(ValueError, match=f"{word}: got 10+, wanted at most 100000 tokens"):
        tokenizer.pad({"input_ids": [[1, 2], [1]]}, **arguments)


def test_a_long_maximum_that_pads_nothing_is_as_before(saved):
    tokenizer = BertTokenizer.from_pretrained(saved, model_max_length=10**9)
    assert tokenizer("a cat", truncation=True)["input_ids"] == [2, 5, 9, 3]
    assert tokenizer("a cat", truncation=True, max_length=10**9)["input_ids"] == [2, 5, 9, 3]
    with pytest.raises(ValueError, match="max_length: got 1000000000, wanted at most"):
        tokenizer("a cat", padding="max_length")


@pytest.mark.parametrize("size", [10_001, 10**9, 10**30, 10**300, {"shortest_edge": 10**9}])
def test_a_size_that_no_image_has(saved, small_peak, size):
    image = np.zeros((30, 40, 3), np.uint8)
    with pytest.raises(ValueError, match=r"size.*: got 10+"):
        ViltImageProcessor()(image, size=size)
    _edit(saved / "preprocessor_config.json", size=size)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: size.*: got 10+"):
        ViltImageProcessor.from_pretrained(saved)


def test_a_size_that_only_a_long_image_exceeds(small_peak):
    with pytest.raises(ValueError, match=r"images: an image would become 8320x16640 pixels, wanted at most 100000000"):
        ViltImageProcessor(size=10_000)(np.zeros((30, 60, 3), np.uint8))


def test_a_png_that_says_it_is_large(tmp_path, small_peak):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:at] + struct.pack(">I", 2**31 - 1) + content[at + 4 : -12])
    assert decode_rgb(tmp_path / "a.png").shape == (20, 20, 3)  # as Pillow: what is missing is behind the pixels


# --- tokenizer.json ------------------------------------------------------------------------------------------------

_SLOW = {"Regex": "(a+)+$"}
PATHOLOGICAL = {
    "normalizer": [
        {"type": "Replace", "pattern": _SLOW, "content": "x"},
        {"type": "Replace", "pattern": {"String": ""}, "content": ""},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"},
        {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40},
        {"type": "Sequence", "normalizers": 3},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Precompiled", "precompiled_charsmap": ""},
        {"type": ["a"]},
        {},
        [],
        3,
        "Lowercase",
    ],
    "pre_tokenizer": [
        {"type": "Split", "pattern": _SLOW, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
        {"type": "FixedLength", "length": 0},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    ],
    "decoder": [{"type": "Replace", "pattern": _SLOW, "content": "x"}, {"type": "CTC"}],
    "post_processor": [{"type": "ByteLevel"}, 3],
    "model": [None, [], 3, {}, {"type": ["WordPiece"]}, {"type": "WordPiece", "vocab": [1]}, {"vocab": {"a": -1}}],
    "added_tokens": [3, [3], [{"id": 3}], [{"content": "x"}], [{"id": "x", "content": "x"}], {"a": 1}],
}


@pytest.mark.parametrize("key", PATHOLOGICAL)
def test_what_a_tokenizer_file_may_not_hold(saved, capfd, key):
    path = saved / "tokenizer.json"
    whole = path.read_text()
    for value in PATHOLOGICAL[key]:
        path.write_text(json.dumps({**json.loads(whole), key: value}))
        with pytest.raises(ValueError) as caught:
            BertTokenizer.from_pretrained(saved)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), value
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "normalizer, ids",
    [
        ({"type": "Replace", "pattern": {"String": "cat"}, "content": "b"}, [2, 5, 6, 3]),
        ({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}, [2, 5, 9, 3]),
        (None, [2, 1, 1, 3]),
    ],
)
def test_other_normalizers_still_load(saved, normalizer, ids):
    path = saved / "tokenizer.json"
    _edit(path, normalizer=normalizer)
    text = "a cat" if normalizer and normalizer["type"] == "Replace" else "A Cat"
    assert BertTokenizer.from_pretrained(saved)(text)["input_ids"] == ids


@pytest.mark.parametrize(
    "vocabulary, words",
    [
        ({"cat": 3}, r"the id 3 is that of '\[SEP\]' and of 'cat'|the id 3 is that of 'cat' and of '\[SEP\]'"),
        ({"cat": 4_000_000_000}, "got the id 4000000000 of 'cat', wanted ids below 10000000"),
    ],
)
def test_ids_of_a_vocabulary(saved, vocabulary, words):
    path = saved / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    vocabulary = {**model["vocab"], **vocabulary}
    _edit(path, model={**model, "vocab": vocabulary})
    with pytest.raises(ValueError, match=words) as caught:
        BertTokenizer.from_pretrained(saved)
    assert str(saved) in str(caught.value)
    with pytest.raises(ValueError, match=words):
        BertTokenizer(vocab=vocabulary)


def test_an_added_token_that_would_get_another_id(saved):
    path = saved / "tokenizer.json"
    flags = {name: False for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    _edit(path, added_tokens=[{"id": 99, "content": "<new>", **flags}])
    with pytest.raises(ValueError, match="gives the added token '<new>' the id 99, but its place is 10"):
        BertTokenizer.from_pretrained(saved)


# --- the other files -----------------------------------------------------------------------------------------------

WRONG = {
    "tokenizer_config.json": {
        "model_max_length": ("x", -1, 0, [], True),
        "padding_side": (3, "up", [], ""),
        "truncation_side": (3, "up"),
        "do_lower_case": (3, "yes", []),
        "strip_accents": (3, "yes"),
        "tokenize_chinese_chars": (3, []),
        "clean_up_tokenization_spaces": (3, "yes", None),
        "split_special_tokens": (3, "yes", None),
        "unk_token": (3, [], {}, {"content": 3}, "nowhere"),
        "pad_token": (3, [], {"content": "x", "lstrip": 3}),
        "added_tokens_decoder": (3, [1], "x", {"x": "a"}, {"5": 3}, {"-1": "<x>"}, {"99": "<x>"}),
        "extra_special_tokens": (3, "abc", [3]),
        "additional_special_tokens": (3, "abc", [3]),
        "model_input_names": (3, "abc"),
        "encode": (3,),
        "self": (3,),
    },
    "preprocessor_config.json": {
        "size": (3.5, "x", [], {}, {"height": 3}, 0, -1, True, {"shortest_edge": None}),
        "size_divisor": (0, "x", [], 2**31, 1.5),
        "image_mean": ("x", [1, 2], [1, 2, "x"], {}, 10**400, True),
        "image_std": (0, [1, 0, 1], "x"),
        "rescale_factor": ("x", [], 10**400, True),
        "resample": (9, "x", [], True),
        "do_resize": (1, "x", []),
        "do_pad": (1, "x", []),
        "preprocess": (3,),
        "self": (3,),
    },
}


@pytest.mark.parametrize("name, key", [(name, key) for name, keys in WRONG.items() for key in keys])
def test_a_wrong_setting_is_named_with_its_file(saved, name, key):
    for value in WRONG[name][key]:
        if value == 10**400:  # Python writes no integer of so many digits
            text = json.dumps({**json.loads((saved / name).read_text()), key: "@"})
            (saved / name).write_text(text.replace('"@"', "1" + "0" * 400))
        else:
            _edit(saved / name, **{key: value})
        with pytest.raises(ValueError, match=key) as caught:
            (BertTokenizer if name.startswith("tok") else ViltImageProcessor).from_pretrained(saved)
        assert str(saved) in str(caught.value)


@pytest.mark.parametrize("content", [{"a": "x"}, {"<x>": None}, {"<x>": 99}, {"<x>": [1]}])
def test_added_tokens_of_older_versions(saved, content):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (saved / name).unlink()
    (saved / "added_tokens.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="added_tokens"):
        BertTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_json_nested_too_deep(saved, name):
    (saved / name).write_text('{"a": ' * 100_000)
    kind = BertTokenizer if name.startswith("tok") else ViltImageProcessor
    with pytest.raises(ValueError, match=f"{name}: not a valid JSON file .nested deeper than 64"):
        kind.from_pretrained(saved)


def test_a_vocabulary_with_a_gap_that_the_next_token_would_get_twice(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join("[UNK] x x x x b c d".split()))
    with pytest.raises(ValueError, match=r"vocab: the id \d is that of '.*' and of '.*', wanted one of each") as caught:
        BertTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_special_token_that_was_taken_away_stays_away(saved):
    tokenizer = BertTokenizer(saved / "vocab.txt", cls_token=None)
    tokenizer.save_pretrained(saved / "again")
    again = BertTokenizer.from_pretrained(saved / "again")
    assert again.cls_token is None and again("a cat")["input_ids"] == tokenizer("a cat")["input_ids"] == [5, 9]
    with pytest.raises(ValueError, match="sep_token: got an empty text"):
        BertTokenizer.from_pretrained(saved, sep_token="")
