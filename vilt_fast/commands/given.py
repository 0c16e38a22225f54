"""What a command line gives: no name and no text is empty, and texts are Unicode."""

from __future__ import annotations

import argparse
import os

from PIL import Image

from vilt_fast.checkpoints.files import brief

# How the names of files of regions end.
REGION_FILES = (".npz", ".npy")
# Attribute of the arguments -> its name for the user.
_NAMES = {
    **{"folder": "--images", "regions": "--regions", "image": "IMAGE"},
    **{"model": "--model", "out": "--out", "processor": "--processor"},
}
_TEXTS = {"question": "QUESTION", "text": "TEXT", "texts": "TEXT"}


def check_given(arguments: argparse.Namespace) -> None:
    """Refuse empty names, which would mean the current directory or the default, and texts that ask nothing.

    Raises:
        ValueError: names the argument.
    """
    given = vars(arguments)
    for attribute, name in {**_NAMES, "images": "IMAGE"}.items():
        if "" in _listed(given.get(attribute)):
            raise ValueError(f"{name}: got an empty name, wanted another")
    for attribute, name in _TEXTS.items():
        for text in _listed(given.get(attribute)):
            if not text.strip():
                raise ValueError(f"{name}: got {text!r}, wanted a text with words in it")
            check_utf8(text, name)


def check_utf8(text: str, name: str) -> None:
    """Raise ValueError for an argument whose bytes were not UTF-8: Python hands them over as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = ord(text[error.start])
        shown = f"the byte {got - 0xDC00:#x}" if 0xDC80 <= got <= 0xDCFF else f"half of a surrogate pair, {got:#x},"
        raise ValueError(
            f"{name}: got {shown} as character {error.start + 1} of {text[:60]!r}, wanted a text in UTF-8"
        ) from error


def check_no_file(question: str, name: str) -> None:
    """Refuse to ask the name of a file: one that is there, or a word that ends as those of images and regions do."""
    endings = (*Image.registered_extensions(), *REGION_FILES)
    is_name = len(question.split()) == 1 and question.strip().lower().endswith(endings)
    if is_name or os.path.isfile(question):
        raise ValueError(f"{name}: got {brief(question)}, a file, wanted the question")


def _listed(value: str | list[str] | None) -> list[str]:
    return [] if value is None else value if isinstance(value, list) else [value]
