"""The files of a BERT tokenizer in and out, and the `tokenizers.Tokenizer` made from them."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from vilt_fast.checkpoints.files import naming, read_json
from vilt_fast.checkpoints.hub import find_file, is_file, local_path
from vilt_fast.checkpoints.json_files import check_size
from vilt_fast.configs.spelling import nearest

from .backend import check_content, check_ids
from .encoding import check_unicode
from .saving import find_json, to_json

# In Hugging Face's order, which decides the ids of tokens that the vocabulary lacks.
SPECIAL_NAMES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What transformers writes beside the settings; and paths, which are not followed: they could point anywhere.
_NO_SETTINGS = (
    "backend files_loaded is_local local_files_only processor_class tokenizer_class "
    "vocab_file tokenizer_file special_tokens_map_file name_or_path vocab"
).split()
_TOKEN_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def read_vocabulary(path: str | os.PathLike[str]) -> dict[str, int]:
    """Token -> id from a vocab.txt, one token a line; of a repeated token the last line counts, as in Hugging Face.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is too large, empty or not UTF-8.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"vocab_file: no such file: {str(path)!r}")
    check_size(path)
    try:
        with open(path, encoding="utf-8") as file:
            vocabulary = {line.rstrip("\n"): index for index, line in enumerate(file)}
    except UnicodeDecodeError as error:
        raise ValueError(f"vocab_file: {str(path)!r} is not UTF-8 text ({error})") from error
    if not vocabulary:
        raise ValueError(f"vocab_file: {str(path)!r} is empty")
    return vocabulary


def build_backend(vocabulary: Mapping[str, int], unk_token: str, cleaning: Mapping[str, bool | None]) -> Tokenizer:
    """BERT's tokenizer over a vocabulary: clean and lower the text, split words and punctuation, then word pieces.

    Raises:
        ValueError: `vocabulary` maps no strings to non-negative integers.
    """
    try:
        model = WordPiece(dict(vocabulary), unk_token=unk_token)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"vocab: got a mapping that is not str -> non-negative int ({error})") from error
    backend = Tokenizer(model)
    given = {name: value for name, value in cleaning.items() if value is not None}
    backend.normalizer = normalizers.BertNormalizer(**given)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def load_backend(path: str | os.PathLike[str], cleaning: Mapping[str, bool | None]) -> Tokenizer:
    """The tokenizer of a tokenizer.json; the settings given here override those in the file, as in transformers 4.37.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no tokenizer, or not one of word pieces.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"tokenizer_file: no such file: {str(path)!r}")
    content = read_json(path)
    with naming(path):
        check_content(content)
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"tokenizer_file: {str(path)!r} is not a valid tokenizer.json ({error})") from error
    for token in content.get("added_tokens") or ():
        got = backend.token_to_id(token["content"])
        if got != token["id"]:
            raise ValueError(
                f"tokenizer_file: {str(path)!r} gives the added token {token['content']!r} the id {token['id']}, but "
                f"its place is {got}"
            )
    normalizer = backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        for name, value in cleaning.items():
            # No accents setting means "as lowercase", so beside an explicit lowercase None counts.
            if value is not None or (name == "strip_accents" and cleaning["lowercase"] is not None):
                setattr(normalizer, name, value)
        backend.normalizer = normalizer
    return backend


def make_backend(
    vocab_file: Any,
    vocab: Any,
    tokenizer_file: Any,
    special: Mapping[str, AddedToken],
    cleaning: Mapping[str, bool | None],
) -> Tokenizer:
    """The backend of the one vocabulary that is given: a path or mapping, or a tokenizer.json.

    `cleaning`: lowercase, handle_chinese_chars and strip_accents of BertNormalizer; None leaves what is there.

    Raises:
        FileNotFoundError, ValueError: as `read_vocabulary`, `build_backend` and `load_backend`; ValueError also where
            there is not exactly one vocabulary, or it lacks the unknown token.
    """
    given = [value for value in (vocab_file, vocab, tokenizer_file) if value is not None]
    if len(given) != 1:
        raise ValueError(f"vocab_file, vocab, tokenizer_file: got {len(given)} of them, wanted exactly one")
    if "unk_token" not in special:
        raise ValueError("unk_token: got None, wanted the token that stands for unknown words")
    unk_token = special["unk_token"].content
    if tokenizer_file is not None:
        backend = load_backend(tokenizer_file, cleaning)
        model = backend.model
        if model.unk_token != unk_token:
            model.unk_token = unk_token
            backend.model = model
    else:
        vocabulary = given[0] if isinstance(given[0], Mapping) else read_vocabulary(given[0])
        backend = build_backend(vocabulary, unk_token, cleaning)
    check_ids(backend.get_vocab(with_added_tokens=True))
    if unk_token not in backend.get_vocab(with_added_tokens=False):
        raise ValueError(f"unk_token: {unk_token!r} is not in the vocabulary")
    return backend


def to_added_token(value: Any, name: str, special: bool = True) -> AddedToken:
    """A token as given by a caller or a JSON file (a string, a dict, an `AddedToken`) with its matching flags.

    Raises:
        ValueError: `value` is none of these.
    """
    if isinstance(value, AddedToken):
        return value
    if value == "" or (isinstance(value, Mapping) and value.get("content") == ""):
        raise ValueError(f"{name}: got an empty text, wanted a token")
    content = value.get("content") if isinstance(value, Mapping) else value
    if isinstance(content, str):
        check_unicode(content, name)
    if isinstance(value, str):
        return AddedToken(value, normalized=not special, special=special)
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        flags = {key: value[key] for key in _TOKEN_FLAGS if key in value}
        wrong = next((key for key, flag in flags.items() if key != "content" and not isinstance(flag, bool)), None)
        if wrong is not None:
            raise ValueError(f"{name}: got {wrong}={flags[wrong]!r}, wanted True or False")
        return AddedToken(**{"special": special, "normalized": not special, **flags})
    raise ValueError(f"{name}: got {value!r}, wanted a string or an AddedToken")


def check_settings(settings: Mapping[str, Any], kind: type) -> None:
    """What a tokenizer's constructor got beside its arguments: warn of a slip of the pen.

    Raises:
        ValueError: the name of a method, or what only transformers 4.37's slow tokenizer does.
    """
    for name in settings:
        if callable(getattr(kind, name, None)):
            raise ValueError(f"{name}: is a method of {kind.__name__}, no setting; arguments of a call go to the call")
        meant = nearest(name, [*inspect.signature(kind).parameters, "padding", "truncation", "max_length"])
        if meant not in (None, name):
            warnings.warn(f"{name}: no setting of {kind.__name__}, kept without effect; meant {meant}?", stacklevel=4)
    if settings.get("do_basic_tokenize", True) is False or settings.get("never_split"):
        name = "never_split" if settings.get("never_split") else "do_basic_tokenize"
        raise ValueError(
            f"{name}: got {settings[name]!r}, which only transformers 4.37's slow tokenizer acts on; words that must "
            "stay whole go to add_tokens([...])"
        )


def read_saved(name_or_path: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """The constructor's keywords for what transformers 4.37 (slow and fast) or 5.x saved under a name.

    Raises:
        FileNotFoundError: neither a tokenizer.json nor a vocab.txt.
        ValueError: a JSON file is broken.
    """
    if is_file(local_path(name_or_path)):
        key = "tokenizer_file" if str(name_or_path).endswith(".json") else "vocab_file"
        return {key: str(name_or_path)}
    settings = find_json(name_or_path, "tokenizer_config.json", **hub) or {}
    if "added_tokens_decoder" not in settings:  # until 4.33, these were files of their own
        settings.update(find_json(name_or_path, "special_tokens_map.json", **hub) or {})
        added = find_json(name_or_path, "added_tokens.json", **hub) or {}
        named = [to_added_token(settings[name], name) for name in SPECIAL_NAMES if settings.get(name) is not None]
        specials = {token.content for token in named}
        wrong = next((token for token, index in added.items() if not isinstance(index, int)), None)
        if wrong is not None:
            raise ValueError(f"added_tokens.json: got the id {added[wrong]!r} of {wrong!r}, wanted an integer")
        settings["added_tokens_decoder"] = {
            index: to_added_token(token, "added_tokens.json", special=token in specials)
            for token, index in added.items()
        }
    if "self" in settings:
        raise ValueError("self: is no setting of a tokenizer")
    for filename, key in (("tokenizer.json", "tokenizer_file"), ("vocab.txt", "vocab_file")):
        path = find_file(name_or_path, filename, required=False, **hub)
        if path is not None:
            return {**{name: settings[name] for name in settings if name not in _NO_SETTINGS}, key: str(path)}
    raise FileNotFoundError(f"{name_or_path}: neither tokenizer.json nor vocab.txt is there")


def saved_files(tokenizer: Any, processor_class: str | None = None) -> dict[str, str]:
    """What transformers 4.37 (slow and fast) and 5.x want to find of a `BertTokenizer`: file name -> text."""
    backend = tokenizer.backend_tokenizer
    special: dict[str, Any] = dict(tokenizer.special_tokens_map)
    if tokenizer.extra_special_tokens:
        special["additional_special_tokens"] = tokenizer.extra_special_tokens  # 4.37's name, which 5.x reads too
    added = {
        str(index): {flag: getattr(token, flag) for flag in _TOKEN_FLAGS}
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    config = {
        **dict.fromkeys(SPECIAL_NAMES),  # one that was taken away must not come back as the default
        **tokenizer.init_kwargs,
        **special,
        "do_lower_case": getattr(backend.normalizer, "lowercase", True),
        "tokenize_chinese_chars": getattr(backend.normalizer, "handle_chinese_chars", True),
        "strip_accents": getattr(backend.normalizer, "strip_accents", None),
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
        "split_special_tokens": tokenizer.split_special_tokens,
        "added_tokens_decoder": added,
        "tokenizer_class": "BertTokenizer",
    }
    if tokenizer.model_input_names != type(tokenizer).model_input_names:
        config["model_input_names"] = tokenizer.model_input_names
    if processor_class is not None:
        config["processor_class"] = processor_class
    return {
        "vocab.txt": _vocabulary_text(backend),
        "tokenizer.json": _backend_text(backend),
        "tokenizer_config.json": to_json(config),
        "special_tokens_map.json": to_json(special),
    }


def _vocabulary_text(backend: Tokenizer) -> str:
    """The model's own vocabulary as a vocab.txt; an id that no token has becomes a line, to keep the count."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    by_id = {index: token for token, index in vocabulary.items()}
    lines = [by_id.get(index, f"[unused-{index}]") for index in range(max(by_id, default=-1) + 1)]
    return "".join(f"{line}\n" for line in lines)


def _backend_text(backend: Tokenizer) -> str:
    """The tokenizer.json of a backend, without the padding and truncation of its last call."""
    content = json.loads(backend.to_str())
    content["padding"] = content["truncation"] = None
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
