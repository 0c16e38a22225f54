"""What the models return: Hugging Face's field names, readable as attributes, as a dict and as a tuple."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from vilt_fast.packing import Layout


@dataclass
class Encoded:
    """A batch after the encoder."""

    layout: Layout
    tokens: Tensor  # (total_tokens, d), or (B, d) where only the first rows were wanted; before the last LayerNorm
    hidden_states: tuple[Tensor, ...] | None  # (B, places, d) each, where they were wanted
    attentions: tuple[Tensor, ...] | None  # (B, heads, places, places) each, where they were wanted


@dataclass(eq=False)
class ModelOutput(Mapping):
    """Base of the outputs: `out.logits`, `out["logits"]`, `out[0]`, `out[:2]`; fields that are None do not count."""

    def __init_subclass__(cls) -> None:
        # Lets torch.compile, torch.export and DataParallel look inside.
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, keys: cls(**dict(zip(keys, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
            flatten_with_keys_fn=lambda output: ([(pytree.MappingKey(k), v) for k, v in output.items()], list(output)),
        )

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())

    def plain_tuple(self) -> tuple[Any, ...]:
        """What `return_dict=False` gives."""
        return self.to_tuple()

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        value = getattr(self, key, None) if key in {f.name for f in fields(self)} else None
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return (f.name for f in fields(self) if getattr(self, f.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(eq=False)
class BaseModelOutputWithPooling(ModelOutput):
    """Of ViltModel. Rows of padding are zero.

    Args:
        last_hidden_state: (B, L + 1 + patches, d): words, CLS of the image, patches in raster order.
        pooler_output: (B, d), tanh of a projection of the first word's row.
        hidden_states: one (B, L + 1 + patches, d) a layer, and the embeddings before them.
        attentions: one (B, heads, L + 1 + patches, L + 1 + patches) a layer.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    def plain_tuple(self) -> tuple[Any, ...]:
        """As in the base class, but the pooler's place is kept where there is none."""
        rest = (value for value in (self.hidden_states, self.attentions) if value is not None)
        return (self.last_hidden_state, self.pooler_output, *rest)


@dataclass(eq=False)
class HeadOutput(ModelOutput):
    """The fields of a head's output; hidden_states and attentions as in BaseModelOutputWithPooling."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Sequence[Tensor | tuple[Tensor, ...]] | None = None
    attentions: Sequence[Tensor | tuple[Tensor, ...]] | None = None


class MaskedLMOutput(HeadOutput):
    """Of ViltForMaskedLM: logits (B, L, vocabulary); zero at masked words."""


class SequenceClassifierOutput(HeadOutput):
    """Of question answering, retrieval and matching: logits (B, labels)."""


class TokenClassifierOutput(HeadOutput):
    """Of ViltForTokenClassification: logits (B, L, labels); zero at masked words."""


class ViltForImagesAndTextClassificationOutput(HeadOutput):
    """Of ViltForImagesAndTextClassification: logits (B, labels); one tuple of states and attentions per image."""

    def plain_tuple(self) -> tuple[Any, ...]:
        """As in the base class, but the places of states and attentions are kept."""
        head = () if self.loss is None else (self.loss,)
        return (*head, self.logits, self.hidden_states, self.attentions)
