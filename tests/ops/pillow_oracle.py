"""What a Pillow release makes of pictures drawn from seeds, as hashes, with that Pillow and the standard library alone.

    python pillow_oracle.py                     reads [[H, W, C, h, w], ...] on stdin, writes {"version", "hashes"}
    python pillow_oracle.py resize_golden.json  records the hashes of the Pillow that is installed in that file

Case i is filled with SHAKE-256 of i, so the pictures are the same everywhere. `PYTHONPATH` chooses the Pillow:
`pip install --no-deps --target DIR pillow==12.3.0`, then `PYTHONPATH=DIR`.
"""

import hashlib
import json
import sys
from pathlib import Path

import PIL
from PIL import Image

# Modes that Pillow resizes as they are; it multiplies LA and RGBA by their alpha first.
MODES = {1: "L", 2: "La", 3: "RGB", 4: "CMYK"}


def picture(seed: int, height: int, width: int, channels: int) -> bytes:
    """Noise, the same bytes for the same seed."""
    return hashlib.shake_256(str(seed).encode()).digest(height * width * channels)


FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resized(data: bytes, height: int, width: int, channels: int, size: tuple[int, int], resample: str) -> bytes:
    """The bytes of Pillow's result, (height, width) = size."""
    image = Image.frombytes(MODES[channels], (width, height), data)
    return image.resize(size[::-1], FILTERS[resample]).tobytes()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def hashes(cases: list[list[int]]) -> dict[str, list[str]]:
    """For each filter one hash a case (H, W, C, h, w)."""
    pictures = [(picture(seed, *case[:3]), *case[:3], tuple(case[3:])) for seed, case in enumerate(cases)]
    return {name: [digest(resized(*arguments, name)) for arguments in pictures] for name in FILTERS}


def main(*paths: str) -> None:
    if not paths:
        json.dump({"version": PIL.__version__, "hashes": hashes(json.load(sys.stdin))}, sys.stdout)
        return
    golden = json.loads(Path(paths[0]).read_text())
    for resample, row in hashes(golden["cases"]).items():
        golden.setdefault(resample, {})[PIL.__version__] = row
    parts = [f'"cases": {json.dumps(golden["cases"])}']
    for resample in FILTERS:
        recorded = ",\n".join(f'"{version}": {json.dumps(row)}' for version, row in golden[resample].items())
        parts.append(f'"{resample}": {{\n{recorded}\n}}')
    Path(paths[0]).write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
