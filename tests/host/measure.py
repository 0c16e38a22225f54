"""What the host does for a call, on a machine without a GPU: counts that tests hold, and milliseconds.

    python tests/host/measure.py [--counts] [--out FILE.json]

Needs a process without TRITON_INTERPRET. Kernels are compiled for an sm_90 and not launched (`pretend.py`); tensors are
on the CPU, one thread. A copy to the device is charged at 5 us and the replay of a graph at 20 us. transformers runs
its usual operations on the CPU, on a model of two dozen columns, so that next to nothing but the host's work is timed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pretend
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vilt_fast
from vilt_fast.bench import vit, workloads
from vilt_fast.bench.case import Case, full_config
from vilt_fast.bench.environment import environment
from vilt_fast.engine.feeding import in_order
from vilt_fast.engine.pipeline import Pipeline
from vilt_fast.frozen import planning
from vilt_fast.frozen import vilt as frozen_vilt
from vilt_fast.frozen import visual_bert as frozen_visual_bert
from vilt_fast.frozen import vit as frozen_vit
from vilt_fast.frozen.graphs import Recording
from vilt_fast.frozen.vilt import plan
from vilt_fast.kernels.launch import size_bucket
from vilt_fast.models import checks, image_inputs
from vilt_fast.models import inputs as live_form
from vilt_fast.models.inputs import Inputs

CPU = torch.device("cpu")
COPY_MS, REPLAY_MS = 5e-3, 20e-3
BATCHES = (1, 2, 3, 5, 8, 13, 16, 21)
# Pixels and features are looked through where a CPU computes; the device that this stands for does not.
for form in (frozen_vilt, frozen_vit, live_form, image_inputs):
    form.refuse_non_finite_pixels = lambda *_: None  # type: ignore[attr-defined]
for form in (frozen_visual_bert, checks):
    form.refuse_non_finite_rows = lambda *_: None  # type: ignore[attr-defined]


class Graphs:
    """Records nothing; a replay is free, and counted."""

    def __init__(self) -> None:
        self.replays = 0

    def record(self, function: Callable[[], torch.Tensor]) -> Recording:
        def replay() -> None:
            self.replays += 1

        return Recording(replay, function(), 0)


class Operations(TorchDispatchMode):
    """Counts PyTorch's operations; views cost nothing on a device and are left out."""

    VIEWS = (
        "view slice select as_strided t unsqueeze expand detach detach_ permute transpose alias split split_with_sizes "
        "unbind squeeze flatten resolve_conj resolve_neg lift_fresh to"  # and what does nothing between CPU tensors
    ).split()

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in self.VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def host_ms(call: Callable[[], Any], calls: int = 60) -> dict[str, float]:
    """Milliseconds of this thread per call."""
    for _ in range(8):
        call()
    times = []
    for _ in range(calls):
        start = time.thread_time()
        call()
        times.append(1e3 * (time.thread_time() - start))
    least, median = np.quantile(times, (0.0, 0.5)).tolist()
    return {"min_ms": round(least, 4), "median_ms": round(median, 4)}


def kernels() -> Any:
    """All on the kernels; the plan of a batch, which reads values that a pretend device does not have, on the host."""
    return vilt_fast.backend("kernels", patch_sample="reference")


def small(blocks: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model of 24 columns in bf16 with its padded inputs at B=1."""
    fields = dict(hidden_size=24, num_hidden_layers=blocks, num_attention_heads=2, intermediate_size=48)
    config = dict(**fields, patch_size=32, image_size=384, num_labels=8, vocab_size=100)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, 384, 512, generator=generator).bfloat16()
    words = torch.randint(1, 100, (1, 9), generator=generator)
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words), "pixel_values": pixels}
    return config, {**inputs, "pixel_mask": torch.ones(1, 384, 512, dtype=torch.int64)}


def live_beside_transformers() -> dict[str, Any]:
    """Eager `model(**inputs)` at B=1, twelve blocks."""
    import transformers

    config, inputs = small(blocks=12)
    inputs |= {"pixel_values": inputs["pixel_values"][..., :96, :96], "pixel_mask": inputs["pixel_mask"][:, :96, :96]}
    theirs = transformers.ViltForQuestionAnswering(transformers.ViltConfig(**config)).eval().bfloat16()
    ours = vilt_fast.ViltForQuestionAnswering(vilt_fast.ViltConfig(**config)).eval().bfloat16()
    with torch.inference_mode():
        before = host_ms(lambda: theirs(**inputs).logits)
        with kernels():
            mine = host_ms(lambda: ours(**inputs).logits)
            frozen = vilt_fast.freeze(ours)
            frozen_ms = host_ms(lambda: frozen(**inputs).logits)
        after = host_ms(lambda: theirs(**inputs).logits)
    least = min(before["min_ms"], after["min_ms"])
    return {
        "transformers": before,
        "transformers again": after,
        "live": mine,
        "frozen without graphs": frozen_ms,
        "live / transformers": round(mine["min_ms"] / least, 3),
    }


def frozen_with_graphs(batch: int) -> dict[str, Any]:
    """ViT-B's sizes, from the host: padded floats with their mask, and packed bytes."""
    work = workloads.vqa_mix(batch)
    case = Case(work, full_config(work, num_hidden_layers=1), CPU, 1)
    frozen = vilt_fast.freeze(case.model(torch.bfloat16), max_tokens=max(2 * sum(case.lengths), 512))
    graphs = Graphs()
    frozen.use_buckets(graphs)
    padded, packed = case.inputs_in(torch.bfloat16)[0], case.packed_inputs[0]
    calls = 30 if batch < 64 else 15
    with kernels():
        found = {
            "padded floats": _times(frozen, padded, case, calls),
            "packed bytes": _times(frozen, packed, case, calls),
        }
    mask = padded["pixel_mask"].numpy()
    grid_size = (mask.shape[1] // 32, mask.shape[2] // 32)
    found["padded floats"]["reading the mask"] = host_ms(lambda: planning.grids_of_mask(mask, grid_size), 15)
    assert graphs.replays == frozen.stats().calls
    return found


def _times(frozen: Any, inputs: dict[str, Any], case: Case, calls: int) -> dict[str, Any]:
    """Of a call, charged for its two copies (words with the plan, pixels) and its replay; and of its planning alone."""
    times = host_ms(lambda: frozen(**inputs), calls)
    charged = {name: round(value + 2 * COPY_MS + REPLAY_MS, 4) for name, value in times.items()}
    return {**charged, "planning": host_ms(lambda: plan(Inputs(**inputs), case.config), 15)}


class NoStages:
    """Stages that do nothing."""

    def is_loaded(self, source: Any) -> bool:
        return True

    def load(self, source: Any) -> None:
        return None

    def measure(self, items: Any) -> None:
        for item in items:
            item.tokens = 211

    def prepare(self, items: Any) -> Any:
        return items

    def launch(self, prepared: Any) -> Any:
        return prepared

    def finish(self, items: Any, launched: Any) -> list[int]:
        return [0] * len(items)

    def recover(self) -> None:
        pass


def engine_alone(pairs: int = 20_000) -> dict[str, float]:
    """The engine's threads around stages that do nothing: microseconds of all threads per pair."""
    images, best = [object() for _ in range(pairs)], float("inf")
    for _ in range(3):
        pipeline = Pipeline(NoStages(), max_tokens=49_152, max_pairs=768, max_pending=1536)
        start = time.process_time()
        submitted = ((image, "what colour is the cat?") for image in images)
        results = in_order(lambda image, text: pipeline.ticket("answer", image, text), submitted, 1536, "raise")  # noqa: B023
        assert sum(1 for _ in results) == pairs
        best = min(best, (time.process_time() - start) / pairs)
        pipeline.close()
    return {"us per pair": round(1e6 * best, 2), "pairs per s": round(1 / best)}


class RegionCase:
    """Texts of 5 to 9 words with 0 to 8 regions."""

    def __init__(self, batch: int, config: vilt_fast.VisualBertConfig) -> None:
        generator = torch.Generator().manual_seed(batch)
        words, regions = (torch.randint(*ends, (batch, 1), generator=generator) for ends in ((5, 10), (0, 9)))
        mask, kept = torch.arange(9) < words, torch.arange(8) < regions
        self.config, self.lengths = config, (mask.sum(1) + kept.sum(1)).tolist()
        self.given = {
            "input_ids": torch.randint(1, config.vocab_size, (batch, 9), generator=generator),
            "attention_mask": mask.long(),
            "visual_embeds": torch.randn(batch, 8, config.visual_embedding_dim, generator=generator),
            "visual_attention_mask": kept.long(),
        }
        self.packed_inputs = [self.given]  # features have one form

    def model(self, dtype: torch.dtype) -> Any:
        return vilt_fast.VisualBertForQuestionAnswering(self.config).eval().to(dtype)

    def inputs_in(self, dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
        return [{**self.given, "visual_embeds": self.given["visual_embeds"].to(dtype)}]


def batches_of(family: str) -> list[Any]:
    """Batches of one size class with a model of two blocks."""
    sizes = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, num_labels=7)
    if family == "visual_bert":
        region_config = vilt_fast.VisualBertConfig(**sizes, vocab_size=200, visual_embedding_dim=32)
        return [RegionCase(n, region_config) for n in BATCHES]
    sizes |= dict(patch_size=16, image_size=96)
    if family == "vit":
        config = vilt_fast.ViTConfig(**sizes)
        return [vit.ViTCase(smaller(vit.mixed(n, seed=n)), config, CPU, 1) for n in BATCHES]
    config = full_config(workloads.vqa_mix(1), **sizes, vocab_size=200)
    return [Case(workloads.shrunk(workloads.vqa_mix(n, seed=n), 16, side=96), config, CPU, 1) for n in BATCHES]


def smaller(work: vit.Images) -> vit.Images:
    """Sides a quarter as long."""
    return replace(work, sizes=tuple((height // 72 * 16, width // 72 * 16) for height, width in work.sizes))


def counts(family: str) -> dict[str, Any]:
    """What does not depend on the machine: programs, launches, and operations of PyTorch that launch or allocate."""
    batches = batches_of(family)
    assert len({size_bucket(sum(case.lengths)) for case in batches}) == 1
    model = batches[0].model(torch.bfloat16)
    frozen, graphs = vilt_fast.freeze(model, max_tokens=4096), Graphs()
    found: dict[str, Any] = {}
    with torch.inference_mode(), kernels():
        for form, call in (("live", model), ("frozen", frozen)):
            _answer(call, batches[:1])
            pretend.COMPILED.clear()
            _answer(call, batches)
            found[f"{form}: compiled for more batch sizes"] = dict(pretend.COMPILED)
            found[form] = _counted(lambda call=call: call(**batches[3].inputs_in(torch.bfloat16)[0]))
        frozen.use_buckets(graphs)
        recorder, graphs.record = graphs.record, lambda function: Recording(_counted(function), None, 0)
        found["captured"] = frozen._buckets.record(256).replay
        graphs.record = recorder
        frozen.use_buckets(graphs)
        _answer(frozen, batches)
        found["around a replay"] = _counted(lambda: frozen(**batches[3].packed_inputs[0]))
        frozen.use_buckets(graphs)
        frozen.warmup()
        pretend.COMPILED.clear()
        _answer(frozen, batches)
        found["compiled after warmup"] = dict(pretend.COMPILED)
    return found


def _answer(call: Any, batches: list[Any]) -> None:
    for case in batches:
        call(**case.inputs_in(torch.bfloat16)[0])
        call(**case.packed_inputs[0])


def _counted(call: Callable[[], Any]) -> dict[str, dict[str, int]]:
    pretend.LAUNCHED.clear()
    call()
    launched = dict(pretend.LAUNCHED)
    with Operations() as operations:
        call()
    return {"launches": launched, "operations": dict(operations.counts)}


def main() -> None:
    """Print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", action="store_true", help="counts alone")
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pretend.install()
    every = {family: counts(family) for family in ("vilt", "vit", "visual_bert")}
    found: dict[str, Any] = {"command": "python tests/host/measure.py", "counts": every}
    if not arguments.counts:
        found["environment"] = environment(CPU)
        found["eager, B=1"] = live_beside_transformers()
        for batch in (1, 256):
            found[f"frozen with graphs, B={batch}"] = frozen_with_graphs(batch)
        found["engine, empty stages"] = engine_alone()
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
