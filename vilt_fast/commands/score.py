"""`vilt-fast fill`, `match` and `nlvr`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch

from vilt_fast.commands.given import check_given
from vilt_fast.commands.loading import as_dicts, finite, open_and_load, prepare, print_json, print_ranked
from vilt_fast.engine.results import fill_masks, match_scores


@torch.no_grad()
def fill(arguments: argparse.Namespace) -> None:
    """Fill the masked words one by one and print the text, then each word in the order in which it was filled."""
    check_given(arguments)
    images, model, processor = open_and_load(arguments, arguments.image)
    inputs = prepare(processor, model, images, arguments.text)
    steps = fill_masks(model, inputs, processor.tokenizer.mask_token_id)
    words = finite((processor.decode([token]), chance) for token, chance in steps)
    text = processor.decode(inputs["input_ids"][0].tolist(), skip_special_tokens=True)
    if arguments.json:
        print_json(arguments, filled=text, words=as_dicts(words, "word"))
        return
    print(text)
    print_ranked(words)


@torch.no_grad()
def match(arguments: argparse.Namespace) -> None:
    """Print the texts with their scores, best first."""
    check_given(arguments)
    images, model, processor = open_and_load(arguments, arguments.image)
    inputs = prepare(processor, model, images * len(arguments.texts), arguments.texts)
    logits = model(**inputs).logits  # (texts, 1) of the ranking head or (texts, 2) of the matching head
    is_ranking = logits.shape[1] == 1
    ranked = _best_first(zip(arguments.texts, match_scores(logits).tolist(), strict=True))
    if arguments.json:
        meaning = "logit" if is_ranking else "probability"
        print_json(arguments, score_is=meaning, matches=as_dicts(ranked, "text", "score"))
        return
    print_ranked(ranked, "8.3f" if is_ranking else "6.1%")


@torch.no_grad()
def nlvr(arguments: argparse.Namespace) -> None:
    """Print whether the sentence is true of the two images, with the probability of each label."""
    check_given(arguments)
    images, model, processor = open_and_load(arguments, *arguments.images)
    if model.config.num_images != 2:
        raise ValueError(f"--model: got weights for {model.config.num_images} images per text, wanted 2")
    inputs = prepare(processor, model, images, arguments.text)
    for name in ("pixel_values", "pixel_mask"):
        inputs[name] = inputs[name].unsqueeze(0)  # one pair of images: (1, 2, ...)
    chances = model(**inputs).logits[0].float().softmax(-1).tolist()
    ranked = _best_first((model.config.id2label[i], chance) for i, chance in enumerate(chances))
    if arguments.json:
        print_json(arguments, labels=as_dicts(ranked, "label"))
        return
    print_ranked(ranked)


def _best_first(scored: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(finite(scored), key=lambda pair: -pair[1])
