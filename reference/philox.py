"""Philox4x32-10: four random words from a counter and a key (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3", section 3.3).
"""

from typing import Any

MASK32 = 0xFFFFFFFF
Word = Any  # a Tensor of int64 in [0, 2**32), or an int; their shapes broadcast


def philox4x32(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    """Four words for each counter, those of Random123's `philox4x32` and of `triton.language.philox`.

    Args:
        counter: four words. key: two.

    Returns:
        Four words, uniform and independent.

    Example:
        >>> [hex(word) for word in philox4x32((0, 0, 0, 0), (0, 0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    (c0, c1, c2, c3), (key0, key1) = counter, key
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & MASK32, (key1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def _multiply(a: int, b: Word) -> tuple[Word, Word]:
    """High and low 32 bits of a * b, for a >= 2**31."""
    # a * b can pass 2**63, and an int64 ends there. (a - 2**32) * b does not: it is less by b in the high half.
    product = (a - 2**32) * b
    return (product >> 32) + b, product & MASK32
