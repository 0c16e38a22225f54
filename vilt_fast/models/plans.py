"""Planning a batch before its forward call: once for several calls, and outside what torch.compile traces."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from vilt_fast.contracts.exporting import is_exporting
from vilt_fast.models.arguments import Arguments
from vilt_fast.packing import Check, Layout


class PlanMixin(nn.Module):
    """`plan`, of base models; a head plans for the model below it."""

    inputs_class: type[Arguments]

    def plan(self, **arguments: Any) -> Layout:
        """Check a batch and plan it: `model(**arguments, layout=model.plan(**arguments))` reads no value any more.

        Args:
            **arguments: those of `forward`, by name, `labels` too. The outcome of all checks and the lengths are read
                back to the host together, once.

        Returns:
            Where every token of the batch goes. Of a head with several images or choices to a text, of these pairs.

        Raises:
            ValueError: an argument is unknown, missing, of another shape, or holds values that mean nothing.
        """
        names = [*inspect.signature(type(self).forward).parameters][1:]
        unknown = next((name for name in arguments if name not in names or name == "layout"), None)
        if unknown is not None:
            known = ", ".join(name for name in names if name != "layout")
            raise ValueError(f"plan: got {unknown}, wanted arguments of {type(self).__name__}.forward: {known}")
        own = {field.name for field in fields(self.inputs_class)}
        inputs = self.inputs_class(**{name: value for name, value in arguments.items() if name in own})
        with torch.inference_mode(False):  # whose tensors could not be trained with
            return self._plan(inputs, self._labels(arguments))

    def _labels(self, arguments: dict[str, Any]) -> Any:
        """What `_plan` takes as labels, out of the arguments of `forward`."""
        return arguments.get("labels")

    def _plan(self, inputs: Any, labels: Any) -> Layout:
        return self.check(inputs, [])[1]

    def _plan_ahead(self, inputs: Any, labels: Any, *wanted: bool | None) -> Any:
        """The inputs with what `forward` would plan; as they are where only a call further down can tell.

        wanted: `output_attentions`, `output_hidden_states` of the call.
        """
        return replace(inputs, layout=self._plan(inputs, labels))

    def check(self, inputs: Any, checks: list[Check]) -> tuple[Any, Layout]:
        """The batch after its check, and its layout: the one that came with it, or a new one.

        checks: the caller's own conditions on values.
        """
        raise NotImplementedError


def planner(inputs: Arguments) -> Callable[..., Any]:
    """What `forward` passes its inputs through: where torch.compile traces it, they come out with a layout.

    Each `forward` calls it itself: a function between the two would be one more break of the graph.
    """
    if inputs.layout is None and torch.compiler.is_dynamo_compiling() and not is_exporting():
        from vilt_fast.models.untraced import with_layout

        return with_layout
    return _as_they_are


def _as_they_are(model: Any, inputs: Any, *_: Any) -> Any:
    return inputs
