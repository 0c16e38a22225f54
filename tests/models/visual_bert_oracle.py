"""Random VisualBERTs of transformers and ours with the same weights, ragged words and regions, and checks by row."""

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vilt_fast

transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle of these tests")

_spec = importlib.util.spec_from_file_location("vilt_oracle", Path(__file__).parent / "oracle.py")
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)

CLASSES = (
    "VisualBertModel",
    "VisualBertForPreTraining",
    "VisualBertForQuestionAnswering",
    "VisualBertForMultipleChoice",
    "VisualBertForVisualReasoning",
    "VisualBertForRegionToPhraseAlignment",
)
SMALL = dict(
    vocab_size=37,
    hidden_size=24,
    visual_embedding_dim=14,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=40,
    max_position_embeddings=12,
    num_labels=5,
)
PER_ROW = ("last_hidden_state", "hidden_states", "prediction_logits")


def config_kwargs(index: int) -> dict[str, Any]:
    """Configuration number `index`: odd sizes, every switch within any 12 of them."""
    draw = random.Random(3000 + index)
    heads, head_dim = ((2, 12), (3, 16), (3, 9), (2, 7), (5, 4), (1, 24))[index % 6]
    return dict(
        vocab_size=draw.choice((37, 50)),
        hidden_size=heads * head_dim,
        visual_embedding_dim=draw.choice((8, 17, 30)),
        num_hidden_layers=1 + index // 2 % 2,
        num_attention_heads=heads,
        intermediate_size=draw.choice((30, 56, 41)),
        hidden_act=("gelu", "relu", "gelu_new", "selu")[index // 3 % 4],
        max_position_embeddings=draw.choice((9, 12)),
        type_vocab_size=draw.choice((2, 3)),
        layer_norm_eps=draw.choice((1e-12, 1e-5)),
        special_visual_initialize=index % 2 == 0,
        num_labels=draw.choice((2, 4, 7)),
    )


def build(name: str, kwargs: dict[str, Any], *, seed: int = 0, **options: Any) -> Any:
    """transformers' model `name`, every parameter random so that a missing term shows."""
    model = getattr(transformers, name)(transformers.VisualBertConfig(**kwargs), **options)
    return oracle.randomise(model, seed).eval()


def pair(name: str, directory: Path, *, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """(ours, theirs) with the small sizes, through a directory that transformers writes."""
    options = {"add_pooling_layer": changes.pop("add_pooling_layer")} if "add_pooling_layer" in changes else {}
    theirs = build(name, {**SMALL, **changes}, seed=seed, **options)
    theirs.save_pretrained(directory)
    return getattr(vilt_fast, name).from_pretrained(directory, **options), theirs


def batch(config: Any, seed: int = 0, size: int = 3, *, holes: bool = False) -> dict[str, Tensor]:
    """Ragged words (two or more of each pair) and regions (one or more), padded with values that must not be read.

    With `holes` any word but the first, and any region but one, may be masked.
    """
    generator = torch.Generator().manual_seed(8000 + seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    length, regions = int(integers(4, config.max_position_embeddings + 1, 1)), int(integers(2, 7, 1))
    words = torch.arange(length) < integers(2, length + 1, size)[:, None]
    seen = torch.arange(regions) < integers(1, regions + 1, size)[:, None]
    words[0], seen[-1] = True, True
    if holes:
        words, seen = (torch.rand(mask.shape, generator=generator) < 0.6 for mask in (words, seen))
        words[:, 0], seen[:, -1] = True, True
        words[:, -2] = True
    features = torch.randn(size, regions, config.visual_embedding_dim, generator=generator)
    return {
        "input_ids": integers(0, config.vocab_size, size, length),
        "attention_mask": words.long(),
        "token_type_ids": integers(0, config.type_vocab_size, size, length),
        "visual_embeds": torch.where(seen[..., None], features, 1000.0),
        "visual_attention_mask": seen.float(),
        "visual_token_type_ids": integers(0, config.type_vocab_size, size, regions),
    }


def extras(config: Any, inputs: dict[str, Tensor], seed: int = 0, *, longer: int = 0) -> dict[str, Tensor]:
    """Positions of words, and an alignment of regions, `longer` than they are, that ends in -1."""
    generator = torch.Generator().manual_seed(8500 + seed)
    size, length = inputs["input_ids"].shape
    regions = inputs["visual_embeds"].shape[1] + longer
    alignment = torch.randint(-1, length, (size, regions, 3), generator=generator)
    alignment[..., -1] = -1
    alignment[0, 0] = -1
    positions = torch.randint(0, config.max_position_embeddings, (size, length), generator=generator)
    return {"position_ids": positions, "image_text_alignment": alignment}


def inputs_for(name: str, config: Any, seed: int = 0, *, holes: bool = False) -> dict[str, Tensor]:
    """A batch without labels in the form that class `name` takes; its optional arguments come and go with the seed."""
    choices = name == "VisualBertForMultipleChoice"
    inputs = batch(config, seed, 4 if choices else 3, holes=holes)
    more = extras(config, inputs, seed, longer=seed % 3)
    if seed % 3 == 1:
        inputs["position_ids"] = more["position_ids"]
    if seed % 2:
        inputs["image_text_alignment"] = more["image_text_alignment"]
    generator = torch.Generator().manual_seed(8800 + seed)
    if seed % 4 == 2:
        shape = (*inputs.pop("input_ids").shape, config.hidden_size)
        inputs["inputs_embeds"] = torch.randn(shape, generator=generator)
    if name == "VisualBertForRegionToPhraseAlignment":
        inputs["region_to_phrase_position"] = phrases(inputs, generator)
    if choices:  # transformers wants alignments flat
        inputs = {k: v if k == "image_text_alignment" else v.unflatten(0, (2, 2)) for k, v in inputs.items()}
    return inputs


def phrases(inputs: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """(B, 4) places of words that are attended to; the last one of the first pair is -1."""
    places = torch.multinomial(inputs["attention_mask"].float(), 4, replacement=True, generator=generator)
    places[0, -1] = -1
    return places


def labels_for(name: str, config: Any, inputs: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Labels of a batch of `inputs_for`, none of them at a masked place; nothing for the base model."""
    generator = torch.Generator().manual_seed(9500 + seed)
    size = len(inputs["attention_mask"])
    if name == "VisualBertForPreTraining":
        real = real_rows(inputs)
        words = torch.randint(0, config.vocab_size, real.shape, generator=generator)
        words[torch.rand(real.shape, generator=generator) < 0.5] = -100
        words[:, 0] = 3
        labels = {"labels": words.masked_fill(~real, -100)}
        if seed % 2:
            labels["sentence_image_labels"] = torch.randint(0, 2, (size,), generator=generator)
        return labels
    if name == "VisualBertForQuestionAnswering":
        return {"labels": torch.rand(size, config.num_labels, generator=generator)}
    if name == "VisualBertForMultipleChoice":
        return {"labels": torch.randint(0, 2, (size,), generator=generator)}
    if name == "VisualBertForVisualReasoning":
        return {"labels": torch.randint(0, config.num_labels, (size,), generator=generator)}
    if name == "VisualBertForRegionToPhraseAlignment":
        mask = inputs["visual_attention_mask"][:, None]
        return {"labels": torch.rand(size, 4, mask.shape[-1], generator=generator) * mask}
    return {}


def real_rows(inputs: dict[str, Tensor]) -> Tensor:
    """(B, S) bool, which rows of words and regions are attended to; of choices, (B * n, S)."""
    both = [inputs[name].flatten(0, -2) != 0 for name in ("attention_mask", "visual_attention_mask") if name in inputs]
    return torch.cat(both, dim=1)


def check_outputs(got: Any, wanted: Any, inputs: dict[str, Tensor], tolerance: float) -> None:
    """The same fields; rows that are attended to agree, and ours are zero elsewhere."""
    real = real_rows(inputs)
    assert list(got) == list(wanted)
    for field, value in wanted.items():
        if field in ("hidden_states", "attentions"):
            oracle.check_layers(field, got[field], value, real, tolerance)
        elif field in PER_ROW:
            oracle.check_rows(field, got[field], value, real, tolerance)
        elif value.dim() == 3:  # regions scored for phrases
            check_scores(got[field], value, inputs, tolerance)
        else:
            oracle.check_close(field, got[field], value, tolerance)


def check_scores(got: Tensor, wanted: Tensor, inputs: dict[str, Tensor], tolerance: float) -> None:
    """(B, N, R) agree at regions that are attended to; the others have the least number."""
    seen = (inputs["visual_attention_mask"] != 0)[:, None].expand_as(got)
    oracle.check_close("scores", got[seen], wanted[seen], tolerance)
    assert got[~seen].eq(torch.finfo(got.dtype).min).all(), "scores of masked regions"


def objective(output: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The loss, or a scalar in which every value of the first field has a weight of its own; masked rows have none."""
    if "loss" in output:
        return output["loss"]
    part, real = output[0], real_rows(inputs)
    if part.shape[1:2] == real.shape[1:]:
        part = part * real[..., None]
    elif part.dim() == 3:  # scores of regions
        part = part.masked_fill(part == torch.finfo(part.dtype).min, 0)
    return (part * torch.linspace(-1, 1.5, part.shape[-1]).to(part)).sum()
