"""Random pictures, a small vocabulary like BERT's, random texts, and what "the same" means."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = (
    "the a what which how many is are there colour color red green blue cat cats dog left right of in on and not "
    "cafe naive uber strasse moscow привет мир γεια שלום مرحبا 東京 こんにちは 한국 don t 2 3 10 km hello world un "
).split()
PIECES = "s ing ed er ly un able ation e i o t n r ль ет ια ום 쿠 ん に ち は".split()
SCRIPTS = (
    range(0x21, 0x7F),
    range(0xA1, 0x180),
    range(0x370, 0x400),
    range(0x400, 0x460),
    range(0x5D0, 0x5EB),
    range(0x621, 0x64B),
    range(0x3041, 0x3097),
    range(0x30A1, 0x30FB),
    range(0x4E00, 0x4E40),
    range(0xAC00, 0xAC20),
    range(0x1100, 0x1113),
    range(0x1F600, 0x1F610),
)


def make_vocabulary() -> list[str]:
    characters = [chr(code) for script in SCRIPTS for code in script if chr(code).isprintable()]
    lower = [character for character in characters if character == character.lower()]
    tokens = [*SPECIAL[:1], "[unused0]", "[unused1]", *SPECIAL[1:], *characters, *WORDS]
    tokens += [f"##{piece}" for piece in [*lower, *PIECES]]
    return list(dict.fromkeys(tokens))


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in make_vocabulary()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def random_texts() -> list[str]:
    """2,000 strings: words, accents whole and combining, CJK, emoji, control characters, spaces, any code point."""
    rng = random.Random(0)
    pools = [
        lambda: rng.choice(WORDS),
        lambda: rng.choice(WORDS).upper(),
        lambda: rng.choice(" \t\n\r\u00a0\u3000\u2009"),
        lambda: chr(rng.choice(rng.choice(SCRIPTS))),
        lambda: rng.choice("éÉçñüÅøİıßﬁǅ"),
        lambda: rng.choice("aeiouAEIOUn") + chr(rng.randrange(0x300, 0x370)),  # a combining accent
        lambda: chr(rng.randrange(0x4E00, 0xA000)),
        lambda: rng.choice(["\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f469\u200d\U0001f467", "\u2764\ufe0f"]),
        lambda: chr(rng.randrange(0, 0x20)),
        lambda: rng.choice("\x7f\x85\u200b\u200d\u2028\u2029\ufeff\ufffd\u202e\xad"),
        lambda: rng.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡§«¶·»¿‐–—‘’“”…‹›、。「」【】！？"),
        lambda: rng.choice([*SPECIAL, "[unused0]", "##ing", "[mask]"]),
        lambda: chr(rng.choice([rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x110000)])),
    ]

    def text() -> str:
        return "".join(rng.choice(pools)() + rng.choice(["", "", " "]) for _ in range(rng.randrange(25)))

    edge_cases = ["", " ", "\x00", "a" * 150, "\u0301" * 5, "[SEP]" * 3, "\u06f5", "don't", "a.b,c!d?", "\ufdfa"]
    return edge_cases + [text() for _ in range(1990)]


def _random_picture(rng: np.random.Generator, low: int = 20, high: int = 300) -> np.ndarray:
    height = int(rng.integers(low, high))
    width = int(height * rng.uniform(0.34, 2.9))  # more elongated ones are refused, see below
    kind = rng.integers(3)
    if kind == 0:  # noise: every rounding of the filter shows
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == 1:  # smooth, as photographs are
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return np.where(rng.random((height, width, 1)) < 0.5, 0, 255).astype(np.uint8).repeat(3, axis=2)  # extremes


@pytest.fixture(scope="session")
def random_picture():
    """A function: generator, lowest height, highest height -> uint8 (height, width, 3)."""
    return _random_picture


def _assert_same(ours, theirs) -> None:
    assert list(ours) == list(theirs)
    for key in theirs:
        assert len(ours[key]) == len(theirs[key])
        for a, b in zip(ours[key], theirs[key], strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, err_msg=key)  # bit for bit: no tolerance


@pytest.fixture(scope="session")
def assert_same():
    """A function: two batches have the same keys, dtypes and values, bit for bit."""
    return _assert_same
