"""`vilt-fast fill`, `match` and `nlvr`."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from vilt_fast.commands.loading import load, open_picture, prepare, print_json


@torch.no_grad()
def fill(arguments: argparse.Namespace) -> None:
    """Fill the masked words one by one and print the text, then each word in the order in which it was filled."""
    picture = open_picture(arguments.image)
    model, processor = load(arguments)
    inputs = prepare(processor, model, [picture], arguments.text)
    steps = fill_masks(model, inputs, processor.tokenizer.mask_token_id)
    words = [{"word": processor.decode([token]), "probability": chance} for token, chance in steps]
    text = processor.decode(inputs["input_ids"][0].tolist(), skip_special_tokens=True)
    if arguments.json:
        print_json(arguments, filled=text, words=words)
        return
    print(text)
    for step in words:
        print(f"  {step['probability']:6.1%}  {step['word']}")


def fill_masks(model: Any, inputs: dict[str, torch.Tensor], mask_token_id: int) -> list[tuple[int, float]]:
    """Replace every mask token of inputs["input_ids"] (1, L), in place, the surest first.

    Each step runs the model again, so that a filled word helps with the rest. The procedure is that of the example in
    Hugging Face's documentation of ViltForMaskedLM.

    Returns:
        (token id, probability) of each filled word, in the order of filling.

    Raises:
        ValueError: no word is masked.
    """
    ids = inputs["input_ids"]
    open_places = ids[0] == mask_token_id  # (L,)
    if not open_places.any():
        raise ValueError("TEXT: got no masked word, wanted at least one [MASK]")
    steps = []
    while open_places.any():
        chances, tokens = model(**inputs).logits[0].float().softmax(-1).max(-1)  # (L,)
        place = int(chances.masked_fill(~open_places, -1.0).argmax())
        ids[0, place] = tokens[place]
        open_places[place] = False
        steps.append((int(tokens[place]), float(chances[place])))
    return steps


@torch.no_grad()
def match(arguments: argparse.Namespace) -> None:
    """Print the texts with their scores, best first."""
    picture = open_picture(arguments.image)
    model, processor = load(arguments)
    inputs = prepare(processor, model, [picture] * len(arguments.texts), arguments.texts)
    logits = model(**inputs).logits.float()  # (texts, 1) of the ranking head or (texts, 2) of the matching head
    is_ranking = logits.shape[1] == 1
    scores = (logits[:, 0] if is_ranking else logits.softmax(-1)[:, 1]).tolist()
    ranked = sorted(zip(arguments.texts, scores, strict=True), key=lambda pair: -pair[1])
    if arguments.json:
        meaning = "logit" if is_ranking else "probability"
        print_json(arguments, score_is=meaning, matches=[{"text": text, "score": score} for text, score in ranked])
        return
    for text, score in ranked:
        print(f"  {score:8.3f}  {text}" if is_ranking else f"  {score:6.1%}  {text}")


@torch.no_grad()
def nlvr(arguments: argparse.Namespace) -> None:
    """Print whether the sentence is true of the two pictures, with the probability of each label."""
    pictures = [open_picture(path) for path in arguments.images]
    model, processor = load(arguments)
    if model.config.num_images != 2:
        raise ValueError(f"--model: got weights for {model.config.num_images} pictures a text, wanted 2")
    inputs = prepare(processor, model, pictures, arguments.text)
    for name in ("pixel_values", "pixel_mask"):
        inputs[name] = inputs[name].unsqueeze(0)  # one pair of pictures: (1, 2, ...)
    chances = model(**inputs).logits[0].float().softmax(-1)
    ranked = sorted(((model.config.id2label[i], p) for i, p in enumerate(chances.tolist())), key=lambda pair: -pair[1])
    if arguments.json:
        print_json(arguments, labels=[{"label": label, "probability": chance} for label, chance in ranked])
        return
    for label, chance in ranked:
        print(f"  {chance:6.1%}  {label}")
