"""Rows written at their places in the packed tensor; a row of -1 is written nowhere."""

import torch
from torch import Tensor


def which_count(row: Tensor) -> Tensor | slice:
    """Those that have a place, as an index; under torch.compile all, as no size may then depend on values."""
    return slice(None) if torch.compiler.is_compiling() else row >= 0


def write_rows(tokens: Tensor, row: Tensor, rows: Tensor) -> Tensor:
    """(rows, d) with (n, d) written at (n,) integers `row`, of which only torch.compile gives any that are -1."""
    if not torch.compiler.is_compiling():
        return tokens.index_copy(0, row.long(), rows)
    nowhere = len(tokens)  # a row more, which is cut off again
    row = torch.where(row < 0, nowhere, row.long())
    return torch.cat((tokens, tokens[:1])).index_copy(0, row, rows)[:nowhere]
