"""Files of a ViT: config.json, preprocessor_config.json, and weights under other releases' and families' names."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from mutate import mutate_json
from registry import kind
from safetensors.torch import save_file
from samples import saved_vit, vit

import vilt_fast
from vilt_fast import ViTForImageClassification, ViTImageProcessor

_NEW_NAMES = {  # of the modules of transformers 5
    "encoder.layer.": "layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


@kind
def vit_config(rng: Random, folder: Path) -> None:
    """Refused, or a model that classifies, live and frozen, and is written and read again as it is."""
    shutil.copy(saved_vit() / "model.safetensors", folder)
    text, same = _mutated(rng, "config.json")
    (folder / "config.json").write_bytes(text)
    read = ViTForImageClassification.from_pretrained(folder)
    logits = _classify(read)
    assert logits.shape == (1, read.config.num_labels) and logits.isfinite().all()
    if not (read.config.output_attentions or read.config.output_hidden_states):  # which the frozen form refuses
        assert torch.allclose(_classify(vilt_fast.freeze(read)), logits, atol=1e-5)
    if same:
        assert torch.equal(logits, _classify(_unchanged()))
    read.save_pretrained(folder / "again")
    again = ViTForImageClassification.from_pretrained(folder / "again")
    assert again.config == read.config and torch.equal(_classify(again), logits)


@kind
def vit_processor(rng: Random, folder: Path) -> None:
    """preprocessor_config.json: refused, or an image that the model's family takes."""
    text, same = _mutated(rng, "preprocessor_config.json")
    (folder / "preprocessor_config.json").write_bytes(text)
    read = ViTImageProcessor.from_pretrained(folder)
    sides = [*(read.size or {}).values(), *(read.crop_size or {}).values()]
    if max(sides, default=0) > 2000:
        return  # too large to make here each time
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pixels = read(image, return_tensors="np")["pixel_values"]
    assert pixels.shape[:2] == (1, 3) and pixels.dtype in (np.float32, np.uint8, np.float64)
    if same:
        wanted = ViTImageProcessor.from_pretrained(saved_vit())(image, return_tensors="np")
        assert np.array_equal(pixels, wanted["pixel_values"])
    read.save_pretrained(folder / "again")
    assert ViTImageProcessor.from_pretrained(folder / "again").to_dict() == read.to_dict()


@kind
def vit_weights(rng: Random, folder: Path) -> None:
    """Tensors under other names, of other shapes, missing or too many: refused, or exactly those of the file."""
    state = {name: tensor.clone() for name, tensor in _unchanged().state_dict().items()}
    content = json.loads((saved_vit() / "config.json").read_text())
    if rng.random() < 0.4:
        for old, new in _NEW_NAMES.items():
            state = {name.replace(old, new): tensor for name, tensor in state.items()}
    if rng.random() < 0.3:
        _make_distilled(rng, state, content)
    for name in rng.sample([*state], rng.choice((0, 0, 1, 2))):
        shape = [*state[name].shape]
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 7))
        state[name] = rng.choice((torch.ones(shape), torch.ones(()), torch.full(shape, torch.nan), torch.ones(3).int()))
    if rng.random() < 0.2:
        del state[rng.choice([*state])]
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(content))
    options = {"drop_distillation_token": True} if rng.random() < 0.5 else {}
    read = ViTForImageClassification.from_pretrained(folder, **options)
    assert torch.equal(read.classifier.weight, state.get("cls_classifier.weight", state.get("classifier.weight")))
    assert _classify(read).isfinite().all()


def _make_distilled(rng: Random, state: dict[str, torch.Tensor], content: dict) -> None:
    """What transformers writes of a DeiT with its teacher, or nearly."""
    for name in [*state]:
        state[name.replace("vit.", "deit.").replace("classifier.", "cls_classifier.", 1)] = state.pop(name)
    state["deit.embeddings.distillation_token"] = torch.ones(1, 1, 24)
    positions = state["deit.embeddings.position_embeddings"]
    if rng.random() < 0.8:
        state["deit.embeddings.position_embeddings"] = torch.cat((positions[:, :1], positions), 1)
    content["model_type"] = rng.choice(("deit", "deit", "vit", "vit_mae"))


def _mutated(rng: Random, name: str) -> tuple[bytes, bool]:
    """The changed text of a file, and whether it says the same as before."""
    content = json.loads((saved_vit() / name).read_text())
    text = mutate_json(rng, content)
    try:
        return text, json.loads(text) == content
    except (ValueError, RecursionError):
        return text, False


@cache
def _unchanged() -> ViTForImageClassification:
    return vit()


@torch.no_grad()
def _classify(model: object) -> torch.Tensor:
    return model(torch.ones(1, 3, 32, 32) * 0.3, interpolate_pos_encoding=True, return_dict=True).logits
