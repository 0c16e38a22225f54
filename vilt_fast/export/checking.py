"""A file is run on sizes that its model was not exported with, beside the live model."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vilt_fast.export.axes import Axis
from vilt_fast.export.inputs import make_batch, pick
from vilt_fast.export.program import named_inputs
from vilt_fast.models.base import PreTrainedModel

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]
# Dynamic axes of the batches, in patches where they are multiples of one: the least, and more than the example's.
_TRIALS = (
    dict.fromkeys(("batch", "words", "height", "width", "regions", "choices", "phrases"), 1),
    {"batch": 3, "words": 9, "height": 5, "width": 2, "regions": 11, "choices": 2, "phrases": 3},
)
_TIMED = {"batch": 4, "words": 16, "regions": 36, "choices": 4, "phrases": 8}
_ROUNDS = 5
# The file may be twice as far from the truth as the live model, so three times that from the live model. How far that
# is shows in a few small batches only, and one may by luck be computed well: hence twice as much, and some roundings of
# the largest value. A mask that is lost, or a size that was kept, is off by far more: see the tests.
_TIMES_EAGER, _ROUNDINGS = 6, 16


class Checked(NamedTuple):
    """How a file differs from the live model, where it came nearest to its bound."""

    difference: float
    bound: float


class Speed(NamedTuple):
    """Pairs per second on the same ragged batch, the median of a few calls."""

    timed_sizes: dict[str, int]
    file_pairs_per_s: float
    eager_pairs_per_s: float


@torch.no_grad()
def refuse_non_finite(model: PreTrainedModel, axes: dict[str, Axis]) -> None:
    """Raise ValueError where the live model's own answer is NaN or infinite, with which no file can be compared."""
    for name, values in named_inputs(model, axes)(**make_batch(model, next(_trials(axes)))).items():
        if not values.isfinite().all():
            raise ValueError(
                f"model: its own {name} is NaN or infinite in {str(model.dtype).removeprefix('torch.')}; look at the "
                "weights, or choose float32 or bfloat16, which hold larger numbers than float16"
            )


@torch.no_grad()
def check(run: Run, model: PreTrainedModel, axes: dict[str, Axis]) -> Checked:
    """Compare a file with the live model, whose own error is told by the same in another dtype: float64, or float32.

    Args:
        run: the file.

    Raises:
        ValueError: it does not run, or gives something else.
    """
    eager = named_inputs(model, axes)
    dtype = torch.float32 if model.dtype == torch.float64 else torch.float64
    other = named_inputs(copy.deepcopy(model).to(dtype), axes)
    pairs = []
    for seed, sizes in enumerate(_trials(axes)):
        batch, where = make_batch(model, sizes, seed), ", ".join(f"{name} = {size}" for name, size in sizes.items())
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
        expected, compared = eager(**batch), other(**cast)
        try:
            got = run(batch)
        except Exception as error:
            raise ValueError(f"the file does not run on {where}: {first_line(error)}") from error
        if list(got) != list(expected):
            raise ValueError(f"the file returns {', '.join(got)}, wanted {', '.join(expected)}")
        pairs.append((where, got, expected, compared))
    bounds = {name: _bound([(expected[name], other[name]) for _, _, expected, other in pairs]) for name in expected}
    results = [
        _compare(name, got[name], expected[name], bound, where)
        for where, got, expected, _ in pairs
        for name, bound in bounds.items()
    ]
    return max(results, key=lambda checked: checked.difference / checked.bound)


def _bound(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """How far a file may be from an output, given the live model's and that in the other dtype, batch by batch."""
    dtype = pairs[0][0].dtype
    eps = torch.finfo(dtype).eps
    share = eps / torch.finfo(torch.float32).eps if dtype == torch.float64 else 1.0  # of what float32 loses
    wide = [(_without_least(expected).double(), _without_least(other).double()) for expected, other in pairs]
    own_error = max((expected - other).abs().max().item() for expected, other in wide) * share
    scale = max(1.0, *(expected.abs().max().item() for expected, _ in wide))
    return _TIMES_EAGER * own_error + _ROUNDINGS * eps * scale


def first_line(error: Exception) -> str:
    """What a runtime says, without the pages that may follow."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _trials(axes: Mapping[str, Axis]) -> Iterator[dict[str, int]]:
    seen = []
    for wanted in _TRIALS:
        sizes = pick(axes, wanted)
        if sizes not in seen:
            yield sizes
        seen.append(sizes)


def _compare(name: str, got: Tensor, expected: Tensor, bound: float, where: str) -> Checked:
    """The largest difference; raises ValueError where it is more than its bound."""
    got = got.to(expected.device)
    if (got.shape, got.dtype) != (expected.shape, expected.dtype):
        raise ValueError(
            f"on {where}, {name} of the file is {tuple(got.shape)} {got.dtype}, wanted {tuple(expected.shape)} "
            f"{expected.dtype}"
        )
    difference = (_without_least(got).double() - _without_least(expected).double()).abs().max().item()
    if not difference <= bound:  # NaN, too
        raise ValueError(f"on {where}, {name} of the file is off by {difference:.2g}, wanted at most {bound:.2g}")
    return Checked(difference, bound)


def _without_least(values: Tensor) -> Tensor:
    """Zero for the least number of the dtype, which stands at masked regions and is another in each dtype."""
    return values.masked_fill(values == torch.finfo(values.dtype).min, 0)


@torch.no_grad()
def measure(run: Run, model: PreTrainedModel, axes: dict[str, Axis]) -> Speed:
    """Time a file beside the live model, in turns, on images as large as the position table."""
    rows, columns = getattr(model.config, "table_size", (1, 1))
    sizes = pick(axes, {**_TIMED, "height": rows, "width": columns})
    eager, batch = named_inputs(model, axes), make_batch(model, sizes)
    times: dict[str, list[float]] = {"file": [], "eager": []}
    for _ in range(_ROUNDS):
        for name, call in (("file", lambda: run(batch)), ("eager", lambda: eager(**batch))):
            start = time.perf_counter()
            call()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            times[name].append(time.perf_counter() - start)
    pairs = sizes["batch"] * sizes.get("choices", 1)
    file, eager_s = (statistics.median(times[name][1:]) for name in ("file", "eager"))  # the first call warms up
    return Speed(sizes, pairs / file, pairs / eager_s)
