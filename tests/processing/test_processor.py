"""Pictures and texts together, against transformers, in both generations of saved directories."""

import errno
import json
import os
import warnings

import numpy as np
import pytest
import torch
from transformers import BertTokenizer as TheirTokenizer
from transformers import ViltProcessor as Theirs
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from vilt_fast import BertTokenizer, ViltImageProcessor, ViltProcessor
from vilt_fast.processing import BatchEncoding

SMALL = {"size": {"shortest_edge": 64}}
NAMES = ["input_ids", "token_type_ids", "attention_mask", "pixel_values", "pixel_mask"]


@pytest.fixture(scope="module")
def ours(vocab_file):
    return ViltProcessor(ViltImageProcessor(**SMALL), BertTokenizer(vocab_file, model_max_length=40))


@pytest.fixture(scope="module")
def theirs(vocab_file):
    return Theirs(ViltImageProcessorPil(**SMALL), TheirTokenizer(str(vocab_file), model_max_length=40))


@pytest.fixture(scope="module")
def pictures(random_picture):
    return [random_picture(np.random.default_rng(seed)) for seed in range(3)]


TEXTS = ["what colour is the cat ?", "naïve", "how many dogs are there in 東京"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"return_tensors": "pt", "padding": True},
        {"return_tensors": "np", "padding": "max_length"},
        {},
        {"return_tensors": "pt", "padding": "max_length", "truncation": True, "max_length": 7},
        {"padding": True, "size": {"shortest_edge": 96}, "do_normalize": False, "return_tensors": "pt"},
        {
            "text_kwargs": {"padding": True},
            "images_kwargs": {"do_rescale": False},
            "common_kwargs": {"return_tensors": "pt"},
        },
    ],
    ids=str,
)
def test_calls_equal_transformers(arguments, ours, theirs, pictures, assert_same):
    batch = ours(pictures, TEXTS, **arguments)
    assert list(batch) == NAMES == ours.model_input_names
    reference = theirs(pictures, TEXTS, **arguments)
    for key in NAMES:
        assert_same({key: list(map(torch.as_tensor, batch[key]))}, {key: list(map(torch.as_tensor, reference[key]))})


def test_one_pair_text_only_and_pictures_only(ours, theirs, pictures, assert_same):
    assert_same(ours(pictures[0], TEXTS[0], return_tensors="pt"), theirs(pictures[0], TEXTS[0], return_tensors="pt"))
    assert_same(
        ours(pictures, TEXTS, False, "max_length", True, 4),
        ours(pictures, TEXTS, add_special_tokens=False, padding="max_length", truncation=True, max_length=4),
    )
    assert_same(ours(text=TEXTS[0], return_tensors="pt"), theirs(text=TEXTS[0], return_tensors="pt"))
    assert_same(ours(images=pictures, return_tensors="pt"), theirs(images=pictures, return_tensors="pt"))
    assert ours(pictures[0], TEXTS[0])["input_ids"] == theirs(pictures[0], TEXTS[0])["input_ids"]  # no batch axis
    one = ours(pictures[0], TEXTS[0], return_tensors="pt")
    assert isinstance(one, BatchEncoding) and one.tokens()[0] == "[CLS]"
    assert one.to("cpu", torch.bfloat16).pixel_values.dtype == torch.bfloat16 and one.input_ids.dtype == torch.int64


def test_two_pictures_and_one_text(ours, pictures):
    batch = ours([pictures[0], pictures[1]], TEXTS[0], return_tensors="pt")  # NLVR2
    assert batch.pixel_values.shape[0] == 2 and batch.input_ids.shape[0] == 1


def test_further_arguments_reach_the_tokenizer(ours, theirs, pictures):
    batch = ours(pictures[0], ["the", "cat"], is_split_into_words=True, return_offsets_mapping=True, return_length=True)
    assert batch["input_ids"] == theirs.tokenizer(["the", "cat"], is_split_into_words=True)["input_ids"]
    assert "offset_mapping" in batch and batch["length"] == [4]
    pair = ours(pictures[0], "the cat", text_pair="the dog")
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_decoding(ours):
    ids = ours.tokenizer(TEXTS)["input_ids"]
    assert ours.batch_decode(ids, skip_special_tokens=True) == ours.tokenizer.batch_decode(
        ids, skip_special_tokens=True
    )
    assert ours.decode(ids[0]) == ours.tokenizer.decode(ids[0])


def test_bad_input(ours, pictures, vocab_file):
    with pytest.raises(ValueError, match="images, text: got neither"):
        ours()
    with pytest.raises(TypeError, match="paddding"):
        ours(pictures, TEXTS, paddding=True)
    with pytest.raises(TypeError, match="multiple values for argument 'padding'"):
        ours(pictures, TEXTS, True, True, padding=True)
    with pytest.raises(ValueError, match=r"images\[1\]: got int"):
        ours([pictures[0], 3], TEXTS)
    with pytest.raises(ValueError, match=r"text\[0\]: got int"):
        ours(pictures, [3])
    with pytest.raises(ValueError, match="padding=True"):
        ours(pictures, TEXTS, return_tensors="pt")
    with pytest.raises(ValueError, match="return_tensors"):
        ours(pictures, TEXTS, return_tensors="jax")
    with pytest.raises(ValueError, match="image_processor: got BertTokenizer"):
        ViltProcessor(BertTokenizer(vocab_file), ViltImageProcessor())
    with pytest.raises(ValueError, match="image_processor: got NoneType"):
        ViltProcessor(tokenizer=BertTokenizer(vocab_file))
    with pytest.raises(ValueError, match="tokenizer: got NoneType"):
        ViltProcessor(ViltImageProcessor())


def test_saved_by_us_loads_in_transformers(ours, tmp_path, pictures, assert_same):
    files = {os.path.basename(path) for path in ours.save_pretrained(tmp_path)}
    assert files == {
        "vocab.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "preprocessor_config.json",
    }
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["processor_class"] == "ViltProcessor"
    tokenizer = TheirTokenizer.from_pretrained(tmp_path)
    pil = ViltImageProcessorPil.from_pretrained(tmp_path)
    expected = Theirs(pil, tokenizer)(pictures, TEXTS, padding=True, return_tensors="pt")
    assert_same(ours(pictures, TEXTS, padding=True, return_tensors="pt"), expected)
    assert_same(ViltProcessor.from_pretrained(tmp_path)(pictures, TEXTS, padding=True, return_tensors="pt"), expected)
    assert tokenizer.model_max_length == 40


def test_saved_by_transformers_5_loads_here_and_saves_back(ours, theirs, tmp_path, pictures, assert_same):
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()  # 5.x nests it in processor_config.json
    loaded = ViltProcessor.from_pretrained(str(tmp_path))
    expected = theirs(pictures, TEXTS, padding=True, return_tensors="pt")
    assert_same(loaded(pictures, TEXTS, padding=True, return_tensors="pt"), expected)
    changed = ViltProcessor.from_pretrained(tmp_path, size=96, model_max_length=9)
    assert changed.image_processor.size == {"shortest_edge": 96} and changed.tokenizer.model_max_length == 9
    changed.save_pretrained(tmp_path)
    again = Theirs(ViltImageProcessorPil.from_pretrained(tmp_path), TheirTokenizer.from_pretrained(tmp_path))
    expected = again(pictures, TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert expected["pixel_values"].shape[-1] > 64 and expected["input_ids"].shape[1] == 9
    assert_same(changed(pictures, TEXTS, padding=True, truncation=True, return_tensors="pt"), expected)


def test_a_subfolder_and_an_old_name_of_the_token(ours, tmp_path):
    ours.save_pretrained(tmp_path / "inner")
    loaded = ViltProcessor.from_pretrained(tmp_path, subfolder="inner", use_auth_token="secret")
    assert loaded.image_processor.to_dict() == ours.image_processor.to_dict() and len(loaded.tokenizer) == len(
        ours.tokenizer
    )
    assert "secret" not in "".join(loaded.tokenizer.files_to_save().values()) + loaded.image_processor.to_json_string()


def test_missing_files_are_named(ours, tmp_path):
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json"):
        ViltProcessor.from_pretrained(tmp_path)
    ours.image_processor.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="vocab.txt"):
        ViltProcessor.from_pretrained(tmp_path)


def test_a_full_disk_leaves_every_old_file(ours, tmp_path, monkeypatch):
    ours.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    changed = ViltProcessor(ViltImageProcessor(size=99), BertTokenizer({**ours.tokenizer.get_vocab(), "new": 10_000}))
    with pytest.raises(OSError, match="No space left"):
        changed.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_second_rename_that_fails_leaves_every_old_file(ours, tmp_path, monkeypatch):
    ours.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename, published = os.replace, []

    def replace(source, target):
        if str(source).endswith(".tmp"):
            published.append(target)
            if len(published) == 2:
                raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    changed = ViltProcessor(ViltImageProcessor(size=99), BertTokenizer({**ours.tokenizer.get_vocab(), "new": 10_000}))
    with pytest.raises(OSError, match="Input/output error"):
        changed.save_pretrained(tmp_path)
    assert len(published) == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_deprecated_names(ours):
    with pytest.warns(FutureWarning, match="image_processor"):
        processor = ViltProcessor(feature_extractor=ours.image_processor, tokenizer=ours.tokenizer)
    assert processor.image_processor is ours.image_processor
    with pytest.warns(FutureWarning):
        assert processor.feature_extractor is ours.image_processor
    with pytest.warns(FutureWarning):
        assert processor.feature_extractor_class == "ViltImageProcessor"
    assert "ViltImageProcessor" in repr(processor) and "vocab_size" in repr(processor)


def test_every_argument_goes_by_place(ours, pictures):
    """Those of the tokenizer in transformers 4.37's order, then device and picture, the 17th and 18th."""
    places = (True, "max_length", True, 9, 0, 3, True, True, False, True, False, True, False, "pt")
    batch = ours(pictures, TEXTS, *places)
    assert batch["input_ids"].shape == (3, 9) and {"special_tokens_mask", "length"} <= set(batch)
    packed = ours(pictures[:1], TEXTS, *places, "cpu", [0, 0, 0])
    assert packed["pixel_values"].picture == (0, 0, 0)
    with pytest.raises(TypeError, match=r"^ViltProcessor.__call__\(\) takes"):
        ours(pictures, TEXTS, *places, "cpu", [0, 0, 0], 1)


def outcome(processor, *args, **kwargs):
    """(None, error) or (batch, None); warnings are another test's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return processor(*args, **kwargs), None
        except (TypeError, ValueError) as error:
            return None, error


# What the tokenizer is made with; what is asked for in the call.
WITH_DEFAULTS = [
    ({"padding": "max_length", "max_length": 10}, {}),
    ({"padding": "max_length", "max_length": 10}, {"padding": False}),
    ({"padding": "max_length", "max_length": 10}, {"padding": True}),
    ({"padding": "max_length", "max_length": 10}, {"max_length": 12}),
    ({"padding": "max_length", "max_length": 10}, {"text_kwargs": {"padding": True}}),
    ({"padding": "max_length", "model_max_length": 9}, {"return_tensors": "pt"}),
    ({"truncation": True, "max_length": 3}, {}),
    ({"truncation": "only_first"}, {"max_length": 4}),
    ({"max_length": 3}, {}),
    ({"max_length": 3, "truncation": "do_not_truncate"}, {}),
    ({"return_tensors": "pt", "padding": True}, {}),
    ({"return_tensors": "pt", "padding": True}, {"return_tensors": "np"}),
    ({"padding_side": "left", "truncation_side": "left", "padding": True, "max_length": 5}, {"truncation": True}),
    ({"pad_to_multiple_of": 8}, {"padding": True}),
    ({"return_length": True, "return_token_type_ids": False}, {}),
    ({"return_offsets_mapping": True}, {"common_kwargs": {"return_tensors": "np"}, "padding": True}),
    ({}, {"common_kwargs": {"return_tensors": "pt"}, "return_tensors": "np", "padding": True}),
    ({}, {"common_kwargs": {"return_tensors": "pt"}, "text_kwargs": {"return_tensors": "np", "padding": True}}),
    ({}, {"text_kwargs": {"padding": "max_length", "max_length": 9}, "return_tensors": "pt"}),
    ({}, {"text_kwargs": {"padding": True}, "max_length": 5}),
    ({}, {"images_kwargs": {"size": {"shortest_edge": 96}}, "do_rescale": False}),
    ({}, {"images_kwargs": {"return_tensors": "np"}, "padding": True}),
    ({}, {"text_kwargs": {"padding": True}, "padding": False}),
    ({}, {"text_kwargs": {"padding": True}, "padding": True}),
    ({}, {"images_kwargs": {"do_rescale": False}, "do_rescale": True}),
    ({}, {"images_kwargs": {"return_tensors": "np"}, "return_tensors": "pt", "padding": True}),
    ({"padding": "nonsense"}, {}),
]


@pytest.mark.parametrize(("made_with", "arguments"), WITH_DEFAULTS, ids=str)
def test_defaults_and_groups_equal_transformers(made_with, arguments, vocab_file, pictures, assert_same):
    """Which of the tokenizer's defaults, the groups and the keywords wins; and a conflict is refused by both."""
    ours = ViltProcessor(ViltImageProcessor(**SMALL), BertTokenizer(vocab_file, **made_with))
    theirs = Theirs(ViltImageProcessorPil(**SMALL), TheirTokenizer(str(vocab_file), **made_with))
    (got, our_error), (expected, their_error) = (outcome(one, pictures, TEXTS, **arguments) for one in (ours, theirs))
    assert type(our_error) is type(their_error), our_error
    if expected is None:
        return
    assert list(got) == list(expected)
    for key in expected:
        assert type(got[key]) is type(expected[key]), key
        rows = [[np.atleast_1d(row) for row in batch[key]] for batch in (got, expected)]
        assert_same(dict(enumerate(rows[0])), dict(enumerate(rows[1])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_kwargs": {"padding": True}, "padding": False}, "padding: given twice, by keyword and in text_kwargs"),
        ({"images_kwargs": {"do_pad": True}, "do_pad": True}, "do_pad: given twice, by keyword and in images_kwargs"),
        ({"text_kwargs": {"paddding": True}}, "text_kwargs: got an unexpected argument 'paddding'"),
        ({"text_kwargs": {"size": 32}}, "text_kwargs: got an unexpected argument 'size'"),
        ({"images_kwargs": {"padding": True}}, "images_kwargs: got an unexpected argument 'padding'"),
        ({"common_kwargs": {"nonsense": True}}, "common_kwargs: got an unexpected argument 'nonsense'"),
        ({"videos_kwargs": {}}, "unexpected keyword argument 'videos_kwargs'"),
        ({"text_kwargs": [("padding", True)]}, "text_kwargs: got list, wanted a dictionary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("given", ["both", "text"])
def test_what_no_group_takes_is_refused(arguments, message, given, ours, pictures):
    with pytest.raises((TypeError, ValueError), match=message):
        ours(pictures if given == "both" else None, TEXTS, **arguments)


def test_defaults_of_the_tokenizer_survive_saving(tmp_path, vocab_file, pictures):
    tokenizer = BertTokenizer(vocab_file, padding="max_length", max_length=11)
    ViltProcessor(ViltImageProcessor(**SMALL), tokenizer).save_pretrained(tmp_path)
    assert np.shape(ViltProcessor.from_pretrained(tmp_path)(pictures, TEXTS)["input_ids"]) == (3, 11)
    changed = ViltProcessor.from_pretrained(tmp_path, max_length=13)
    assert np.shape(changed(pictures, TEXTS)["input_ids"]) == (3, 13)
    theirs = Theirs(ViltImageProcessorPil(**SMALL), TheirTokenizer.from_pretrained(tmp_path))
    assert np.shape(theirs(pictures, TEXTS)["input_ids"]) == (3, 11)
