"""Our model and transformers', side by side: built with the same weights, run on the same batch, compared.

transformers returns the patches of its largest images shuffled, and random rows where an image is padded. So only real
rows are read, in raster order.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

import vilt_fast

_spec = importlib.util.spec_from_file_location("vilt_oracle", Path(__file__).parents[1] / "models" / "oracle.py")
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)

TOLERANCE = 1e-5  # of the largest magnitude: fp32, sums of 48 terms in another order, two layers deep

CLASSES = (
    "ViltModel",
    "ViltModel without pooler",
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForImagesAndTextClassification",
    "ViltForImageAndTextRetrieval",
    "ViltForTokenClassification",
)


class Inputs(dict):
    """A ragged batch of three pairs, and which rows of an output (B, S, d) are real."""

    words: Tensor  # (B, L) bool
    real: Tensor  # (B, S) bool

    def but(self, **changes: Any) -> "Inputs":
        """The same batch with other values; None takes an argument out."""
        new = Inputs({name: value for name, value in {**self, **changes}.items() if value is not None})
        new.words, new.real = self.words, self.real
        return new


class Same(NamedTuple):
    ours: Any
    theirs: Any
    inputs: Inputs


def build(name: str, config: dict[str, Any]) -> Same:
    """Both models with the same random weights, loaded through a state_dict, and a batch."""
    name, _, without_pooler = name.partition(" ")
    options = {"add_pooling_layer": False} if without_pooler else {}
    theirs = oracle.randomise(getattr(transformers, name)(transformers.ViltConfig(**config), **options)).eval()
    ours = getattr(vilt_fast, name)(vilt_fast.ViltConfig(**config), **options).eval()
    ours.load_state_dict(theirs.state_dict())
    return Same(ours, theirs, make_inputs(name, theirs.config))


def make_inputs(name: str, config: Any, seed: int = 1, size: int = 3) -> Inputs:
    inputs = Inputs(oracle.inputs_for(name, config, seed=seed, size=size))
    inputs.words = inputs["attention_mask"].bool()
    mask = inputs["pixel_mask"].flatten(0, -3)
    patches = mask[:, :: config.patch_size, :: config.patch_size].flatten(1).sum(1)
    patches = patches.view(size, -1)[:, 0]  # where a text has several images, those of the first
    image = torch.arange(1 + int(patches.max())) <= patches[:, None]
    inputs.real = torch.cat([inputs.words, image], dim=1)
    return inputs


def call(model: Any, inputs: Inputs, **kwargs: Any) -> Any:
    """The output, patches in raster order."""
    with oracle.raster_order():
        return model(**inputs, **kwargs)


def values(output: Any, inputs: Inputs) -> Tensor:
    """(n,): everything that the output says about real rows, other than states and attentions."""
    if "logits" in output:
        logits = output["logits"]
        return (logits if logits.dim() == 2 else logits[inputs.words]).flatten()
    parts = [output["last_hidden_state"][inputs.real]]
    if output.get("pooler_output") is not None:
        parts.append(output["pooler_output"])
    return torch.cat([part.flatten() for part in parts])


def scores(model: Any, inputs: Inputs, **kwargs: Any) -> Tensor:
    """`values` of a call without gradients."""
    with torch.no_grad():
        return values(call(model, inputs, **kwargs), inputs)


def loss_of(output: Any, inputs: Inputs) -> Tensor:
    """A scalar that depends on every real value; any class has it."""
    flat = values(output, inputs)
    weights = torch.arange(1.0, len(flat) + 1, dtype=torch.float64).square().sin()  # torch.func refuses random ones
    return (flat * weights.to(flat)).mean()


def backward(model: Any, inputs: Inputs, **kwargs: Any) -> Tensor:
    """Gradients into the parameters' `.grad`; gives the loss."""
    loss = loss_of(call(model, inputs, **kwargs), inputs)
    loss.backward()
    return loss.detach()


def off(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest magnitude of `wanted`; infinite where shapes differ or values are NaN."""
    if got.shape != wanted.shape or not got.isfinite().all():
        return float("inf")
    if not wanted.numel():
        return 0.0
    return (got - wanted).abs().max().item() / max(wanted.abs().max().item(), 1e-30)


def check(name: str, got: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    share = off(got.detach(), wanted.detach())
    assert share <= tolerance, f"{name}: off by {share:.3g} of the largest magnitude, {tolerance:g} allowed"


def check_same_scores(what: str, same: Any, tolerance: float = TOLERANCE) -> Tensor:
    """Both models give the same values; gives them."""
    ours, theirs, inputs = same
    wanted = scores(theirs, inputs)
    check(what, scores(ours, inputs), wanted, tolerance)
    return wanted


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_tensors(what: str, got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """The same names and the same values; every tensor that differs is named."""
    assert sorted(got) == sorted(wanted), f"{what}: names differ: {sorted(got.keys() ^ wanted.keys())}"
    largest = max(value.abs().max().item() for value in wanted.values())
    wrong = {}
    for name, value in wanted.items():
        # A gradient that is zero in exact arithmetic (of a key's bias, say) is rounding error on both sides, some 1e-7
        # of the largest: a tolerance of 5e-5 of a hundredth lets that pass.
        scale = max(value.abs().max().item(), 1e-2 * largest)
        difference = float("inf") if got[name].shape != value.shape else (got[name] - value).abs().max().item() / scale
        if not difference <= tolerance:
            wrong[name] = f"{difference:.3g}"
    assert not wrong, f"{what}: off by more than {tolerance:g} of the largest magnitude: {wrong}"


def train_steps(model: nn.Module, inputs: Inputs, count: int = 2, lr: float = 0.05) -> list[Tensor]:
    """Losses of `count` steps of SGD on what wants a gradient."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        losses.append(backward(model, inputs))
        optimizer.step()
    return losses


def check_same_training(what: str, same: Any, count: int = 2, tolerance: float = 1e-4) -> None:
    """Both models take the same steps to the same weights."""
    ours, theirs, inputs = same
    ours.train(), theirs.train()
    for step, (got, wanted) in enumerate(zip(*(train_steps(m, inputs, count) for m in (ours, theirs)), strict=True)):
        check(f"{what}: loss of step {step}", got, wanted, tolerance)
    check_tensors(f"{what}: weights", dict(ours.state_dict()), dict(theirs.state_dict()), tolerance)


def shifted(value: Any) -> Any:
    """Every value moved and scaled by its feature alone, so that it does not matter how rows are laid out.

    Of a tuple its first entry, of an output its rows and its pooled row. Attention probabilities (B, heads, S, S) are
    not for this: a constant would also fall on keys of padding.
    """
    if isinstance(value, Tensor):
        dim = 1 if value.dim() == 4 else -1  # maps of a convolution are (B, d, H, W)
        shape = [-1 if i == dim % value.dim() else 1 for i in range(value.dim())]
        return value * 1.3 + torch.linspace(-0.3, 0.4, value.shape[dim], dtype=value.dtype).view(shape)
    if isinstance(value, tuple):
        return (shifted(value[0]), *value[1:])
    for field in ("last_hidden_state", "pooler_output", "logits"):
        if getattr(value, field, None) is not None:
            setattr(value, field, shifted(getattr(value, field)))
    return value


def scaled(value: Any) -> Any:
    """Of a tensor, or of the first entry of a tuple."""
    return (scaled(value[0]), *value[1:]) if isinstance(value, tuple) else value * 0.6


def change_for(name: str) -> Callable[[Any], Any]:
    """How the tests change what the module `name` gives, or takes."""
    return scaled if name.endswith("attention.attention.dropout") else shifted


def called_modules(model: nn.Module) -> list[str]:
    """The names of the modules that a forward pass calls, without the model itself."""
    return [name for name, module in model.named_modules() if name and type(module) is not nn.ModuleList]
