"""How a table of positions is read for a grid of another size: the values of `interpolation`.

In each, entry n of N on an axis and cell c of C meet at another place of the table:

- "bilinear": c (N - 1) / (C - 1), the corners aligned (ViLT).
- "bicubic": (c + 1/2) N / C - 1/2, Keys' kernel with a = -3/4 (ViT in transformers from 4.45 on).
- "bicubic_scale": (c + 1/2) N / (C + 1/10) - 1/2, the same kernel (ViT in transformers before 4.45, and DINO); none
  where a grid has the size of the table.

None: every grid has the size of the table.
"""

BILINEAR = "bilinear"
BICUBIC = "bicubic"
BICUBIC_SCALE = "bicubic_scale"
INTERPOLATIONS = (None, BILINEAR, BICUBIC, BICUBIC_SCALE)
SCALE_EXCESS = 0.1  # of a cell: "a small number to avoid floating point error" in DINO's code, which moves every place
CUBIC_A = -0.75  # PyTorch's choice, as OpenCV's; Pillow's is -1/2


def check_interpolation(operation: str, interpolation: str | None) -> None:
    """Raises ValueError unless it is one of them."""
    if interpolation not in INTERPOLATIONS:
        wanted = ", ".join(map(repr, INTERPOLATIONS))
        raise ValueError(f"{operation}: interpolation: got {interpolation!r}, wanted one of {wanted}")
