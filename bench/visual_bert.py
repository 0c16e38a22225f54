"""VisualBERT that answers questions, on the same clocks: its workloads, what a case of them is, and who answers it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vilt_fast import ops
from vilt_fast.bench import case as vilt
from vilt_fast.bench import flops, ours, peers, workloads
from vilt_fast.bench.contestant import Calls, Contestant, Unavailable
from vilt_fast.configs.visual_bert import VisualBertConfig
from vilt_fast.frozen.visual_bert import plan_regions
from vilt_fast.models.region_inputs import RegionInputs
from vilt_fast.models.visual_bert import VisualBertForQuestionAnswering
from vilt_fast.packing import Layout
from vilt_fast.reference import visual_bert as reference

MOST_WORDS, MOST_REGIONS = 60, 36
Unpadded: TypeAlias = tuple[list[list[int]], Tensor, list[int]]  # ids of each text, all features, regions of each


# --- workloads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs(workloads.Workload):
    """Texts with the regions of an image each.

    Args:
        regions: of each pair.
    """

    regions: tuple[int, ...] = ()

    def sequences(self, patch_size: int = 0) -> list[int]:
        """Tokens of each pair: words and regions."""
        return [words + regions for words, regions in zip(self.lengths, self.regions, strict=True)]

    def padded_tokens(self, patch_size: int = 0) -> int:
        """Rows of the same batch padded to its longest text and its most regions."""
        return self.batch * (max(self.lengths) + max(self.regions))

    def shape(self) -> str:
        """See the base class."""
        words, regions = (f"{min(counts)}..{max(counts)}" for counts in (self.lengths, self.regions))
        return f"{self.batch} x {words} words, {regions} regions"

    def inputs(self, config: Any, seed: int = 0) -> dict[str, Tensor]:
        """input_ids, attention_mask (B, L), visual_embeds (B, R, features) fp32, visual_attention_mask (B, R) int64."""
        generator = torch.Generator().manual_seed(seed)
        words, most = self.words(config, generator), max(self.regions)
        mask = torch.arange(most) < torch.tensor(self.regions)[:, None]
        features = torch.randn(self.batch, most, config.visual_embedding_dim, generator=generator)
        return {**words, "visual_embeds": features * mask[..., None], "visual_attention_mask": mask.long()}


def mixed(batch_size: int, seed: int = 0) -> Pairs:
    """Texts of 8 to 60 words and images of 10 to 36 regions, each count as likely as the next.

    36 regions are what features for VQA have at most (Anderson et al. 2018), and 10 what an adaptive detector keeps at
    least; 60 words hold a sentence and a short one of VCR, 8 the shortest question with [CLS] and [SEP].
    """
    generator = np.random.default_rng(seed)
    words = generator.integers(8, MOST_WORDS + 1, batch_size)
    regions = generator.integers(10, MOST_REGIONS + 1, batch_size)
    return Pairs("visual-bert-mixed", (), tuple(words.tolist()), regions=tuple(regions.tolist()))


def full(batch_size: int, seed: int = 0) -> Pairs:
    """Every text of 60 words and every image of 36 regions: nothing to pad, so packing wins nothing."""
    return Pairs("visual-bert-full", (), (MOST_WORDS,) * batch_size, regions=(MOST_REGIONS,) * batch_size)


WORKLOADS: dict[str, Callable[..., Pairs]] = {"visual-bert-mixed": mixed, "visual-bert-full": full}


# --- the case ---------------------------------------------------------------------------------------------------------


class VisualBertCase(vilt.Case):
    """Pairs with a VisualBERT that answers questions."""

    workload: Pairs

    @classmethod
    def of(
        cls, workload: workloads.Workload, device: torch.device, sets: int, compiles: bool, *, quick: bool
    ) -> VisualBertCase:
        """With BERT's base size, features of 2048 and 3129 answers; or a quarter of the pairs and two blocks of 48."""
        assert isinstance(workload, Pairs)
        config = VisualBertConfig(visual_embedding_dim=2048, num_labels=3129)
        if quick:
            lengths, regions = (tuple(n // 4 for n in counts) for counts in (workload.lengths, workload.regions))
            workload = replace(workload, lengths=lengths, regions=regions)
            small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
            tables = {"vocab_size": 200, "max_position_embeddings": 40, "visual_embedding_dim": 24}
            config = VisualBertConfig(**small, **tables, num_labels=7)  # type: ignore[arg-type]
        return cls(workload, config, device, sets, compiles)

    @property
    def master(self) -> Any:
        """Our model in fp32 on the CPU: the weights that everybody gets."""
        make = VisualBertForQuestionAnswering
        return vilt._shared(self.key, lambda: vilt.telling_weights(make(self.config)).eval())

    def inputs_in(self, dtype: torch.dtype) -> list[dict[str, Tensor]]:
        """The inputs with features of a dtype."""
        return [{**one, "visual_embeds": one["visual_embeds"].to(dtype)} for one in self.inputs]

    def unpadded(self, one: dict[str, Tensor]) -> Unpadded:
        """One of the inputs as `plan_regions` takes them: features (regions, features) where contestants run."""
        ids = one["input_ids"].tolist()
        rows = [text[:length] for text, length in zip(ids, self.workload.lengths, strict=True)]
        return rows, one["visual_embeds"][one["visual_attention_mask"] != 0], list(self.workload.regions)

    def _reference(self, state: dict[str, Tensor]) -> Tensor:
        inputs, logits = self.inputs_in(torch.float64)[0], []
        for start in range(0, self.workload.batch, vilt.REFERENCE_CHUNK):
            some: dict[str, Any] = {name: one[start : start + vilt.REFERENCE_CHUNK] for name, one in inputs.items()}
            last = reference.encode(state, self.config, **some).last_hidden_state
            logits.append(reference.answer(state, last, some["attention_mask"]))
        return torch.cat(logits)

    @cached_property
    def packed(self) -> tuple[Tensor, Layout]:
        """See the base class."""
        model = self.model(torch.float32)
        with ops.backend("reference"), torch.inference_mode():
            given: dict[str, Any] = self.inputs[0]
            batch = RegionInputs(**given).check(self.config)
            return model.visual_bert.embeddings(
                batch.layout(self.config, []),
                input_ids=batch.input_ids,
                token_type_ids=batch.token_type_ids,
                visual_embeds=batch.visual_embeds,
                visual_token_type_ids=batch.visual_token_type_ids,
            )

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every pair."""
        return self.workload.sequences()

    def cost(self, scope: str, dtype: torch.dtype) -> flops.Cost:
        """See the base class."""
        size, pairs = dtype.itemsize, self.workload.batch
        if not scope.startswith("encoder"):
            return flops.visual_bert(self.config, self.lengths, sum(self.workload.regions), pairs, size)
        encoder = flops.encoder(self.config, self.lengths, size, pairs if scope == "encoder" else None)
        return encoder + flops.linear(pairs, self.config.hidden_size, self.config.num_labels, size)

    def describe(self) -> dict[str, Any]:
        """See the base class."""
        work, config = self.workload, self.config
        return {
            "workload": work.name,
            "batch": work.batch,
            "tokens": work.tokens(),
            "padded_tokens": work.padded_tokens(),
            "shape": work.shape(),
            "model": f"{config.num_hidden_layers} x {config.hidden_size}, features {config.visual_embedding_dim}",
        }


# --- peers ------------------------------------------------------------------------------------------------------------


def transformers_model(case: VisualBertCase, dtype: torch.dtype) -> nn.Module:
    """Its class with our weights; eager attention is all that it has.

    Raises:
        Unavailable: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise Unavailable("transformers is not installed") from error

    def make() -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            case.master.save_pretrained(folder)
            return transformers.VisualBertForQuestionAnswering.from_pretrained(folder)

    return case.shared("transformers", dtype, make)


def transformers_calls(case: VisualBertCase, dtype: torch.dtype, *, compile: bool = False) -> Calls:
    """Its model on the inputs, padded to the longest text and the most regions of the batch."""
    model = transformers_model(case, dtype)
    forward: Any = torch.compile(model) if compile else model

    def call(inputs: dict[str, Tensor]) -> Tensor:
        return forward(**inputs).logits

    return [partial(call, one) for one in case.inputs_in(dtype)]


def packed_calls(case: VisualBertCase, dtype: torch.dtype) -> Calls:
    """The padded inputs packed with PyTorch's operations alone, then the encoder that is written by hand."""
    module = peers.hand_written(case, dtype)
    name = "visual_bert.embeddings."
    tables = {key.removeprefix(name): value for key, value in case.model(dtype).state_dict().items() if name in key}
    of = {key.removesuffix("_embeddings.weight"): value for key, value in tables.items()}
    norm = (tables["LayerNorm.weight"], tables["LayerNorm.bias"], case.config.layer_norm_eps)
    projection = (tables["visual_projection.weight"], tables["visual_projection.bias"])

    def call(input_ids: Tensor, attention_mask: Tensor, visual_embeds: Tensor, visual_attention_mask: Tensor) -> Tensor:
        words, regions = attention_mask != 0, visual_attention_mask != 0
        real = torch.cat((words, regions), 1)
        is_word = (torch.arange(real.shape[1], device=real.device) < words.shape[1]).expand_as(real)[real]
        rows = of["word"].new_empty(len(is_word), case.config.hidden_size)
        rows[is_word] = of["word"][input_ids[words]] + of["position"][words.nonzero()[:, 1]] + of["token_type"][0]
        seen = of["visual_position"][0] + of["visual_token_type"][1]
        rows[~is_word] = F.linear(visual_embeds[regions], *projection) + seen
        rows = F.layer_norm(rows, norm[0].shape, *norm)
        lengths = real.sum(1)
        starts = F.pad(lengths.cumsum(0), (1, 0))
        if rows.is_cuda:
            attend = peers.varlen(rows, starts.int(), int(lengths.max()))
        else:
            attend = peers.in_spans(lengths.tolist())
        return module(rows, starts[:-1] + words.sum(1) - 2, attend)

    return [partial(call, **one) for one in case.inputs_in(dtype)]


# --- ours -------------------------------------------------------------------------------------------------------------


def planned_calls(case: VisualBertCase, dtype: torch.dtype, *, backend: str, graphs: bool = False) -> Calls:
    """The frozen form on lists of ids and on all features one after the other, which it plans without a mask."""
    frozen, switched = ours.frozen_model(case, dtype, backend=backend, graphs=graphs)

    def call(one: Unpadded) -> Tensor:
        with switched():
            return frozen.run(plan_regions(*one)).logits

    return [partial(call, case.unpadded(one)) for one in case.inputs_in(dtype)]


def planning_calls(case: VisualBertCase, dtype: torch.dtype) -> Calls:
    """The host's part of `planned_calls`."""
    return [partial(plan_regions, *case.unpadded(one)) for one in case.inputs_in(dtype)]


# --- the list ---------------------------------------------------------------------------------------------------------


def contestants(dtype: torch.dtype) -> list[Contestant]:
    """transformers and the hand-written ones, then ours."""
    theirs, compiled = partial(transformers_calls, dtype=dtype), partial(transformers_calls, dtype=dtype, compile=True)
    found = [
        Contestant("transformers eager", dtype, theirs),
        Contestant("transformers + torch.compile", dtype, compiled, compiles=True),
        Contestant("packed by hand", dtype, partial(packed_calls, dtype=dtype)),
    ]
    for backend, side in (("reference", ", reference"), ("kernels", "")):
        live = partial(ours.model_calls, dtype=dtype, backend=backend)
        found.append(Contestant(f"vilt_fast live{side}", dtype, live, is_ours=True))
        for graphs in (False, True) if backend == "kernels" else (False,):
            found += _frozen(f"vilt_fast frozen{side}" + " + graph" * graphs, dtype, backend=backend, graphs=graphs)
    return [*found, *peers.encoder_peers(dtype), *ours.encoder_contestants(dtype)]


def _frozen(name: str, dtype: torch.dtype, **options: Any) -> list[Contestant]:
    """From padded inputs and from unpadded ones, each with its planning reported apart."""
    forms = {"": (ours.frozen_calls, ours.planning_calls), ", unpadded": (planned_calls, planning_calls)}
    return [
        Contestant(
            name + form,
            dtype,
            partial(make, dtype=dtype, **options),
            is_ours=True,
            planning=partial(planning, dtype=dtype),
        )
        for form, (make, planning) in forms.items()
    ]
