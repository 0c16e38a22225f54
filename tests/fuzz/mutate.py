"""Mutations of bytes and of JSON, drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

_DEEP = "@deep@"
# Values of every kind that JSON has, and the ends of their ranges.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 24, 255, 1000, 2**31 - 1, 2**31, 2**63, 10**9, 10**30, -(10**30)),
    *(0.0, -0.5, 0.5, 1.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "0", "-1", "true", "\ud800", "\0", "[UNK]", "left", "max_length", "../x", "a" * 5000, "é", _DEEP),
    *([], [1], [[]], [None], ["a", "a"], {}, {"a": 1}, {"0": "a", "2": "b"}, {"0": "a", "-1": "b"}, {"type": "x"}),
)
_KEYS = ("", "self", "kwargs", "__class__", "__dict__", "__init__", "size", "0", "-1", "to_dict", "_x", "dtype", "pad")
_LITERALS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"tru",
    b"{",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'"\\ud800"',
)
_JUNK = (
    b"",
    b"\0" * 3000,
    b"<html>404</html>",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"PK\x03\x04",
    b"null",
)


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """One to four changes: bits, bytes, numbers, pieces cut out, doubled or put in, the tail cut off."""
    if rng.random() < 0.03:
        return rng.choice(_JUNK)
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(content) + 1) if rng.random() < 0.5 else rng.randrange(min(len(content), 64) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 50)), len(content) - at)
        piece = bytes(content[at : at + length])
        new = rng.choice(
            (
                bytes(rng.randrange(256) for _ in range(length)),
                rng.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**63, 2**64 - 1)).to_bytes(
                    8, rng.choice(("little", "big"))
                )[:length],
                b"",
                piece * 2,
                bytes(byte ^ (1 << rng.randrange(8)) for byte in piece),
            )
        )
        content[at : at + length] = new
    return bytes(content[: rng.randrange(len(content) + 1)] if rng.random() < 0.2 else content)


def mutate_json(rng: Random, content: Any) -> bytes:
    """The text of a JSON value after one to three changes of its values and keys, or of the text itself."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3))):
        content = _change(rng, content)
    deep = rng.choice((70, 500, 100_000))
    text = json.dumps(content).replace(f'"{_DEEP}"', "[" * deep + "]" * deep).encode()
    if rng.random() < 0.07:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(_LITERALS) + text[at:]
    if rng.random() < 0.06:
        text = mutate_bytes(rng, text)
    if rng.random() < 0.05:  # a key twice
        text = b'{"model_type": "vilt", ' + text[1:].replace(b"{", b'{"type": 1, "type": 2, ', 1)
    if rng.random() < 0.05:
        text = text.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-8-sig", "utf-32-be")))
    return text


def any_value(rng: Random) -> Any:
    """One of VALUES, the caller's own: a later change must not reach the next case."""
    return copy.deepcopy(rng.choice(VALUES))


def _change(rng: Random, content: Any) -> Any:
    places = list(_places(content))
    if not places or rng.random() < 0.01:
        return any_value(rng)
    holder, key = rng.choice(places)
    action = rng.random()
    if action < 0.7:
        holder[key] = any_value(rng) if rng.random() < 0.6 else _near(rng, holder[key])
    elif action < 0.8:
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice((*_KEYS, key + "x", key[:-1]))] = copy.deepcopy(rng.choice((holder[key], any_value(rng))))
    else:
        holder.append(copy.deepcopy(rng.choice((holder[key], any_value(rng)))))
    return content


def _near(rng: Random, value: Any) -> Any:
    """A value of the same kind: an integer one off, a text cut."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((value - 1, value + 1, value * 2, value // 2))
    return value[: len(value) // 2] if isinstance(value, str | list) else value


def _places(content: Any) -> Any:
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])
