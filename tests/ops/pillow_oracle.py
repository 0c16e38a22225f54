"""What a Pillow release makes of pictures drawn from seeds, as hashes, with that Pillow and the standard library alone.

    python pillow_oracle.py                     reads [[H, W, C, h, w], ...] on stdin, writes {"version", "hashes"}
    python pillow_oracle.py resize_golden.json  records the hashes of the Pillow that is installed in that file

Case i is filled with SHAKE-256 of i, so the pictures are the same everywhere. `PYTHONPATH` chooses the Pillow:
`pip install --no-deps --target DIR pillow==12.3.0`, then `PYTHONPATH=DIR`.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import PIL
from PIL import Image

# Modes that Pillow resizes as they are; it multiplies LA and RGBA by their alpha first.
MODES = {1: "L", 2: "La", 3: "RGB", 4: "CMYK"}


def picture(seed: int, height: int, width: int, channels: int) -> bytes:
    """Noise, the same bytes for the same seed."""
    return hashlib.shake_256(str(seed).encode()).digest(height * width * channels)


def resized(data: bytes, height: int, width: int, channels: int, out_height: int, out_width: int) -> bytes:
    """The bytes of Pillow's bicubic."""
    image = Image.frombytes(MODES[channels], (width, height), data)
    return image.resize((out_width, out_height), Image.Resampling.BICUBIC).tobytes()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def hashes(cases: Sequence[Sequence[int]]) -> list[str]:
    """One hash a case (H, W, C, h, w)."""
    return [digest(resized(picture(seed, *case[:3]), *case)) for seed, case in enumerate(cases)]


def main(*paths: str) -> None:
    if not paths:
        json.dump({"version": PIL.__version__, "hashes": hashes(json.load(sys.stdin))}, sys.stdout)
        return
    golden = json.loads(Path(paths[0]).read_text())
    golden["hashes"][PIL.__version__] = hashes(golden["cases"])
    parts = [f'"cases": {json.dumps(golden["cases"])}']
    recorded = ",\n".join(f'"{version}": {json.dumps(row)}' for version, row in golden["hashes"].items())
    parts.append(f'"hashes": {{\n{recorded}\n}}')
    Path(paths[0]).write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
