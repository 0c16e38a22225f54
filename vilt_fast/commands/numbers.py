"""Numbers on a command line, as the `type` of an argument: argparse.ArgumentTypeError says what was wanted."""

from __future__ import annotations

import argparse

_MOST = 10**9  # of what is counted
_DIGITS = 18  # of a number that PyTorch takes


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or len(text) > _DIGITS or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}, wanted a positive integer up to {_MOST}")
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal() or len(text) > _DIGITS:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}, wanted an integer >= 0 of at most {_DIGITS} digits")
    return int(text)


def minutes(text: str) -> float:
    """A positive number."""
    try:
        given = float(text)
    except ValueError:
        given = -1.0
    if not 0 < given < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a positive number")
    return given


def size(text: str) -> tuple[int, int]:
    """(height, width) of HEIGHTxWIDTH."""
    height, _, width = text.lower().partition("x")
    try:
        return positive(height), positive(width)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}, wanted HEIGHTxWIDTH in pixels, such as 384x640") from None
