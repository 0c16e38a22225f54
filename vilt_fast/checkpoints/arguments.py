"""Arguments of transformers' `from_pretrained` that this package does not need, or does not take: each by its name."""

from __future__ import annotations

from typing import Any

import torch

from vilt_fast.checkpoints.files import brief

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


def drop_unneeded(options: dict[str, Any]) -> None:
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
        return as_device(device)
    if device is not None:
        raise ValueError(f"give device or device_map, got both: {device!r} and {device_map!r}")
    if isinstance(device_map, str) and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    named = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    places = {place if place == "disk" else _parsed(place, "device_map") for place in named}
    if len(places) != 1 or "disk" in places:
        raise ValueError(
            f"device_map: got {device_map!r}, wanted one device. For several, or the disk, load on the CPU, then "
            "accelerate.dispatch_model(model, device_map=...) or accelerate.cpu_offload(model)"
        )
    return as_device(named[0], "device_map")


def as_device(device: Any, name: str = "device") -> torch.device | None:
    """A device that is there, of what a caller may say of one: a torch.device, its name, an accelerator's number.

    Args:
        device: None stays None.
        name: of the argument.

    Raises:
        ValueError: it is no device, or this machine has no such one; the message names those that it has.
    """
    if device is None:
        return None
    found = _parsed(device, name)
    try:
        torch.empty(0, device=found)
    except Exception as error:  # each backend has its own kinds
        raise _no_device(device, name, str(error) or type(error).__name__) from error
    return found


def _parsed(device: Any, name: str) -> torch.device:
    """What is said, whether it is there or not."""
    if not isinstance(device, str | torch.device | int) or isinstance(device, bool):
        raise _no_device(device, name, f"a {type(device).__name__} names none")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError, AssertionError) as error:
        raise _no_device(device, name, str(error)) from error


def _no_device(device: Any, name: str, reason: str) -> ValueError:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = 0 if accelerator is None else torch.accelerator.device_count()
    there = ", ".join(["'cpu'", *(f"'{accelerator}:{index}'" for index in range(count))])
    return ValueError(
        f"{name}: got {brief(device)}, wanted a device that is there, such as {there}: {reason.splitlines()[0]}"
    )
