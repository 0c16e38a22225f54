"""What a tokenizer.json may hold, checked before the `tokenizers` library reads it.

The library panics, or takes all memory, over some of what its format can say: a regular expression that no text gets
through, a replacement that grows with every step. A BERT tokenizer needs none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_NORMALIZERS = "BertNormalizer Lowercase NFC NFD NFKC NFKD Nmt Replace Strip StripAccents".split()
_PRE_TOKENIZERS = (
    "BertPreTokenizer CharDelimiterSplit Digits Metaspace Punctuation Split UnicodeScripts Whitespace WhitespaceSplit"
).split()
_PARTS = {
    "normalizer": ("normalizers", _NORMALIZERS),
    "pre_tokenizer": ("pretokenizers", _PRE_TOKENIZERS),
    "post_processor": ("processors", ["BertProcessing", "TemplateProcessing"]),
    "decoder": ("decoders", ["WordPiece"]),
}
# A vocabulary may have gaps (a vocab.txt that repeats a token), but an id is a row of the word table.
MOST_IDS = 10_000_000
_MOST_STEPS = 32  # of a part of the pipeline; BERT's have one
_LONGEST_WORD = 1000  # characters; BERT's is 100, and the time for a word grows with its square


def check_content(content: Mapping[str, Any]) -> None:
    """Refuse the content of a tokenizer.json that is not BERT's, or that a text may never get through.

    Raises:
        ValueError: names the key.
    """
    model = content.get("model")
    if not isinstance(model, Mapping):
        raise ValueError(f"model: got {_shown(model)}, wanted an object with a vocabulary")
    kind = model.get("type", "WordPiece")
    if kind != "WordPiece":
        raise ValueError(f"model: got a {_shown(kind)} model, wanted WordPiece (BERT)")
    longest = model.get("max_input_chars_per_word", 100)
    if not isinstance(longest, int) or isinstance(longest, bool) or not 0 < longest <= _LONGEST_WORD:
        raise ValueError(
            f"max_input_chars_per_word: got {_shown(longest)}, wanted 1 to {_LONGEST_WORD} (BERT's is 100)"
        )
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, Mapping) and _is_token(token) for token in added):
        raise ValueError(f"added_tokens: got {_shown(added)}, wanted a list of objects with an id and a content")
    for name, (inner, kinds) in _PARTS.items():
        for count, part in enumerate(_parts(content.get(name), name, inner), 1):
            if count > _MOST_STEPS:
                raise ValueError(f"{name}: got more than {_MOST_STEPS} steps, which a text may never get through")
            _check_part(part, name, kinds)


def check_ids(vocabulary: Mapping[str, int]) -> None:
    """Refuse a vocabulary whose ids stand for two tokens, or for rows of a table that cannot be.

    Raises:
        ValueError: names a token.
    """
    owners: dict[int, str] = {}
    for token, index in vocabulary.items():
        if index >= MOST_IDS:
            raise ValueError(f"vocab: got the id {index} of {token!r}, wanted ids below {MOST_IDS}")
        if owners.setdefault(index, token) != token:
            raise ValueError(
                f"vocab: the id {index} is that of {owners[index]!r} and of {token!r}, wanted one of each (a "
                "token that stands twice in a vocab.txt leaves a gap, and the next one gets an id twice)"
            )


def _parts(part: Any, name: str, inner: str) -> Iterator[Mapping[str, Any]]:
    """A part of the pipeline, or those of a sequence of them."""
    if part is None:
        return
    if not isinstance(part, Mapping):
        raise ValueError(f"{name}: got {_shown(part)}, wanted an object")
    if part.get("type") != "Sequence":
        yield part
        return
    members = part.get(inner)
    if not isinstance(members, list):
        raise ValueError(f"{name}: got {_shown(members)}, wanted a list of {inner}")
    for member in members:
        yield from _parts(member, name, inner)


def _check_part(part: Mapping[str, Any], name: str, kinds: list[str]) -> None:
    if part.get("type") not in kinds:
        raise ValueError(f"{name}: got {_shown(part.get('type'))}, wanted one of {', '.join(kinds)}")
    if part["type"] not in ("Replace", "Split"):
        return
    pattern = part.get("pattern")
    text = pattern.get("String") if isinstance(pattern, Mapping) else None
    if not isinstance(text, str) or not text:
        raise ValueError(
            f"{name}: got the pattern {_shown(pattern)}, wanted a text that is not empty: a regular expression may "
            "take forever"
        )
    if part["type"] == "Replace" and len(str(part.get("content"))) > len(text):
        raise ValueError(f"{name}: got a replacement longer than {text!r}, with which a text could grow without end")


def _is_token(token: Mapping[str, Any]) -> bool:
    return isinstance(token.get("content"), str) and isinstance(token.get("id"), int)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
