"""The tokenizer against transformers: ids, arguments, files in and out, and every bad text."""

import copy
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import BertTokenizer as Theirs

from vilt_fast import BertTokenizer, BertTokenizerFast

KINDS = {
    "uncased": {},
    "cased": {"do_lower_case": False},
    "accents kept": {"strip_accents": False},
    "accents stripped": {"do_lower_case": False, "strip_accents": True},
    "no CJK": {"tokenize_chinese_chars": False},
    "extra": {"extra_special_tokens": ["<x>", "<y>"], "model_max_length": 16, "padding_side": "left"},
}


@pytest.fixture(scope="module")
def ours(vocab_file):
    return BertTokenizer(vocab_file)


@pytest.fixture(scope="module")
def theirs(vocab_file):
    return Theirs(str(vocab_file))


def assert_equal_calls(ours, theirs, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a, b = ours(*args, **kwargs), theirs(*args, **kwargs)
    assert list(a) == list(b)
    for key in b:
        assert type(a[key]) is type(b[key])
        if isinstance(b[key], torch.Tensor | np.ndarray):
            assert a[key].dtype == b[key].dtype and a[key].tolist() == b[key].tolist()
        else:
            assert a[key] == b[key]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_transformers_on_2000_random_strings(kind, vocab_file, random_texts):
    ours, theirs = BertTokenizer(vocab_file, **KINDS[kind]), Theirs(str(vocab_file), **KINDS[kind])
    assert len(random_texts) == 2000
    ids = theirs(random_texts)["input_ids"]
    assert ours(random_texts, verbose=False)["input_ids"] == ids
    assert len(ours) == len(theirs) and ours.vocab_size == theirs.vocab_size
    for skip in (True, False):
        assert ours.batch_decode(ids, skip_special_tokens=skip) == theirs.batch_decode(ids, skip_special_tokens=skip)
    # The strings must not all be unknown: then nothing would be compared.
    known = [index != ours.unk_token_id for row in ids for index in row]
    assert sum(known) > 0.5 * len(known)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40), pair=st.none() | st.text(max_size=20))
def test_any_text_equals_transformers(ours, theirs, text, pair):
    assert_equal_calls(ours, theirs, text, pair)
    assert ours.tokenize(text) == theirs.tokenize(text)


CALLS = [
    {},
    {"padding": True},
    {"padding": "longest"},
    {"padding": "do_not_pad"},
    {"padding": "max_length", "max_length": 30},
    {"padding": True, "pad_to_multiple_of": 8},
    {"truncation": True, "max_length": 7},
    {"max_length": 5},
    {"truncation": "longest_first", "max_length": 6, "padding": True, "return_tensors": "pt"},
    {"truncation": "do_not_truncate"},
    {"padding": True, "return_tensors": "np"},
    {"padding": "max_length", "truncation": True, "max_length": 12, "return_tensors": "pt"},
    {"add_special_tokens": False},
    {"return_token_type_ids": False},
    {"return_attention_mask": False},
    {"return_special_tokens_mask": True, "padding": True},
    {"return_offsets_mapping": True},
    {"return_length": True},
    {"truncation": True, "max_length": 9, "stride": 2, "return_overflowing_tokens": True},
    {
        "truncation": True,
        "max_length": 6,
        "return_overflowing_tokens": True,
        "return_offsets_mapping": True,
        "padding": True,
        "return_tensors": "pt",
    },
    {"padding": True, "padding_side": "left"},
    {"split_special_tokens": True},
    {"truncation": True, "max_length": 2},
    {"truncation": True, "max_length": 8, "padding": True, "pad_to_multiple_of": 4},
]


@pytest.mark.parametrize("arguments", CALLS, ids=str)
def test_every_argument_equals_transformers(arguments, ours, theirs):
    texts = ["what colour is the cat", "Café 東京 [MASK] naïve!", "", "un" * 20 + " hello", "a b c d e f g h i j k"]
    assert_equal_calls(ours, theirs, texts, **arguments)
    assert_equal_calls(ours, theirs, tuple(texts), **arguments)
    assert_equal_calls(ours, theirs, [text.split() for text in texts], is_split_into_words=True, **arguments)
    for text in texts if arguments.get("truncation") != "only_second" else ():
        assert_equal_calls(ours, theirs, text, **arguments)
    if arguments.get("max_length", 9) >= 3:  # a pair has three special tokens
        assert_equal_calls(ours, theirs, texts, texts[::-1], **arguments)
        assert_equal_calls(ours, theirs, list(zip(texts, texts[::-1], strict=True)), **arguments)
        assert_equal_calls(ours, theirs, texts[0], texts[1], **arguments)


def test_pairs_are_cut_as_asked(ours, theirs):
    pair = ("what colour is the cat", "the dog is red")
    for side in ("only_first", "only_second", "longest_first"):
        assert_equal_calls(ours, theirs, *pair, truncation=side, max_length=9)
    ours_left, theirs_left = copy.deepcopy(ours), copy.deepcopy(theirs)
    ours_left.truncation_side = theirs_left.truncation_side = "left"
    assert_equal_calls(ours_left, theirs_left, pair[0], truncation=True, max_length=5)
    assert ours_left(pair[0], truncation=True, max_length=5) != ours(pair[0], truncation=True, max_length=5)


def test_encode_and_the_small_conversions(ours, theirs):
    text = "The CAT isn't red, 一丁!"
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids and ours.encode(text, return_tensors="pt").tolist() == [ids]
    assert ours.encode_plus(text)["input_ids"] == ids and ours.batch_encode_plus([text])["input_ids"] == [ids]
    assert ours.tokenize(text, add_special_tokens=True) == theirs.tokenize(text, add_special_tokens=True)
    tokens = theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(ids) == tokens and ours.convert_ids_to_tokens(torch.tensor(ids)) == tokens
    assert ours.convert_ids_to_tokens(ids, True) == theirs.convert_ids_to_tokens(ids, True)
    assert ours.convert_ids_to_tokens(10**6) is None and ours.convert_ids_to_tokens(ids[1]) == tokens[1]
    assert (
        ours.convert_tokens_to_ids(tokens) == ids and ours.convert_tokens_to_ids("nothing like it") == ours.unk_token_id
    )
    assert ours.convert_tokens_to_ids(None) is None
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
    assert ours.get_vocab() == theirs.get_vocab() == ours.vocab
    assert ours.num_special_tokens_to_add(True) == 3 and ours.max_len_single_sentence == ours.model_max_length - 2
    assert ours.build_inputs_with_special_tokens([7], [8]) == [
        ours.cls_token_id,
        7,
        ours.sep_token_id,
        8,
        ours.sep_token_id,
    ]
    assert ours.create_token_type_ids_from_sequences([7], [8]) == [0, 0, 0, 1, 1]
    assert ours.get_special_tokens_mask([7, 7], [8]) == [1, 0, 0, 1, 0, 1]
    assert ours.get_special_tokens_mask([*ids, 9], already_has_special_tokens=True) == [1, *[0] * (len(ids) - 2), 1, 0]
    assert bool(ours) and BertTokenizerFast is BertTokenizer and ours.is_fast


def test_special_tokens(ours, theirs):
    for name in ("unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    assert ours.all_special_tokens == theirs.all_special_tokens and ours.all_special_ids == theirs.all_special_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    with pytest.raises(AttributeError, match="pad_token"):
        ours.pad_token_id = 3
    for name in ("extra_special_tokens", "additional_special_tokens"):
        with pytest.raises(AttributeError, match=f"^{name}: cannot be assigned"):
            setattr(ours, name, ["a"])


def test_decode_in_every_form(ours, theirs):
    texts = ["the cat is red .", "don ' t . [MASK] naïve"]
    rows = theirs(texts, padding=True)["input_ids"]
    for skip in (True, False):
        for clean in (True, False, None):
            options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
            expected = [theirs.decode(row, **options) for row in rows]
            assert [ours.decode(row, **options) for row in rows] == expected
            for batch in (
                rows,
                torch.tensor(rows),
                np.array(rows),
                [torch.tensor(row) for row in rows],
                {"input_ids": rows},
                ours(texts, padding=True),
            ):
                assert ours.batch_decode(batch, **options) == expected == ours.decode(batch, **options)
    assert ours.decode(rows[0][1]) == "the" == ours.decode(torch.tensor(rows[0][1])) and ours.decode([]) == ""


def test_batch_decode_of_one_row_gives_one_text_as_in_5_x(ours, theirs):
    row = theirs("the cat is red", add_special_tokens=False)["input_ids"]
    assert ours.batch_decode(row) == theirs.batch_decode(row) == ["the cat is red"]  # 4.37: one text for each id


def test_decode_does_not_clean_up_by_default_as_in_5_x(vocab_file, theirs):
    tokenizer = BertTokenizer(vocab_file)
    row = theirs("the cat ' s dog", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(row) == theirs.decode(row)
    cleaned = BertTokenizer(vocab_file, clean_up_tokenization_spaces=True)  # what 4.37 wrote into its configs
    assert cleaned.decode(row) == theirs.decode(row, clean_up_tokenization_spaces=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": "max_length", "max_length": 20},
        {"padding": False},
        {"pad_to_multiple_of": 8},
        {"padding_side": "left"},
        {"return_tensors": "pt"},
        {"return_tensors": "np"},
    ],
    ids=str,
)
def test_pad_equals_transformers(arguments, ours, theirs):
    texts = ["the cat", "what colour is the dog", ""]
    if arguments.get("padding") is not False:
        encoded = theirs(texts, return_special_tokens_mask=True)
        assert (
            dict(ours.pad(encoded.data, **arguments)).keys()
            == dict(theirs.pad(copy.deepcopy(encoded), **arguments)).keys()
        )
    for form in (
        lambda: theirs(texts).data,
        lambda: [theirs(text).data for text in texts],
        lambda: [theirs(text) for text in texts],
        lambda: [{"input_ids": theirs(text)["input_ids"]} for text in texts],
    ):
        if arguments.get("padding") is False and "return_tensors" in arguments:
            continue
        a, b = ours.pad(form(), **arguments), theirs.pad(form(), **arguments)
        assert list(a) == list(b)
        for key in b:
            assert np.array_equal(np.asarray(a[key], dtype=object), np.asarray(b[key], dtype=object)), key
    single = ours.pad(theirs("the cat").data, padding="max_length", max_length=9)
    assert dict(single) == dict(theirs.pad(theirs("the cat").data, padding="max_length", max_length=9))


def test_pad_keeps_tensors_and_needs_ids(ours):
    rows = [{"input_ids": torch.tensor([5, 6]), "labels": 1}, {"input_ids": torch.tensor([5]), "labels": 0}]
    batch = ours.pad(rows)
    assert batch.input_ids.tolist() == [[5, 6], [5, ours.pad_token_id]] and batch.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="input_ids"):
        ours.pad({"labels": [1]})
    with pytest.raises(ValueError, match="labels: got 1 rows, wanted 2"):
        ours.pad({"input_ids": [[1], [2]], "labels": [1]})


def test_the_encoding_knows_words_and_characters(ours, theirs):
    a, b = ours(["naive cats", "the dog"], padding=True), theirs(["naive cats", "the dog"], padding=True)
    for row in (0, 1):
        assert a.tokens(row) == b.tokens(row) and a.word_ids(row) == b.word_ids(row)
        assert a.sequence_ids(row) == b.sequence_ids(row)
    assert a.char_to_token(0, 6) == b.char_to_token(0, 6) and a.char_to_token(6) == b.char_to_token(6)
    assert a.token_to_chars(1, 2) == tuple(b.token_to_chars(1, 2)) and a.token_to_chars(1) == tuple(b.token_to_chars(1))
    assert a[0].ids == a["input_ids"][0] and a[:1]["input_ids"] == a["input_ids"][:1] and a.n_sequences == 1
    assert a.is_fast and len(a.encodings) == 2
    again = pickle.loads(pickle.dumps(a))
    assert again.data == a.data and again.tokens(1) == a.tokens(1)
    assert ours("the", "cat", return_tensors="pt").to("cpu", torch.float16).input_ids.dtype == torch.int64


def test_one_tokenizer_in_many_threads_and_processes(ours, random_texts):
    texts = random_texts[:60]
    expected = {
        length: ours(texts, truncation=True, max_length=length, padding=True)["input_ids"] for length in range(4, 12)
    }
    wrong = []

    def work(length):
        for _ in range(10):
            if ours(texts, truncation=True, max_length=length, padding=True)["input_ids"] != expected[length]:
                wrong.append(length)

    threads = [threading.Thread(target=work, args=(length,)) for length in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    again = pickle.loads(pickle.dumps(ours))
    assert again(texts)["input_ids"] == ours(texts)["input_ids"] and again.padding_side == "right"


# --- warnings


def test_warnings_as_transformers_gives_them(vocab_file):
    tokenizer = BertTokenizer(vocab_file)
    for arguments, message in (
        ({"truncation": True}, "truncation=True without max_length"),
        ({"padding": "max_length"}, "padding='max_length' without max_length"),
        ({"max_length": 4}, "truncation=True is assumed"),
        ({"padding": True, "max_length": 4, "truncation": False}, "max_length is ignored"),
    ):
        with pytest.warns(UserWarning, match=message):
            tokenizer("the cat is red", **arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tokenizer("the cat is red", **arguments, verbose=False)
    short = BertTokenizer(vocab_file, model_max_length=4)
    with pytest.warns(UserWarning, match="6 tokens is longer than the model's 4"):
        short("the cat is red")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short("the cat is red")  # once is enough
        assert len(short("the cat is red", truncation=True)["input_ids"]) == 4
        assert len(short("the", padding="max_length")["input_ids"]) == 4


# --- bad input


@pytest.mark.parametrize(
    ("text", "pair", "words", "message"),
    [
        (None, None, False, "^text: got NoneType"),
        (5, None, False, "^text: got int"),
        (b"cat", None, False, "^text: got bytes"),
        ([], None, False, "^text: got an empty list"),
        ((), None, False, "^text: got an empty list"),
        (["cat", None], None, False, r"^text\[1\]: got NoneType"),
        (["cat", 5.0], None, False, r"^text\[1\]: got float"),
        ([b"cat"], None, False, r"^text\[0\]: got bytes"),
        ([["a", "b", "c"]], None, False, r"^text\[0\]: got list"),
        ([("a", 1)], None, False, r"^text\[0\]\[1\]: got int"),
        ("cat \ud800", None, False, "lone surrogate"),
        (["cat", "\udfff"], None, False, r"^text\[1\]: character 0 is a lone surrogate"),
        ({"text": "cat"}, None, False, "^text: got dict"),
        (np.array(["cat"]), None, False, "^text: got ndarray"),
        ("cat", 5, False, "^text_pair: got int"),
        ("cat", ["dog"], False, "^text_pair: got list"),
        (["cat"], "dog", False, "^text_pair: got str"),
        (["cat"], ["dog", "dog"], False, "^text_pair: got 2"),
        (["cat", "cat"], ["dog", 1], False, r"^text_pair\[1\]: got int"),
        ("cat", None, True, "^text: got str"),
        (["cat", 1], None, True, r"^text\[1\]: got int"),
        ([["cat"], "dog"], None, True, r"^text\[1\]: got str"),
        ([["cat"], ["dog", 1]], None, True, r"^text\[1\]\[1\]: got int"),
    ],
)
def test_bad_texts_are_named(text, pair, words, message, ours):
    with pytest.raises(ValueError, match=message):
        ours(text, pair, is_split_into_words=words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "all"}, "^padding: got 'all'"),
        ({"truncation": "some"}, "^truncation: got 'some'"),
        ({"max_length": 0, "truncation": True}, "^max_length: got 0"),
        ({"max_length": -3}, "^max_length: got -3"),
        ({"max_length": 2.5, "truncation": True}, "^max_length: got 2.5"),
        ({"max_length": 1, "truncation": True}, "^max_length: got 1, wanted room for 2"),
        ({"max_length": 5, "truncation": True, "stride": 3}, "^stride: got 3, wanted less than the 3"),
        ({"stride": -1}, "^stride: got -1"),
        ({"pad_to_multiple_of": 0}, "^pad_to_multiple_of: got 0"),
        (
            {"truncation": True, "max_length": 9, "padding": True, "pad_to_multiple_of": 4},
            "^max_length: got 9, wanted a multiple",
        ),
        ({"truncation": "only_second", "max_length": 4}, "^truncation: got 'only_second'"),
        ({"add_special_tokens": None}, "^add_special_tokens: got None, wanted True or False"),
        ({"is_split_into_words": None}, "^is_split_into_words: got None"),
        ({"split_special_tokens": "no"}, "^split_special_tokens: got 'no'"),
        ({"return_tensors": "tf"}, "^return_tensors: got 'tf'"),
        ({"padding_side": "up", "padding": True}, "^padding_side: got 'up'"),
        ({"return_tensors": "pt"}, "input_ids: got rows of shapes .*padding=True"),
        ({"return_tensors": "np"}, "input_ids: got rows of shapes .*padding=True"),
    ],
)
def test_bad_arguments_are_named(arguments, message, ours):
    with pytest.raises(ValueError, match=message):
        ours(["the cat is red", "cat"], verbose=False, **arguments)


def test_a_stride_that_pairs_leave_no_room_for(ours):
    pair, arguments = ("the cat is red", "the dog is blue and green"), {"return_overflowing_tokens": True, "stride": 2}
    with pytest.raises(ValueError, match="^stride: got 2, wanted less than the 2"):
        ours(*pair, truncation=True, max_length=8, **arguments)
    with pytest.raises(ValueError, match="^stride: got 2"):  # what is left of the first depends on the second
        ours("the cat is red " * 3, pair[1], truncation="only_first", max_length=11, **arguments)


def test_unknown_arguments_and_bad_ids(ours, vocab_file):
    with pytest.raises(TypeError, match="paddding"):
        ours("cat", paddding=True)
    for ids in ([-1], ["a"], [1.5], 2.5, "cat", [[1], [-1]], None):
        with pytest.raises(ValueError, match="^token_ids: got"):
            ours.decode(ids)
    with pytest.raises(ValueError, match="already|finished|special tokens"):
        ours.get_special_tokens_mask([1], [2], already_has_special_tokens=True)
    no_pad = BertTokenizer(vocab_file, pad_token=None)
    with pytest.raises(ValueError, match="^pad_token"):
        no_pad(["cat", "the cat"], padding=True)


# --- added tokens


def test_added_tokens_equal_transformers(vocab_file):
    ours, theirs = BertTokenizer(vocab_file), Theirs(str(vocab_file))
    for tokenizer in (ours, theirs):
        assert tokenizer.add_tokens(["foobar", AddedToken("Zed", normalized=False)]) == 2
        assert tokenizer.add_special_tokens({"extra_special_tokens": ["<x>"], "mask_token": "<mask>"}) == 2
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == ours.vocab_size + 4
    text = "a foobar FooBar Zed zed <x> <mask> [MASK] <X>"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.mask_token == "<mask>" and ours.mask_token_id == theirs.mask_token_id
    assert ours.all_special_ids == theirs.all_special_ids and ours.extra_special_tokens == ["<x>"]
    ours.sep_token = "<sep>"
    assert ours("cat")["input_ids"][-1] == len(ours) - 1 == ours.sep_token_id
    with pytest.raises(ValueError, match="^special_tokens_dict: got the name 'foo'"):
        ours.add_special_tokens({"foo": "<z>"})
    with pytest.raises(ValueError, match="^new_tokens: got 5"):
        ours.add_tokens([5])
    assert ours.get_added_vocab()["foobar"] == ours.vocab_size


def test_special_tokens_that_the_vocabulary_lacks_are_appended(vocab_file):
    arguments = {"cls_token": "<cls>", "sep_token": "<sep>", "pad_token": "<pad>"}
    ours, theirs = BertTokenizer(vocab_file, **arguments), Theirs(str(vocab_file), **arguments)
    assert ours.get_vocab() == theirs.get_vocab()
    assert_equal_calls(ours, theirs, ["the cat <sep> [SEP]", "a"], padding=True)


def test_other_names_follow_what_a_subclass_overrides(vocab_file):
    class Mine(BertTokenizer):
        def __call__(self, text, text_pair=None, **kwargs):
            return super().__call__(text.upper(), text_pair, **kwargs)

        def get_vocab(self):
            return {"mine": 0}

        def get_added_vocab(self):
            return {"added": 1}

        @property
        def extra_special_tokens(self):
            return ["extra"]

    mine = Mine(vocab_file, do_lower_case=False)
    assert (
        mine.encode_plus("cat")["input_ids"]
        == mine("cat")["input_ids"]
        != BertTokenizer(vocab_file)("cat")["input_ids"]
    )
    assert mine.vocab == {"mine": 0} and mine.added_tokens_encoder == {"added": 1}
    assert mine.additional_special_tokens == ["extra"]


@pytest.mark.parametrize(
    "made_with", [{"padding": "max_length", "max_length": 7}, {"truncation": True, "max_length": 3}, {"max_length": 3}]
)
def test_defaults_of_a_processor_are_none_of_the_tokenizer(made_with, vocab_file, theirs):
    """A call of the tokenizer does not read them in transformers either; here it says so, once."""
    ours, text = BertTokenizer(vocab_file, **made_with), "what colour is the cat"
    with pytest.warns(UserWarning, match="max_length: given to the tokenizer's constructor"):
        got = ours(text)
    assert got == Theirs(str(vocab_file), **made_with)(text) == theirs(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(text)
        BertTokenizer(vocab_file, **made_with)(text, verbose=False)
        BertTokenizer(vocab_file, **made_with)(text, padding=False, truncation=False, max_length=5)
        BertTokenizer(vocab_file, padding_side="left", nonsense=3)(text)


def test_settings_that_would_be_swallowed_are_refused_or_named(vocab_file, theirs):
    for name in ("encode", "add_special_tokens"):
        with pytest.raises(ValueError, match=f"{name}: is a method of BertTokenizer"):
            BertTokenizer(vocab_file, **{name: False})
        with pytest.raises(AttributeError):
            Theirs(str(vocab_file), **{name: False})
    for name, value in (("never_split", ["naive"]), ("do_basic_tokenize", False)):
        with pytest.raises(ValueError, match=f"{name}: got .* slow tokenizer"):
            BertTokenizer(vocab_file, **{name: value})
    BertTokenizer(vocab_file, never_split=None, do_basic_tokenize=True)  # as that tokenizer saved them
    for wrong, right in (
        ("paddin", "padding"),
        ("do_lowercase", "do_lower_case"),
        ("model_max_len", "model_max_length"),
    ):
        with pytest.warns(UserWarning, match=f"{wrong}: no setting of BertTokenizer, .* meant {right}?"):
            tokenizer = BertTokenizer(vocab_file, **{wrong: 3})
        assert tokenizer.init_kwargs[wrong] == 3
    for value in ("40", 0, -1, True):
        with pytest.raises(ValueError, match="model_max_length: got .* positive number"):
            BertTokenizer(vocab_file, model_max_length=value)
    assert BertTokenizer(vocab_file, max_len=6).model_max_length == Theirs(str(vocab_file), max_len=6).model_max_length


def test_unknown_settings_are_kept_and_saved(vocab_file, tmp_path):
    BertTokenizer(vocab_file, my_note="kept", padding=True).save_pretrained(tmp_path)
    assert BertTokenizer.from_pretrained(tmp_path).init_kwargs == {"my_note": "kept", "padding": True}
    assert Theirs.from_pretrained(tmp_path).init_kwargs["my_note"] == "kept"
