"""Whether a module is what its class makes of it, so that a fused step may go past it.

People hang things on modules: hooks, adapters, parametrizations, offloading, quantised weights; or put another module
in their place. A fused step reads the weights of several modules and calls none of them, so it is taken only where
nobody could tell: each of them is of the class that belongs there, with the forward of that class, no hook of its own
or global, and plain weights. The look is taken at every call: it costs half a microsecond a module, and nothing goes
stale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

Kind = TypeVar("Kind", bound=type[nn.Module])


class _Kind(NamedTuple):
    forward: Callable[..., Any]  # as it was defined
    children: dict[str, type[nn.Module]]


_kinds: dict[type[nn.Module], _Kind] = {}
_CALL = nn.Module.__call__
_PLAIN = (nn.Parameter, Tensor)


def skippable(**children: type[nn.Module]) -> Callable[[Kind], Kind]:
    """Class decorator: fused steps may go past a module of this class, which holds these children and no others."""

    def register(kind: Kind) -> Kind:
        _kinds[kind] = _Kind(kind.forward, children)
        return kind

    return register


for _kind in (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv2d, nn.Tanh, nn.GELU):
    skippable()(_kind)


def is_watched() -> bool:
    """Whether something looks at every module that is called, or changes what operations compute (autocast)."""
    return bool(
        nn.Module.__call__ is not _CALL
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
        or torch._C._is_any_autocast_enabled()
    )


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` and all below it are what `kind`, a `skippable` class, makes of them, and nobody watches."""
    return not is_watched() and _is_as_made(module, kind)


def stands_alone(module: nn.Module) -> bool:
    """`is_untouched` of a module of whatever `skippable` class, but not of what is below it."""
    kind = _kinds.get(type(module))
    return kind is not None and not is_watched() and _is_bare(module, kind.forward)


def _is_as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    if type(module) is not kind or not _is_bare(module, _kinds[kind].forward):
        return False
    children, wanted = module.__dict__["_modules"], _kinds[kind].children
    if children.keys() != wanted.keys():
        return False
    for name in wanted:  # a loop, and not all(): this runs for every module at every call
        if not _is_as_made(children[name], wanted[name]):
            return False
    return True


def _is_bare(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether the module has the forward of its class, no hook, and plain weights."""
    own = module.__dict__
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return False
    if "forward" in own or "_compiled_call_impl" in own or type(module).forward is not forward:
        return False
    if "weight" in own or "bias" in own:  # something stands before the parameter
        return False
    for parameter in own["_parameters"].values():
        if type(parameter) not in _PLAIN:
            # No fused step does without a LayerNorm's weight or bias; that of a product may lack.
            if parameter is not None or type(module) is nn.LayerNorm:
                return False
    return True
