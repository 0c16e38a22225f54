"""What the models return: Hugging Face's field names, readable as attributes, as a dict and as a tuple."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
class ModelOutput(OrderedDict[str, Any]):
    """Base of the outputs: `out.logits`, `out["logits"]`, `out[0]`, `out[:2]`; fields that are None do not count.

    Made of keywords, of a mapping, or of (name, value) pairs. A field is changed by `out.logits = x` or
    `out["logits"] = x`, and taken out by `out.logits = None`; the order is always that of the fields.

    `out["other"] = x` adds a name behind them.

    Raises:
        ValueError: a key that is no name; an iterator of something else than pairs.
        TypeError: from the other methods that change a dict.
    """

    def __init_subclass__(cls) -> None:
        # Lets torch.compile, torch.export and DistributedDataParallel look inside.
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, keys: cls._of(zip(keys, values, strict=True)),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
            flatten_with_keys_fn=lambda output: ([(pytree.MappingKey(k), v) for k, v in output.items()], list(output)),
        )

    def __post_init__(self) -> None:
        if len(self) != 1:
            return
        first = next(iter(self.__dataclass_fields__))
        pairs = _pairs(getattr(self, first))
        if pairs is not None:
            setattr(self, first, None)
            for name, value in pairs:
                self[name] = value

    @classmethod
    def _of(cls, pairs: Iterable[tuple[str, Any]]) -> ModelOutput:
        """An output with these values, which may be anything: a mapping in the first field, too."""
        output = cls()
        for name, value in pairs:
            output[name] = value
        return output

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())

    def plain_tuple(self) -> tuple[Any, ...]:
        """What `return_dict=False` gives."""
        return self.to_tuple()

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str):
            raise ValueError(f"the keys of a {type(self).__name__} are names, got {name!r}")
        setattr(self, name, value)
        if name not in self.__dataclass_fields__ and value is not None:
            super().__setitem__(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if value is None:
            if name in self:
                super().__delitem__(name)
        elif name in self:
            super().__setitem__(name, value)  # in its place, so that a loop over the fields may change them
        elif name in self.__dataclass_fields__:
            self._insert(name, value)

    def _insert(self, name: str, value: Any) -> None:
        later: list[tuple[str, Any]] = []
        if self:
            names = list(self.__dataclass_fields__)
            later = [(key, held) for key, held in self.items() if key not in names[: names.index(name)]]
        for key, _ in later:
            super().__delitem__(key)
        super().__setitem__(name, value)
        for key, held in later:
            super().__setitem__(key, held)

    def __delattr__(self, name: str) -> None:
        if name in self.__dataclass_fields__:
            self._refuse()
        super().__delattr__(name)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"the fields of a {type(self).__name__} stay; set one to None, or change a copy: dict(output)")

    __delitem__ = pop = popitem = clear = update = setdefault = move_to_end = __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        own = {name: value for name, value in vars(self).items() if name not in self.__dataclass_fields__}
        return type(self), (), own or None, None, iter(self.items())


def _pairs(value: Any) -> list[tuple[str, Any]] | None:
    """The (name, value) pairs of a mapping, an iterator or a sequence of pairs; None where it is a field's value."""
    if value is None or isinstance(value, Tensor):
        return None
    if isinstance(value, Mapping):
        return list(value.items())
    if not isinstance(value, (list, tuple, ItemsView, Iterator)):
        return None
    pairs = list(value)
    if all(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        return pairs
    if isinstance(value, Iterator):
        raise ValueError(f"an output can be made of (name, value) pairs, got an iterator of {pairs[0]!r}")
    return None


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


class ViTModelOutput(BaseModelOutputWithPooling):
    """Of ViTModel: rows are the CLS, then the patches in raster order. Rows of padding are zero."""

    def plain_tuple(self) -> tuple[Any, ...]:
        """What `return_dict=False` gives: without a pooler its place is not kept, unlike ViltModel's."""
        return self.to_tuple()


class ImageClassifierOutput(HeadOutput):
    """Of ViTForImageClassification: logits (B, labels)."""


@dataclass(eq=False)
class MaskedImageModelingOutput(ModelOutput):
    """Of ViTForMaskedImageModeling: hidden_states and attentions as in BaseModelOutputWithPooling.

    Args:
        loss: where `bool_masked_pos` was given.
        reconstruction: (B, C, GH * encoder_stride, GW * encoder_stride); zero where no patch stood.
    """

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def logits(self) -> Tensor | None:
        """The name that `reconstruction` had before transformers 4.26."""
        return self.reconstruction


class MultipleChoiceModelOutput(HeadOutput):
    """Of VisualBertForMultipleChoice: logits (B, choices)."""


@dataclass(eq=False)
class VisualBertForPreTrainingOutput(ModelOutput):
    """Of VisualBertForPreTraining: hidden_states and attentions as in BaseModelOutputWithPooling.

    Args:
        loss: where labels were given.
        prediction_logits: (B, L + V, vocabulary); zero at masked words and regions.
        seq_relationship_logits: (B, 2): of text and image that belong together, and that do not.
    """

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
