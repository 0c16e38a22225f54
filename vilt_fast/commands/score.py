"""`vilt-fast fill`, `match` and `nlvr`."""

from __future__ import annotations

import argparse

import torch

from vilt_fast.commands.loading import load, open_picture, prepare, print_json
from vilt_fast.engine.results import fill_masks, match_scores


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


@torch.no_grad()
def match(arguments: argparse.Namespace) -> None:
    """Print the texts with their scores, best first."""
    picture = open_picture(arguments.image)
    model, processor = load(arguments)
    inputs = prepare(processor, model, [picture] * len(arguments.texts), arguments.texts)
    logits = model(**inputs).logits  # (texts, 1) of the ranking head or (texts, 2) of the matching head
    is_ranking, scores = logits.shape[1] == 1, match_scores(logits).tolist()
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
