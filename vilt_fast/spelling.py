"""What someone probably meant who spelled a name wrongly."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], cutoff: float = 0.85) -> str | None:
    """The known name that is spelled most alike, whatever the case; None where none is near.

    Args:
        cutoff: what 2 * (letters in common) / (letters of both) must reach.
    """
    by_lower = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), by_lower, 1, cutoff)
    return by_lower[found[0]] if found else None
