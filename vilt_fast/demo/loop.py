"""The training loop of the small models that ship: steps, checkpoints, resuming; what is learnt is a Task."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vilt_fast.checkpoints.files import listing, write_atomically

from .batches import batches

CHECKPOINT = "checkpoint.pt"
REPORT = "training.json"
# The state of a run: what has a state_dict, and plain values.
_PARTS = ("model", "helpers", "optimizer")
_PROGRESS = ("step", "examples", "round", "batch", "seconds", "curve", "recent")


@dataclasses.dataclass(frozen=True)
class BaseRecipe:
    """What every recipe has: all but the seed that the trained weights depend on.

    shards: parts of a batch whose gradients are computed at once, on one core each.
    bf16: multiply matrices in bfloat16 (autocast); weights, sums and the optimizer stay in float32. `train` switches it
        off on a CPU without bfloat16 instructions, where it is slower.
    """

    steps: int = 13000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    pictures_per_round: int = 6000
    hidden_size: int = 128
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    patch_size: int = 8
    image_size: int = 64
    initializer_range: float = 0.06
    bf16: bool = True
    shards: int = 2

    def sizes(self) -> dict[str, Any]:
        """The fields that a model's configuration has too."""
        return {"intermediate_size": 4 * self.hidden_size, **{name: getattr(self, name) for name in _SIZES}}


_SIZES = "hidden_size num_hidden_layers num_attention_heads image_size patch_size initializer_range".split()


class Outcome(NamedTuple):
    """What a batch came to: the loss to learn from, the logits (B, labels), and the losses to report by name."""

    loss: Tensor
    logits: Tensor
    parts: dict[str, Tensor]


class Task(ABC):
    """What is learnt, and from what."""

    def __init__(self, recipe: Any, processor: Any) -> None:
        self.recipe, self.processor = recipe, processor

    @abstractmethod
    def make_model(self) -> Any:
        """The model with fresh weights from PyTorch's generator."""

    def make_helpers(self) -> nn.ModuleDict:
        """Modules that learn along with the model and are thrown away at the end."""
        return nn.ModuleDict()

    @abstractmethod
    def make_round(self, seed: int, start: int, stop: int, executor: Executor | None) -> list[Any]:
        """Images start..stop-1 of the training split, in groups as `batches` takes them; the executor may make them."""

    @abstractmethod
    def learn(self, model: Any, helpers: nn.ModuleDict, batch: Any) -> Outcome:
        """The losses on a batch, a named tuple of tensors with `answer` (B,); threads may run it at once."""


def prepare_patches(embeddings: Any, config: Any) -> None:
    """Start where small patches learn soon: a projection of unit gain, and positions that are distinct.

    A patch has fewer values than the usual 768 or 3072.
    """
    projection = embeddings.patch_embeddings.projection
    nn.init.normal_(projection.weight, std=projection.weight[0].numel() ** -0.5)
    with torch.no_grad():
        embeddings.position_embeddings[0, 1:] = _waves(config.table_size, config.hidden_size)


def _waves(table_size: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of row and column: neighbours start out similar. (P * Q, width)"""
    wavelengths = torch.logspace(math.log10(3), math.log10(32), width // 4)  # in patches
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in table_size), indexing="ij")
    angles = [2 * math.pi * axis.flatten()[:, None] / wavelengths for axis in (rows, columns)]
    return 0.5 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)


class _Run:
    """A training run: the state that changes from step to step, saved and restored."""

    def __init__(self, task: Task, seed: int, device: torch.device, threads: Executor) -> None:
        self.task, self.recipe = task, task.recipe
        self.seed, self.device, self.threads = seed, device, threads
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = task.make_model()
            self.helpers = task.make_helpers()
        self.model.to(device).train()
        self.helpers.to(device)
        self.parameters = [*self.model.parameters(), *self.helpers.parameters()]
        self.optimizer = _optimizer(self.parameters, self.recipe)
        self.step = self.examples = self.round = self.batch = 0  # batch counts inside the round
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []  # means over 50 steps each
        self.recent: list[dict[str, float]] = []  # the steps since

    def learn(self, batch: Any) -> dict[str, float]:
        """One optimizer step. Returns the losses and the share of correct answers."""
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.recipe, self.step + 1)
        size = -(-len(batch.answer) // self.recipe.shards)
        shards = [type(batch)(*parts) for parts in zip(*(tensor.split(size) for tensor in batch), strict=True)]
        weights = [len(shard.answer) / len(batch.answer) for shard in shards]
        gradients, losses = zip(*self.threads.map(self._gradients, shards), strict=True)

        def mean(parts: Iterable[Any]) -> Any:
            return sum(part * weight for part, weight in zip(parts, weights, strict=True))

        for parameter, *parts in zip(self.parameters, *gradients, strict=True):
            parameter.grad = mean(parts)
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()
        self.step, self.batch, self.examples = self.step + 1, self.batch + 1, self.examples + len(batch.answer)
        return {name: mean(part[name] for part in losses) for name in losses[0]}

    def _gradients(self, shard: Any) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        """The mean loss's gradients over a shard, and its losses. Writes nothing shared: threads may run it at once."""
        shard = type(shard)(*(tensor.to(self.device) for tensor in shard))
        with torch.autocast(self.device.type, torch.bfloat16) if self.recipe.bf16 else nullcontext():
            outcome = self.task.learn(self.model, self.helpers, shard)
        gradients = torch.autograd.grad(outcome.loss, self.parameters)
        accuracy = float((outcome.logits.argmax(-1) == shard.answer).float().mean())
        return gradients, {
            **{name: float(value.detach()) for name, value in outcome.parts.items()},
            "accuracy": accuracy,
        }

    def save(self, directory: Path) -> None:
        """Write a checkpoint and the report, each atomically."""
        given = {"seed": self.seed, "recipe": dataclasses.asdict(self.recipe)}
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        state = {**given, **parts, **{name: getattr(self, name) for name in _PROGRESS}}
        write_atomically(directory / CHECKPOINT, lambda temporary: torch.save(state, temporary))
        report = {
            **given,
            "steps": self.step,
            "examples": self.examples,
            "minutes": round(self.seconds / 60, 1),
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "curve": self.curve,
        }
        write_atomically(directory / REPORT, json.dumps(report, indent=1) + "\n")

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint. ValueError if it is broken, or comes from another recipe or seed."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a damaged file raises anything
            raise _broken(path, error) from error
        absent = sorted({"recipe", "seed", *_PARTS, *_PROGRESS} - set(state if isinstance(state, dict) else ()))
        if absent:
            raise _broken(path, f"it holds no {listing(absent)}")
        for name, wanted in (("recipe", dataclasses.asdict(self.recipe)), ("seed", self.seed)):
            if state[name] != wanted:
                raise ValueError(f"resume: {path} has {name} {state[name]}, wanted {wanted}")
        for name in _PARTS:
            try:
                getattr(self, name).load_state_dict(state[name])
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:  # tensors that do not fit
                raise _broken(path, f"{name}: {error}") from error
        for name in _PROGRESS:
            setattr(self, name, state[name])


def _broken(path: Path, reason: object) -> ValueError:
    lines = str(reason).splitlines() or [type(reason).__name__]  # PyTorch's advice below would run code from the file
    return ValueError(f"resume: {path} is truncated or no checkpoint of a run: {lines[0].split('. Please')[0]}")


def train(
    make_task: Callable[[Any, Path], Task],
    recipe: BaseRecipe,
    output_dir: str | Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
    save_every: int = 250,
    workers: int = 2,
) -> tuple[Any, Any]:
    """Train a model and save it in Hugging Face's format. Returns it, in evaluation mode, and its processor.

    Args:
        make_task: called with the recipe as it runs and the output directory.
        output_dir: gets the model, the processor, `checkpoint.pt` and `training.json` (seed, recipe, time, losses).
        steps: of the optimizer; None for the recipe's.
        minutes: stop after so many, and at least one step, with a checkpoint; None: no limit. `resume` continues from
            there to the same weights.
        seed: of the weights, the images, the questions and their order.
        resume: continue from `checkpoint.pt` if there is one.
        workers: processes that make images; 0 for this one.

    Raises:
        ValueError: a number is out of range, or the checkpoint is broken, or of another recipe or seed.
        OSError: the directory cannot be written; an older checkpoint stays whole.
    """
    recipe = _checked(recipe, steps, minutes, save_every, torch.device(device))
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    task = make_task(recipe, output_dir)
    with _pools(recipe.shards, workers) as (threads, executor):
        run = _Run(task, seed, torch.device(device), threads)
        if resume and (output_dir / CHECKPOINT).exists():
            run.restore(output_dir / CHECKPOINT)
        _train(run, _rounds(run, executor), output_dir, minutes=minutes, save_every=save_every, progress=progress)
    run.model.eval().save_pretrained(output_dir)
    task.processor.save_pretrained(output_dir)
    return run.model, task.processor


def _checked(
    recipe: BaseRecipe, steps: int | None, minutes: float | None, save_every: int, device: torch.device
) -> BaseRecipe:
    """The recipe as it runs here, with the caller's number of steps. ValueError if a number is out of range."""
    recipe = dataclasses.replace(
        recipe, steps=recipe.steps if steps is None else steps, bf16=recipe.bf16 and _multiplies_bf16(device)
    )
    for name, value in (("steps", recipe.steps), ("save_every", save_every)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, wanted a positive integer")
    if minutes is not None and not minutes > 0:  # NaN is not either
        raise ValueError(f"minutes: got {minutes}, wanted a positive number, or None for no limit")
    return recipe


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; a PyTorch that cannot say counts as no."""
    if device.type != "cpu":
        return True
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(value is True for name, value in capabilities.items() if "bf16" in name)


def _train(
    run: _Run, rounds: Iterator[Any], output_dir: Path, *, minutes: float | None, save_every: int, progress: bool
) -> None:
    """Train until the recipe's last step or until the time is up."""
    started = time.monotonic() - run.seconds
    longest = math.inf if minutes is None else run.seconds + 60 * minutes
    with tqdm(total=run.recipe.steps, initial=run.step, disable=not progress, unit="step", desc="training") as bar:
        while run.step < run.recipe.steps and run.seconds <= longest:
            run.recent.append(run.learn(next(rounds)))
            run.seconds = time.monotonic() - started
            bar.update()
            if run.step % 50 == 0:
                _note(run, bar)
            if run.step % save_every == 0:
                run.save(output_dir)
    run.save(output_dir)


@contextmanager
def _pools(shards: int, workers: int) -> Iterator[tuple[Executor, Executor | None]]:
    """Threads, one core per shard (a second level of threads inside every product would only wait), and processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            ThreadPoolExecutor(shards) as threads,
            # Ctrl-C goes to the workers too; this process ends them.
            ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
            if workers
            else nullcontext() as executor,
        ):
            yield threads, executor
    finally:
        torch.set_num_threads(before)


def _rounds(run: _Run, executor: Executor | None) -> Iterator[Any]:
    """Batches from the run's position on, round after round, without end."""
    recipe = run.recipe
    while True:
        start = run.round * recipe.pictures_per_round
        stop = start + recipe.pictures_per_round
        groups = run.task.make_round(run.seed, start, stop, executor)
        generator = torch.Generator().manual_seed((run.seed << 20) + run.round)
        yield from batches(groups, recipe.batch_size, generator, skip=run.batch)
        run.round, run.batch = run.round + 1, 0


def _note(run: _Run, bar: tqdm) -> None:
    recent, run.recent = run.recent, []
    means = {name: round(sum(step[name] for step in recent) / len(recent), 4) for name in recent[0]}
    run.curve.append({"step": run.step, **means})
    bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})


def _optimizer(parameters: list[nn.Parameter], recipe: BaseRecipe) -> torch.optim.AdamW:
    """Weight decay on matrices only, as usual."""
    matrices = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay}
    vectors = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, vectors], lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _learning_rate(recipe: BaseRecipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero at the last step."""
    warmup = min(recipe.warmup_steps, recipe.steps // 10)
    if step <= warmup:
        return recipe.learning_rate * step / warmup
    done = (step - warmup) / (recipe.steps - warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
