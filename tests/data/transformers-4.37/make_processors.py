"""Writes ViTImageProcessor, ViTFeatureExtractor and DeiTImageProcessor beside this file; tests/processing reads them.

Run it with transformers==4.37.2 (numpy<2, no torch needed). Each directory is what `save_pretrained` of that version
writes, and expected.json holds hashes of what it makes of arrays that a seed says.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

SIZE = {"height": 24, "width": 32}
DIRECTORIES: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {"size": SIZE, "image_mean": [0.4, 0.5, 0.6]},
    "ViTFeatureExtractor": {"size": 28, "image_std": [0.3, 0.2, 0.1]},
    # Where an odd number of zeros is missing, 4.37 cuts one pixel too little: a defect.
    "DeiTImageProcessor": {"size": {"height": 37, "width": 40}, "crop_size": {"height": 30, "width": 44}},
}
# What is given: the dtype, whether it is in [0, 1], and the settings of the call.
CALLS: list[tuple[str, bool, dict[str, Any]]] = [
    ("uint8", False, {}),
    ("uint8", False, {"do_resize": False}),
    ("float32", False, {}),
    ("float32", False, {"do_resize": False}),
    ("float32", False, {"do_resize": False, "rescale_factor": 0.3, "do_normalize": False}),
    ("float16", False, {"do_resize": False}),
    ("float64", False, {"do_resize": False}),
    ("float32", True, {}),
    ("float32", True, {"do_rescale": False}),
    ("float32", True, {"do_resize": False, "do_rescale": False}),
    ("float16", True, {"do_rescale": False, "do_normalize": False}),
]


def picture(seed: int, dtype: str, is_unit: bool) -> np.ndarray:
    """(45, 60, 3) noise, the same for the same seed."""
    noise = hashlib.shake_256(str(seed).encode()).digest(45 * 60 * 3)
    values = np.frombuffer(noise, dtype=np.uint8).reshape(45, 60, 3)
    return (values / 256 if is_unit else values).astype(dtype)


def digest(pixels: np.ndarray) -> str:
    """Shape, dtype and values in one hash."""
    head = f"{pixels.shape} {pixels.dtype} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def main(root: Path) -> None:
    import transformers

    assert transformers.__version__ == "4.37.2", f"wanted transformers 4.37.2, got {transformers.__version__}"
    for name, settings in DIRECTORIES.items():
        processor = getattr(transformers, name)(**settings)
        processor.save_pretrained(root / name)
        hashes = [
            digest(processor(picture(seed, dtype, is_unit), **call, return_tensors="np")["pixel_values"])
            for seed, (dtype, is_unit, call) in enumerate(CALLS)
        ]
        (root / name / "expected.json").write_text(json.dumps(hashes, indent=0) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
