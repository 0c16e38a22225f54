"""The arguments of a tokenizer call: what may be tokenized, how long rows become, and how they are padded."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding

# First what False or None means, then what True means.
PADDING = ("do_not_pad", "longest", "max_length")
TRUNCATION = ("do_not_truncate", "longest_first", "only_first", "only_second")
# A model_max_length above it means "no limit", as in Hugging Face.
_NO_LIMIT = int(1e20)
# ViLT's rows have 40 tokens.
_LONGEST_ROW = 100_000
# A tokenizer takes 400 bytes for each character, whether the row is cut afterwards or not.
_LONGEST_TEXT = 1_000_000
_WANTED_TEXT = "a string, or a list of strings (or of pairs of strings)"
_WANTED_WORDS = "a list of words, or a list of lists of words (is_split_into_words=True)"


class Strategy(NamedTuple):
    """How long the rows of one call become."""

    padding: str  # one of PADDING
    truncation: str  # one of TRUNCATION
    max_length: int  # tokens; 0 where neither needs it
    stride: int = 0  # tokens that an overflowing row repeats
    multiple: int | None = None  # of which padded rows are
    side: str = "right"  # where padding goes


def choose_strategy(
    padding: Any, truncation: Any, max_length: int | None, model_max_length: int, verbose: bool = True
) -> Strategy:
    """Turn the arguments of a call, or raise, into one `Strategy`, with Hugging Face's defaults and warnings."""
    if max_length is not None and (not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1):
        raise ValueError(f"max_length: got {max_length!r}, wanted a positive number of tokens")
    if max_length is not None and padding in (None, False) and truncation is None:
        truncation = "longest_first"  # max_length alone truncates, as it always did
        _warn(verbose, "max_length is given without truncation: truncation=True is assumed")
    pad, cut = _one_of("padding", padding, PADDING), _one_of("truncation", truncation, TRUNCATION)
    if max_length is not None and padding is True and cut == "do_not_truncate":
        _warn(verbose, 'max_length is ignored with padding=True and no truncation; to pad to it, padding="max_length"')
    if max_length is None and (cut != "do_not_truncate" or pad == "max_length"):
        if model_max_length <= _NO_LIMIT:
            return Strategy(pad, cut, model_max_length)
        advice = "without max_length and for a model without a maximum length does nothing"
        if cut != "do_not_truncate":
            _warn(verbose, f"truncation={truncation!r} {advice}")
        if pad == "max_length":
            _warn(verbose, f"padding={padding!r} {advice}")
        return Strategy("do_not_pad" if pad == "max_length" else pad, "do_not_truncate", 0)
    return Strategy(pad, cut, max_length or 0)


def _one_of(argument: str, value: Any, names: Sequence[str]) -> str:
    value = getattr(value, "value", value)
    if value is None or isinstance(value, bool):
        return names[1 if value else 0]
    if value not in names:
        raise ValueError(f"{argument}: got {value!r}, wanted True, False or one of {', '.join(names)}")
    return value


def _warn(verbose: bool, message: str) -> None:
    if verbose:
        warnings.warn(message, stacklevel=6)


def check_texts(text: Any, text_pair: Any, is_split_into_words: bool) -> tuple[list[Any], bool]:
    """The rows that the tokenizer's backend takes, and whether the caller gave a batch.

    Raises:
        ValueError: something is no text or longer than a million characters (named by its index), the batch is empty,
            or the pairs are not as many.
    """
    wanted = _WANTED_WORDS if is_split_into_words else _WANTED_TEXT
    if not isinstance(text, list | tuple) and (is_split_into_words or not isinstance(text, str)):
        raise ValueError(f"text: got {type(text).__name__}, wanted {wanted}")
    is_batch = not isinstance(text, str)
    if is_split_into_words:
        is_batch = bool(text) and isinstance(text[0], list | tuple)
    if not is_batch:
        # An empty text_pair counts as none, as in Hugging Face.
        return [_check_row(text, text_pair or None, "text", "text_pair", is_split_into_words)], False
    if not text:
        raise ValueError(f"text: got an empty list, wanted {wanted}")
    if text_pair is None:
        return [_check_item(row, f"text[{i}]", is_split_into_words) for i, row in enumerate(text)], True
    if not isinstance(text_pair, list | tuple) or len(text_pair) != len(text):
        got = len(text_pair) if isinstance(text_pair, list | tuple) else type(text_pair).__name__
        raise ValueError(f"text_pair: got {got}, wanted a list of {len(text)}, as many as text")
    return [
        _check_row(first, second, f"text[{i}]", f"text_pair[{i}]", is_split_into_words)
        for i, (first, second) in enumerate(zip(text, text_pair, strict=True))
    ], True


def _check_row(first: Any, second: Any, first_name: str, second_name: str, is_words: bool) -> Any:
    first = _check_text(first, first_name, is_words)
    return first if second is None else (first, _check_text(second, second_name, is_words))


def _check_item(item: Any, name: str, is_words: bool) -> Any:
    """An item of a batch without text_pair: a text, or a pair of texts in itself."""
    is_pair = isinstance(item, list | tuple) and len(item) == 2
    if is_words:
        is_pair = is_pair and all(isinstance(part, list | tuple) for part in item)
    if is_pair:
        return _check_row(item[0], item[1], f"{name}[0]", f"{name}[1]", is_words)
    return _check_text(item, name, is_words)


def _check_text(text: Any, name: str, is_words: bool) -> Any:
    if is_words:
        if not isinstance(text, list | tuple):
            raise ValueError(f"{name}: got {type(text).__name__}, wanted a list of words (is_split_into_words=True)")
        words = [_check_text(word, f"{name}[{i}]", False) for i, word in enumerate(text)]
        _check_length(sum(map(len, words)), name)
        return words
    if not isinstance(text, str):
        raise ValueError(f"{name}: got {type(text).__name__}, wanted a string")
    _check_length(len(text), name)
    check_unicode(text, name)
    return text


def _check_length(length: int, name: str) -> None:
    if length > _LONGEST_TEXT:
        raise ValueError(f"{name}: got {length} characters, wanted at most {_LONGEST_TEXT}: cut the text first")


def check_unicode(text: str, name: str) -> None:
    """Raise ValueError for a string with half of a surrogate pair, which no encoding of Unicode can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: character {error.start} is a lone surrogate, which is no Unicode text: {text[:60]!r}"
        ) from error


def pad_row(row: list[Any], length: int, value: int, side: str) -> list[Any]:
    """The row, with `value` on its right or left side up to `length`; a longer one stays."""
    padding = [value] * (length - len(row))
    return [*row, *padding] if side == "right" else [*padding, *row]


def collate(encoded_inputs: Any) -> dict[str, Any]:
    """Name -> rows, from a dictionary of rows or a list of dictionaries. ValueError where there are no `input_ids`."""
    if isinstance(encoded_inputs, list | tuple):
        keys = encoded_inputs[0].keys() if encoded_inputs else ()
        encoded_inputs = {key: [example[key] for example in encoded_inputs] for key in keys}
    data = dict(encoded_inputs)
    if "input_ids" not in data:
        raise ValueError(f"encoded_inputs: got the keys {list(data)}, wanted input_ids among them")
    return data


def check_side(value: Any, argument: str) -> str:
    """`value` if it is "right" or "left", else ValueError."""
    if value not in ("right", "left"):
        raise ValueError(f'{argument}: got {value!r}, wanted "right" or "left"')
    return value


def check_list(value: Any, argument: str) -> Any:
    """`value` if it is a list of something, else ValueError: a string would count as its letters."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{argument}: got {value!r}, wanted a list")
    return value


def check_limit(value: Any) -> Any:
    """`value` if it can be a `model_max_length`, else ValueError. transformers writes 1e30 for "no limit"."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 1:
        raise ValueError(f"model_max_length: got {value!r}, wanted a positive number of tokens")
    return value


def check_flags(**flags: Any) -> None:
    """Catch what the backend would refuse without saying which argument it means. ValueError names it."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name}: got {value!r}, wanted True or False")


def check_lengths(strategy: Strategy, num_special: int, is_pair: bool) -> None:
    """Catch what the backend would ignore or answer with a panic.

    Raises:
        ValueError: lengths that contradict each other, or leave no room for `num_special` special tokens.
    """
    _, _, max_length, stride, multiple, _ = strategy
    if multiple is not None and (not isinstance(multiple, int) or multiple < 1):
        raise ValueError(f"pad_to_multiple_of: got {multiple!r}, wanted a positive integer")
    if not isinstance(stride, int) or stride < 0:
        raise ValueError(f"stride: got {stride!r}, wanted a number of tokens from 0")
    if strategy.padding == "max_length":
        check_row(max_length, "max_length")
    if strategy.padding != "do_not_pad" and multiple is not None:
        check_row(multiple, "pad_to_multiple_of")
    if strategy.truncation == "do_not_truncate":
        return
    if strategy.padding != "do_not_pad" and multiple is not None and max_length % multiple:
        raise ValueError(f"max_length: got {max_length}, wanted a multiple of pad_to_multiple_of={multiple}")
    room = max_length - num_special
    if room < 0:
        raise ValueError(f"max_length: got {max_length}, wanted room for {num_special} special tokens")
    if is_pair and strategy.truncation == "longest_first":
        room //= 2  # what each of two long texts keeps
    if stride and stride >= room:
        raise ValueError(f"stride: got {stride}, wanted less than the {room} tokens of a text that a row holds")


def check_row(length: int, argument: str) -> None:
    """Refuse to pad rows to a length that no model has: a row of 10**9 tokens takes 50 GB."""
    if length > _LONGEST_ROW:
        raise ValueError(f"{argument}: got {length}, wanted at most {_LONGEST_ROW} tokens to pad a row to")


def to_columns(
    encodings: list[Encoding], wanted: Mapping[str, bool], overflowing: bool
) -> tuple[dict[str, list[Any]], list[Encoding]]:
    """Name -> rows, and the rows' encodings, with each text's overflow behind it."""
    flat = [part for row in encodings for part in ([row, *row.overflowing] if overflowing else [row])]
    columns = {
        "input_ids": lambda row: row.ids,
        "token_type_ids": lambda row: row.type_ids,
        "attention_mask": lambda row: row.attention_mask,
        "special_tokens_mask": lambda row: row.special_tokens_mask,
        "offset_mapping": lambda row: row.offsets,
        "length": lambda row: len(row.ids),
    }
    data = {key: [column(row) for row in flat] for key, column in columns.items() if wanted[key]}
    if overflowing:
        data["overflow_to_sample_mapping"] = [
            index for index, row in enumerate(encodings) for _ in range(1 + len(row.overflowing))
        ]
    return data, flat


def kind_of(value: Any) -> str | None:
    """ "pt" or "np" if the rows are tensors or arrays."""
    first = value[0] if isinstance(value, list | tuple) and value else value
    return "pt" if isinstance(first, torch.Tensor) else "np" if isinstance(first, np.ndarray) else None


def to_lists(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    return [to_lists(row) for row in value] if isinstance(value, list | tuple) else value
