"""Tokens and ids: the part of the tokenizer that looks up, adds and decodes, and knows the special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from .backend import check_ids
from .encoding import check_unicode, to_lists
from .vocabulary import SPECIAL_NAMES, to_added_token

_SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
_EXTRA_NAMES = ("extra_special_tokens", "additional_special_tokens")


def _special_token(name: str) -> Any:
    """A property such as `pad_token`; assigning registers the token, None takes it away."""

    def assign(table: TokenTable, value: Any) -> None:
        if value is None and name != "unk_token":
            table._special.pop(name, None)
        else:
            table.add_special_tokens({name: value})

    return property(lambda table: table.special_tokens_map.get(name), assign)


def _special_token_id(name: str) -> Any:
    """A property such as `pad_token_id`; read-only."""

    def assign(table: TokenTable, value: Any) -> None:
        raise AttributeError(f"{name}_id follows {name}; assign that")

    return property(lambda table: table.convert_tokens_to_ids(getattr(table, name)), assign)


def _extra_tokens(name: str) -> Any:
    """A property that lists the special tokens without a name; read-only."""

    def assign(table: TokenTable, value: Any) -> None:
        raise AttributeError(f"{name}: cannot be assigned; call add_special_tokens({{{name!r}: [...]}})")

    def read(table: TokenTable) -> list[str]:
        return [token.content for token in table._extra] if name == _EXTRA_NAMES[0] else table.extra_special_tokens

    return property(read, assign)


class TokenTable:
    """A `tokenizers.Tokenizer` with BERT's special tokens; the names are Hugging Face's.

    Args:
        backend: the tokenizer; its vocabulary grows where it lacks a special token.
        special: "pad_token", ... -> token.
        extra: more special tokens.
        added: id -> token, as tokenizer_config.json holds it.

    Raises:
        ValueError: an added token would get another id than `added` says.
    """

    unk_token, sep_token, pad_token, cls_token, mask_token = map(_special_token, SPECIAL_NAMES)
    unk_token_id, sep_token_id, pad_token_id, cls_token_id, mask_token_id = map(_special_token_id, SPECIAL_NAMES)
    pad_token_type_id = 0
    clean_up_tokenization_spaces = False

    def __init__(
        self,
        backend: Tokenizer,
        special: Mapping[str, AddedToken],
        extra: Sequence[AddedToken] = (),
        added: Mapping[int | str, Any] | None = None,
    ) -> None:
        self._tokenizer = backend
        self._special = dict(special)
        self._extra = list(extra)
        self._register(added or {})

    def _register(self, added: Mapping[int | str, Any]) -> None:
        """Make the backend match the added and special tokens whole, in the order that gives Hugging Face's ids."""
        known = self._tokenizer.get_added_tokens_decoder()
        for index, value in _by_id(added):
            token = to_added_token(value, f"added_tokens_decoder[{index}]", special=False)
            if known.get(index) != token:
                self._add([token])
            got = self._tokenizer.token_to_id(token.content)
            if got != index:
                raise ValueError(
                    f"added_tokens_decoder: {token.content!r} is given id {index}, but the vocabulary gives it {got}"
                )
        names = self.added_tokens_encoder
        self._add([token for token in [*self._special.values(), *self._extra] if token.content not in names])
        self._update_template()

    def _add(self, tokens: Sequence[AddedToken]) -> int:
        backend = self._tokenizer
        # One by one: their order gives the ids, and the two kinds have a method each.
        count = sum((backend.add_special_tokens if token.special else backend.add_tokens)([token]) for token in tokens)
        if count:  # a new token's id is the number of those before it, which a vocabulary with gaps may have already
            check_ids(backend.get_vocab(with_added_tokens=True))
        return count

    def _update_template(self) -> None:
        """Make the rows `[CLS] text [SEP]` and `[CLS] text [SEP] pair [SEP]`, with type 1 for `pair [SEP]`."""
        if "cls_token" in self._special and "sep_token" in self._special:
            cls, sep = self.cls_token, self.sep_token
            self._tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{cls}:0 $A:0 {sep}:0",
                pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
                special_tokens=[(token, self._tokenizer.token_to_id(token)) for token in (cls, sep)],
            )

    # --- the vocabulary

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer` underneath."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without the tokens appended to it."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        """Size of the vocabulary with the tokens appended to it: what an embedding table must hold."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, appended tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """As `get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> token, for the tokens that are matched whole."""
        return self._tokenizer.get_added_tokens_decoder()

    def get_added_vocab(self) -> dict[str, int]:
        """Token -> id, for the tokens that are matched whole."""
        return {token.content: index for index, token in sorted(self.added_tokens_decoder.items())}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """As `get_added_vocab()`."""
        return self.get_added_vocab()

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens (strings, `AddedToken`s) that the vocabulary lacks; return how many were new.

        Raises:
            ValueError: one is no token.
        """
        tokens = new_tokens if isinstance(new_tokens, list | tuple) else [new_tokens]
        return self._add([to_added_token(token, "new_tokens", special=special_tokens) for token in tokens])

    def add_special_tokens(self, special_tokens_dict: Mapping[str, Any]) -> int:
        """Set special tokens by name ("mask_token", ..., "extra_special_tokens"); return how many were new.

        Raises:
            ValueError: a name is not one of a special token, or a value is no token.
        """
        tokens: list[AddedToken] = []
        special, extra = dict(self._special), list(self._extra)
        for name, value in special_tokens_dict.items():
            if name in _EXTRA_NAMES:
                extra = [to_added_token(token, name) for token in value]
                tokens += extra
            elif name in SPECIAL_NAMES:
                special[name] = to_added_token(value, name)
                tokens.append(special[name])
            else:
                wanted = ", ".join((*SPECIAL_NAMES, *_EXTRA_NAMES))
                raise ValueError(f"special_tokens_dict: got the name {name!r}, wanted {wanted}")
        self._special, self._extra = special, extra
        count = self._add(tokens)
        self._update_template()
        return count

    # --- special tokens

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name -> special token."""
        return {name: self._special[name].content for name in SPECIAL_NAMES if name in self._special}

    # 5.x's name, and transformers 4.37's, which follows a subclass that overrides the first.
    extra_special_tokens, additional_special_tokens = map(_extra_tokens, _EXTRA_NAMES)

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a row of one text (or a pair) gets."""
        return self._tokenizer.num_special_tokens_to_add(pair)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[CLS] A [SEP]`, or `[CLS] A [SEP] B [SEP]`, from ids."""
        row = [self.cls_token_id, *token_ids_0, self.sep_token_id]
        return row if token_ids_1 is None else [*row, *token_ids_1, self.sep_token_id]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for `[CLS] A [SEP]`, 1 for `B [SEP]`."""
        return [0] * (len(token_ids_0) + 2) + ([] if token_ids_1 is None else [1] * (len(token_ids_1) + 1))

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 where a token is special: of a finished row, or of the row that `build_inputs_with_special_tokens` makes.

        Raises:
            ValueError: two rows, which are said to be finished.
        """
        if not already_has_special_tokens:
            pair = [] if token_ids_1 is None else [*[0] * len(token_ids_1), 1]
            return [1, *[0] * len(token_ids_0), 1, *pair]
        if token_ids_1 is not None:
            raise ValueError("token_ids_1: got a second row, wanted None, because the first has its special tokens")
        special = set(self.all_special_ids)
        return [int(index in special) for index in token_ids_0]

    # --- ids to text and back

    def convert_tokens_to_ids(self, tokens: str | Sequence[str] | None) -> Any:
        """The id of a token, or of each token of a list; unknown ones give `unk_token_id`. None stays None.

        Raises:
            ValueError: something is no token.
        """
        if tokens is None:
            return None
        if not isinstance(tokens, str | Iterable) or isinstance(tokens, bytes | bytearray):
            raise ValueError(f"tokens: got {type(tokens).__name__}, wanted a token or a list of tokens")
        if isinstance(tokens, str):
            return self._id_of(tokens)
        return [self._id_of(token) for token in tokens]

    def _id_of(self, token: Any) -> int | None:
        if not isinstance(token, str):
            raise ValueError(f"tokens: got {type(token).__name__} in a list, wanted tokens")
        check_unicode(token, "tokens")
        index = self._tokenizer.token_to_id(token)
        return self._tokenizer.token_to_id(self.unk_token) if index is None else index

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each id of a list; None for an id that no token has.

        Raises:
            ValueError: an id is negative or no integer.
        """
        if isinstance(ids, int):
            return self._tokenizer.id_to_token(_check_rows([ids])[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._tokenizer.id_to_token(index) for index in _check_rows(_to_list(ids)) if index not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens, word pieces without spaces."""
        return self._tokenizer.decoder.decode(list(tokens))

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of a row of ids, or a list of texts for a batch of rows (as in transformers 5.x).

        Args:
            token_ids: an id, a list, array or tensor of ids, a batch of these, or a dictionary with `input_ids`.

        Raises:
            ValueError: an id is negative or no integer.
        """
        if isinstance(token_ids, Mapping):
            token_ids = token_ids["input_ids"]
        rows = _to_list(token_ids)
        if rows and isinstance(rows[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in rows]
        text = self._tokenizer.decode(_check_rows(rows), skip_special_tokens=skip_special_tokens)
        clean = self.clean_up_tokenization_spaces
        if clean if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces:
            for piece in _SPACED:
                text = text.replace(piece, piece.strip())
        return text

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """As `decode`, always a list: a single row gives one text, as in transformers 5.x (4.37: one for each id)."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts


def _by_id(added: Any) -> list[tuple[int, Any]]:
    """The items of `added_tokens_decoder`, in the order of their ids."""
    try:
        return sorted(((int(index), value) for index, value in added.items()), key=lambda item: item[0])
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"added_tokens_decoder: got {str(added)[:100]}, wanted ids and their tokens") from error


def _to_list(ids: Any) -> list[Any]:
    """Arrays, tensors, and lists of them as nested lists; a single id as a list of one."""
    rows = to_lists(ids)
    return rows if isinstance(rows, list) else [rows]


def _check_rows(ids: Sequence[Any]) -> list[int]:
    checked = []
    for position, index in enumerate(ids):
        try:
            number = index.__index__()
        except (AttributeError, TypeError):
            raise ValueError(f"token_ids: got {index!r} at {position}, wanted an integer") from None
        if not 0 <= number < 2**32:
            raise ValueError(f"token_ids: got {number} at {position}, wanted an id from 0")
        checked.append(number)
    return checked
