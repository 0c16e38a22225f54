"""Arguments of transformers' `from_pretrained` that this package does not need, or does not take: each by its name."""

from __future__ import annotations

from typing import Any

import torch

# What these ask for is so already, or nothing is left that they could change.
_ALREADY_SO = {
    "low_cpu_mem_usage": "a model is held once, and its weights are read one at a time",
    "offload_folder": "nothing is offloaded",
    "offload_state_dict": "weights are read one at a time",
    "resume_download": "the hub's client always resumes",
    "mirror": "HF_ENDPOINT chooses the hub",
    "code_revision": "no code is loaded",
    "tqdm_class": "the hub's client shows the progress",
    "_fast_init": "fresh weights are drawn where the checkpoint has none",
    "_from_auto": "transformers' note to itself",
    "_from_pipeline": "transformers' note to itself",
    "_commit_hash": "transformers' note to itself",
}
_QUANTISED = "load the model, then torchao.quantization.quantize_(model, ...)"
_PARALLEL = "load the model, then torch.distributed.tensor.parallel.parallelize_module or fully_shard"
_KERNELS = "vilt_fast runs its own kernels on a GPU; vilt_fast.backend chooses"
# What these ask for is not done here, and what to do instead. None, False and empty values ask for nothing.
_REFUSED = {
    "trust_remote_code": "no code of a checkpoint runs here: leave it out",
    "load_in_8bit": _QUANTISED,
    "load_in_4bit": _QUANTISED,
    "quantization_config": _QUANTISED,
    "gguf_file": "weights are safetensors, PyTorch's .bin, or the original .ckpt",
    "from_tf": "let transformers 4.37 load it and save it for PyTorch",
    "from_flax": "let transformers 4.37 load it and save it for PyTorch",
    "max_memory": "load on the CPU, then accelerate.dispatch_model(model, accelerate.infer_auto_device_map(...))",
    "offload_buffers": "load on the CPU, then accelerate.cpu_offload(model, offload_buffers=True)",
    "tp_plan": _PARALLEL,
    "tp_size": _PARALLEL,
    "device_mesh": _PARALLEL,
    "distributed_config": _PARALLEL,
    "use_flash_attention_2": "vilt_fast's attention keeps no score matrix either: leave it out",
    "use_kernels": _KERNELS,
    "kernel_config": _KERNELS,
    "allow_all_kernels": _KERNELS,
    "fusion_config": _KERNELS,
    "experts_implementation": "ViLT has no experts",
    "generation_config": "ViLT does not generate",
    "adapter_kwargs": "load the base model, then peft.PeftModel.from_pretrained(model, ...)",
    "adapter_name": "load the base model, then peft.PeftModel.from_pretrained(model, ...)",
    "proxies": "set the environment variable HTTPS_PROXY",
    "disable_mmap": "copy the file to a local disk, or give state_dict=safetensors.torch.load(open(path, 'rb').read())",
}
# All keep the same numbers as the one attention there is.
_ATTENTIONS = (None, "eager", "sdpa")


def take_habits(options: dict[str, Any]) -> None:
    """Remove from `options` what needs nothing done.

    Raises:
        ValueError: an argument asks for what is not done here; the message says what to do instead.
    """
    for name in [name for name in options if name in _REFUSED or name in _ALREADY_SO]:
        value = options.pop(name)
        if name == "adapter_kwargs" and value:  # transformers' AutoModel puts the hub's token there
            value = {key: part for key, part in value.items() if key != "token"}
        # A configuration object has no truth value of its own: it asks for something.
        if name in _REFUSED and value not in (None, False, {}, ()):
            raise ValueError(f"{name}={value!r} is not supported: {_REFUSED[name]}")
    if options.pop("weights_only", True) is False:
        raise ValueError("weights_only=False is not supported: no code of a checkpoint runs here")


def check_attention(implementation: str | None) -> None:
    """Refuse an `attn_implementation` that is not one of those whose numbers vilt_fast's own attention has."""
    if implementation not in _ATTENTIONS:
        raise ValueError(
            f"attn_implementation: got {implementation!r}, wanted 'eager' or 'sdpa', whose numbers vilt_fast's one "
            "attention has, or None. It keeps no score matrix, as flash attention does, unless attentions are asked for"
        )


def single_device(
    device: torch.device | str | None, device_map: torch.device | str | int | dict[str, Any] | None
) -> torch.device | None:
    """The device that `device` or `device_map` means; None: the CPU.

    Raises:
        ValueError: both are given, a map of several devices or of the disk, or no device at all.
    """
    if device_map is None:
        return None if device is None else torch.device(device)
    if device is not None:
        raise ValueError(f"give device or device_map, got both: {device!r} and {device_map!r}")
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    named = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    try:
        places = {place if place == "disk" else torch.device(place) for place in named}
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device_map: got {device_map!r}, wanted a device that is there, such as 'cpu' or 'cuda:0': {reason}"
        ) from error
    if len(places) != 1 or "disk" in places:
        raise ValueError(
            f"device_map: got {device_map!r}, wanted one device. For several, or the disk, load on the CPU, then "
            "accelerate.dispatch_model(model, device_map=...) or accelerate.cpu_offload(model)"
        )
    return torch.device(named[0])
