"""What the processors return: a dictionary of model inputs with attribute access."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from vilt_fast.pixels import PackedPixels

Feature = TypeVar("Feature", bound="BatchFeature")


def tensor_kind(return_tensors: Any) -> str | None:
    """Check `return_tensors` and return "pt", "np" or None; an enum with such a value is accepted.

    Raises:
        ValueError: any other value.
    """
    kind = getattr(return_tensors, "value", return_tensors)
    if kind not in (None, "pt", "np"):
        raise ValueError(f'return_tensors: got {return_tensors!r}, wanted "pt", "np" or None')
    return kind


class BatchFeature(UserDict):
    """A dictionary of model inputs whose keys are attributes too.

    Args:
        data: name -> list, array or tensor.
        tensor_type: "pt" or "np" turns the values into tensors or arrays; None leaves them.

    Raises:
        ValueError: the rows of a value differ in shape, so that no tensor holds them.
    """

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None) -> None:
        super().__init__(data)
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        # "data" itself is missing while an instance is being unpickled or copied.
        if name == "data" or name not in self.data:
            raise AttributeError(f"{type(self).__name__} has no attribute or key {name!r}")
        return self.data[name]

    def convert_to_tensors(self: Feature, tensor_type: str | None = None) -> Feature:
        """Turn the values into tensors ("pt") or arrays ("np") in place, and return self.

        Raises:
            ValueError: the rows of a value differ in shape.
        """
        kind = tensor_kind(tensor_type)
        if kind is not None:
            self.data = {key: _to_tensor(key, value, kind) for key, value in self.data.items()}
        return self

    def to(
        self: Feature,
        device: str | int | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> Feature:
        """Move every tensor to `device` and cast the floating ones to `dtype`, in place; return self.

        Ids, masks and packed images keep their integer dtype. As in `torch.Tensor.to`, a dtype may come first.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for key, value in self.data.items():
            if isinstance(value, torch.Tensor):
                target = dtype if value.is_floating_point() else None
                self.data[key] = value.to(device=device, dtype=target, non_blocking=non_blocking)
            elif isinstance(value, PackedPixels) and device is not None:
                self.data[key] = value.to(device, non_blocking)
        return self


class BatchEncoding(BatchFeature):
    """A `BatchFeature` that also keeps the tokenizer's own `Encoding` of every row (words, characters, offsets).

    An integer index gives the `tokenizers.Encoding` of that row, a slice the part of every value.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encoding: Any = None,
        tensor_type: str | None = None,
    ) -> None:
        self._encodings = None if encoding is None else list(encoding) if _is_sequence(encoding) else [encoding]
        super().__init__(data, tensor_type)

    def __getitem__(self, item: str | int | slice) -> Any:
        if isinstance(item, str):
            return self.data[item]
        if isinstance(item, slice):
            return {key: value[item] for key, value in self.data.items()}
        return self._rows()[item]

    @property
    def encodings(self) -> list[Any] | None:
        """The `tokenizers.Encoding` of every row, or None where the rows were not made by a tokenizer."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether `encodings` are at hand."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs, None where unknown."""
        return self._encodings[0].n_sequences if self._encodings else None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of one row, padding included."""
        return self._rows()[batch_index].tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For every token of one row the index of its word; None for special tokens."""
        return self._rows()[batch_index].word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For every token of one row 0 (text) or 1 (text_pair); None for special tokens."""
        return self._rows()[batch_index].sequence_ids

    def char_to_token(self, batch_index: int, char_index: int | None = None, sequence_index: int = 0) -> int | None:
        """The token that covers a character; with one argument the row is 0."""
        row, char = (0, batch_index) if char_index is None else (batch_index, char_index)
        return self._rows()[row].char_to_token(char, sequence_index)

    def token_to_chars(self, batch_index: int, token_index: int | None = None) -> tuple[int, int] | None:
        """The characters (start, end) that a token covers; with one argument the row is 0."""
        row, token = (0, batch_index) if token_index is None else (batch_index, token_index)
        return self._rows()[row].token_to_chars(token)

    def _rows(self) -> list[Any]:
        if self._encodings is None:
            raise ValueError("encodings: these inputs carry none, because no tokenizer made them")
        return self._encodings


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _to_tensor(key: str, value: Any, kind: str) -> Any:
    """One value as a tensor or an array; what is no sequence of numbers (a string, None, ...) stays."""
    if not (_is_sequence(value) or isinstance(value, np.ndarray | torch.Tensor)):
        return value
    try:
        if kind == "np":
            array = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            if array.dtype == object:
                raise ValueError("rows differ in length")
            return array.astype(np.int64) if array.size == 0 else array
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, np.ndarray) or (value and isinstance(value[0], np.ndarray)):
            return torch.from_numpy(np.asarray(value))
        if value and isinstance(value[0], torch.Tensor):
            return torch.stack(list(value))
        tensor = torch.tensor(value)
        return tensor.long() if tensor.numel() == 0 else tensor
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(_ragged_message(key, value)) from error


def _ragged_message(key: str, value: Any) -> str:
    rows = [row for row in value if hasattr(row, "__len__")]
    shapes = sorted({tuple(row.shape) if hasattr(row, "shape") else (len(row),) for row in rows})
    got = f"rows of shapes {', '.join(map(str, shapes[:4]))}" if len(shapes) > 1 else "values that form no tensor"
    advice = "do_pad=True" if key.startswith("pixel") else "padding=True (and truncation=True with max_length)"
    return f"{key}: got {got}; pass {advice}, or return_tensors=None for lists"
