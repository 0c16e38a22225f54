"""What people call on any model of Hugging Face's, and tools too: it means here what it means there."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from vilt_fast.checkpoints import check_weights
from vilt_fast.configs.checks import LARGEST_SIZE, is_integer, shown
from vilt_fast.layers.attention import PrunableAttention

# Of torch.utils.checkpoint.checkpoint, without the function and its arguments.
_CHECKPOINTING = {*inspect.signature(torch.utils.checkpoint.checkpoint).parameters, "preserve_rng_state"} - {
    *("function", "args", "kwargs")
}


class ParameterMixin(nn.Module):
    """What the parameters are."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters: that of the first one that is floating point."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Of the parameters; where accelerate keeps them elsewhere between calls, the device that it computes on."""
        device = next(self.parameters()).device
        if device.type != "meta":
            return device
        hooks = (getattr(module, "_hf_hook", None) for module in self.modules())
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        return torch.device(next((place for place in places if place is not None), device))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of scalars in the parameters; a tied tensor counts once.

        Args:
            only_trainable: whether to leave out those that want no gradient.
            exclude_embeddings: whether to leave out the weights of every `nn.Embedding`.
        """
        tables = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Embedding)}
        return sum(
            parameter.numel()
            for name, parameter in self.named_parameters()
            if (parameter.requires_grad or not only_trainable) and not (exclude_embeddings and name in tables)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, and of the buffers where these are wanted."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)


class GradientCheckpointingMixin(nn.Module):
    """Whether the modules that have the attribute `gradient_checkpointing` use it."""

    supports_gradient_checkpointing = True

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them.

        Args:
            gradient_checkpointing_kwargs: of `torch.utils.checkpoint.checkpoint`; None: {"use_reentrant": False}.
            every_n_layers, offload: 1 and False; transformers' other values are not supported.

        Raises:
            ValueError: an argument is none of these.
        """
        kwargs = {} if gradient_checkpointing_kwargs is None else gradient_checkpointing_kwargs
        if not isinstance(kwargs, Mapping) or set(kwargs) - _CHECKPOINTING:
            raise ValueError(
                f"gradient_checkpointing_kwargs: got {kwargs!r}, wanted a dictionary of "
                f"torch.utils.checkpoint.checkpoint's arguments: {', '.join(sorted(_CHECKPOINTING))}"
            )
        if every_n_layers != 1 or offload:
            raise ValueError(
                f"got every_n_layers={every_n_layers!r}, offload={offload!r}, wanted 1 and False: every block is "
                "recomputed; torch.autograd.graph.save_on_cpu around the forward call keeps tensors in host memory"
            )
        self._set_gradient_checkpointing(True, {"use_reentrant": False, **kwargs})

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._set_gradient_checkpointing(False, {})

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any module recomputes its activations."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def _set_gradient_checkpointing(self, enable: bool, kwargs: dict[str, Any]) -> None:
        module: Any
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = enable
                module.gradient_checkpointing_kwargs = kwargs


class EmbeddingMixin(nn.Module):
    """The word table, and the decoder that may share it. A base model says where its table is, a head its decoder."""

    config: Any
    base_model_prefix = ""
    # Tied where the configuration says so: name of the one -> name of the other.
    _tied_weights_keys: dict[str, str] | None = None

    @property
    def base_model(self) -> Any:
        """The model below the head; a base model is its own."""
        return getattr(self, self.base_model_prefix, self)

    def get_input_embeddings(self) -> Any:
        """The word table."""
        if self.base_model is self:
            raise NotImplementedError(f"{type(self).__name__} does not say where its input embeddings are")
        return self.base_model.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Put another module in the place of the word table."""
        if self.base_model is self:
            raise NotImplementedError(f"{type(self).__name__} does not say where its input embeddings are")
        self.base_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """The decoder of a masked-word head; None: there is none."""
        return None

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Put another module in the place of the decoder."""
        raise ValueError(f"{type(self).__name__} has no output embeddings")

    def tie_weights(self) -> None:
        """Make the decoder's weight and the word table one parameter, if `config.tie_word_embeddings`."""
        decoder = self.get_output_embeddings()
        if decoder is not None and getattr(self.config, "tie_word_embeddings", False):
            decoder.weight = self.get_input_embeddings().weight

    def untie_weights(self) -> None:
        """Give the decoder a weight of its own, equal to the word table's."""
        decoder = self.get_output_embeddings()
        if decoder is not None and decoder.weight is self.get_input_embeddings().weight:
            decoder.weight = nn.Parameter(decoder.weight.detach().clone(), decoder.weight.requires_grad)

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """The names that `config.tie_word_embeddings` ties: the decoder's -> the word table's."""
        tied = getattr(self.config, "tie_word_embeddings", False)
        return dict(self._tied_weights_keys or {}) if tied else {}

    def enable_input_require_grads(self) -> None:
        """Let the rows of the word table want gradients, for adapters over frozen weights."""
        self.disable_input_require_grads()
        hook = self.get_input_embeddings().register_forward_hook(_require_grads)
        self._require_grads_hook = hook

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        hook = self.__dict__.pop("_require_grads_hook", None)
        if hook is not None:
            hook.remove()

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Give the word table, and a masked-word head's decoder, other numbers of rows; the first ones are kept.

        Args:
            new_num_tokens: how many; None: as many as there are. `config.vocab_size` follows.
            pad_to_multiple_of: the number is rounded up to a multiple of this.
            mean_resizing: True: new rows are the mean of the old ones, as in transformers 5. False: they are drawn as
                fresh weights are, as in 4.37.

        Returns:
            The word table.

        Raises:
            ValueError: a number is not positive or more than memory holds, or the table or the decoder is no plain
                `nn.Embedding`, `nn.Linear`.
        """
        words, decoder = self.get_input_embeddings(), self.get_output_embeddings()
        for module, kind in ((words, nn.Embedding), (decoder, nn.Linear)):
            if module is not None and not (isinstance(module, kind) and type(module.weight) is nn.Parameter):
                raise ValueError(
                    f"wanted an {kind.__name__} with a plain weight to resize, got {type(module).__name__} with "
                    f"{type(getattr(module, 'weight', None)).__name__}: resize before adapters and quantisation"
                )
        rows = _rounded(new_num_tokens, pad_to_multiple_of, words.weight.shape[0])
        if rows == words.weight.shape[0]:
            return words
        tables, width = (1 if decoder is None else 2), words.weight.shape[1]
        check_weights(tables * rows * width, f"new_num_tokens: a table of {rows} words, {width} wide,")
        tied = decoder is not None and decoder.weight is words.weight
        self._resize(words, nn.Embedding(rows, words.weight.shape[1]), mean_resizing)
        words.num_embeddings = rows
        config = own_config(self)
        if words.padding_idx is not None and words.padding_idx >= rows:
            words.padding_idx = config.pad_token_id = None
        if decoder is not None:
            self._resize(decoder, nn.Linear(decoder.in_features, rows, bias=decoder.bias is not None), mean_resizing)
            decoder.out_features = rows
            decoder.weight = words.weight if tied else decoder.weight
        config.vocab_size = self.vocab_size = rows
        return words

    @torch.no_grad()
    def _resize(self, module: Any, fresh: nn.Module, mean: bool) -> None:
        """Give a module the parameters of a fresh one, which take over the rows that both have."""
        self._init_weights(fresh)
        for name, old in module.named_parameters(recurse=False):
            new: Tensor = getattr(fresh, name).to(old)
            kept = min(len(old), len(new))
            if mean and old.ndim == 2:  # new biases are zero all the same
                new[kept:] = old.float().mean(0)
            new[:kept] = old[:kept]
            setattr(module, name, nn.Parameter(new, old.requires_grad))

    def _init_weights(self, module: nn.Module) -> None:
        raise NotImplementedError


class HeadPruningMixin(nn.Module):
    """Attention heads taken out, and their work with them (Michel et al. 2019)."""

    config: Any
    base_model: Any

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Take heads out for good; `config.pruned_heads` says which, and files made from here on lack them.

        Args:
            heads_to_prune: block -> heads, by the numbers that they had in the whole model. One that is gone already
                is passed over.

        Raises:
            ValueError: there is no such block or head, a block would be left without one, or a projection is not as
                the model made it; nothing is changed then.
        """
        blocks, count = self.base_model.encoder.layer, self.config.num_attention_heads
        asked = _whole_numbers(heads_to_prune)
        gone = {index: {*self.config.pruned_heads.get(index, ()), *heads} for index, heads in asked.items()}
        for index, heads in gone.items():
            if index not in range(len(blocks)):
                raise ValueError(f"heads_to_prune: got block {index!r}, wanted 0..{len(blocks) - 1}")
            wrong = [head for head in heads if head not in range(count)]
            if wrong or len(heads) == count:
                got = f"head {wrong[0]!r}, wanted 0..{count - 1}" if wrong else "all heads, wanted one at least to stay"
                raise ValueError(f"heads_to_prune: block {index}: got {got}")
            if not isinstance(blocks[index].attention, PrunableAttention):
                raise ValueError(f"heads_to_prune: block {index} has an attention of another class")
            blocks[index].attention.check_prunable()
        if gone:
            own_config(self).pruned_heads.update({index: sorted(heads) for index, heads in gone.items()})
        for index, heads in gone.items():
            blocks[index].attention.prune_heads(heads)


def own_config(model: Any) -> Any:
    """The configuration of a model and of its parts, which no other model shares from here on."""
    before, after = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is before:
            module.config = after
    return after


def _whole_numbers(heads_to_prune: Any) -> dict[int, list[int]]:
    """The argument of `prune_heads`, of Python's integers: those of NumPy and tensors are taken too."""
    try:
        if not isinstance(heads_to_prune, Mapping):
            raise TypeError
        found = {key: [*heads] for key, heads in heads_to_prune.items()}
        if any(isinstance(number, bool) for number in (*found, *(head for heads in found.values() for head in heads))):
            raise TypeError
        return {operator.index(key): [operator.index(head) for head in heads] for key, heads in found.items()}
    except TypeError:
        raise ValueError(f"heads_to_prune: got {heads_to_prune!r}, wanted {{block: [head, ...]}}") from None


def _rounded(rows: int | None, multiple: int | None, held: int) -> int:
    for name, value in (("new_num_tokens", rows), ("pad_to_multiple_of", multiple)):
        if value is not None and not is_integer(value, 1):
            raise ValueError(f"{name}: got {shown(value)}, wanted a positive integer up to {LARGEST_SIZE}")
    rows = held if rows is None else rows
    return rows if multiple is None else -(-rows // multiple) * multiple


def _require_grads(module: nn.Module, args: Any, rows: Tensor) -> None:
    rows.requires_grad_(True)
