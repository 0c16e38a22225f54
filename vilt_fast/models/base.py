"""What every model shares: construction, fresh weights, loading and saving."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from vilt_fast import checkpoints
from vilt_fast.checkpoints.hub import HubOptions
from vilt_fast.configs.base import PreTrainedConfig
from vilt_fast.configs.vilt import ViltConfig

Model = TypeVar("Model", bound="PreTrainedModel")


class PreTrainedModel(nn.Module):
    """A model with a configuration, that reads and writes checkpoints. Parameter names are Hugging Face's."""

    config: Any  # an instance of config_class
    config_class: type[PreTrainedConfig] = ViltConfig
    base_model_prefix = "vilt"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ValueError(f"config must be a {self.config_class.__name__}, got {type(config).__name__}")
        self.config = config

    @classmethod
    def from_pretrained(
        cls: type[Model],
        name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        strict: bool = True,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        subfolder: str | None = None,
        **overrides: Any,
    ) -> Model:
        """A model in evaluation mode, with the weights of a directory, a hub id, or one checkpoint file.

        Args:
            name_or_path: a directory that transformers or `save_pretrained` wrote, a hub id, or the original
                repository's `.ckpt`.
            config: in place of the one that lies beside the weights.
            dtype: torch dtype or its name; "auto" takes the one the weights are stored in; None: float32, as in
                transformers 4.37.
            device: where the weights go; None: the CPU.
            strict: True: every weight must fit. False: what is missing or of another shape keeps fresh values and
                what is unexpected is left out, each named in a warning: for fine-tuning.
            revision, cache_dir, token, local_files_only, subfolder: of the hub, see `HubOptions`.
            **overrides: fields of the configuration, or arguments of the class (`add_pooling_layer`).

        Raises:
            FileNotFoundError: nothing is there. ValueError: it is not a checkpoint of this model; names the tensors.
        """
        hub = vars(HubOptions(revision, cache_dir, token, local_files_only, subfolder))
        if "torch_dtype" in overrides:  # the name in transformers 4.37
            dtype = overrides.pop("torch_dtype") if dtype is None else dtype
        if "ignore_mismatched_sizes" in overrides:
            strict = strict and not overrides.pop("ignore_mismatched_sizes")
        # What the constructor takes beside the configuration, such as add_pooling_layer.
        names = overrides.keys() & [*inspect.signature(cls).parameters][1:]
        constructor = {name: overrides.pop(name) for name in names}
        if config is None:
            config = _read_config(cls.config_class, name_or_path, hub, overrides)
        elif overrides:
            raise ValueError(f"give config or fields of it, got both: config and {', '.join(sorted(overrides))}")
        if dtype == "auto":
            dtype = checkpoints.stored_dtype(name_or_path, **hub)
        model = cls(config, **constructor).to(dtype=_as_dtype(dtype))
        checkpoints.load_weights(model, name_or_path, strict=strict, **hub)
        return model.to(device=device).eval()

    def save_pretrained(
        self, directory: str | Path, *, max_shard_size: int | str = "5GB", safe_serialization: bool = True
    ) -> None:
        """Write config.json and the weights; transformers 4.37 and 5.x read them. A failure leaves the old files.

        Args:
            directory: made where it does not exist.
            max_shard_size: bytes, or a text such as "200MB"; larger models are split.
            safe_serialization: safetensors where True, else PyTorch's .bin.
        """
        written = {"architectures": [type(self).__name__], "torch_dtype": str(self.dtype).removeprefix("torch.")}
        checkpoints.save_weights(
            self,
            directory,
            max_shard_size=max_shard_size,
            safe_serialization=safe_serialization,
            companions={"config.json": self.config.to_json_string(**written)},
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of scalars in the parameters; a tied tensor counts once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        module: Any
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = enable

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.gradient_checkpointing_enable(False)

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Fresh weights as the paper and Hugging Face draw them: N(0, initializer_range), zero biases."""
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.normal_(std=std)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(std=std)
                if module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()


def _read_config(
    config_class: type[PreTrainedConfig], name_or_path: str | Path, hub: dict[str, Any], overrides: dict[str, Any]
) -> PreTrainedConfig:
    unknown = sorted(set(overrides) - {*vars(config_class()), "num_labels"})
    if unknown:
        raise TypeError(f"from_pretrained() got unknown arguments: {', '.join(unknown)}")
    if Path(name_or_path).is_file() and Path(name_or_path).suffix != ".ckpt":
        name_or_path = Path(name_or_path).parent
    return config_class.from_pretrained(name_or_path, **hub, **overrides)


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    found = torch.float32 if dtype is None else found
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating-point torch dtype, its name, or 'auto', got {dtype!r}")
    return found
