"""JSON files of a model: config.json, the tokenizer's, the image processor's; and vocab.txt."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from mutate import mutate_bytes, mutate_json
from registry import kind
from samples import saved_model

import vilt_fast
from vilt_fast.processing.text import BertTokenizer
from vilt_fast.processing.vilt import ViltImageProcessor

_TEXTS = ["what colour is the cat?", "Cats & dogs", ""]


@kind
def config(rng: Random, folder: Path) -> None:
    """Refused, or a model that answers, and whose configuration is written and read again as it is."""
    shutil.copy(saved_model() / "model.safetensors", folder)
    text, same = _mutated(rng, "config.json")
    (folder / "config.json").write_bytes(text)
    read = vilt_fast.ViltForQuestionAnswering.from_pretrained(folder)
    logits = _answer(read)
    assert logits.shape == (1, read.config.num_labels) and logits.isfinite().all()
    if same:
        assert torch.equal(logits, _answer(_unchanged()))
    read.save_pretrained(folder / "again")
    again = vilt_fast.ViltForQuestionAnswering.from_pretrained(folder / "again")
    assert again.config == read.config and torch.equal(_answer(again), logits)


def _mutated(rng: Random, name: str) -> tuple[bytes, bool]:
    """The changed text of a file, and whether it says the same as before."""
    content = json.loads((saved_model() / name).read_text())
    text = mutate_json(rng, content)
    try:
        return text, json.loads(text) == content
    except (ValueError, RecursionError):
        return text, False


@cache
def _unchanged() -> torch.nn.Module:
    return vilt_fast.ViltForQuestionAnswering.from_pretrained(saved_model())


@torch.no_grad()
def _answer(model: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(0)
    ids = torch.tensor([[2, 5, 6, 3]])
    return model(input_ids=ids, pixel_values=torch.ones(1, 3, 32, 32) * 0.3, return_dict=True).logits


@kind
def tokenizer(rng: Random, folder: Path) -> None:
    """One file of the tokenizer changed: refused, or a tokenizer that encodes, decodes, and saves itself as it is."""
    names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "added_tokens.json"]
    for name in names[:4]:
        shutil.copy(saved_model() / name, folder)
    changed = rng.choice(names)
    path = folder / changed
    if changed == "vocab.txt":
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    elif changed == "added_tokens.json":
        path.write_bytes(mutate_json(rng, {"<new>": 18, "<other>": 19}))
    else:
        path.write_bytes(_mutated(rng, changed)[0])
    if changed in names[2:]:  # files that are read where the newer ones are not there
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer.json").unlink()
    _check_tokenizer(BertTokenizer.from_pretrained(folder), folder)


def _check_tokenizer(read: BertTokenizer, folder: Path) -> None:
    pad = "longest" if read.pad_token is not None else False
    rows = read(_TEXTS, padding=pad)["input_ids"]
    largest = max(read.get_vocab().values())
    assert all(isinstance(index, int) and 0 <= index <= largest for row in rows for index in row)
    assert all(isinstance(text, str) for text in read.batch_decode(rows))
    read.save_pretrained(folder / "again")
    again = BertTokenizer.from_pretrained(folder / "again")
    assert again(_TEXTS, padding=pad)["input_ids"] == rows
    # The library decodes a special token that is said to be normalised now as it is, now lowered.
    assert [text.lower() for text in again.batch_decode(rows)] == [text.lower() for text in read.batch_decode(rows)]


@kind
def image_processor(rng: Random, folder: Path) -> None:
    """preprocessor_config.json: refused, or images of the size that it says."""
    text, same = _mutated(rng, "preprocessor_config.json")
    path = folder / rng.choice(("preprocessor_config.json", "processor_config.json"))
    path.write_bytes(text if path.name.startswith("pre") else b'{"image_processor": ' + text + b"}")
    read = ViltImageProcessor.from_pretrained(folder)
    edge = read.size["shortest_edge"]
    if read.do_resize and (edge > 2000 or edge < read.size_divisor):
        return  # too large to make here each time, or no image at all
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pixels = read(image, return_tensors="np")["pixel_values"]
    assert pixels.shape[:2] == (1, 3) and pixels.dtype in (np.float32, np.uint8, np.float64)
    if same:
        assert np.array_equal(
            pixels, ViltImageProcessor.from_pretrained(saved_model())(image, return_tensors="np")["pixel_values"]
        )
    read.save_pretrained(folder / "again")
    assert ViltImageProcessor.from_pretrained(folder / "again").to_dict() == read.to_dict()
