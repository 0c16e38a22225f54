"""The vocabulary of the demo model, in the format of BERT's vocab.txt: small, yet able to spell any word."""

from __future__ import annotations

import string

from .scene import COLORS, SHAPES

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Every word that a question uses, besides the names of shapes and colours.
WORDS = (
    "a above an and any anything are below bigger bottom can center color colour count do does fewer have how in is it "
    "larger left less many more most number object objects of on or part picture right see shape shapes smaller than "
    "the there thing things to top under what where which yes no you"
).split()


def vocabulary() -> list[str]:
    """The word pieces in the order of their ids: special tokens, words, then letters and digits to spell the rest."""
    names = [*SHAPES, *(f"{name}s" for name in SHAPES), *COLORS]
    letters = [c for c in string.ascii_lowercase if c != "a"]  # "a" is a word
    spelled = [*letters, *string.digits]
    pieces = [f"##{c}" for c in string.ascii_lowercase + string.digits]
    return [*SPECIAL, *WORDS, *names, *string.punctuation, *spelled, *pieces]
