"""What every model shares: construction, fresh weights, loading and saving."""

from __future__ import annotations

import copy
import inspect
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from vilt_fast import checkpoints
from vilt_fast.checkpoints.files import directory_path, naming
from vilt_fast.checkpoints.hub import HubOptions, is_file, local_path
from vilt_fast.configs.base import PreTrainedConfig
from vilt_fast.configs.vilt import ViltConfig
from vilt_fast.models.mixins import EmbeddingMixin, GradientCheckpointingMixin, HeadPruningMixin, ParameterMixin
from vilt_fast.models.plans import PlanMixin

Model = TypeVar("Model", bound="PreTrainedModel")


class PreTrainedModel(EmbeddingMixin, GradientCheckpointingMixin, HeadPruningMixin, ParameterMixin, PlanMixin):
    """A model with a configuration, that reads and writes checkpoints. Parameter names are Hugging Face's."""

    config: Any  # an instance of config_class
    config_class: type[PreTrainedConfig] = ViltConfig
    # The attribute that holds the model below a head. A subclass may use another; checkpoints of either load.
    base_model_prefix = "vilt"
    # What follows is read by accelerate, PEFT, transformers' Trainer and others.
    main_input_name = "input_ids"
    input_modalities: tuple[str, ...] = ("image", "text")
    framework = "pt"
    model_tags: list[str] | None = None
    _no_split_modules = ["ViltEmbeddings", "Layer"]
    _skip_keys_device_placement: list[str] | None = None
    _keep_in_fp32_modules: list[str] | None = None
    _keys_to_ignore_on_load_missing: list[str] | None = None
    _keys_to_ignore_on_load_unexpected: list[str] | None = None

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        wanted, got = self.config_class, type(config)
        if not isinstance(config, wanted):
            is_kin = hasattr(config, "to_dict") and getattr(config, "model_type", None) == wanted.model_type
            advice = f"; {wanted.__name__}.from_dict(config.to_dict()) makes one" if is_kin else ""
            raise ValueError(
                f"config must be a {wanted.__name__} of {wanted.__module__}, got {got.__name__} of {got.__module__}"
                f"{advice}"
            )
        checkpoints.check_weights(config.count_weights(), f"config: a {got.__name__} of these sizes makes a model that")
        self.config = config
        self.name_or_path = config.name_or_path  # where the weights came from; PEFT notes it down
        self.warnings_issued: dict[str, bool] = {}  # trainers keep account here of what they said

    @classmethod
    def from_pretrained(
        cls: type[Model],
        name_or_path: str | Path | None = None,
        *,
        config: PreTrainedConfig | str | Path | dict[str, Any] | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        strict: bool = True,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        subfolder: str | None = None,
        force_download: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        use_safetensors: bool | None = None,
        variant: str | None = None,
        key_mapping: Mapping[str, str] | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        device_map: torch.device | str | int | dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        **overrides: Any,
    ) -> Model:
        """A model in evaluation mode, with the weights of a directory, a hub id, one checkpoint file or a state dict.

        Args:
            name_or_path: a directory that transformers or `save_pretrained` wrote, a hub id, or the original
                repository's `.ckpt`. None: `config` and `state_dict` say all.
            config: in place of the one that lies beside the weights: a configuration, its fields, or where it is. The
                model gets a copy.
            dtype: torch dtype or its name; "auto" takes the one the weights are stored in; None: float32, as in
                transformers 4.37. `torch_dtype` is the same.
            device: where the weights go; None: the CPU.
            strict: True: every weight must fit. False: what is missing or of another shape keeps fresh values and
                what is unexpected is left out, each named in a warning: for fine-tuning.
            revision, cache_dir, token, local_files_only, subfolder, force_download: of the hub, see `HubOptions`.
            state_dict: weights in place of those of `name_or_path`.
            use_safetensors: True: safetensors alone; False: PyTorch's .bin alone.
            variant: "fp16" reads model.fp16.safetensors.
            key_mapping: regular expression -> replacement, for the names of the stored tensors.
            ignore_mismatched_sizes: True means strict=False.
            output_loading_info: True returns (model, {"missing_keys", "unexpected_keys", "mismatched_keys",
                "error_msgs"}): what strict=False, or a head that the model lacks, left out.
            device_map: one device, in any of transformers' spellings; "auto": the accelerator, where there is one.
            attn_implementation: "eager" or "sdpa": the numbers are the same. There is one attention; it runs packed,
                keeps no score matrix, and gives attentions when they are asked for.
            **overrides: fields of the configuration, or arguments of the class (`add_pooling_layer`). transformers'
                other arguments are listed in `vilt_fast.checkpoints.arguments`: accepted where what they ask for is so
                already (`low_cpu_mem_usage`, ...), else refused by name (`quantization_config`, ...).

        Raises:
            FileNotFoundError: nothing is there. ValueError: it is not a checkpoint of this model (names the tensors),
                or an argument cannot be honoured. TypeError: an argument is unknown.
        """
        name_or_path = overrides.pop("pretrained_model_name_or_path", name_or_path)
        auth_token = overrides.pop("use_auth_token", None)  # transformers' name before 4.31
        token = auth_token if token is None else token
        hub = vars(HubOptions(revision, cache_dir, token, local_files_only, subfolder, force_download))
        legacy_dtype = overrides.pop("torch_dtype", None)  # the name in transformers 4.37
        dtype = legacy_dtype if dtype is None else dtype
        checkpoints.drop_unneeded(overrides)
        checkpoints.check_attention(attn_implementation)
        place = checkpoints.single_device(device, device_map)
        # What the constructor takes beside the configuration, such as add_pooling_layer.
        names = overrides.keys() & [*inspect.signature(cls).parameters][1:]
        constructor = {name: overrides.pop(name) for name in names}
        config = _configuration(cls.config_class, config, name_or_path, hub, overrides)
        files = {"use_safetensors": use_safetensors, "variant": variant, **hub}
        strict = strict and not ignore_mismatched_sizes
        with checkpoints.open_source(name_or_path, state_dict, key_mapping, **files) as stored:
            checkpoints.check_sizes(lambda: cls(copy.deepcopy(config), **constructor), config, stored, strict=strict)
            with naming(stored.path):
                model = cls(config, **constructor).to(dtype=stored.dtype() if dtype == "auto" else _as_dtype(dtype))
            info = checkpoints.fill(model, stored, strict=strict)
        model._complete(info["missing_keys"])
        model.name_or_path = config.name_or_path = str(name_or_path or "")
        config._attn_implementation = attn_implementation or config._attn_implementation
        model = model.to(device=place).eval()
        # A tuple, as in transformers, whose annotation does not say so either.
        return cast(Model, (model, info)) if output_loading_info else model

    @classmethod
    def _from_config(
        cls: type[Model],
        config: PreTrainedConfig,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        **constructor: Any,
    ) -> Model:
        """A model with fresh weights: what transformers' `AutoModel.from_config` calls."""
        checkpoints.check_attention(attn_implementation)
        return cls(config, **constructor).to(dtype=_as_dtype(torch_dtype if dtype is None else dtype))

    def save_pretrained(
        self,
        directory: str | Path | None = None,
        *,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        variant: str | None = None,
        is_main_process: bool = True,
        save_function: Callable[[dict[str, Tensor], Path], Any] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        token: str | bool | None = None,
        **options: Any,
    ) -> None:
        """Write config.json and the weights; transformers 4.37 and 5.x read them. A failure leaves the old files.

        Args:
            directory: made where it does not exist; `save_directory` is the same.
            max_shard_size: bytes, or a text such as "200MB"; larger models are split.
            safe_serialization: safetensors where True, else PyTorch's .bin.
            state_dict: what to write in place of the model's own, under its names; a warning names what it lacks.
            variant: "fp16" writes model.fp16.safetensors. All variants share one config.json, which then stays.
            is_main_process: False: nothing is written. Processes whose part of a sharded state dict is empty give it.
            save_function: writes a .bin in place of `torch.save`; safetensors have one writer, as in transformers:
                then it is not called, and a warning says so.
            push_to_hub: whether to upload what was written to `repo_id` (None: the directory's name).
            repo_id, token, options: see `push_to_hub`. save_peft_format, save_original_format are accepted: there are
                no adapters in the model and one format.

        Raises:
            OSError: the files cannot be written. ValueError, TypeError: an argument means nothing here, or what would
                be written could not be read again.
        """
        directory = options.pop("save_directory", directory)
        directory = directory_path(directory)
        for name in ("save_peft_format", "save_original_format"):
            options.pop(name, None)
        if options.pop("distributed_checkpoint", False):
            raise ValueError("distributed_checkpoint=True is not supported: torch.distributed.checkpoint.save does it")
        unknown = sorted(options.keys() - ({*_OF_THE_HUB} if push_to_hub else ()))
        if unknown:
            raise TypeError(f"save_pretrained() got unknown arguments: {', '.join(unknown)}")
        if not is_main_process:
            return
        sizes = {"max_shard_size": max_shard_size, "safe_serialization": safe_serialization, "variant": variant}
        files = self._write(directory, state_dict=state_dict, save_function=save_function, **sizes)
        if push_to_hub:
            self._upload(directory, repo_id or directory.name, files, token=token, **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | None = None,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> Any:
        """Upload what `save_pretrained` writes to a repository on the Hugging Face hub, in one commit.

        Args:
            repo_id: "namespace/name", or "name" in the namespace of the token. It is made where it does not exist.
            commit_message, commit_description, private, token, revision, create_pr: see `checkpoints.push.upload`.
            tags: of the model card, with those of `add_model_tags`.
            max_shard_size, safe_serialization, variant: as in `save_pretrained`.

        Returns:
            huggingface_hub's CommitInfo.
        """
        with tempfile.TemporaryDirectory() as directory:
            sizes = {"max_shard_size": max_shard_size, "safe_serialization": safe_serialization, "variant": variant}
            files = self._write(directory, **sizes)
            return self._upload(
                directory,
                repo_id,
                files,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                tags=tags,
            )

    def _write(self, directory: str | Path, **options: Any) -> list[str]:
        """Weights and config.json into a directory; the names of the files."""
        return checkpoints.save_weights(self, directory, companions={"config.json": self.config_file()}, **options)

    def _upload(
        self, directory: str | Path, repo_id: str, files: list[str], *, tags: Any = None, **options: Any
    ) -> Any:
        tags = [tags] if isinstance(tags, str) else tags or []
        return checkpoints.upload(directory, repo_id, files, tags=[*(self.model_tags or ()), *tags], **options)

    def config_file(self) -> str:
        """The text of the config.json that goes with the weights."""
        written = {"architectures": [type(self).__name__], "torch_dtype": str(self.dtype).removeprefix("torch.")}
        return self.config.to_json_string(**written)

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Remember tags for the model card that `push_to_hub` writes."""
        given = [tags] if isinstance(tags, str) else tags
        self.model_tags = [*dict.fromkeys([*(self.model_tags or ()), *given])]

    @classmethod
    def can_generate(cls) -> bool:
        """No: ViLT writes no text."""
        return False

    @property
    def _keys_to_ignore_on_save(self) -> list[str] | None:
        """Names that checkpoints lack because they are tied."""
        return list(self.all_tied_weights_keys) or None

    def post_init(self) -> None:
        """The last line of a model's `__init__`: fresh weights, tied where the configuration says so."""
        self.init_weights()
        if getattr(self.config, "gradient_checkpointing", False):  # of configurations before transformers 4.17
            self.gradient_checkpointing_enable()

    def init_weights(self) -> None:
        """Draw fresh weights for every module that has not had any, and tie what the configuration ties."""
        for module in self.modules():
            if not module.__dict__.get("_has_weights", False):  # a part may have been loaded before
                self._init_weights(module)
                module._has_weights = True  # type: ignore[assignment]
        self.tie_weights()

    def _complete(self, missing: set[str]) -> None:
        """Give weights that a checkpoint lacked the values that follow from those it had, where any do."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights of one module as the paper and Hugging Face draw them: N(0, initializer_range), zero biases."""
        std = self.config.initializer_range
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


_OF_THE_HUB = ("commit_message", "commit_description", "private", "revision", "create_pr", "tags")


def _configuration(
    config_class: type[PreTrainedConfig],
    config: PreTrainedConfig | str | Path | dict[str, Any] | None,
    name_or_path: str | Path | None,
    hub: dict[str, Any],
    overrides: dict[str, Any],
) -> PreTrainedConfig:
    """The configuration that `config` is or names, else the one beside the weights; `overrides` are fields of it."""
    if config is not None and not isinstance(config, dict | str | os.PathLike):
        unused = {name: value for name, value in overrides.items() if not hasattr(config, name)}
        if overrides and not unused:
            raise ValueError(f"give config or fields of it, got both: config and {', '.join(sorted(overrides))}")
        made = copy.deepcopy(config)
    elif isinstance(config, dict):
        made, unused = cast(Any, config_class.from_dict(config, return_unused_kwargs=True, **overrides))
    elif (source := name_or_path if config is None else config) is not None:
        made, unused = _read_config(config_class, source, return_unused_kwargs=True, **hub, **overrides)
    else:
        raise ValueError("config: got None, and no name_or_path whose configuration it could be")
    if unused:
        raise TypeError(f"from_pretrained() got unknown arguments: {', '.join(sorted(unused))}")
    return made


def _read_config(config_class: type[PreTrainedConfig], source: str | Path, **options: Any) -> Any:
    path = local_path(source)
    if is_file(path) and path.suffix not in (".json", ".ckpt"):
        source = path.parent
    try:
        return config_class.from_pretrained(source, **options)
    except FileNotFoundError as error:
        folder = path / (options["subfolder"] or "")
        if not any(is_file(folder / name) for name in checkpoints.weight_names()):
            raise
        raise FileNotFoundError(
            f"{error}. Give config=, the configuration that the model was made with. (transformers.Trainer saves it "
            "for its own models alone: vilt_fast.TrainerMixin makes it save ours)"
        ) from error


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    found = torch.float32 if dtype is None else found
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating-point torch dtype, its name, or 'auto', got {dtype!r}")
    return found
