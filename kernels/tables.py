"""What a table of `launch` may say. An entry that no launch asks for is refused by name: it would be ignored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .registry import CLASSES, SWITCHES

_LINEAR = tuple(f"linear_descriptor{variant}" for variant in ("", "_residual", "_normed", "_moments"))
OPERATIONS = ("switches", "linear_pointer", *_LINEAR, "attention", "attention_resident", "layer_norm", "row_moments")
OPERATIONS += ("patch_embed", "patch_embed_bytes")
_NAMES = {"op": OPERATIONS, "bucket": CLASSES, "dtype": ("float16", "bfloat16", "float32", "tf32")}
_SIZES = ("N", "K")
_KEYS = (*_NAMES, *_SIZES, "config", "why")


def check_entries(path: Path, entries: list[dict[str, Any]]) -> None:
    """Raises unless every entry can count for a launch.

    Raises:
        ValueError: names the file, the entry by its number from 0, what came and what is wanted.
    """
    for number, entry in enumerate(entries):
        for wrong in _wrongs(entry):
            raise ValueError(f"{path}: entry {number}: {wrong}")


def _wrongs(entry: dict[str, Any]) -> Iterator[str]:
    for key, values in entry.items():
        if key not in _KEYS:
            yield f"got the key {key!r}, wanted any of {', '.join(_KEYS)}"
        listed = values if isinstance(values, list) else [values]
        for value in listed:
            if key in _NAMES and value not in _NAMES[key]:
                yield f"{key}: got {value!r}, wanted any of {', '.join(_NAMES[key])}"
            if key in _SIZES and type(value) is not int:
                yield f"{key}: got {value!r}, wanted an integer"
    if entry["op"] == "switches":
        yield from _wrong_switches(entry)
    elif "switches" in entry["op"]:
        yield f'op: got {entry["op"]}, wanted "switches" alone'


def _wrong_switches(entry: dict[str, Any]) -> Iterator[str]:
    for name, value in entry["config"].items():
        if name not in SWITCHES:
            yield f"got the switch {name!r}, wanted any of {', '.join(SWITCHES)}"
            continue
        if type(value) is not bool:
            yield f"switch {name!r}: got {value!r}, wanted true or false"
        keys = SWITCHES[name].keys
        for key in entry.keys() - {"op", "config", "why"} - set(keys):
            yield f"switch {name!r}: got the key {key!r}, wanted {', '.join(keys) or 'none'}: it is not chosen by more"
