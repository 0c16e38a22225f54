"""The tokenizer's files: ours load in transformers, theirs load here, and broken ones are named."""

import json
import os

import pytest
from tokenizers import Tokenizer
from transformers import BertTokenizer as Theirs

from vilt_fast import BertTokenizer

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


@pytest.mark.parametrize("kind", KINDS)
def test_ours_saved_loads_in_transformers_and_back(kind, vocab_file, random_texts, tmp_path):
    ours = BertTokenizer(vocab_file, **KINDS[kind])
    ours.add_tokens(["foobar"])
    texts = [*random_texts[:300], "foobar <x> FOOBAR"]
    expected = ours(texts, verbose=False)["input_ids"]
    saved = ours.save_pretrained(tmp_path / "ours")
    assert {os.path.basename(path) for path in saved} == {
        "vocab.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    theirs = Theirs.from_pretrained(tmp_path / "ours")
    assert theirs(texts)["input_ids"] == expected and len(theirs) == len(ours)
    assert theirs.padding_side == ours.padding_side and theirs.model_max_length == ours.model_max_length
    assert theirs.extra_special_tokens == ours.extra_special_tokens
    theirs(texts, truncation=True, max_length=5, padding=True)  # leaves its state in the saved tokenizer.json
    theirs.save_pretrained(tmp_path / "theirs")
    again = BertTokenizer.from_pretrained(tmp_path / "theirs")
    assert again(texts, verbose=False)["input_ids"] == expected
    assert again.files_to_save() == {
        **ours.files_to_save(),
        "tokenizer_config.json": again.files_to_save()["tokenizer_config.json"],
    }
    assert BertTokenizer.from_pretrained(tmp_path / "ours").files_to_save() == ours.files_to_save()


def test_every_source_of_a_vocabulary(vocab_file, tmp_path, ours):
    expected = ours("the Café [MASK]")["input_ids"]
    ours.save_pretrained(tmp_path)
    vocabulary = ours.get_vocab()
    for tokenizer in (
        BertTokenizer(str(vocab_file)),
        BertTokenizer(vocab_file=vocab_file),
        BertTokenizer(vocab=vocab_file),
        BertTokenizer(vocabulary),
        BertTokenizer(vocab=vocabulary),
        BertTokenizer(tokenizer_file=tmp_path / "tokenizer.json"),
        BertTokenizer.from_pretrained(tmp_path),
        BertTokenizer.from_pretrained(str(tmp_path / "vocab.txt")),
        BertTokenizer.from_pretrained(tmp_path / "tokenizer.json"),
    ):
        assert tokenizer("the Café [MASK]")["input_ids"] == expected and len(tokenizer) == len(ours)


def test_a_tokenizer_json_keeps_its_own_settings_unless_told(vocab_file, tmp_path):
    cased = BertTokenizer(vocab_file, do_lower_case=False, tokenize_chinese_chars=False)
    cased.save_pretrained(tmp_path)
    alone = BertTokenizer(tokenizer_file=tmp_path / "tokenizer.json")
    assert alone("Cat 東京")["input_ids"] == cased("Cat 東京")["input_ids"]
    lowered = BertTokenizer.from_pretrained(tmp_path, do_lower_case=True)
    theirs = Theirs.from_pretrained(tmp_path, do_lower_case=True)
    assert lowered("Cat 東京")["input_ids"] == theirs("Cat 東京")["input_ids"] != cased("Cat 東京")["input_ids"]


def write_437(directory, vocab_file, with_json):
    """What transformers 4.37 writes: slow without, fast with tokenizer.json."""
    size = len(vocab_file.read_text(encoding="utf-8").splitlines())
    special = {
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    vocabulary = BertTokenizer(vocab_file).get_vocab()
    added = {str(vocabulary[token]): {"content": token, **flags} for token in special.values()}
    added[str(size)] = {"content": "<x>", **flags}
    added[str(size + 1)] = {"content": "foobar", **flags, "normalized": True, "special": False}
    config = {
        **special,
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<x>"],
        "do_lower_case": True,
        "clean_up_tokenization_spaces": True,
        "do_basic_tokenize": True,
        "model_max_length": 40,
        "never_split": None,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
    }
    directory.mkdir()
    (directory / "vocab.txt").write_bytes(vocab_file.read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "special_tokens_map.json").write_text(json.dumps({**special, "additional_special_tokens": ["<x>"]}))
    (directory / "added_tokens.json").write_text(json.dumps({"<x>": size, "foobar": size + 1}))
    if with_json:
        backend = Tokenizer.from_str(BertTokenizer(vocab_file).backend_tokenizer.to_str())
        backend.add_special_tokens(["<x>"])
        backend.add_tokens(["foobar"])
        backend.enable_padding(length=9, direction="left")
        backend.save(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("with_json", [True, False], ids=["fast", "slow"])
def test_directories_of_4_37(with_json, vocab_file, random_texts, tmp_path):
    write_437(tmp_path / "old", vocab_file, with_json)
    ours, theirs = BertTokenizer.from_pretrained(tmp_path / "old"), Theirs.from_pretrained(tmp_path / "old")
    texts = [*random_texts[:200], "foobar <x> FOOBAR <X>"]
    assert ours(texts, verbose=False)["input_ids"] == theirs(texts)["input_ids"]
    assert len(ours) == len(theirs) and ours.extra_special_tokens == ["<x>"] and ours.model_max_length == 40
    assert ours.clean_up_tokenization_spaces and ours.padding_side == theirs.padding_side


def test_directories_before_added_tokens_decoder(vocab_file, tmp_path):
    write_437(tmp_path / "older", vocab_file, with_json=False)
    path = tmp_path / "older" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["added_tokens_decoder"], config["additional_special_tokens"]
    path.write_text(json.dumps(config))
    path.with_name("special_tokens_map.json").write_text(
        json.dumps(
            {
                "mask_token": {
                    "content": "[MASK]",
                    "lstrip": True,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                },
                "additional_special_tokens": ["<x>"],
            }
        )
    )
    ours, theirs = BertTokenizer.from_pretrained(tmp_path / "older"), Theirs.from_pretrained(tmp_path / "older")
    for text in ("the foobar <x> [MASK]", "FOOBAR<x>", "[SEP] [UNK]"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert len(ours) == len(theirs)


def test_vocab_txt_alone(vocab_file, tmp_path, random_texts):
    (tmp_path / "vocab.txt").write_bytes(vocab_file.read_bytes())
    ours, theirs = BertTokenizer.from_pretrained(tmp_path), Theirs.from_pretrained(tmp_path)
    assert ours(random_texts[:100])["input_ids"] == theirs(random_texts[:100])["input_ids"]


def test_broken_files_are_named(vocab_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither tokenizer.json nor vocab.txt"):
        BertTokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BertTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        BertTokenizer(tmp_path / "nowhere.txt")
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        BertTokenizer(tokenizer_file=tmp_path / "nowhere.json")
    vocabulary, settings_file, whole = (
        tmp_path / name for name in ("vocab.txt", "tokenizer_config.json", "tokenizer.json")
    )
    for content, message in ((b"", "is empty"), (b"\xff\xfe\n", "UTF-8"), (b"a\nb\n", "unk_token: '\\[UNK\\]' is not")):
        vocabulary.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            BertTokenizer.from_pretrained(tmp_path)
    vocabulary.write_bytes(vocab_file.read_bytes())
    settings_file.write_text("{")
    with pytest.raises(ValueError, match="tokenizer_config.json: not a valid JSON file"):
        BertTokenizer.from_pretrained(tmp_path)
    settings_file.write_text(json.dumps({"added_tokens_decoder": {"99999": {"content": "<x>", "special": True}}}))
    with pytest.raises(ValueError, match="'<x>' is given id 99999"):
        BertTokenizer.from_pretrained(tmp_path)
    settings_file.unlink()
    for content, message in (
        ("{", "not a valid JSON"),
        ("{}", "model: got None, wanted an object with a vocabulary"),
        ('{"model": {"type": "WordPiece"}}', "not a valid tokenizer.json"),
        ('{"model": {"type": "BPE"}}', "'BPE' model, wanted WordPiece"),
    ):
        whole.write_text(content)
        with pytest.raises(ValueError, match=message):
            BertTokenizer.from_pretrained(tmp_path)


def test_bad_constructor_arguments(vocab_file):
    for arguments, message in (
        ({}, "got 0 of them"),
        ({"vocab_file": vocab_file, "vocab": vocab_file}, "got 2 of them"),
        ({"vocab_file": vocab_file, "unk_token": None}, "^unk_token"),
        ({"vocab_file": vocab_file, "unk_token": "x y"}, "^unk_token"),
        ({"vocab_file": vocab_file, "cls_token": 5}, "^cls_token: got 5"),
        ({"vocab": {"[UNK]": -1}}, "^vocab"),
        ({"vocab_file": vocab_file, "padding_side": "top"}, "^padding_side: got 'top'"),
        ({"vocab_file": vocab_file, "extra_special_tokens": [5]}, "^extra_special_tokens: got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            BertTokenizer(**arguments)


def test_a_config_cannot_point_outside_its_directory(vocab_file, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\n")
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"vocab_file": str(vocab_file)}))
    assert len(BertTokenizer.from_pretrained(tmp_path / "model")) == 5
