"""Whether a module is what its class makes of it, so that a fused step may go past it.

People hang things on modules: hooks, adapters, parametrizations, offloading, quantised weights; or put another module
in their place. A fused step reads the weights of several modules and calls none of them, so it is taken only where
nobody could tell: each of them is of the class that belongs there, with the forward of that class, no hook of its own
or global, and plain weights. The look is taken at every call: it costs half a microsecond a module, and nothing goes
stale.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vilt_fast.contracts.exporting import is_exporting

Kind = TypeVar("Kind", bound=type[nn.Module])


class _Kind(NamedTuple):
    forward: Callable[..., Any]  # as it was defined
    children: dict[str, type[nn.Module]]
    settings: Callable[[Any], bool] | None = None  # whether those that no step reads are the usual ones


_kinds: dict[type[nn.Module], _Kind] = {}
_CALL, _CALL_IMPL, _DROP = nn.Module.__call__, nn.Module._call_impl, nn.Dropout.forward
_PLAIN = (nn.Parameter, Tensor)


def skippable(settings: Callable[[Any], bool] | None = None, /, **children: type[nn.Module]) -> Callable[[Kind], Kind]:
    """Class decorator: fused steps may go past a module of this class, which holds these children and no others.

    settings: whether a module is set as those steps take it for.
    """

    def register(kind: Kind) -> Kind:
        _kinds[kind] = _Kind(kind.forward, children, settings)
        return kind

    return register


def _never(*_: Any) -> None:
    """The forward of no class."""


_SETTINGS: dict[type[nn.Module], Callable[[Any], bool] | None] = {
    nn.Linear: None,
    nn.LayerNorm: None,
    nn.Tanh: None,
    nn.Embedding: lambda it: it.max_norm is None,
    nn.Conv2d: lambda it: it.stride == it.kernel_size and (it.padding, it.dilation, it.groups) == ((0, 0), (1, 1), 1),
    nn.GELU: lambda it: it.approximate == "none",
}
for _kind, _settings in _SETTINGS.items():
    # One whose forward was patched before it came here is never skipped.
    _is_patched = _kind.forward.__code__.co_filename != inspect.getfile(_kind)
    _kinds[_kind] = _Kind(_never if _is_patched else _kind.forward, {}, _settings)

# The verdicts of a step that will be computed again, in order; see `remembered`.
_verdicts: ContextVar[tuple[list[bool], Iterator[bool]] | None] = ContextVar("verdicts", default=None)


@contextmanager
def remembered(verdicts: list[bool]) -> Iterator[None]:
    """Note the verdicts inside the block in an empty list; with a list that was noted, give those again.

    For activation checkpointing, whose second run must take the path of the first one, whatever hooks came or went.
    """
    if torch.compiler.is_compiling():  # the compiler runs what it traced the first time
        yield
        return
    token = _verdicts.set((verdicts, iter(tuple(verdicts))))
    try:
        yield
    finally:
        _verdicts.reset(token)


def is_patched(kind: type[nn.Module]) -> bool:
    """Whether a `skippable` class has another forward than it was made with."""
    return kind in _kinds and (kind.forward is not _kinds[kind].forward or kind.__call__ is not _CALL)


def has_own(module: nn.Module, name: str) -> bool:
    """Whether an attribute stands in the place of a method of the module's class."""
    method, found = getattr(type(module), name, None), vars(module)[name]
    if not callable(method):
        return False
    # accelerate leaves the class's own behind, and wraps a model's forward for mixed precision in training.
    found = vars(module).get("_original_forward", found) if name == "forward" else found
    return not (getattr(found, "__func__", None) is method and found.__self__ is module)


def has_usual_settings(module: nn.Module) -> bool:
    """Whether what no fused or frozen step reads of a module of PyTorch's is as usual."""
    settings = _SETTINGS.get(type(module))
    return settings is None or settings(module)


def is_watched() -> bool:
    """Whether something looks at every module that is called, or changes what operations compute (autocast)."""
    return bool(
        (nn.Module.__call__ is not _CALL and not is_exporting())  # which traces calls by its own
        or nn.Module._call_impl is not _CALL_IMPL
        or nn.Dropout.forward is not _DROP
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
        or torch._C._is_any_autocast_enabled()
    )


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` and all below it are what `kind`, a `skippable` class, makes of them, and nobody watches."""
    if torch.compiler.is_compiling():  # which traces no context variables
        return not is_watched() and _looks_as_made(module, kind)
    noted = _verdicts.get()
    if noted is None:
        return not is_watched() and _is_as_made(module, kind)
    verdicts, again = noted
    verdict = next(again, None)
    if verdict is None:
        verdict = not is_watched() and _is_as_made(module, kind)
        verdicts.append(verdict)
    return verdict


def stands_alone(module: nn.Module, kind: type[nn.Module]) -> bool:
    """`is_untouched` of the module, but not of what is below it."""
    return not is_watched() and type(module) is kind and _is_bare(module, _kinds[kind])


def _is_as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    parts = _noted.get(module)
    if parts is not None and type(module) is kind and _are_as_noted(module, parts):
        return True
    if not _looks_as_made(module, kind):
        return False
    _noted[module] = [_note(part, part is module) for part in module.modules()]
    return True


def _looks_as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    if type(module) is not kind or not _is_bare(module, _kinds[kind]):
        return False
    children, wanted = module.__dict__["_modules"], _kinds[kind].children
    # Not by `isdisjoint`, which the compiler does not trace.
    if children.keys() != wanted.keys() or any(name in module.__dict__ for name in wanted):
        return False
    return all(_looks_as_made(children[name], wanted[name]) for name in wanted)


# What a look found as it was made: a second one has only to see that nothing has changed, in half the time.
_noted: WeakKeyDictionary[nn.Module, list[tuple[Any, ...]]] = WeakKeyDictionary()


def _note(part: nn.Module, is_root: bool) -> tuple[Any, ...]:
    # Not the root itself, which must not be kept alive.
    return None if is_root else part, type(part), _kinds[type(part)], dict(part._modules)


def _are_as_noted(root: nn.Module, parts: list[tuple[Any, ...]]) -> bool:
    """Whether the same modules are there, each as it was made."""
    for noted, cls, kind, children in parts:
        part = root if noted is None else noted
        if type(part) is not cls or not _is_bare(part, kind):
            return False
        own = part.__dict__
        if children and (own["_modules"] != children or not children.keys().isdisjoint(own)):
            return False
    return True


def _is_bare(module: nn.Module, kind: _Kind) -> bool:
    """Whether the module has the forward of its class, no hook, plain weights and the usual settings."""
    own = module.__dict__
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return False
    if type(module).forward is not kind.forward or type(module).__call__ is not nn.Module.__call__:
        return False
    if "_call_impl" in own or "_compiled_call_impl" in own or "forward" in own and has_own(module, "forward"):
        return False
    if "weight" in own or "bias" in own or own["_buffers"]:  # something stands in a parameter's place
        return False
    if is_exporting():  # weights are stand-ins; PyTorch's operations, all there are then, know them
        return kind.settings is None or kind.settings(module)
    for parameter in own["_parameters"].values():
        if type(parameter) not in _PLAIN:
            # No fused step does without a LayerNorm's weight or bias; that of a product may lack.
            if parameter is not None or type(module) is nn.LayerNorm:
                return False
    return kind.settings is None or kind.settings(module)
