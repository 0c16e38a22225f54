"""The activations that a configuration can name, as modules; which of them the `linear` operation applies itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast.layers.untouched import skippable

# Applied inside `ops.linear`: Hugging Face's name -> the operation's name.
FUSED = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}
# What a fused one computes where it is called as a module; the reference of `ops.linear` calls the same.
_FUSED_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


def _identity(x: Tensor) -> Tensor:
    return x


def _quick_gelu(x: Tensor) -> Tensor:
    """Hendrycks & Gimpel 2016, section 2."""
    return x * F.sigmoid(1.702 * x)


def _clipped_gelu(x: Tensor) -> Tensor:
    """GELU within [-10, 10] (Wu et al. 2020, section 4.3)."""
    return F.gelu(x).clamp(-10, 10)


def _squared_relu(x: Tensor) -> Tensor:
    """So et al. 2021, section 4."""
    return F.relu(x).square()


def _laplace(x: Tensor, mean: float = 0.707107, deviation: float = 0.282095) -> Tensor:
    """The normal distribution that is nearest to the squared ReLU (Ma et al. 2022, section 3.2)."""
    return 0.5 * (1.0 + torch.erf((x - mean) / (deviation * math.sqrt(2.0))))


def _root_of_softplus(x: Tensor) -> Tensor:
    return F.softplus(x).sqrt()


# Applied after it.
SEPARATE: dict[str, Callable[[Tensor], Tensor]] = {
    "selu": F.selu,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "relu2": _squared_relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "sigmoid": F.sigmoid,
    "hardswish": F.hardswish,
    "sqrtsoftplus": _root_of_softplus,
    "laplace": _laplace,
    "linear": _identity,
    "quick_gelu": _quick_gelu,
    "gelu_10": _clipped_gelu,
}
ACTIVATIONS = (*FUSED, *SEPARATE)
# transformers knows them too; they hold parameters, of which a checkpoint of ViLT has none.
_WITH_PARAMETERS = ("prelu", "xielu")


@skippable()
class Activation(nn.Module):
    """An activation of `ACTIVATIONS`, without parameters or buffers.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, name: str, field: str = "hidden_act") -> None:
        super().__init__()
        self.name = _known(name, field)

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, in the dtype of x."""
        function = _FUSED_FUNCTIONS[FUSED[self.name]] if self.name in FUSED else SEPARATE[self.name]
        return function(x)

    def extra_repr(self) -> str:
        """The name, for `repr`."""
        return repr(self.name)


class FunctionActivation(nn.Module):
    """A user's function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the function gives."""
        return self.function(x)

    def extra_repr(self) -> str:
        """The function's name, for `repr`."""
        return getattr(self.function, "__name__", repr(self.function))


def activation(name: str | Callable[[Tensor], Tensor], field: str = "hidden_act") -> nn.Module:
    """The module of `config.hidden_act`, or of another field.

    Args:
        name: one of `ACTIVATIONS`; or a module, used as it is; or a class of modules, made anew without arguments;
            or a function.
        field: of the configuration, for the message.

    Raises:
        ValueError: an unknown name.
    """
    given = name() if isinstance(name, type) else name
    if isinstance(given, nn.Module):
        return given
    return FunctionActivation(given) if callable(given) else Activation(given, field)


def fused_name(module: nn.Module) -> str | None:
    """What `ops.linear` calls the activation that this module's class computes; None where it has no such epilogue.

    It does not look for hooks: whether the module may be skipped is the caller's question.
    """
    kind = type(module)
    if "forward" in vars(module) or kind not in (Activation, nn.GELU, nn.ReLU, nn.Tanh):
        return None
    if isinstance(module, Activation):
        return FUSED.get(module.name)
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return "relu" if kind is nn.ReLU else "tanh"


def _known(name: str, field: str = "hidden_act") -> str:
    """The name, where it is one of `ACTIVATIONS`."""
    if name in _WITH_PARAMETERS:
        raise ValueError(
            f"hidden_act={name!r} has parameters of its own, of which no checkpoint of this model has weights; "
            f"give a module, or a class of modules for one in each layer (hidden_act=torch.nn.PReLU), or one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    if name not in ACTIVATIONS:
        raise ValueError(f"{field} must be a callable or one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return name
