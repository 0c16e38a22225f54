"""`BertTokenizer`: words -> `input_ids`, `token_type_ids`, `attention_mask`, with Hugging Face's arguments and ids."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Encoding

from vilt_fast.checkpoints.files import naming

from .batch import BatchEncoding, tensor_kind
from .encoding import (
    Strategy,
    check_flags,
    check_lengths,
    check_limit,
    check_list,
    check_row,
    check_side,
    check_texts,
    choose_strategy,
    collate,
    kind_of,
    pad_row,
    to_columns,
    to_lists,
)
from .saving import split_options, write_files
from .tokens import TokenTable
from .vocabulary import SPECIAL_NAMES, check_settings, make_backend, read_saved, saved_files, to_added_token

# Hugging Face's value for "no limit", which it writes into tokenizer_config.json.
UNLIMITED = int(1e30)
_NO_CUT = 2**31 - 1  # the same for the backend, whose integers end


class BertTokenizer(TokenTable):
    """BERT's word pieces on the `tokenizers` library; ids equal those of transformers' BertTokenizer(Fast).

    Args:
        vocab_file: path of a vocab.txt, or the vocabulary itself (token -> id).
        do_lower_case: lower the text; default: what `tokenizer_file` says, else True.
        unk_token, sep_token, pad_token, cls_token, mask_token: the special tokens. All but `unk_token` are appended to
            the vocabulary where it lacks them.
        tokenize_chinese_chars: split CJK characters one by one; default as `do_lower_case`.
        strip_accents: None: if the text is lowered.
        vocab: the vocabulary, as a path or a mapping (transformers 5.x's name).
        tokenizer_file: path of a tokenizer.json, instead of a vocabulary.
        model_max_length: where truncation=True and padding="max_length" end, in tokens; default: nowhere.
        padding_side, truncation_side: "right" (default) or "left".
        clean_up_tokenization_spaces: `decode` joins punctuation and contractions once more.
        extra_special_tokens: more special tokens (`additional_special_tokens` in 4.37).
        added_tokens_decoder: id -> token, as tokenizer_config.json holds it.
        split_special_tokens: treat special tokens in the text as plain text.
        kwargs: other settings from a tokenizer_config.json, kept and saved again. Those that are arguments of a call
            (`padding`, `truncation`, `max_length`, ...) become the defaults of a `ViltProcessor`'s call; a call of the
            tokenizer itself takes its own arguments alone, as in transformers, and warns.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: no or two vocabularies, a vocabulary without `unk_token`, a setting out of range, or one that
            transformers' slow tokenizer had and that is not done here (`never_split`, `do_basic_tokenize=False`).
    """

    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    is_fast = True

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | Mapping[str, int] | None = None,
        do_lower_case: bool | None = None,
        unk_token: str | AddedToken = "[UNK]",
        sep_token: str | AddedToken = "[SEP]",
        pad_token: str | AddedToken = "[PAD]",
        cls_token: str | AddedToken = "[CLS]",
        mask_token: str | AddedToken = "[MASK]",
        tokenize_chinese_chars: bool | None = None,
        strip_accents: bool | None = None,
        *,
        vocab: str | os.PathLike[str] | Mapping[str, int] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        model_max_length: int | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        clean_up_tokenization_spaces: bool = False,
        extra_special_tokens: Sequence[str | AddedToken] | None = None,
        added_tokens_decoder: Mapping[int | str, Any] | None = None,
        split_special_tokens: bool = False,
        **kwargs: Any,
    ) -> None:
        check_settings(kwargs, type(self))
        flags = {
            "do_lower_case": do_lower_case,
            "tokenize_chinese_chars": tokenize_chinese_chars,
            "strip_accents": strip_accents,
        }
        check_flags(
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            split_special_tokens=split_special_tokens,
            **{name: value for name, value in flags.items() if value is not None},
        )
        names = (unk_token, sep_token, pad_token, cls_token, mask_token)
        special = {
            name: to_added_token(value, name)
            for name, value in zip(SPECIAL_NAMES, names, strict=True)
            if value is not None
        }
        extra = _extra_tokens(extra_special_tokens, kwargs.pop("additional_special_tokens", None))
        cleaning = {
            "lowercase": do_lower_case,
            "handle_chinese_chars": tokenize_chinese_chars,
            "strip_accents": strip_accents,
        }
        backend = make_backend(vocab_file, vocab, tokenizer_file, special, cleaning)
        cut, pad = backend.truncation or {}, backend.padding or {}  # of the last call before a tokenizer.json was saved
        self.padding_side = check_side(
            pad.get("direction", "right") if padding_side is None else padding_side, "padding_side"
        )
        self.truncation_side = check_side(
            cut.get("direction", "right") if truncation_side is None else truncation_side, "truncation_side"
        )
        longest = kwargs.pop("max_len", None) if model_max_length is None else model_max_length
        self.model_max_length = UNLIMITED if longest is None else check_limit(longest)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.split_special_tokens = split_special_tokens
        names_of_inputs = check_list(kwargs.pop("model_input_names", self.model_input_names), "model_input_names")
        self.model_input_names = list(names_of_inputs)
        self.name_or_path = kwargs.pop("name_or_path", "")
        self.init_kwargs = kwargs
        self._warned_too_long = self._warned_of_defaults = False
        self._lock = threading.Lock()
        super().__init__(backend, special, extra, added_tokens_decoder)

    def __call__(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[Any] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
    ) -> BatchEncoding:
        """Tokenize a text, a pair, or a batch of either.

        Args:
            text, text_pair: a string or a list of strings; with is_split_into_words, lists of words instead of strings.
            padding: None or False, True or "longest", "max_length".
            truncation: None or False, True or "longest_first", "only_first", "only_second".
            max_length: tokens in a row, special ones included; default: `model_max_length`.
            stride: how many tokens an overflowing row repeats of the row before.
            pad_to_multiple_of: rows are padded to a multiple of it.
            return_tensors: "pt", "np", or None for lists (a single text then has no batch dimension).
            return_overflowing_tokens: what truncation cuts off becomes further rows, and
                `overflow_to_sample_mapping` says whose.

        Returns:
            `input_ids`, `token_type_ids`, `attention_mask` (batch, length) int64, and what else was asked for.

        Raises:
            ValueError: no text, no batch, a text of more than a million characters (also where it would be truncated),
                or an argument out of range; ragged rows that should form a tensor.
        """
        kind = tensor_kind(return_tensors)
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        check_flags(
            add_special_tokens=add_special_tokens, is_split_into_words=is_split_into_words, split_special_tokens=split
        )
        self._warn_of_defaults(verbose, padding=padding, truncation=truncation, max_length=max_length)
        rows, is_batch = check_texts(text, text_pair, is_split_into_words)
        side = self.padding_side if padding_side is None else check_side(padding_side, "padding_side")
        strategy = choose_strategy(padding, truncation, max_length, self.model_max_length, verbose)
        strategy = strategy._replace(stride=stride, multiple=pad_to_multiple_of, side=side)
        is_pair = any(isinstance(row, tuple) for row in rows)
        num_special = self.num_special_tokens_to_add(is_pair) if add_special_tokens else 0
        check_lengths(strategy, num_special, is_pair)
        encodings = self._encode_rows(rows, strategy, split, add_special_tokens, is_split_into_words)
        wanted = {
            "input_ids": True,
            "token_type_ids": self._is_input("token_type_ids", return_token_type_ids),
            "attention_mask": self._is_input("attention_mask", return_attention_mask),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        data, flat = to_columns(encodings, wanted, return_overflowing_tokens)
        self._warn_if_too_long(data["input_ids"], strategy, verbose)
        if not is_batch and kind is None and not return_overflowing_tokens:
            data = {key: value[0] if isinstance(value[0], list) else value for key, value in data.items()}
        return BatchEncoding(data, flat, kind)

    def encode(self, text: str | Sequence[Any], text_pair: str | Sequence[Any] | None = None, **kwargs: Any) -> Any:
        """The `input_ids` of `__call__`, whose other arguments it takes."""
        return self(text, text_pair, **kwargs)["input_ids"]

    def encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:
        """As `__call__` (transformers 4.37's name)."""
        return self(text, text_pair, **kwargs)

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], **kwargs: Any) -> BatchEncoding:
        """As `__call__` with a list of texts or pairs (transformers 4.37's name)."""
        if isinstance(batch_text_or_text_pairs, str):
            raise ValueError("batch_text_or_text_pairs: got one text, wanted a list of texts or pairs")
        return self(list(batch_text_or_text_pairs), **kwargs)

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """The tokens of a text (or a pair), as strings."""
        return self(text, pair, add_special_tokens=add_special_tokens, **kwargs).tokens()

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad rows that were tokenized before: a dictionary of rows, or a list of dictionaries (a data collator's).

        Tensors and arrays come back as such, on the CPU.

        Raises:
            ValueError: there are no `input_ids`, or the values have different numbers of rows.
        """
        data = collate(encoded_inputs)
        kind = tensor_kind(return_tensors) or kind_of(data["input_ids"])
        data = {key: to_lists(value) for key, value in data.items()}
        is_batch = not data["input_ids"] or isinstance(data["input_ids"][0], list)
        batch = data if is_batch else {key: [value] for key, value in data.items()}
        rows = batch["input_ids"]
        for key, value in batch.items():
            if len(value) != len(rows):
                raise ValueError(f"{key}: got {len(value)} rows, wanted {len(rows)}, as many as input_ids")
        if self._is_input("attention_mask", return_attention_mask):
            batch.setdefault("attention_mask", [[1] * len(row) for row in rows])
        strategy = choose_strategy(padding, False, max_length, self.model_max_length, verbose)
        side = self.padding_side if padding_side is None else check_side(padding_side, "padding_side")
        fill = {"input_ids": self._pad_id(), "token_type_ids": 0, "attention_mask": 0, "special_tokens_mask": 1}
        if strategy.padding != "do_not_pad":
            length = strategy.max_length if strategy.padding == "max_length" else max(map(len, rows), default=0)
            multiple = pad_to_multiple_of or 1
            check_row(max(length, multiple), "max_length" if length > multiple else "pad_to_multiple_of")
            length = -(-length // multiple) * multiple
            for key in batch.keys() & fill.keys():
                batch[key] = [pad_row(row, length, fill[key], side) for row in batch[key]]
        return BatchEncoding(batch if is_batch else {key: value[0] for key, value in batch.items()}, tensor_type=kind)

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens of a text fit in `model_max_length`."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """How many tokens of a pair fit in `model_max_length`."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> BertTokenizer:
        """Load what transformers 4.37 (slow and fast), 5.x or this class saved.

        Args:
            pretrained_model_name_or_path: a directory, a hub id, or the path of a vocab.txt or tokenizer.json.
            kwargs: the constructor's arguments, which override the saved ones; revision, cache_dir, token,
                local_files_only as in `find_file`.

        Raises:
            FileNotFoundError: neither a tokenizer.json nor a vocab.txt.
            ValueError: a file is broken, or an argument out of range.
        """
        hub, overrides = split_options(kwargs)
        with naming(pretrained_model_name_or_path):
            saved = read_saved(pretrained_model_name_or_path, **hub)
            return cls(**{**saved, "name_or_path": str(pretrained_model_name_or_path), **overrides})

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write vocab.txt, tokenizer.json, tokenizer_config.json and special_tokens_map.json; return their paths.

        transformers 4.37 and 5.x load the directory. Every file is whole, or the old one stays.

        Raises:
            ValueError: the directory is a file.
            OSError: a file could not be written.
        """
        return write_files(save_directory, self.files_to_save())

    def files_to_save(self, processor_class: str | None = None) -> dict[str, str]:
        """The files of `save_pretrained` (name -> text), for a caller that writes more together with them."""
        return saved_files(self, processor_class)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, special_tokens={self.special_tokens_map})"
        )

    def _is_input(self, name: str, wanted: bool | None) -> bool:
        return name in self.model_input_names if wanted is None else wanted

    def _pad_id(self) -> int:
        if self.pad_token is None:
            raise ValueError("pad_token: got None, wanted a token to pad with; assign tokenizer.pad_token")
        return self.pad_token_id

    def _encode_rows(
        self, rows: list[Any], strategy: Strategy, split_special: bool, add_special: bool, is_pretokenized: bool
    ) -> list[Encoding]:
        backend = self._tokenizer
        with self._lock:  # truncation and padding are state of the backend, and threads share it
            if strategy.truncation == "do_not_truncate":
                backend.no_truncation()
            else:
                backend.enable_truncation(
                    min(strategy.max_length, _NO_CUT),
                    stride=strategy.stride,
                    strategy=strategy.truncation,
                    direction=self.truncation_side,
                )
            if strategy.padding == "do_not_pad":
                backend.no_padding()
            else:
                backend.enable_padding(
                    direction=strategy.side,
                    pad_id=self._pad_id(),
                    pad_token=self.pad_token,
                    length=strategy.max_length if strategy.padding == "max_length" else None,
                    pad_to_multiple_of=strategy.multiple,
                )
            backend.encode_special_tokens = split_special
            try:
                return backend.encode_batch(rows, is_pretokenized, add_special)
            except BaseException as error:
                # A bare Exception where "only_second" cannot cut enough, a panic where a stride does not fit.
                if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                    raise
                cut = f"truncation: got {strategy.truncation!r}"
                cause = cut if isinstance(error, Exception) else f"stride: got {strategy.stride}"
                if not strategy.max_length:
                    cause = "text: cannot be tokenized"
                raise ValueError(f"{cause} with max_length={strategy.max_length}: {error}") from error

    def _warn_of_defaults(self, verbose: bool, **given: Any) -> None:
        """Say once what was given to the constructor and not to this call, which is as in transformers."""
        left = [n for n, value in given.items() if value is None and self.init_kwargs.get(n) is not None]
        if left and verbose and not self._warned_of_defaults:
            self._warned_of_defaults = True
            warnings.warn(
                f"{', '.join(left)}: given to the tokenizer's constructor, where they are defaults of ViltProcessor's "
                "calls; a call of the tokenizer does not read them. Pass them to the call.",
                stacklevel=3,
            )

    def _warn_if_too_long(self, rows: list[list[int]], strategy: Strategy, verbose: bool) -> None:
        longest = max(map(len, rows))
        if not strategy.max_length and longest > self.model_max_length and verbose and not self._warned_too_long:
            self._warned_too_long = True
            warnings.warn(
                f"a text of {longest} tokens is longer than the model's {self.model_max_length}; the model will refuse "
                "it. Pass truncation=True to cut it.",
                stacklevel=3,
            )


def _extra_tokens(newer: Any, older: Any) -> list[AddedToken]:
    """The special tokens without a name of their own, under 5.x's name or 4.37's."""
    name, tokens = ("additional_special_tokens", older) if newer is None else ("extra_special_tokens", newer)
    tokens = tokens.values() if isinstance(tokens, Mapping) else tokens  # 5.x may name them
    return [to_added_token(token, name) for token in check_list(() if tokens is None else tokens, name)]


# transformers has both names; so that either import works.
BertTokenizerFast = BertTokenizer
